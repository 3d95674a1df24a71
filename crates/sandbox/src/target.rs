//! Finding a path inside a tree, and making what is missing there until the step is over.
//!
//! Symlinks are followed as the step would see them: an absolute one starts at the tree's root, and `..` ends there, so
//! no path leads out. Nothing here allocates: the child of a fork uses it too. It must not race with a step that
//! changes the same tree: mount points are found before the step starts and after everything in it has been killed.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::text::Text;

/// As many symlinks as the kernel follows in one path.
const MOST_LINKS: u32 = 40;

/// What is made at the end of a path that isn't there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// An empty directory.
    Directory,
    /// An empty file.
    File,
    /// Nothing: only the directories above are made.
    Nothing,
}

/// A file or directory that was made as a mount point and is to be removed again.
#[derive(Debug)]
pub(crate) struct Stub {
    parent: OwnedFd,
    name: Text,
    directory: bool,
}

/// The stubs of one step, in the order in which they were made.
#[derive(Debug)]
pub(crate) struct Stubs(Vec<Stub>);

impl Stubs {
    /// Room for `most` of them: pushing never allocates.
    pub(crate) fn with_room_for(most: usize) -> Self {
        Self(Vec::with_capacity(most))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Leaves what was made since there were `len` where it is.
    pub(crate) fn forget_from(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes what is missing at `path` below `root`, whose last component is `name`. The directory above keeps its
    /// modification time.
    fn make(&mut self, root: BorrowedFd<'_>, path: &Text, directory: bool) -> Result<(), Errno> {
        if self.0.len() == self.0.capacity() {
            return Err(Errno::NOBUFS);
        }
        let mut above = path.clone();
        above.pop();
        let parent = open_path(root, &above)?;
        let slash = path.as_bytes().iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let name = Text::from(&path.as_bytes()[slash..])?;
        let times = mtime_of(parent.as_fd())?;
        if directory {
            rustix::fs::mkdirat(&parent, name.as_c_str(), Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&parent, name.as_c_str(), flags, Mode::from_raw_mode(0o644))?);
        }
        set_mtime(parent.as_fd(), times);
        self.0.push(Stub { parent, name, directory });
        Ok(())
    }

    /// Removes each stub that is still empty, last one first; the directories above keep the modification time that
    /// the step left them with. What the step put something into stays.
    pub(crate) fn remove(&mut self) {
        while let Some(stub) = self.0.pop() {
            let parent = stub.parent.as_fd();
            let Ok(stat) = rustix::fs::statat(parent, stub.name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
            if is_directory != stub.directory || (!is_directory && stat.st_size != 0) {
                continue;
            }
            let Ok(times) = mtime_of(parent) else { continue };
            let flags = if stub.directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            if rustix::fs::unlinkat(parent, stub.name.as_c_str(), flags).is_ok() {
                set_mtime(parent, times);
            }
        }
    }
}

pub(crate) fn mtime_of(directory: BorrowedFd<'_>) -> Result<Timespec, Errno> {
    let stat = rustix::fs::statat(directory, c"", AtFlags::EMPTY_PATH)?;
    Ok(Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() })
}

/// Sets a directory's modification time. Not being allowed to is no reason to fail a step.
pub(crate) fn set_mtime(directory: BorrowedFd<'_>, mtime: Timespec) {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: mtime };
    let _ = rustix::fs::utimensat(directory, c".", &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// Finds `path` (absolute or not, it starts at `root`), makes what is missing, and gives the path without any symlink,
/// relative to `root`; the empty one is the root itself. With [`Missing::Nothing`] the last component may be absent.
pub(crate) fn locate(
    root: BorrowedFd<'_>,
    path: &[u8],
    missing: Missing,
    stubs: &mut Stubs,
) -> Result<Text, Errno> {
    let mut done = Text::new();
    let mut rest = Text::from(path)?;
    let mut links = 0;
    while let Some((name, after)) = first_component(rest.as_bytes()) {
        let last = first_component(after).is_none();
        let (name, after) = (Text::from(name)?, Text::from(after)?);
        rest = after;
        match name.as_bytes() {
            b"." => continue,
            b".." => {
                done.pop();
                continue;
            }
            name => done.push(name)?,
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        match rustix::fs::readlinkat_raw(root, done.as_c_str(), &mut buffer) {
            Ok((link, _)) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                if link.first() == Some(&b'/') {
                    done.clear();
                } else {
                    done.pop();
                }
                let mut through = Text::from(link)?;
                through.append(b"/")?;
                through.append(rest.as_bytes())?;
                rest = through;
            }
            Err(Errno::INVAL) => {}
            Err(Errno::NOENT) if last && missing == Missing::Nothing => {}
            Err(Errno::NOENT) => stubs.make(root, &done, !last || missing == Missing::Directory)?,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The first component of a path, and what follows; `None` if there is none left.
fn first_component(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|&byte| byte != b'/')?;
    let path = &path[start..];
    let end = path.iter().position(|&byte| byte == b'/').unwrap_or(path.len());
    Some((&path[..end], &path[end..]))
}

/// How many stubs finding `path` may make, if it leads through no symlink.
pub(crate) fn depth(path: &[u8]) -> usize {
    path.split(|&byte| byte == b'/').filter(|component| !component.is_empty()).count()
}

/// Opens what [`locate`] found, for use as a place only.
pub(crate) fn open_path(root: BorrowedFd<'_>, located: &Text) -> Result<OwnedFd, Errno> {
    let path: &CStr = if located.is_empty() { c"." } else { located.as_c_str() };
    rustix::fs::openat(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};

    fn root() -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        let root = File::open(folder.path()).unwrap();
        (folder, root)
    }

    fn found(root: &File, path: &str, missing: Missing, stubs: &mut Stubs) -> Result<String, Errno> {
        let text = locate(root.as_fd(), path.as_bytes(), missing, stubs)?;
        Ok(String::from_utf8(text.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn no_path_and_no_symlink_leads_out_of_the_tree() {
        let (folder, root) = root();
        fs::create_dir(folder.path().join("etc")).unwrap();
        symlink("/etc", folder.path().join("absolute")).unwrap();
        symlink("../../../../etc", folder.path().join("etc/up")).unwrap();
        let mut stubs = Stubs::with_room_for(0);
        for path in ["/etc", "absolute", "etc/up", "../../etc", "./etc/./.", "/etc/up/up/../etc"] {
            assert_eq!(found(&root, path, Missing::Nothing, &mut stubs).as_deref(), Ok("etc"), "{path}");
        }
    }

    #[test]
    fn a_ring_of_symlinks_is_refused() {
        let (folder, root) = root();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let mut stubs = Stubs::with_room_for(0);
        assert_eq!(found(&root, "a", Missing::Nothing, &mut stubs), Err(Errno::LOOP));
    }

    #[test]
    fn stubs_are_made_through_dangling_symlinks_and_removed_without_a_trace() {
        let (folder, root) = root();
        fs::create_dir(folder.path().join("etc")).unwrap();
        symlink("/run/resolve/stub.conf", folder.path().join("etc/resolv.conf")).unwrap();
        let times = || fs::metadata(folder.path()).map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
        let before = times();
        let mut stubs = Stubs::with_room_for(8);
        let path = found(&root, "/etc/resolv.conf", Missing::File, &mut stubs);
        assert_eq!(path.as_deref(), Ok("run/resolve/stub.conf"));
        assert!(folder.path().join("run/resolve/stub.conf").is_file());
        assert_eq!(times(), before);
        stubs.remove();
        assert!(!folder.path().join("run").exists());
        assert!(fs::symlink_metadata(folder.path().join("etc/resolv.conf")).is_ok());
        assert_eq!(times(), before);
    }

    #[test]
    fn a_stub_that_something_was_put_into_stays() {
        let (folder, root) = root();
        let mut stubs = Stubs::with_room_for(8);
        found(&root, "/a/b", Missing::Directory, &mut stubs).unwrap();
        found(&root, "/f", Missing::File, &mut stubs).unwrap();
        fs::write(folder.path().join("a/new"), "").unwrap();
        fs::write(folder.path().join("f"), "content").unwrap();
        stubs.remove();
        assert!(folder.path().join("a/new").exists());
        assert!(!folder.path().join("a/b").exists());
        assert!(folder.path().join("f").exists());
    }

    #[test]
    fn a_file_in_the_middle_of_a_path_is_an_error() {
        let (folder, root) = root();
        fs::write(folder.path().join("f"), "").unwrap();
        let mut stubs = Stubs::with_room_for(8);
        assert_eq!(found(&root, "f/x", Missing::Directory, &mut stubs), Err(Errno::NOTDIR));
    }
}
