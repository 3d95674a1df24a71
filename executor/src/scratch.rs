//! The scratch directory: where trees, layers and downloads live while building. Only what Kiln made in it is removed,
//! also at the next start after a crash: everything lies below directories of one name, each held by a lock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::removal::remove_tree;

/// The names of our directories begin with this.
const PREFIX: &str = "kiln-build-";

/// Where cached layers are kept if no repository is named and nothing is pushed.
pub const LAYER_CACHE: &str = "kiln-cache";

/// Where `RUN --mount=type=cache` keeps its files if no other place is named.
pub const MOUNT_CACHE: &str = "kiln-cache-mounts";

/// One build's own directory. Removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Held while the build lives: a directory whose lock is free belongs to a build that was killed.
    lock: fs::File,
}

/// Why there is no scratch directory.
#[derive(Debug, thiserror::Error)]
#[error("could not make a scratch directory in {path}: {source}; {}", advice())]
pub struct ScratchError {
    path: PathBuf,
    source: io::Error,
}

fn advice() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "give --scratch-dir a directory that can be written"
    } else {
        "run the container as user 0 (securityContext.runAsUser: 0), which takes no privilege"
    }
}

impl Scratch {
    /// Makes a directory in `parent`, after removing what killed builds left there.
    pub fn create(parent: &Path) -> Result<Self, ScratchError> {
        let fail = |source| ScratchError { path: parent.to_owned(), source };
        fs::create_dir_all(parent).map_err(fail)?;
        remove_leftovers(parent);
        for number in 0u32.. {
            let path = parent.join(format!("{PREFIX}{number}"));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(fail(error)),
            }
            let lock = fs::File::create(path.join("lock")).map_err(fail)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            return Ok(Self { path, lock });
        }
        Err(fail(io::Error::other("no free name is left")))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The scratch directory that it lies in.
    pub(crate) fn parent(&self) -> PathBuf {
        self.path.parent().map(PathBuf::from).unwrap_or_default()
    }

    /// Makes a directory below it.
    pub fn directory(&self, name: &str) -> Result<PathBuf, ScratchError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(|source| ScratchError { path: path.clone(), source })?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_tree(&self.path);
        _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Removes everything that Kiln made in the scratch directory `parent`, and the directory itself if nothing else is in
/// it. What builds that still run have there stays, caches too.
pub(crate) fn clean(parent: &Path) {
    if remove_leftovers(parent) {
        for name in [LAYER_CACHE, MOUNT_CACHE] {
            remove_tree(&parent.join(name));
        }
    }
    // Not where it is a volume, or holds what is not ours.
    _ = fs::remove_dir(parent);
}

/// Says whether no living build is left.
fn remove_leftovers(parent: &Path) -> bool {
    let mut alone = true;
    let Ok(entries) = fs::read_dir(parent) else { return true };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let free = fs::File::open(entry.path().join("lock"))
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
        if free {
            remove_tree(&entry.path());
        }
        alone &= free;
    }
    alone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_removes_what_kiln_made_but_not_under_a_living_build() {
        let above = tempfile::tempdir().unwrap();
        let parent = above.path().join("scratch");
        let living = Scratch::create(&parent).unwrap();
        fs::create_dir_all(parent.join(LAYER_CACHE).join("blobs")).unwrap();
        clean(&parent);
        assert!(living.path().exists() && parent.join(LAYER_CACHE).exists());
        drop(living);
        fs::write(parent.join("mine"), "").unwrap();
        clean(&parent);
        assert!(parent.join("mine").exists() && !parent.join(LAYER_CACHE).exists());
        fs::remove_file(parent.join("mine")).unwrap();
        clean(&parent);
        assert!(!parent.exists());
    }

    #[test]
    fn what_a_killed_build_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("kiln-build-7");
        fs::create_dir_all(left.join("deep/er")).unwrap();
        fs::write(left.join("lock"), "").unwrap();
        fs::write(parent.path().join("mine"), "").unwrap();
        let living = Scratch::create(parent.path()).unwrap();
        assert!(!left.exists());
        assert!(parent.path().join("mine").exists());
        let other = Scratch::create(parent.path()).unwrap();
        assert!(living.path().exists());
        let (a, b) = (living.path().to_owned(), other.path().to_owned());
        assert_ne!(a, b);
        drop((living, other));
        assert!(!a.exists() && !b.exists());
    }
}
