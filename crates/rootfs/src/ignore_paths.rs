//! Paths that are no part of an image: `--ignore-path` and what a rung adds to it.

use crate::TreePath;

/// Patterns over paths. A component may be a glob (`*`, `?`); what lies below a match is ignored as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnorePaths {
    patterns: Vec<TreePath>,
}

impl IgnorePaths {
    /// Ignores what these paths match.
    pub fn new<P: AsRef<[u8]>>(paths: impl IntoIterator<Item = P>) -> Self {
        let patterns = paths.into_iter().map(TreePath::new).filter(|path| !path.is_root()).collect();
        Self { patterns }
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Adds a path.
    pub fn add(&mut self, path: TreePath) {
        if !path.is_root() && !self.patterns.contains(&path) {
            self.patterns.push(path);
        }
    }

    /// The patterns.
    pub fn paths(&self) -> &[TreePath] {
        &self.patterns
    }

    /// Whether `path` or a directory above it matches.
    pub fn is_ignored(&self, path: &TreePath) -> bool {
        self.patterns.iter().any(|pattern| covers(pattern, path))
    }

    /// Whether something below `path` may be ignored: it can't be removed or copied in one piece.
    pub fn reaches_below(&self, path: &TreePath) -> bool {
        self.patterns.iter().any(|pattern| {
            let mut names = pattern.components();
            path.components().all(|name| names.next().is_some_and(|part| glob(part, name)))
                && names.next().is_some()
        })
    }
}

fn covers(pattern: &TreePath, path: &TreePath) -> bool {
    let mut names = path.components();
    pattern.components().all(|part| names.next().is_some_and(|name| glob(part, name)))
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.first() {
        None => name.is_empty(),
        Some(b'*') => (0..=name.len()).any(|taken| glob(&pattern[1..], &name[taken..])),
        Some(b'?') => !name.is_empty() && glob(&pattern[1..], &name[1..]),
        Some(byte) => name.first() == Some(byte) && glob(&pattern[1..], &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_may_be_a_glob_and_what_is_below_is_ignored() {
        let ignored = IgnorePaths::new(["/var/run", "/tmp/apt-key-gpghome*"]);
        for (path, expected) in [
            ("var/run", true),
            ("var/run/x/y", true),
            ("var/running", false),
            ("var", false),
            ("tmp/apt-key-gpghome.X1/f", true),
            ("tmp/x", false),
        ] {
            assert_eq!(ignored.is_ignored(&path.into()), expected, "{path}");
        }
        assert!(ignored.reaches_below(&"var".into()));
        assert!(!ignored.reaches_below(&"var/run".into()));
        assert!(!ignored.reaches_below(&"usr".into()));
    }
}
