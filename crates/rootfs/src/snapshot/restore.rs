//! Brings a tree back to what it was when a stage was left: by the records of then, what was touched since is put back from
//! what was saved, and everything else stays where it is.
//!
//! An entry that has the inode and the ctime of its record is as it was: nothing can set a ctime. So a stage that begins
//! where an earlier one ended costs a walk and what the stages in between changed, and not a copy of the tree.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::vec::IntoIter;

use rustix::fs::{AtFlags, Mode, linkat, mkdirat};
use rustix::io::Errno;

use super::record::{Record, RecordReader};
use super::scan::is_alike;
use crate::delta::dir_stack::DirStack;
use crate::delta::disk::{clear_xattrs, look, look_here, names, open_dir, set_meta, timespec, xattrs};
use crate::delta::merge::copy_entry;
use crate::delta::open_parent;
use crate::remove::remove_unless_kept;
use crate::{IgnorePaths, Kind, Meta, TreePath};

/// Makes the tree `root` what `records` say, whose entries are all in the tree `saved`. What is ignored stays.
///
/// The records must be of `root` itself, and no change since may have a ctime that is in them.
pub(super) fn restore(
    root: OwnedFd,
    saved: OwnedFd,
    records: RecordReader,
    ignore: &IgnorePaths,
) -> io::Result<()> {
    let mut work = Restore {
        root: open_dir(&root, b".")?,
        tree: DirStack::new(root, ())?,
        saved: DirStack::new(saved, ())?,
        records,
        ignore,
        levels: Vec::new(),
        links: HashMap::new(),
    };
    let Some(own) = work.records.take()? else { return Ok(()) };
    let touched = !is_untouched(&own.meta, &look_here(&work.root)?);
    work.list(TreePath::root(), own.meta, touched)?;
    while work.step()? {}
    work.tree.finish()
}

/// A directory that the walk is in.
struct Level {
    entries: std::iter::Peekable<IntoIter<(Vec<u8>, Meta)>>,
    path: TreePath,
    /// What it was.
    was: Meta,
    /// Whether it isn't that any more.
    touched: bool,
}

struct Restore<'a> {
    root: OwnedFd,
    tree: DirStack<()>,
    saved: DirStack<()>,
    records: RecordReader,
    ignore: &'a IgnorePaths,
    levels: Vec<Level>,
    /// The first name, of those put back, of each file with several.
    links: HashMap<(u64, u64), TreePath>,
}

impl Restore<'_> {
    /// Lists the directory that the walk has entered.
    fn list(&mut self, path: TreePath, was: Meta, touched: bool) -> io::Result<()> {
        let handle = self.tree.handle()?;
        let mut entries = Vec::new();
        for name in names(open_dir(handle, b".")?)? {
            if !self.ignore.is_ignored(&path.join(&name))
                && let Some(meta) = look(handle, &name)?
            {
                entries.push((name, meta));
            }
        }
        self.levels.push(Level { entries: entries.into_iter().peekable(), path, was, touched });
        Ok(())
    }

    /// Deals with the next name, be it in the tree, in the records or in both. `false` when the walk is over.
    fn step(&mut self) -> io::Result<bool> {
        let depth = u32::try_from(self.levels.len()).map_err(io::Error::other)?;
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let here = level.entries.peek().map(|(name, _)| name.as_slice());
        let was = self.records.peek(depth).map(|record| record.name.as_slice());
        let (take_here, take_was) = match (here, was) {
            (None, None) => return self.ascend().map(|()| true),
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some(here), Some(was)) => (here <= was, was <= here),
        };
        let entry = if take_here { level.entries.next() } else { None };
        let above = level.path.clone();
        match (entry, if take_was { self.records.take()? } else { None }) {
            (entry, Some(record)) => self.put_back(record, entry.map(|(_, meta)| meta), &above)?,
            (Some((name, _)), None) => _ = self.remove(&name, &above.join(&name))?,
            (None, None) => {}
        }
        Ok(true)
    }

    fn put_back(&mut self, record: Record, here: Option<Meta>, above: &TreePath) -> io::Result<()> {
        let Record { name, meta: was, .. } = record;
        let path = above.join(&name);
        let touched = here.as_ref().is_none_or(|here| !is_untouched(&was, here));
        if was.kind != Kind::Directory {
            let way_is_free = !touched || here.is_none() || self.remove(&name, &path)?;
            return if touched && way_is_free { self.copy(&name, path, &was) } else { Ok(()) };
        }
        if here.is_some_and(|here| here.kind != Kind::Directory) {
            self.remove(&name, &path)?;
        }
        if touched {
            match mkdirat(self.tree.writable()?, name.as_slice(), Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.tree.enter(&name, ())?;
        self.saved.enter(&name, ())?;
        self.list(path, was, touched)
    }

    /// Puts back a file that is not there, or is another name of one that was put back.
    fn copy(&mut self, name: &[u8], path: TreePath, was: &Meta) -> io::Result<()> {
        if was.nlink > 1 {
            if let Some(first) = self.links.get(&was.inode) {
                let dir = open_parent(&self.root, first)?;
                return Ok(linkat(dir, first.name(), self.tree.writable()?, name, AtFlags::empty())?);
            }
            self.links.insert(was.inode, path);
        }
        copy_entry(self.saved.handle()?, self.tree.writable()?, name, was)
    }

    /// Removes what is there, but for what is ignored. Says whether it is gone.
    fn remove(&mut self, name: &[u8], path: &TreePath) -> io::Result<bool> {
        remove_unless_kept(self.tree.writable()?, name, path, self.ignore)
    }

    /// Leaves a directory as it was.
    fn ascend(&mut self) -> io::Result<()> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if level.touched {
            let wanted = xattrs(self.saved.handle()?, b".")?;
            clear_xattrs(self.tree.handle()?, b"", &wanted)?;
            set_meta(self.tree.handle()?, b"", &level.was, &wanted)?;
            self.tree.set_mtime(timespec(level.was.mtime));
        }
        if !self.levels.is_empty() {
            self.tree.leave()?;
            self.saved.leave()?;
        }
        Ok(())
    }
}

fn is_untouched(was: &Meta, now: &Meta) -> bool {
    was.ctime == now.ctime
        && was.inode == now.inode
        && was.nlink == now.nlink
        && was.mtime == now.mtime
        && is_alike(was, now)
}
