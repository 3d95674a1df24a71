//! Heredocs: their markers in a line, and what variables mean in their bodies.

use crate::shell::{self, Reading, Rules};
use crate::{Diagnostic, Scope, Span, word};

/// `<<EOF` in a line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Marker {
    /// As written, for finding it in its line.
    pub(crate) raw: String,
    /// The delimiter without quotes and escapes.
    pub(crate) name: String,
    /// Nothing of the delimiter was quoted.
    pub(crate) expand: bool,
    /// `<<-`.
    pub(crate) strip_tabs: bool,
    /// The number before `<<`.
    pub(crate) fd: u32,
}

/// A marker with the lines that it took.
pub(crate) struct Body {
    pub(crate) marker: Marker,
    /// The lines as they are, with their line ends.
    pub(crate) content: String,
    pub(crate) span: Span,
}

/// Markers are lexed with the backslash, whatever the file's escape character is.
const ESCAPE: char = '\\';

/// The markers of a line, in order. A line whose quotes or braces don't close has none.
pub(crate) fn markers(line: &str) -> Result<Vec<Marker>, String> {
    let rules = Rules { keep_quotes: true, keep_escapes: true, keep_unset: true, ..Rules::new(ESCAPE) };
    let words = shell::read(line, rules, &()).map(|reading| reading.words).unwrap_or_default();
    words.iter().filter_map(|word| marker(word).transpose()).collect()
}

/// The marker that `word` is, if it is one: digits, `<<`, maybe `-`, and a delimiter without `<`.
pub(crate) fn marker(word: &str) -> Result<Option<Marker>, String> {
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = Rules { keep_unset: true, ..Rules::new(ESCAPE) };
    let words = shell::read(rest, plain, &())?.words;
    let [name] = words.as_slice() else { return Ok(None) };
    let quoted = shell::read(rest, Rules { keep_quotes: true, ..plain }, &())?.words;
    let [quoted] = quoted.as_slice() else {
        return Err(format!("the delimiter of the heredoc {word} can't be read"));
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Marker {
        raw: word.to_owned(),
        name: name.clone(),
        expand: quotes(name) == quotes(quoted),
        strip_tabs,
        fd: if digits == 0 { 0 } else { word[..digits].parse().unwrap_or(u32::MAX) },
    }))
}

/// A body without the tabs that its lines begin with.
pub(crate) fn strip_tabs(content: &str) -> String {
    content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Expands the body of a heredoc whose delimiter was not quoted.
///
/// Quotes are ordinary characters. A backslash escapes whatever follows it and goes: `\$x` becomes `$x`, `\n` becomes `n`.
/// BuildKit escapes by the backslash here whatever the file's escape character is, so `_escape` has no effect.
pub fn expand_heredoc(content: &str, _escape: char, scope: &dyn Scope) -> Result<String, Diagnostic> {
    match read_body(content, scope) {
        Ok(reading) => Ok(reading.text),
        Err(why) => Err(word::failure(content.lines().next().unwrap_or(""), &why, Span::default())),
    }
}

pub(crate) fn read_body(content: &str, scope: &dyn Scope) -> Result<Reading, String> {
    shell::read(content, Rules { ignore_quotes: true, ..Rules::new(ESCAPE) }, scope)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn names(line: &str) -> Vec<(String, bool, bool, u32)> {
        markers(line).unwrap().into_iter().map(|m| (m.name, m.expand, m.strip_tabs, m.fd)).collect()
    }

    #[test]
    fn markers_are_found_among_words() {
        let eof = |expand, strip, fd| vec![("EOF".to_owned(), expand, strip, fd)];
        assert_eq!(names("RUN <<EOF"), eof(true, false, 0));
        assert_eq!(names("RUN cat <<-'EOF' >x"), eof(false, true, 0));
        assert_eq!(names("RUN 3<< \"EOF\""), eof(false, false, 3));
        assert_eq!(names("RUN <<E\\OF"), eof(true, false, 0));
        for none in [
            "RUN <<<EOF",
            "RUN a<<EOF",
            "RUN '<<EOF'",
            "RUN \\<<EOF",
            "RUN <<",
            "RUN <<- EOF",
            "RUN <<EOF 'x",
        ] {
            assert_eq!(names(none), [], "{none}");
        }
        assert_eq!(names("COPY <<a <<'b' /x/").len(), 2);
    }

    #[test]
    fn bodies_keep_quotes_and_lose_backslashes() {
        let scope = BTreeMap::from([("x".to_owned(), "1".to_owned())]);
        let expand = |text| expand_heredoc(text, '\\', &scope).unwrap();
        assert_eq!(expand("'$x' \"${x}\" \\${x} \\n ${y:-d}\n"), "'1' \"1\" ${x} n d\n");
        assert!(expand_heredoc("${x", '\\', &scope).is_err());
    }
}
