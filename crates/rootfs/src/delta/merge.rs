//! Lays one tree over another: a delta over a plain tree or over an upper directory, or any tree over an empty one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, openat, renameat, symlinkat};
use rustix::io::Errno;

use super::builder::open_parent;
use super::copy::copy_content;
use super::dir_stack::DirStack;
use super::disk::{
    clear_xattrs, is_opaque, is_whiteout, look, look_here, make_special, make_whiteout, names, open_dir,
    open_file, read_link, remove_all, set_meta, set_opaque, timespec, xattrs,
};
use crate::remove::remove_unless_kept;
use crate::{IgnorePaths, Kind, Meta, TreePath};

/// What the tree is that is laid over the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// A delta: whiteouts and opaque directories mean what they mean to overlayfs.
    Delta,
    /// A plain tree, each entry of which is just that.
    Plain,
}

/// What the tree is that another is laid over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// A plain tree: what a delta says is gone is removed.
    Plain,
    /// An upper directory: what a delta says is gone is written down as gone.
    Upper,
}

/// How one tree is laid over another.
pub(crate) struct Merge<'a> {
    pub(crate) from: From,
    pub(crate) onto: Onto,
    /// Whether files may be moved; if not, or if the other tree is on another file system, they are copied.
    pub(crate) take: bool,
    /// Whether the other tree's root gives its metadata to this one's.
    pub(crate) root: bool,
    pub(crate) ignore: &'a IgnorePaths,
}

struct Level {
    names: std::vec::IntoIter<Vec<u8>>,
    path: TreePath,
}

struct Work<'a, 'b> {
    how: &'a Merge<'a>,
    base: TreePath,
    root: OwnedFd,
    source: DirStack<()>,
    target: DirStack<()>,
    levels: Vec<Level>,
    take: bool,
    /// The first name of each file with several, in the target.
    links: HashMap<(u64, u64), TreePath>,
    seen: &'b mut dyn FnMut(&TreePath) -> io::Result<()>,
}

impl Merge<'_> {
    /// Lays `source` over `target`, both directories. `seen` hears of each file that was put.
    pub(crate) fn run(
        &self,
        source: OwnedFd,
        target: OwnedFd,
        seen: &mut dyn FnMut(&TreePath) -> io::Result<()>,
    ) -> io::Result<()> {
        self.run_at(TreePath::root(), source, target, seen)
    }

    /// The same for two directories that lie at `base` in their trees, which matters for ignored paths.
    pub(crate) fn run_at(
        &self,
        base: TreePath,
        source: OwnedFd,
        target: OwnedFd,
        seen: &mut dyn FnMut(&TreePath) -> io::Result<()>,
    ) -> io::Result<()> {
        let root = open_dir(&target, b".")?;
        let mut work = Work {
            how: self,
            base,
            root,
            source: DirStack::new(source, ())?,
            target: DirStack::new(target, ())?,
            levels: Vec::new(),
            take: self.take,
            links: HashMap::new(),
            seen,
        };
        if self.root {
            work.own_meta(b".")?;
        }
        work.list(TreePath::root())?;
        while work.step()? {}
        work.target.finish()
    }
}

impl Work<'_, '_> {
    fn list(&mut self, path: TreePath) -> io::Result<()> {
        let names = names(self.source.handle()?)?.into_iter();
        self.levels.push(Level { names, path });
        Ok(())
    }

    /// Gives the target's current directory the metadata of the source's.
    fn own_meta(&mut self, name: &[u8]) -> io::Result<()> {
        let meta = look_here(self.source.handle()?)?;
        let xattrs = xattrs(self.source.handle()?, name)?;
        clear_xattrs(self.target.handle()?, b"", &xattrs)?;
        set_meta(self.target.handle()?, b"", &meta, &xattrs)?;
        self.target.set_mtime(timespec(meta.mtime));
        Ok(())
    }

    fn step(&mut self) -> io::Result<bool> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let Some(name) = level.names.next() else {
            self.levels.pop();
            self.source.leave()?;
            if !self.levels.is_empty() {
                self.target.leave()?;
            }
            return Ok(true);
        };
        let path = level.path.join(&name);
        if self.is_ignored(&path) {
            return Ok(true);
        }
        let Some(meta) = look(self.source.handle()?, &name)? else { return Ok(true) };
        let there = look(self.target.handle()?, &name)?;
        if self.how.from == From::Delta && is_whiteout(&meta) {
            self.whiteout(&name, &path, there.as_ref())?;
        } else if meta.kind == Kind::Directory {
            self.directory(&name, path, there.as_ref())?;
        } else {
            self.other(&name, &path, &meta, there.as_ref())?;
        }
        Ok(true)
    }

    fn is_ignored(&self, path: &TreePath) -> bool {
        if self.how.ignore.is_empty() {
            return false;
        }
        let whole = [self.base.as_bytes(), path.as_bytes()].join(&b'/');
        self.how.ignore.is_ignored(&TreePath::new(&whole))
    }

    /// Removes what is there, but for what is ignored. Says whether it is gone.
    fn remove(&mut self, name: &[u8], path: &TreePath) -> io::Result<bool> {
        let whole = TreePath::new([self.base.as_bytes(), path.as_bytes()].join(&b'/'));
        remove_unless_kept(self.target.writable()?, name, &whole, self.how.ignore)
    }

    fn whiteout(&mut self, name: &[u8], path: &TreePath, there: Option<&Meta>) -> io::Result<()> {
        if there.is_some() {
            self.remove(name, path)?;
        }
        let target = self.target.writable()?;
        if self.how.onto == Onto::Upper { make_whiteout(target, name) } else { Ok(()) }
    }

    fn directory(&mut self, name: &[u8], path: TreePath, there: Option<&Meta>) -> io::Result<()> {
        let opaque = self.how.from == From::Delta && is_opaque(self.source.handle()?, name)?;
        let upper = self.how.onto == Onto::Upper;
        if self.take && upper && there.is_none() {
            // Nothing to merge with: the whole directory moves.
            match renameat(self.source.handle()?, name, self.target.writable()?, name) {
                Ok(()) => return Ok(()),
                Err(Errno::XDEV) => self.take = false,
                Err(error) => return Err(error.into()),
            }
        }
        let merges = !opaque && there.is_some_and(|there| there.kind == Kind::Directory);
        if !merges {
            let gone = there.is_none() || self.remove(name, &path)?;
            let target = self.target.writable()?;
            if gone {
                mkdirat(target, name, Mode::RWXU)?;
            }
            if upper && (opaque || there.is_some()) {
                set_opaque(target, name)?;
            }
        }
        self.source.enter(name, ())?;
        self.target.enter(name, ())?;
        self.own_meta(b".")?;
        self.list(path)
    }

    fn other(&mut self, name: &[u8], path: &TreePath, meta: &Meta, there: Option<&Meta>) -> io::Result<()> {
        if there.is_some_and(|there| there.kind == Kind::Directory) && !self.remove(name, path)? {
            return Ok(());
        }
        if self.take {
            match renameat(self.source.handle()?, name, self.target.writable()?, name) {
                Ok(()) => return (self.seen)(path),
                Err(Errno::XDEV) => self.take = false,
                Err(error) => return Err(error.into()),
            }
        }
        if there.is_some_and(|there| there.kind != Kind::Directory) {
            remove_all(self.target.writable()?, name)?;
        }
        if meta.nlink > 1 {
            if let Some(first) = self.links.get(&meta.inode) {
                let dir = open_parent(&self.root, first)?;
                linkat(dir, first.name(), self.target.writable()?, name, AtFlags::empty())?;
                return (self.seen)(path);
            }
            self.links.insert(meta.inode, path.clone());
        }
        copy_entry(self.source.handle()?, self.target.writable()?, name, meta)?;
        (self.seen)(path)
    }
}

/// Copies one entry that is no directory from one directory to another, under the same name.
pub(crate) fn copy_entry(source: impl AsFd, target: impl AsFd, name: &[u8], meta: &Meta) -> io::Result<()> {
    match meta.kind {
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file: File = openat(&target, name, flags, Mode::RUSR | Mode::WUSR)?.into();
            copy_content(&open_file(&source, name)?, &file, meta.size)?;
        }
        Kind::Symlink => symlinkat(read_link(&source, name)?.as_slice(), &target, name)?,
        _ => make_special(&target, name, meta)?,
    }
    set_meta(&target, name, meta, &xattrs(&source, name)?)
}
