//! Removing trees: several directories at a time, since a file system lets others work while it frees a file's blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How many threads remove.
const THREADS: usize = 4;

/// How deep the directories lie that are removed side by side.
const DEPTH: usize = 5;

/// Fewer directories than this are removed at once.
const FEW: usize = 16;

/// Removes a tree as far as that goes, opening directories that a step left unreadable to us.
pub fn remove_tree(path: &Path) {
    let mut parts = Vec::new();
    collect(path, DEPTH, &mut parts);
    if parts.len() > FEW {
        let queue = Mutex::new(parts);
        let worker = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some(part) = next else { return };
                // What is left is tried again below.
                _ = fs::remove_dir_all(part);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..THREADS {
                scope.spawn(worker);
            }
            worker();
        });
    }
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    make_removable(path);
    _ = fs::remove_dir_all(path);
}

/// The directories that lie `depth` levels below `path`.
fn collect(path: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if depth <= 1 { found.push(entry.path()) } else { collect(&entry.path(), depth - 1, found) }
    }
}

fn make_removable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        return;
    }
    _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            make_removable(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_and_links_are_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let (tree, other) = (parent.path().join("tree"), parent.path().join("other"));
        for number in 0..3 * FEW {
            let deep = tree.join(format!("a/b/c/d/{number}/e/f/g"));
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("file"), "").unwrap();
        }
        fs::create_dir(&other).unwrap();
        fs::write(other.join("stays"), "").unwrap();
        std::os::unix::fs::symlink(&other, tree.join("a/b/c/d/link")).unwrap();
        std::os::unix::fs::symlink(&other, tree.join("a/link")).unwrap();
        remove_tree(&tree);
        assert!(!tree.exists());
        assert!(other.join("stays").exists());
    }
}
