//! Locks, by flock through fs2; nothing else in the workspace names that crate.
//!
//! Writers lock files under `kiln/locks`. Readers lock the very thing that they read (a blob's file, an unpacked
//! layer's directory), because that works where nothing can be created: flock needs no more than a descriptor that was
//! opened for reading. The one who deletes takes the exclusive lock first. Invariant: whoever holds a lock holds it on
//! what the path names now, for the path is compared with the descriptor after locking.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{OnPath, StoreError, if_present};

/// A lock that is held; dropping it, or the end of the process, releases it.
#[derive(Debug)]
#[must_use = "a lock is held for as long as this value lives"]
pub struct Lock {
    _file: File,
}

/// Who may hold it at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Others that ask for the same.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Waits for the lock file `path`, which is made if it is not there.
pub(crate) fn wait(path: &Path, mode: Mode) -> Result<Lock, StoreError> {
    loop {
        let file = open(path)?;
        match flock(&file, mode, true) {
            Ok(()) if names(path, &file).on("look at", path)? => return Ok(Lock { _file: file }),
            // Somebody deleted the file while we waited: the next one is the lock now.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).on("lock", path),
        }
    }
}

/// Takes the lock file `path`, or gives `None` if it is held.
pub(crate) fn attempt(path: &Path, mode: Mode) -> Result<Option<Lock>, StoreError> {
    loop {
        let file = open(path)?;
        match flock(&file, mode, false) {
            Ok(()) if names(path, &file).on("look at", path)? => return Ok(Some(Lock { _file: file })),
            Ok(()) => {}
            Err(error) if is_contended(&error) => return Ok(None),
            Err(error) => return Err(error).on("lock", path),
        }
    }
}

/// Waits for the directory `path` itself, where no lock file may be left. File systems that lock no directories go
/// without.
pub(crate) fn wait_for_directory(path: &Path) -> Result<Lock, StoreError> {
    let file = File::open(path).on("open", path)?;
    loop {
        match flock(&file, Mode::Exclusive, true) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_unsupported(&error) => return Ok(Lock { _file: file }),
            result => return result.on("lock", path).map(|()| Lock { _file: file }),
        }
    }
}

/// Marks what `file` is open on as being read: until `file` is closed, nobody deletes it.
///
/// Gives false if it is being deleted right now, or was. File systems without locks are read without: nothing is
/// deleted there, because [`claim`] fails.
pub(crate) fn lease(path: &Path, file: &File) -> io::Result<bool> {
    match flock(file, Mode::Shared, false) {
        Ok(()) => names(path, file),
        Err(error) if is_contended(&error) => Ok(false),
        Err(error) if is_unsupported(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The right to delete what is at `path`; `None` while it is read, or where that can't be known.
pub(crate) fn claim(path: &Path) -> io::Result<Option<Lock>> {
    // NFS grants an exclusive lock only on what is open for writing, which directories never are.
    let file = OpenOptions::new().read(true).write(true).open(path).or_else(|_| File::open(path));
    let Some(file) = if_present(file)? else { return Ok(None) };
    match flock(&file, Mode::Exclusive, false) {
        Ok(()) if names(path, &file)? => Ok(Some(Lock { _file: file })),
        Ok(()) => Ok(None),
        Err(error) if is_contended(&error) || is_unsupported(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks a file that only its maker knows yet.
pub(crate) fn hold(file: &File) -> io::Result<()> {
    match flock(file, Mode::Exclusive, false) {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    // Not truncated, not written: what counts is the lock on it.
    options.read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    match options.clone().create_new(true).mode(0o666).open(path) {
        Ok(file) => {
            // Warmers of other users take part too. The umask is not asked; if this fails, theirs may.
            let _ = file.set_permissions(std::fs::Permissions::from_mode(0o666));
            return Ok(file);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).on("create", path),
    }
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path).on("open", path),
        // Deleted in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => open(path),
        result => result.on("open", path),
    }
}

fn flock(file: &File, mode: Mode, wait: bool) -> io::Result<()> {
    match (mode, wait) {
        (Mode::Shared, true) => fs2::FileExt::lock_shared(file),
        (Mode::Shared, false) => fs2::FileExt::try_lock_shared(file),
        (Mode::Exclusive, true) => fs2::FileExt::lock_exclusive(file),
        (Mode::Exclusive, false) => fs2::FileExt::try_lock_exclusive(file),
    }
}

/// Whether `path` is still a name of what `file` is open on.
fn names(path: &Path, file: &File) -> io::Result<bool> {
    let held = file.metadata()?;
    Ok(if_present(std::fs::symlink_metadata(path))?
        .is_some_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())))
}

fn is_contended(error: &io::Error) -> bool {
    error.raw_os_error() == fs2::lock_contended_error().raw_os_error()
}

fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::BADF]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_keeps_all_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let held = wait(&path, Mode::Exclusive).unwrap();
        assert!(attempt(&path, Mode::Exclusive).unwrap().is_none());
        assert!(attempt(&path, Mode::Shared).unwrap().is_none());
        drop(held);
        let one = attempt(&path, Mode::Shared).unwrap();
        let two = attempt(&path, Mode::Shared).unwrap();
        assert!(one.is_some() && two.is_some());
        assert!(attempt(&path, Mode::Exclusive).unwrap().is_none());
    }

    #[test]
    fn a_lock_on_a_deleted_file_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let held = wait(&path, Mode::Exclusive).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&path, Mode::Exclusive).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            std::fs::remove_file(&path).unwrap();
            drop(held);
            let lock = waiter.join().unwrap();
            assert!(attempt(&path, Mode::Exclusive).unwrap().is_none(), "the waiter holds the new file");
            drop(lock);
        });
    }

    #[test]
    fn what_is_read_can_not_be_claimed_and_what_is_claimed_can_not_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let reader = File::open(dir.path()).unwrap();
        assert!(lease(dir.path(), &reader).unwrap());
        assert!(claim(dir.path()).unwrap().is_none());
        drop(reader);
        let claimed = claim(dir.path()).unwrap();
        assert!(claimed.is_some());
        assert!(!lease(dir.path(), &File::open(dir.path()).unwrap()).unwrap());
    }
}
