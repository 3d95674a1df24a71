//! Paths inside a tree: normalised bytes that can't name anything outside it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path inside a tree: no leading slash, no empty, `.` or `..` component. The empty path is the root.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path that `path` means from the root; `..` stops there.
    pub fn new(path: impl AsRef<[u8]>) -> Self {
        let mut clean: Vec<u8> = Vec::with_capacity(path.as_ref().len());
        for part in path.as_ref().split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => clean.truncate(clean.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
                part => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(part);
                }
            }
        }
        Self(clean)
    }

    /// The path, unless it has a `..` component.
    pub fn strict(path: impl AsRef<[u8]>) -> Option<Self> {
        let goes_up = path.as_ref().split(|byte| *byte == b'/').any(|part| part == b"..");
        (!goes_up).then(|| Self::new(path))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative path; the root is `.`.
    pub fn as_path(&self) -> &Path {
        if self.0.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0)) }
    }

    /// The path below the directory `base` of the real file system.
    pub fn below(&self, base: &Path) -> PathBuf {
        if self.0.is_empty() { base.to_owned() } else { base.join(OsStr::from_bytes(&self.0)) }
    }

    /// The directory above; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        let start = self.0.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        &self.0[start..]
    }

    /// This path with one more component, which must be a plain name.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Self {
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }

    /// This path with another one below it.
    #[must_use]
    pub fn join_path(&self, other: &Self) -> Self {
        if other.is_root() { self.clone() } else { self.join(&other.0) }
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// Whether this is `other` or lies below it.
    pub fn starts_with(&self, other: &Self) -> bool {
        other.is_root()
            || self.0 == other.0
            || (self.0.starts_with(&other.0) && self.0.get(other.0.len()) == Some(&b'/'))
    }

    /// The rest of this path below `base`; `None` if it doesn't lie there.
    pub fn strip(&self, base: &Self) -> Option<Self> {
        if !self.starts_with(base) {
            return None;
        }
        let rest = &self.0[base.0.len()..];
        Some(Self(rest.strip_prefix(b"/").unwrap_or(rest).to_vec()))
    }

    /// All directories above, the root first.
    pub fn ancestors(&self) -> Vec<Self> {
        let mut found = Vec::new();
        let mut path = self.clone();
        while let Some(parent) = path.parent() {
            found.push(parent.clone());
            path = parent;
        }
        found.reverse();
        found
    }

    /// A key that sorts directories right before what lies in them: slashes sort below all other bytes.
    pub fn sort_key(&self) -> Vec<u8> {
        self.0.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
    }

    /// The bytes as an owned operating system string.
    pub fn to_os_string(&self) -> OsString {
        OsString::from_vec(self.0.clone())
    }
}

impl From<&str> for TreePath {
    fn from(path: &str) -> Self {
        Self::new(path)
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::TreePath;

    #[test]
    fn no_path_leads_out() {
        for (text, clean) in
            [("/a/b", "/a/b"), ("../../a", "/a"), ("a//./b/", "/a/b"), ("a/../..", "/"), ("", "/")]
        {
            assert_eq!(TreePath::new(text).to_string(), clean, "{text}");
        }
        assert!(TreePath::strict("a/../b").is_none());
    }

    #[test]
    fn parents_names_and_prefixes() {
        let path = TreePath::new("a/b/c");
        assert_eq!(path.parent(), Some(TreePath::new("a/b")));
        assert_eq!(path.name(), b"c");
        assert!(path.starts_with(&TreePath::new("a/b")));
        assert!(!path.starts_with(&TreePath::new("a/bb")));
        assert!(!TreePath::new("ab").starts_with(&TreePath::new("a")));
        assert_eq!(path.strip(&TreePath::new("a")), Some(TreePath::new("b/c")));
    }
}
