//! Makes a [`Delta`] entry by entry, for COPY, ADD and WORKDIR, on top of a tree that is only looked at.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, mkdirat, openat, symlinkat};

use super::Delta;
use super::copy::copy_content;
use super::dir_stack::{DIRECTORY, DirStack};
use super::disk::{
    clear_xattrs, is_opaque, is_whiteout, look, make_special, make_whiteout, open_dir, remove_all, set_meta,
    set_opaque, timespec,
};
use super::loans::Loans;
use super::{failed, not_a_directory, not_there};
use crate::{Kind, Meta, RootfsError, TreePath, View};

/// How many directories are remembered.
const SEEN: usize = 32;

/// Makes a delta on top of `below`.
///
/// Paths are taken as they are: resolve symlinks first (`<dyn View>::resolve` on the builder itself, which is a view of
/// the tree as it will be). The directory above an entry must exist, here or below; where it exists only below, it is
/// recorded with the metadata it has there, as overlayfs does when it copies a directory up. Making something in a
/// directory moves its mtime to now, as in every file system: a directory whose mtime matters is put again afterwards. Entries replace what is at their path; a directory put where one is keeps what is in it.
/// Give paths in the order of a tree walk where you can: each directory is then opened once.
pub struct DeltaBuilder<'a> {
    path: PathBuf,
    below: &'a dyn View,
    pub(super) root: OwnedFd,
    /// For each directory on the way: whether what is below shows through it.
    stack: DirStack<bool>,
    /// Where directories lie that were asked for.
    seen: Mutex<VecDeque<(TreePath, Arc<Dir>)>>,
    loans: Loans,
}

impl<'a> DeltaBuilder<'a> {
    /// Begins a delta in the directory `path`, which is made and must not hold anything yet.
    pub fn new(path: &Path, below: &'a dyn View) -> Result<Self, RootfsError> {
        let fail = |error: io::Error| failed("begin a delta in", path.as_os_str().as_encoded_bytes(), error);
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(fail(error.into())),
        }
        let open = || openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|error| fail(error.into()));
        let root = open()?;
        if let Some(meta) = below.stat(&TreePath::root())? {
            let xattrs = below.xattrs(&TreePath::root())?;
            set_meta(&root, b"", &meta, &xattrs).map_err(fail)?;
        }
        let stack = DirStack::new(open()?, true).map_err(fail)?;
        let (seen, loans) = (Mutex::default(), Loans::default());
        Ok(Self { path: path.to_owned(), below, root, stack, seen, loans })
    }

    /// Puts a regular file at `path` with the bytes of `source` from its start; `meta.size` says how many. Blocks are
    /// shared where the file system can, and holes stay holes. Fails if `source` is shorter than that by now.
    pub fn put_file(
        &mut self,
        path: &TreePath,
        source: &File,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), RootfsError> {
        let file = self.new_file(path)?;
        self.at(path, "copy into the delta", |stack, name| {
            copy_content(source, &file, meta.size)?;
            set_meta(stack.handle()?, name, meta, xattrs)
        })
    }

    /// Puts a regular file at `path` that has the bytes of the file `source` of `view`, which must stay as it is until the last
    /// of the delta's changes is read. A long file is not copied: what is in the delta's directory then only stands for it,
    /// so such a delta can be [stacked](Delta::stacked) and become a layer, but not be mounted or laid over a tree.
    pub fn lend_file(
        &mut self,
        path: &TreePath,
        view: &Arc<dyn View>,
        source: &TreePath,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), RootfsError> {
        if !self.loans.take(meta.size) {
            return self.put_file(path, &view.open(source)?, meta, xattrs);
        }
        let file = self.new_file(path)?;
        let fail = |error| failed("lend to the delta", path.as_bytes(), error);
        file.set_len(meta.size).map_err(fail)?;
        self.loans.note(&file, view, source).map_err(fail)?;
        self.at(path, "lend to the delta", |stack, name| set_meta(stack.handle()?, name, meta, xattrs))
    }

    /// Makes an empty file at `path`, in the place of whatever is there.
    fn new_file(&mut self, path: &TreePath) -> Result<File, RootfsError> {
        self.make_room(path)?;
        let file = self.at(path, "make a file in the delta", |stack, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(stack.writable()?, name, flags, Mode::RUSR | Mode::WUSR)?);
            stack.made_something();
            Ok(file)
        })?;
        self.loans.forget(&file).map_err(|error| failed("look at", path.as_bytes(), error))?;
        Ok(file)
    }

    /// Puts a regular file at `path` with the bytes that `source` gives, for content that is no file: a heredoc, the body
    /// of a download. `meta.size` is not looked at. Gives the number of bytes.
    pub fn put_content(
        &mut self,
        path: &TreePath,
        source: &mut dyn io::Read,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<u64, RootfsError> {
        let mut file = self.new_file(path)?;
        self.at(path, "write into the delta", |stack, name| {
            let count = io::copy(source, &mut file)?;
            set_meta(stack.handle()?, name, meta, xattrs)?;
            Ok(count)
        })
    }

    /// Puts a symlink at `path` that says `target`.
    pub fn put_symlink(
        &mut self,
        path: &TreePath,
        target: &[u8],
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), RootfsError> {
        self.make_room(path)?;
        self.at(path, "make the symlink", |stack, name| {
            symlinkat(target, stack.writable()?, name)?;
            stack.made_something();
            set_meta(stack.handle()?, name, meta, xattrs)
        })
    }

    /// Puts a directory at `path`. If one is there, here or below, it gets this metadata and keeps what is in it.
    pub fn put_dir(
        &mut self,
        path: &TreePath,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), RootfsError> {
        if path.is_root() {
            self.go_to(path)?;
            self.stack.set_mtime(timespec(meta.mtime));
            let handle = self.stack.handle().map_err(|error| failed("open", b"", error))?;
            return set_meta(handle, b"", meta, xattrs)
                .map_err(|error| failed("set the metadata of", b"", error));
        }
        self.make_dir(path)?;
        self.at(path, "set the metadata of", |stack, name| {
            clear_xattrs(stack.handle()?, name, xattrs)?;
            set_meta(stack.handle()?, name, meta, xattrs)
        })
    }

    /// Puts a fifo, device or socket at `path`.
    pub fn put_special(
        &mut self,
        path: &TreePath,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), RootfsError> {
        self.make_room(path)?;
        self.at(path, "make the special file", |stack, name| {
            make_special(stack.writable()?, name, meta)?;
            stack.made_something();
            set_meta(stack.handle()?, name, meta, xattrs)
        })
    }

    /// Makes `path` another name of `first`, which this builder has put before.
    pub fn hardlink(&mut self, path: &TreePath, first: &TreePath) -> Result<(), RootfsError> {
        self.make_room(path)?;
        let fail = |error| failed("open the directory of", first.as_bytes(), error);
        let dir = open_parent(&self.root, first).map_err(fail)?;
        self.at(path, "make the hard link", |stack, name| {
            linkat(&dir, first.name(), stack.writable()?, name, AtFlags::empty())?;
            stack.made_something();
            Ok(())
        })
    }

    /// Gives what this builder has put at `path` other metadata, with all its names. A new owner takes file capabilities
    /// away, as chown(2) does, unless they are among `xattrs`.
    pub fn dress(
        &mut self,
        path: &TreePath,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), RootfsError> {
        self.enter_parent(path)?;
        self.at(path, "set the metadata of", |stack, name| set_meta(stack.handle()?, name, meta, xattrs))
    }

    /// Makes `path` and the directories above it that don't exist yet, each with this owner and mode, as mkdir(2) and then
    /// chown(2) do: a set-group-ID directory passes that bit on, and its group where no owner is given. Without one they
    /// belong to root. Those that exist stay as they are. Gives the paths that were made.
    pub fn mkdir_all(
        &mut self,
        path: &TreePath,
        owner: Option<(u32, u32)>,
        mode: u32,
    ) -> Result<Vec<TreePath>, RootfsError> {
        const SET_GROUP_ID: u32 = 0o2000;
        let mut made = Vec::new();
        let mut at = TreePath::root();
        for name in path.components() {
            let above = std::mem::replace(&mut at, TreePath::root());
            at = above.join(name);
            match self.stat(&at)? {
                Some(meta) if meta.kind == Kind::Directory => continue,
                Some(_) => return Err(not_a_directory(&at)),
                None => {}
            }
            let parent = self.stat(&above)?.filter(|parent| parent.mode & SET_GROUP_ID != 0);
            self.make_dir(&at)?;
            let mut meta = self.stat(&at)?.ok_or_else(|| not_there(&at))?;
            (meta.uid, meta.gid) = owner.unwrap_or((0, parent.as_ref().map_or(0, |parent| parent.gid)));
            meta.mode = mode & 0o7777 | parent.map_or(0, |_| SET_GROUP_ID);
            self.put_dir(&at, &meta, &[])?;
            made.push(at.clone());
        }
        Ok(made)
    }

    /// Removes what is at `path`, and whatever is in it. Nothing there is no error.
    pub fn remove(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        if self.stat(path)?.is_none() {
            return Ok(());
        }
        self.make_room(path)?;
        self.stack.made_something();
        if *self.stack.note() && self.below.stat(path)?.is_some() {
            self.forget();
            self.at(path, "make the whiteout", |stack, name| make_whiteout(stack.writable()?, name))?;
        }
        Ok(())
    }

    /// Ends the delta. (A builder that is dropped instead leaves the directory as it is.)
    pub fn finish(self) -> Result<Delta, RootfsError> {
        let path = self.path;
        self.stack
            .finish()
            .map_err(|error| failed("finish the delta", path.as_os_str().as_encoded_bytes(), error))?;
        Ok(Delta { path, loans: Arc::new(self.loans) })
    }

    /// Makes the directory at `path` unless one is there, with the mode of nobody.
    fn make_dir(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        let here = self.enter_parent(path)?;
        let shows = *self.stack.note();
        match here {
            Some(meta) if meta.kind == Kind::Directory => return Ok(()),
            Some(_) => self.clear(path)?,
            None => {}
        }
        // Where a whiteout, a file or the like stood here, what lies below it must stay hidden.
        let hides = here.is_some() && shows && self.below.stat(path)?.is_some();
        self.forget();
        self.at(path, "make the directory", |stack, name| {
            mkdirat(stack.writable()?, name, Mode::RWXU)?;
            stack.made_something();
            if hides { set_opaque(stack.handle()?, name) } else { Ok(()) }
        })
    }

    /// Enters the directory above `path` and removes what this delta holds at `path`.
    fn make_room(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        if path.is_root() {
            return Err(not_a_directory(path));
        }
        if self.enter_parent(path)?.is_some() { self.clear(path) } else { Ok(()) }
    }

    fn clear(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        self.forget();
        self.at(path, "remove", |stack, name| remove_all(stack.writable()?, name))
    }

    /// Enters the directory above `path` and looks for what this delta holds at `path`.
    fn enter_parent(&mut self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        self.go_to(&path.parent().unwrap_or_else(TreePath::root))?;
        self.at(path, "look at", |stack, name| look(stack.handle()?, name))
    }

    fn at<T>(
        &mut self,
        path: &TreePath,
        action: &'static str,
        work: impl FnOnce(&mut DirStack<bool>, &[u8]) -> io::Result<T>,
    ) -> Result<T, RootfsError> {
        work(&mut self.stack, path.name()).map_err(|error| failed(action, path.as_bytes(), error))
    }

    fn go_to(&mut self, dir: &TreePath) -> Result<(), RootfsError> {
        let fail = |error| failed("leave a directory for", dir.as_bytes(), error);
        let common = self.stack.leave_to(dir.components()).map_err(fail)?;
        let mut at = TreePath::root();
        for (depth, name) in dir.components().enumerate() {
            at = at.join(name);
            if depth >= common {
                self.go_into(&at)?;
            }
        }
        Ok(())
    }

    /// Enters the directory `path`, of which the one above is the current one.
    fn go_into(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        let here = self.at(path, "look at", |stack, name| look(stack.handle()?, name))?;
        let shows = *self.stack.note();
        let below = if shows { self.below.stat(path)? } else { None };
        let below_is_dir = below.as_ref().is_some_and(|meta| meta.kind == Kind::Directory);
        match (here, below) {
            (Some(here), _) if here.kind == Kind::Directory => self.at(path, "enter", |stack, name| {
                let shows = below_is_dir && !is_opaque(stack.handle()?, name)?;
                stack.enter(name, shows)
            }),
            (None, Some(below)) if below_is_dir => {
                let xattrs = self.below.xattrs(path)?;
                self.forget();
                self.at(path, "record the directory", |stack, name| {
                    mkdirat(stack.writable()?, name, Mode::RWXU)?;
                    set_meta(stack.handle()?, name, &below, &xattrs)?;
                    stack.enter(name, true)
                })
            }
            (Some(here), _) if !is_whiteout(&here) => Err(not_a_directory(path)),
            (None, Some(_)) => Err(not_a_directory(path)),
            _ => Err(not_there(path)),
        }
    }
}

/// Opens the directory above `path` in `root`, following no symlink.
pub(crate) fn open_parent(root: &OwnedFd, path: &TreePath) -> io::Result<OwnedFd> {
    let mut dir = open_dir(root, b".")?;
    for name in path.parent().unwrap_or_else(TreePath::root).components() {
        dir = open_dir(&dir, name)?;
    }
    Ok(dir)
}

/// Where something of the tree as it will be lies.
enum Place {
    /// In the delta, in this directory.
    Here(Arc<Dir>, Meta),
    /// Only below.
    Below,
    /// Nowhere.
    Nowhere,
}

/// Where a directory of the tree as it will be lies.
enum Dir {
    /// In the delta; what is below shows through or doesn't.
    Here(OwnedFd, bool),
    /// Only below, if anywhere.
    Below,
    /// Nowhere.
    Nowhere,
}

impl DeltaBuilder<'_> {
    fn find(&self, path: &TreePath) -> Result<Place, RootfsError> {
        let fail = |error| failed("look at", path.as_bytes(), error);
        let dir = self.dir(&path.parent().unwrap_or_else(TreePath::root))?;
        let name: &[u8] = if path.is_root() { b"." } else { path.name() };
        let (handle, shows) = match &*dir {
            Dir::Here(handle, shows) => (handle, *shows),
            Dir::Below => return Ok(Place::Below),
            Dir::Nowhere => return Ok(Place::Nowhere),
        };
        Ok(match look(handle, name).map_err(fail)? {
            Some(meta) if is_whiteout(&meta) => Place::Nowhere,
            Some(meta) => Place::Here(dir, meta),
            None if shows => Place::Below,
            None => Place::Nowhere,
        })
    }

    /// Where the directory `path` lies. What was found is remembered until a directory of the delta changes.
    fn dir(&self, path: &TreePath) -> Result<Arc<Dir>, RootfsError> {
        let seen = |seen: &Mutex<VecDeque<(TreePath, Arc<Dir>)>>| {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.iter().find(|(seen, _)| seen == path).map(|(_, dir)| Arc::clone(dir))
        };
        if let Some(dir) = seen(&self.seen) {
            return Ok(dir);
        }
        let fail = |error| failed("look at", path.as_bytes(), error);
        let dir = match path.parent() {
            None => Dir::Here(open_dir(&self.root, b".").map_err(fail)?, true),
            Some(parent) => match &*self.dir(&parent)? {
                Dir::Nowhere => Dir::Nowhere,
                Dir::Below => Dir::Below,
                Dir::Here(above, shows) => match look(above, path.name()).map_err(fail)? {
                    Some(meta) if meta.kind == Kind::Directory => {
                        let handle = open_dir(above, path.name()).map_err(fail)?;
                        let opaque = is_opaque(above, path.name()).map_err(fail)?;
                        Dir::Here(handle, *shows && !opaque && self.is_dir_below(path)?)
                    }
                    None if *shows => Dir::Below,
                    _ => Dir::Nowhere,
                },
            },
        };
        let dir = Arc::new(dir);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= SEEN {
            seen.pop_front();
        }
        seen.push_back((path.clone(), Arc::clone(&dir)));
        Ok(dir)
    }

    fn is_dir_below(&self, path: &TreePath) -> Result<bool, RootfsError> {
        Ok(self.below.stat(path)?.is_some_and(|meta| meta.kind == Kind::Directory))
    }

    /// Directories of the delta come, go or change: what was seen of them may not hold any more.
    fn forget(&mut self) {
        self.seen.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl View for DeltaBuilder<'_> {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        match self.find(path)? {
            Place::Here(dir, mut meta) => {
                if let (Kind::Symlink, Dir::Here(dir, _)) = (meta.kind, &*dir) {
                    let link = super::disk::read_link(dir, path.name());
                    meta.link =
                        Some(link.map_err(|error| failed("read the symlink", path.as_bytes(), error))?);
                }
                Ok(Some(meta))
            }
            Place::Below => self.below.stat(path),
            Place::Nowhere => Ok(None),
        }
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        let fail = |error| failed("list", path.as_bytes(), error);
        let dir = self.dir(path)?;
        let (handle, shows) = match &*dir {
            Dir::Here(handle, shows) => (handle, *shows),
            Dir::Below => return self.below.list(path),
            Dir::Nowhere => return Err(not_there(path)),
        };
        let mut found = Vec::new();
        let mut hidden = BTreeSet::new();
        let handle = open_dir(handle, b".").map_err(fail)?;
        for name in super::disk::names(&handle).map_err(fail)? {
            match look(&handle, &name).map_err(fail)? {
                Some(meta) if !is_whiteout(&meta) => found.push(name.clone()),
                _ => {}
            }
            hidden.insert(name);
        }
        if shows && self.is_dir_below(path)? {
            found.extend(self.below.list(path)?.into_iter().filter(|name| !hidden.contains(name)));
            found.sort();
        }
        Ok(found)
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        match self.find(path)? {
            Place::Here(dir, _) => {
                let Dir::Here(dir, _) = &*dir else { return Err(not_there(path)) };
                let file = super::disk::open_file(dir, path.name());
                self.loans.open(file.map_err(|error| failed("open", path.as_bytes(), error))?, path)
            }
            Place::Below => self.below.open(path),
            Place::Nowhere => Err(not_there(path)),
        }
    }

    fn xattrs(&self, path: &TreePath) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RootfsError> {
        match self.find(path)? {
            Place::Here(dir, _) => {
                let Dir::Here(dir, _) = &*dir else { return Err(not_there(path)) };
                super::disk::xattrs(dir, path.name())
                    .map_err(|error| failed("read the xattrs of", path.as_bytes(), error))
            }
            Place::Below => self.below.xattrs(path),
            Place::Nowhere => Err(not_there(path)),
        }
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        use std::os::unix::ffi::OsStrExt as _;
        match self.find(path)? {
            Place::Here(..) => Ok(Some(self.path.join(std::ffi::OsStr::from_bytes(path.as_bytes())))),
            Place::Below => self.below.real_path(path),
            Place::Nowhere => Ok(None),
        }
    }
}
