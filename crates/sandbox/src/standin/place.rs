//! A target in a tree: the directory above it, held open, and its name there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Timespec};
use rustix::io::Errno;

use super::copy;
use crate::target::{self, Missing, Stubs};

/// Where a stand-in is, or will be.
pub(super) struct Place {
    above: OwnedFd,
    name: PathBuf,
    /// What the thing that was there is called meanwhile, in the same directory.
    aside: Option<PathBuf>,
}

impl Place {
    /// Finds the place of `target` in the tree at `root`; directories above that are missing are made.
    pub(super) fn find(root: BorrowedFd<'_>, target: &Path, stubs: &mut Stubs) -> io::Result<Self> {
        let mut above = target::locate(root, target.as_os_str().as_bytes(), Missing::Nothing, stubs)?;
        let name = match above.as_bytes().rsplit(|&byte| byte == b'/').next() {
            Some(name) if !name.is_empty() => PathBuf::from(std::ffi::OsStr::from_bytes(name)),
            _ => return Err(Errno::INVAL.into()),
        };
        above.pop();
        let above = target::open_path(root, &above)?;
        Ok(Self { above, name, aside: None })
    }

    /// A path to it that no symlink of the tree is part of.
    pub(super) fn path(&self) -> PathBuf {
        self.sibling(&self.name)
    }

    fn sibling(&self, name: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.above.as_raw_fd())).join(name)
    }

    /// The modification time of the directory above.
    pub(super) fn times(&self) -> Option<Timespec> {
        target::mtime_of(self.above.as_fd()).ok()
    }

    pub(super) fn set_times(&self, times: Option<Timespec>) {
        if let Some(times) = times {
            target::set_mtime(self.above.as_fd(), times);
        }
    }

    /// Renames what is there, if anything is. `number` tells this step's places apart.
    pub(super) fn put_aside(mut self, number: usize) -> io::Result<Self> {
        if rustix::fs::statat(&self.above, &self.name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(self);
        }
        let aside = PathBuf::from(format!(".kiln-aside-{number}"));
        copy::shift(&self.path(), &self.sibling(&aside))?;
        self.aside = Some(aside);
        Ok(self)
    }

    /// Renames it back. If the step deleted it, with the directory that it is in, it stays deleted.
    pub(super) fn put_back(&self) -> io::Result<()> {
        let Some(aside) = &self.aside else { return Ok(()) };
        match copy::shift(&self.sibling(aside), &self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}
