//! A way down a directory tree that is kept open: whoever works through paths in order opens each directory once.
//!
//! Directories are only ever entered by handle and never through a symlink. A directory's mtime is put back when it is
//! left, so that making something in it doesn't show; nothing has to be remembered for the end, and memory is bounded
//! by the depth. Past a depth of [`OPEN`] levels the upper handles are closed and reopened when they are needed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstat, futimens, openat};

const OPEN: usize = 128;

pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One directory on the way, with whatever its user wants to know of it.
struct Level<T> {
    name: Vec<u8>,
    handle: Option<OwnedFd>,
    mtime: Timespec,
    touched: bool,
    note: T,
}

/// The way from a root directory down to the one being worked in.
pub(crate) struct DirStack<T> {
    levels: Vec<Level<T>>,
}

impl<T> DirStack<T> {
    /// Begins at `root`.
    pub(crate) fn new(root: OwnedFd, note: T) -> io::Result<Self> {
        let mtime = mtime(root.as_fd())?;
        let level = Level { name: Vec::new(), handle: Some(root), mtime, touched: false, note };
        Ok(Self { levels: vec![level] })
    }

    /// How many components below the root the current directory lies.
    pub(crate) fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// What was noted of the current directory.
    pub(crate) fn note(&self) -> &T {
        &self.levels[self.levels.len() - 1].note
    }

    /// Leaves directories until the current one lies on the way to `components`, and says how many of them it covers.
    pub(crate) fn leave_to<'a>(&mut self, components: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let common =
            self.levels[1..].iter().zip(components).take_while(|(level, name)| level.name == *name).count();
        while self.depth() > common {
            self.leave()?;
        }
        Ok(common)
    }

    /// Leaves the current directory, which must not be the root, and puts its mtime back if something was made in it.
    pub(crate) fn leave(&mut self) -> io::Result<()> {
        if self.depth() > 0
            && let Some(level) = self.levels.pop()
        {
            settle(level.handle.as_ref(), level.mtime, level.touched)?;
        }
        self.reopen()
    }

    /// Enters the directory `name` in the current one.
    pub(crate) fn enter(&mut self, name: &[u8], note: T) -> io::Result<()> {
        let handle = openat(self.handle()?, name, DIRECTORY, Mode::empty())?;
        let mtime = mtime(handle.as_fd())?;
        if self.levels.len() >= OPEN {
            let at = self.levels.len() - OPEN + 1;
            let level = &mut self.levels[at];
            settle(level.handle.as_ref(), level.mtime, level.touched)?;
            level.touched = false;
            level.handle = None;
        }
        self.levels.push(Level { name: name.to_vec(), handle: Some(handle), mtime, touched: false, note });
        Ok(())
    }

    /// The current directory, for looking.
    pub(crate) fn handle(&self) -> io::Result<BorrowedFd<'_>> {
        let handle = self.levels[self.levels.len() - 1].handle.as_ref();
        handle.map(AsFd::as_fd).ok_or_else(|| io::Error::other("the directory is not open"))
    }

    /// The current directory, for making or removing something in it.
    pub(crate) fn writable(&mut self) -> io::Result<BorrowedFd<'_>> {
        let last = self.levels.len() - 1;
        self.levels[last].touched = true;
        self.handle()
    }

    /// What the current directory's mtime shall be when it is left.
    pub(crate) fn set_mtime(&mut self, mtime: Timespec) {
        let last = self.levels.len() - 1;
        self.levels[last].mtime = mtime;
        self.levels[last].touched = true;
    }

    /// Lets the making of something in the current directory show in its mtime.
    pub(crate) fn made_something(&mut self) {
        self.set_mtime(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW });
    }

    /// Leaves all directories, the root as well.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        while self.depth() > 0 {
            self.leave()?;
        }
        let root = &self.levels[0];
        settle(root.handle.as_ref(), root.mtime, root.touched)
    }

    /// Opens the current directory again if its handle was given up on the way down.
    fn reopen(&mut self) -> io::Result<()> {
        let last = self.levels.len() - 1;
        if self.levels[last].handle.is_some() {
            return Ok(());
        }
        let mut from = last;
        while self.levels[from].handle.is_none() {
            from -= 1;
        }
        let mut handle: Option<OwnedFd> = None;
        for at in from + 1..=last {
            let above = match (&handle, &self.levels[from].handle) {
                (Some(above), _) | (None, Some(above)) => above.as_fd(),
                (None, None) => return Err(io::Error::other("the directory is not open")),
            };
            handle = Some(openat(above, self.levels[at].name.as_slice(), DIRECTORY, Mode::empty())?);
        }
        self.levels[last].handle = handle;
        Ok(())
    }
}

fn mtime(handle: BorrowedFd<'_>) -> io::Result<Timespec> {
    let stat = fstat(handle)?;
    Ok(Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) })
}

fn settle(handle: Option<&OwnedFd>, mtime: Timespec, touched: bool) -> io::Result<()> {
    if let (Some(handle), true) = (handle, touched) {
        let kept = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        futimens(handle, &Timestamps { last_access: kept, last_modification: mtime })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{CWD, mkdirat};

    use super::*;

    #[test]
    fn making_something_in_a_directory_does_not_show_in_its_mtime() {
        let dir = tempfile::tempdir().unwrap();
        let root = openat(CWD, dir.path(), DIRECTORY, Mode::empty()).unwrap();
        mkdirat(&root, "a", Mode::RWXU).unwrap();
        let before = fs::metadata(dir.path().join("a")).unwrap();
        let mut stack = DirStack::new(root, ()).unwrap();
        stack.enter(b"a", ()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        mkdirat(stack.writable().unwrap(), "b", Mode::RWXU).unwrap();
        stack.finish().unwrap();
        let after = fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    }

    #[test]
    fn a_way_deeper_than_the_number_of_handles_works() {
        let dir = tempfile::tempdir().unwrap();
        let root = openat(CWD, dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let mut stack = DirStack::new(root, 0).unwrap();
        for depth in 1..=3 * OPEN {
            mkdirat(stack.writable().unwrap(), "d", Mode::RWXU).unwrap();
            stack.enter(b"d", depth).unwrap();
        }
        for depth in (OPEN / 2..3 * OPEN).rev() {
            stack.leave().unwrap();
            assert_eq!(*stack.note(), depth);
            mkdirat(stack.writable().unwrap(), "e", Mode::RWXU).unwrap();
        }
        let way: Vec<&[u8]> = vec![b"d"; 10];
        assert_eq!(stack.leave_to(way.into_iter()).unwrap(), 10);
        stack.finish().unwrap();
    }

    #[test]
    fn a_symlink_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let root = openat(CWD, dir.path(), DIRECTORY, Mode::empty()).unwrap();
        let mut stack = DirStack::new(root, ()).unwrap();
        assert!(stack.enter(b"link", ()).is_err());
    }
}
