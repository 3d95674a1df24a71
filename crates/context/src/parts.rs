//! Digests of the parts of what is copied, to say later which of them changed. There are never more than a few hundred:
//! of large trees, parts are directories.

use std::collections::BTreeMap;

use kiln_oci::Hasher;

/// Parts in the making.
#[derive(Clone, Debug)]
pub struct Parts {
    most: usize,
    /// Names are cut to so many components.
    depth: usize,
    list: BTreeMap<String, [u8; 32]>,
}

impl Parts {
    /// At most so many parts.
    pub fn new(most: usize) -> Self {
        Self { most, depth: usize::MAX, list: BTreeMap::new() }
    }

    /// Names and digests, in the order of the names.
    pub fn into_list(self) -> Vec<(String, [u8; 32])> {
        self.list.into_iter().collect()
    }

    /// Adds an entry. The same entries in the same order make the same parts.
    pub(crate) fn add(&mut self, path: &str, digest: &[u8; 32]) {
        let name = cut(path, self.depth);
        merge(&mut self.list, name, digest);
        while self.list.len() > self.most && self.depth > 1 {
            let deepest = self.list.keys().map(|name| name.split('/').count()).max().unwrap_or(1);
            self.depth = (deepest - 1).max(1);
            for (name, digest) in std::mem::take(&mut self.list) {
                merge(&mut self.list, cut(&name, self.depth), &digest);
            }
        }
        // So many at the top that no name says much.
        if self.list.len() > self.most {
            let mut whole = BTreeMap::new();
            for digest in std::mem::take(&mut self.list).into_values() {
                merge(&mut whole, "", &digest);
            }
            self.depth = 0;
            self.list = whole;
        }
    }
}

fn cut(path: &str, depth: usize) -> &str {
    let path = path.trim_start_matches('/');
    match path.match_indices('/').nth(depth.saturating_sub(1)) {
        _ if depth == 0 => "",
        Some((end, _)) => &path[..end],
        None => path,
    }
}

fn merge(list: &mut BTreeMap<String, [u8; 32]>, name: &str, digest: &[u8; 32]) {
    match list.get_mut(name) {
        None => _ = list.insert(name.to_owned(), *digest),
        Some(before) => {
            let mut hasher = Hasher::sha256();
            hasher.update(&before[..]);
            hasher.update(digest);
            before.copy_from_slice(hasher.finish().as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(most: usize, change: &str) -> Vec<(String, [u8; 32])> {
        let mut parts = Parts::new(most);
        for path in ["/a/b/one", "/a/b/two", "/a/c/three", "/d/four", "/five"] {
            parts.add(path, &[u8::from(path == change); 32]);
        }
        parts.into_list()
    }

    fn changed(most: usize, change: &str) -> Vec<String> {
        let (before, after) = (parts(most, ""), parts(most, change));
        assert!(before.len() <= most);
        let pairs = before.into_iter().zip(after);
        pairs.filter(|(one, other)| one != other).map(|(one, _)| one.0).collect()
    }

    #[test]
    fn the_part_that_changed_is_a_file_or_the_directory_above_it() {
        assert_eq!(changed(9, "/a/b/two"), ["a/b/two"]);
        assert_eq!(changed(4, "/a/b/two"), ["a/b"]);
        assert_eq!(changed(3, "/a/b/two"), ["a"]);
        assert_eq!(changed(3, "/five"), ["five"]);
        assert_eq!(changed(2, "/five"), [""]);
        assert_eq!(changed(9, ""), [""; 0]);
    }
}
