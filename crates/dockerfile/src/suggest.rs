//! The nearest known name: at most two edits away, as BuildKit's hints are.

/// The first of `options` that is nearest to `word`, unless `word` is one of them or none is within two edits. Another
/// case is one edit.
pub fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut best = None;
    let mut limit = 3;
    for option in options {
        if option == word {
            return None;
        }
        let distance = if option.eq_ignore_ascii_case(word) { 1 } else { edits(word, option) };
        // Nothing of a name is left where all of its letters are replaced.
        if distance < limit && distance < word.chars().count().max(option.chars().count()) {
            limit = distance;
            best = Some(option.to_owned());
        }
    }
    best
}

/// Insertions, deletions and replacements that make `b` of `a`. Gives up (with a large number) where lengths differ much.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_within_two_edits_is_suggested() {
        let known = ["COPY", "CMD", "ADD"];
        assert_eq!(nearest("COPPY", known).as_deref(), Some("COPY"));
        assert_eq!(nearest("CDM", known).as_deref(), Some("CMD"));
        assert_eq!(nearest("WHATEVER", known), None);
        assert_eq!(nearest("ADD", known), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("chown", ["CHOWN"]).as_deref(), Some("CHOWN"));
    }
}
