//! What an upper directory changes of the tree below it, as a stream for a layer.
//!
//! overlayfs copies a file up as soon as it is opened for writing, so an upper directory holds more than what changed:
//! each entry is compared with the one below, and left out if content and visible metadata are equal. What a layer holds
//! is always said name by name (never as an opaque directory), so that the same change gives the same layer on every
//! rung. An old name of a file that got a new one is no change: the new name is a file of its own in the layer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, openat};

use super::dir_stack::{DIRECTORY, DirStack};
use super::disk::{is_opaque, is_visible, is_whiteout, look, look_here, names, open_file, read_link, xattrs};
use super::failed;
use super::loans::Loans;
use crate::snapshot::{is_alike, is_set_mtime};
use crate::{Change, ChangeSource, IgnorePaths, Kind, Meta, RootfsError, Timestamp, TreePath, View, What};

/// What is known of a directory on the way.
#[derive(Clone, Copy)]
struct Note {
    /// Below there is a directory of this name.
    below: bool,
    /// Of which nothing shows through.
    hides: bool,
}

/// One level of the walk.
struct Level {
    names: std::vec::IntoIter<Vec<u8>>,
    path: TreePath,
    /// The directory's own entry, as long as nothing below it was found to have changed.
    own: Option<Meta>,
}

/// The changes that an upper directory makes, in the order of a tree walk.
pub(crate) struct UpperChanges {
    root: OwnedFd,
    below: Arc<dyn View>,
    ignore: IgnorePaths,
    /// When the step began; see [`is_set_mtime`].
    began: Timestamp,
    walk: DirStack<Note>,
    levels: Vec<Level>,
    ready: VecDeque<Change>,
    reader: DirStack<()>,
    loans: Arc<Loans>,
}

impl UpperChanges {
    /// Compares the upper directory at `path`, of a step that began at `began`, with `below`.
    pub(crate) fn new(
        path: &Path,
        below: Arc<dyn View>,
        ignore: IgnorePaths,
        began: Timestamp,
    ) -> Result<Self, RootfsError> {
        let open = || openat(CWD, path, DIRECTORY, Mode::empty());
        let root =
            open().map_err(|error| failed("open", path.as_os_str().as_encoded_bytes(), error.into()))?;
        Self::begin(root, below, ignore, began)
    }

    /// The same where some files stand for others.
    pub(super) fn with_loans(self, loans: Arc<Loans>) -> Self {
        Self { loans, ..self }
    }

    fn begin(
        root: OwnedFd,
        below: Arc<dyn View>,
        ignore: IgnorePaths,
        began: Timestamp,
    ) -> Result<Self, RootfsError> {
        let fail = |error| failed("open", b"", error);
        let again = || super::disk::open_dir(&root, b".").map_err(fail);
        let note = Note { below: true, hides: is_opaque(&root, b"").map_err(fail)? };
        let walk = DirStack::new(again()?, note).map_err(fail)?;
        let reader = DirStack::new(again()?, ()).map_err(fail)?;
        let (levels, ready) = (Vec::new(), VecDeque::new());
        let loans = Arc::default();
        let mut changes = Self { root, below, ignore, began, walk, levels, ready, reader, loans };
        changes.start()?;
        Ok(changes)
    }

    fn start(&mut self) -> Result<(), RootfsError> {
        let path = TreePath::root();
        let fail = |error| failed("look at", b"", error);
        let meta = look_here(&self.root).map_err(fail)?;
        // The root is in a layer only if it changed itself.
        if let Some(below) = self.below.stat(&path)?
            && self.differs(&path, &meta, &below)?
        {
            self.ready.push_back(Change { path: path.clone(), what: What::Entry(meta) });
        }
        self.descend(path, None)
    }

    /// Lists the directory that the walk has entered.
    fn descend(&mut self, path: TreePath, own: Option<Meta>) -> Result<(), RootfsError> {
        let fail = |error| failed("list", path.as_bytes(), error);
        let handle = self.walk.handle().map_err(fail)?;
        let mut found = names(handle).map_err(fail)?;
        let note = *self.walk.note();
        if note.hides && note.below {
            found.extend(self.below.list(&path)?);
            found.sort();
            found.dedup();
        }
        self.levels.push(Level { names: found.into_iter(), path, own });
        Ok(())
    }

    /// Deals with one name, or leaves a directory. `false` when the walk is over.
    fn step(&mut self) -> Result<bool, RootfsError> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let Some(name) = level.names.next() else {
            let level = self.levels.pop();
            let path = level.map_or_else(TreePath::root, |level| level.path);
            self.walk.leave().map_err(|error| failed("leave", path.as_bytes(), error))?;
            return Ok(true);
        };
        let path = level.path.join(&name);
        if !self.ignore.is_empty() && self.ignore.is_ignored(&path) {
            return Ok(true);
        }
        let fail = |error| failed("look at", path.as_bytes(), error);
        let here = look(self.walk.handle().map_err(fail)?, &name).map_err(fail)?;
        let below = if self.walk.note().below { self.below.stat(&path)? } else { None };
        match (here, below) {
            (Some(here), below) if !is_whiteout(&here) => self.entry(&name, path, here, below.as_ref())?,
            (_, Some(_)) => self.emit(Change { path, what: What::Deleted }),
            (_, None) => {}
        }
        Ok(true)
    }

    fn entry(
        &mut self,
        name: &[u8],
        path: TreePath,
        mut meta: Meta,
        below: Option<&Meta>,
    ) -> Result<(), RootfsError> {
        let fail = |error| failed("look at", path.as_bytes(), error);
        if meta.kind == Kind::Symlink {
            meta.link = Some(read_link(self.walk.handle().map_err(fail)?, name).map_err(fail)?);
        }
        let changed = match below {
            Some(below) => self.differs(&path, &meta, below)?,
            None => true,
        };
        if meta.kind != Kind::Directory {
            if changed {
                self.emit(Change { path, what: What::Entry(meta) });
            }
            return Ok(());
        }
        let above = *self.walk.note();
        let handle = self.walk.handle().map_err(fail)?;
        let note = Note {
            below: below.is_some_and(|below| below.kind == Kind::Directory),
            hides: above.hides || is_opaque(handle, name).map_err(fail)?,
        };
        if changed {
            self.emit(Change { path: path.clone(), what: What::Entry(meta.clone()) });
        }
        self.walk.enter(name, note).map_err(fail)?;
        self.descend(path, (!changed).then_some(meta))
    }

    /// Gives out a change, and before it the directories above it that are not out yet.
    fn emit(&mut self, change: Change) {
        for level in &mut self.levels {
            if let Some(meta) = level.own.take() {
                self.ready.push_back(Change { path: level.path.clone(), what: What::Entry(meta) });
            }
        }
        self.ready.push_back(change);
    }

    /// Whether a reader of the tree can see a difference between an entry here and the one below.
    fn differs(&mut self, path: &TreePath, here: &Meta, below: &Meta) -> Result<bool, RootfsError> {
        let times = match here.kind {
            Kind::Directory => is_set_mtime(below, here, self.began),
            _ => here.mtime != below.mtime,
        };
        if times || !is_alike(below, here) || here.link != below.link {
            return Ok(true);
        }
        let mut attributes = self.below.xattrs(path)?;
        attributes.retain(|(name, _)| is_visible(name));
        if self.xattrs(path)? != attributes {
            return Ok(true);
        }
        if here.kind != Kind::File || here.size == 0 {
            return Ok(false);
        }
        let (mut one, mut two) = (self.open(path)?, self.below.open(path)?);
        let same = is_same_content(&mut one, &mut two);
        same.map(|same| !same).map_err(|error| failed("compare", path.as_bytes(), error))
    }
}

impl ChangeSource for UpperChanges {
    fn next(&mut self) -> Result<Option<Change>, RootfsError> {
        while self.ready.is_empty() && self.step()? {}
        Ok(self.ready.pop_front())
    }

    fn open(&mut self, path: &TreePath) -> Result<File, RootfsError> {
        self.loans.open(open_in(&mut self.reader, path)?, path)
    }

    fn xattrs(&mut self, path: &TreePath) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RootfsError> {
        xattrs_in(&mut self.reader, path)
    }
}

/// Opens the file at `path`, keeping the directories above it open for the next one.
pub(crate) fn open_in(reader: &mut DirStack<()>, path: &TreePath) -> Result<File, RootfsError> {
    let open = |reader: &mut DirStack<()>| {
        go_to_parent(reader, path)?;
        open_file(reader.handle()?, path.name())
    };
    open(reader).map_err(|error| failed("open", path.as_bytes(), error))
}

/// Reads the xattrs of what is at `path`, keeping the directories above it open for the next one.
pub(crate) fn xattrs_in(
    reader: &mut DirStack<()>,
    path: &TreePath,
) -> Result<super::disk::Xattrs, RootfsError> {
    let read = |reader: &mut DirStack<()>| {
        go_to_parent(reader, path)?;
        xattrs(reader.handle()?, path.name())
    };
    read(reader).map_err(|error| failed("read the xattrs of", path.as_bytes(), error))
}

/// Reads the symlink at `path`, keeping the directories above it open for the next one.
pub(crate) fn link_in(reader: &mut DirStack<()>, path: &TreePath) -> Result<Vec<u8>, RootfsError> {
    let read = |reader: &mut DirStack<()>| {
        go_to_parent(reader, path)?;
        read_link(reader.handle()?, path.name())
    };
    read(reader).map_err(|error| failed("read the symlink", path.as_bytes(), error))
}

fn go_to_parent(reader: &mut DirStack<()>, path: &TreePath) -> io::Result<()> {
    let parent = path.parent().unwrap_or_else(TreePath::root);
    let common = reader.leave_to(parent.components())?;
    for name in parent.components().skip(common) {
        reader.enter(name, ())?;
    }
    Ok(())
}

fn is_same_content(one: &mut File, two: &mut File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    loop {
        let (count, other) = (fill(one, &mut left)?, fill(two, &mut right)?);
        if left[..count] != right[..other] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
