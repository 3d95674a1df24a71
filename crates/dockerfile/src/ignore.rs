//! `.dockerignore` and `--exclude`, by the rules of moby/patternmatcher: Go's patterns with `**`, `!` takes back, the last
//! match wins, and what lies below a match is matched too.

use crate::glob::BadPattern;

/// Patterns compiled once.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

/// One pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    parts: Vec<Part>,
    takes_back: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`: any number of components.
    Any,
    /// One component.
    One(String),
}

impl Pattern {
    /// Compiles one pattern; `None` if nothing is left of it once it is cleaned.
    ///
    /// Fails if it is no pattern.
    pub fn new(text: &str) -> Result<Option<Self>, BadPattern> {
        let text = text.trim();
        let (text, takes_back) = text.strip_prefix('!').map_or((text, false), |rest| (rest.trim(), true));
        let clean = clean(text);
        if clean.is_empty() {
            return Ok(None);
        }
        let parts: Vec<Part> = clean
            .iter()
            .map(|part| if *part == "**" { Part::Any } else { Part::One((*part).to_owned()) })
            .collect();
        for part in &parts {
            if let Part::One(text) = part {
                component(text, "")?;
            }
        }
        Ok(Some(Self { parts, takes_back }))
    }

    /// Whether the pattern matches this very path.
    fn matches(&self, path: &[&str]) -> bool {
        walk(&self.parts, path, false)
    }

    /// Whether something below `path` could match.
    fn may_match_below(&self, path: &[&str]) -> bool {
        walk(&self.parts, path, true)
    }
}

/// One component against one part: `*` and friends, and `**` inside a part means `*`.
fn component(part: &str, name: &str) -> Result<bool, BadPattern> {
    crate::glob::go_match(&part.replace("**", "*"), name)
}

/// Matches component by component. `prefix` asks instead whether `path` can be the beginning of a match.
fn walk(parts: &[Part], path: &[&str], prefix: bool) -> bool {
    match (parts.first(), path.first()) {
        (_, None) if prefix => !parts.is_empty(),
        (None, None) => true,
        (None, Some(_)) => false,
        // `a/**` is what lies below a, not a itself.
        (Some(Part::Any), None) => false,
        (Some(Part::Any), Some(_)) if parts.len() == 1 => true,
        (Some(Part::Any), Some(_)) => walk(&parts[1..], path, prefix) || walk(parts, &path[1..], prefix),
        (Some(Part::One(_)), None) => false,
        (Some(Part::One(part)), Some(name)) => {
            component(part, name).unwrap_or(false) && walk(&parts[1..], &path[1..], prefix)
        }
    }
}

/// The components of a path, `.` and `..` worked out, leading slashes dropped.
fn clean(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.is_empty() => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts
}

impl Ignore {
    /// Reads a `.dockerignore` file. Lines that begin with `#` are comments; blanks around a pattern are dropped.
    ///
    /// Fails with the number of the first line that is no pattern.
    pub fn parse(text: &str) -> Result<Self, (usize, BadPattern)> {
        let mut patterns = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            patterns.extend(Pattern::new(line).map_err(|bad| (number + 1, bad))?);
        }
        Ok(Self { patterns })
    }

    /// Compiles patterns that came one by one, as `--exclude` does.
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<Self, BadPattern> {
        let compiled: Result<Vec<_>, _> = patterns.into_iter().map(Pattern::new).collect();
        Ok(Self { patterns: compiled?.into_iter().flatten().collect() })
    }

    /// Whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path` (relative, with slashes) is ignored: it or a directory above it matches, and no later `!` pattern
    /// takes it back.
    pub fn is_ignored(&self, path: &str) -> bool {
        let path = clean(path);
        let mut ignored = false;
        for pattern in &self.patterns {
            if pattern.takes_back == ignored
                && (1..=path.len()).any(|length| pattern.matches(&path[..length]))
            {
                ignored = !pattern.takes_back;
            }
        }
        ignored
    }

    /// Whether an ignored directory need not be looked into, because nothing below it can be taken back.
    pub fn can_skip_dir(&self, path: &str) -> bool {
        let path = clean(path);
        self.is_ignored(&path.join("/"))
            && !self.patterns.iter().any(|pattern| {
                pattern.takes_back
                    && (pattern.may_match_below(&path)
                        || (1..=path.len()).any(|n| pattern.matches(&path[..n])))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(file: &str, path: &str) -> bool {
        Ignore::parse(file).unwrap().is_ignored(path)
    }

    #[test]
    fn the_rules_of_patternmatcher_hold() {
        for (file, path, expected) in [
            ("a", "a", true),
            ("a", "a/b", true),
            ("/a", "a", true),
            ("a/", "a/b", true),
            ("*", "a/b/c", true),
            ("*\n!a", "a", false),
            ("*\n!a", "a/b", false),
            ("*\n!a/b", "a/c", true),
            ("*\n!a/b", "a/b", false),
            ("*.go", "a/b.go", false),
            ("**/*.go", "a/b.go", true),
            ("**/*.go", "b.go", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("**", "a", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("# a\nb", "b", true),
            (" a ", "a", true),
            ("!a\na", "a", true),
            ("a\n!a\na", "a", true),
            ("../a", "a", true),
            ("a/../b", "b", true),
            (".", "a", false),
            ("", "a", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("a\\*", "a*", true),
        ] {
            assert_eq!(ignored(file, path), expected, "{file:?} {path}");
        }
    }

    #[test]
    fn a_directory_is_skipped_only_if_nothing_below_it_can_come_back() {
        let skip = |file: &str, path: &str| Ignore::parse(file).unwrap().can_skip_dir(path);
        assert!(skip("a", "a"));
        assert!(skip("*\n!b", "a"));
        assert!(!skip("*\n!a/b", "a"));
        assert!(!skip("*\n!**/x", "a"));
        assert!(!skip("b", "a"));
    }

    #[test]
    fn a_broken_pattern_is_named_by_its_line() {
        assert_eq!(Ignore::parse("a\n[\n").unwrap_err().0, 2);
    }
}
