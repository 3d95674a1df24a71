//! The path jail: a tree behind a directory handle. Nothing here can read or write outside it, whatever links the tree
//! holds: links are followed inside the tree only.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::error::Doing;
use crate::view::resolve_by;
use crate::{Kind, Meta, RootfsError, TreePath, Xattrs};

/// Links followed for one path before it is taken for a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// A tree's root.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens the tree at `path` on disk.
    pub fn open(path: &Path) -> Result<Self, RootfsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).doing("open the directory", path)?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Where the tree lies on disk, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path of the tree as it is on disk, for messages.
    pub(crate) fn on_disk(&self, path: &TreePath) -> PathBuf {
        path.below(&self.path)
    }

    /// Opens a directory of the tree; links on the way and at the end are followed inside the tree.
    pub fn directory(&self, path: &TreePath) -> Result<OwnedFd, RootfsError> {
        self.open_in(path, OFlags::PATH | OFlags::DIRECTORY).doing("open the directory", self.on_disk(path))
    }

    /// The path that the directory `path` has once the links on the way and at the end are followed. What isn't there is
    /// kept as written.
    pub(crate) fn real(&self, path: &TreePath) -> Result<TreePath, RootfsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let without = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.fd, path.as_path(), flags, Mode::empty(), without) {
            // Up to what isn't there, it leads through no link.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(path.clone()),
            Err(_) => match resolve_by(|path| self.stat(path), path) {
                // A loop of links leads to nothing.
                Err(RootfsError::Tree { .. }) => Ok(path.clone()),
                result => result,
            },
        }
    }

    /// Opens what `path` is, following links inside the tree.
    fn open_in(&self, path: &TreePath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.fd, path.as_path(), flags, Mode::empty(), inside) {
            // Not there in gVisor, refused by some seccomp profiles, or raced by a rename.
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => self.walk(path, flags),
            result => result,
        }
    }

    /// The same, one component at a time.
    fn walk(&self, path: &TreePath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let step = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut todo: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        // The directories from the root to here: `..` of a link goes back along them.
        let mut trail: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    trail.pop();
                    continue;
                }
                _ => {}
            }
            let here = trail.last().map_or(self.fd.as_fd(), AsFd::as_fd);
            let name = Path::new(std::ffi::OsStr::from_bytes(&part));
            let next = rustix::fs::openat(here, name, step, Mode::empty())?;
            let stat = rustix::fs::statx(&next, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
            if rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) != rustix::fs::FileType::Symlink {
                trail.push(next);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(here, name, Vec::new())?.into_bytes();
            if target.starts_with(b"/") {
                trail.clear();
            }
            for part in target.split(|byte| *byte == b'/').rev() {
                todo.push_front(part.to_vec());
            }
        }
        let found = trail.last().map_or(self.fd.as_fd(), AsFd::as_fd);
        if flags.contains(OFlags::PATH) && !flags.contains(OFlags::DIRECTORY) {
            return rustix::io::fcntl_dupfd_cloexec(found, 0);
        }
        // Through the handle just found: nobody can put a link in its place.
        rustix::fs::openat(found, ".", flags, Mode::empty())
    }

    /// The directory that holds `path`, and the name in it. Links on the way are followed inside the tree; the last
    /// component is not looked at.
    pub(crate) fn parent(&self, path: &TreePath) -> Result<(OwnedFd, PathBuf), RootfsError> {
        let parent = path.parent().unwrap_or_default();
        let name = if path.is_root() { PathBuf::from(".") } else { name_of(path) };
        Ok((self.directory(&parent)?, name))
    }

    /// What is at `path`, not followed; `None` if nothing is there, or if the way there leads through no directory.
    pub fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        let parent = path.parent().unwrap_or_default();
        let directory = match self.open_in(&parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error).doing("look at", self.on_disk(path)),
        };
        let name = if path.is_root() { PathBuf::from(".") } else { name_of(path) };
        stat_at(directory.as_fd(), &name).doing("look at", self.on_disk(path))
    }

    /// Opens a regular file for reading, leaving its access time alone where that is allowed.
    pub fn file(&self, path: &TreePath) -> Result<File, RootfsError> {
        let (directory, name) = self.parent(path)?;
        open_file_at(directory.as_fd(), &name).doing("open", self.on_disk(path))
    }

    /// The names in a directory, sorted by their bytes.
    pub fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        let directory = self.directory(path)?;
        list_at(directory.as_fd()).doing("list", self.on_disk(path))
    }

    /// The extended attributes of what is at `path`, not followed, sorted by name.
    pub fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        let (directory, name) = self.parent(path)?;
        xattrs_at(directory.as_fd(), &name).doing("read the attributes of", self.on_disk(path))
    }
}

pub(crate) fn name_of(path: &TreePath) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(path.name()))
}

/// What `name` in a directory is, not followed; `None` if it isn't there.
pub(crate) fn stat_at(directory: BorrowedFd<'_>, name: &Path) -> Result<Option<Meta>, Errno> {
    // gVisor knows no AT_NO_AUTOMOUNT.
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat = match rustix::fs::statx(directory, name, flags, Meta::WANTED) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut meta = Meta::from_statx(&stat);
    if meta.kind == Kind::Symlink {
        meta.link = Some(rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes());
    }
    Ok(Some(meta))
}

/// Opens a regular file for reading. Not allowed to leave the access time alone: read it all the same.
pub(crate) fn open_file_at(directory: BorrowedFd<'_>, name: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::openat(directory, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(directory, name, flags, Mode::empty()).map(File::from),
        result => result.map(File::from),
    }
}

/// The names in a directory, sorted by their bytes.
pub(crate) fn list_at(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(directory, ".", flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(directory, ".", flags, Mode::empty())?,
        result => result?,
    };
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A path that names `name` in an open directory, for the calls that take no handle.
pub(crate) fn proc_path(directory: BorrowedFd<'_>, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

/// The extended attributes of `name`, sorted. A file system without any has none.
pub(crate) fn xattrs_at(directory: BorrowedFd<'_>, name: &Path) -> Result<Xattrs, Errno> {
    let path = proc_path(directory, name);
    let mut names = vec![0u8; 4096];
    let length = loop {
        match rustix::fs::llistxattr(&path, &mut names[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) => names.resize(names.len() * 4, 0),
            Err(Errno::OPNOTSUPP | Errno::NOENT | Errno::NOSYS) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 256];
        let key = std::ffi::OsStr::from_bytes(name);
        let length = loop {
            match rustix::fs::lgetxattr(&path, key, &mut value[..]) {
                Ok(length) => break Some(length),
                Err(Errno::RANGE) => value.resize(value.len() * 4, 0),
                // Gone meanwhile, or not for us to see.
                Err(Errno::NODATA | Errno::ACCESS | Errno::PERM) => break None,
                Err(error) => return Err(error),
            }
        };
        if let Some(length) = length {
            value.truncate(length);
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::write(dir.path().join("root/a/b/f"), "x").unwrap();
        symlink("/a/b", dir.path().join("root/abs")).unwrap();
        symlink("../../../secret", dir.path().join("root/a/out")).unwrap();
        symlink("../..", dir.path().join("root/a/up")).unwrap();
        symlink("loop", dir.path().join("root/loop")).unwrap();
        dir
    }

    #[test]
    fn links_are_followed_inside_the_tree_with_and_without_openat2() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root")).unwrap();
        assert!(root.stat(&"abs/f".into()).unwrap().is_some());
        assert!(root.stat(&"a/up/a/b/f".into()).unwrap().is_some());
        assert!(root.stat(&"loop/x".into()).unwrap().is_none());
        for path in ["abs", "a/up/a/b", "a/up"] {
            assert!(root.walk(&path.into(), OFlags::PATH | OFlags::DIRECTORY).is_ok(), "{path}");
        }
        assert_eq!(root.walk(&"loop".into(), OFlags::PATH).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn nothing_outside_can_be_opened() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root")).unwrap();
        assert!(root.file(&"a/out".into()).is_err());
        assert!(root.stat(&"a/up/secret".into()).unwrap().is_none());
        assert!(root.open_in(&"a/out".into(), OFlags::RDONLY).is_err());
    }
}
