//! The few paths of an image that a COPY may look at, without unpacking it: layers are read through, several at a time,
//! and of what they hold only the interesting entries are written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::decompress::decompress_here;
use crate::delta::disk;
use crate::error::Doing;
use crate::tar_read::{Entry, EntryKind, TarReader, pass_over};
use crate::{
    BaseLayer, DirectoryView, Interest, Kind, Meta, Root, RootfsError, Timestamp, TreePath, View, Whole,
    Xattrs,
};

/// Files longer than this are of interest only for what they are: their content is left out.
const MOST_CONTENT: u64 = 4 << 20;

/// Rounds of following links that lead to paths which were not of interest before.
const MAX_ROUNDS: usize = 8;

/// How many layers are read at a time.
const THREADS: usize = 4;

/// How much a layer keeps in memory, in bytes, while the layers below it are not read yet.
const KEPT: u64 = 4 << 20;

/// Makes a tree in the new directory `into` that has, of the image made of `layers` (base first), the entries that are of
/// `interest`, wherever links lead there. Contents of large files are holes.
pub fn skeleton(
    layers: &[BaseLayer],
    interest: &Interest,
    into: &Path,
) -> Result<DirectoryView, RootfsError> {
    let mut interest = interest.clone();
    for round in 0..MAX_ROUNDS {
        let directory = into.join(round.to_string());
        std::fs::create_dir_all(&directory).doing("make the directory", &directory)?;
        rustix::fs::chmod(&directory, Mode::from_raw_mode(0o755)).doing("change the mode of", &directory)?;
        let Noted { links, times } = read_layers(layers, &interest, &directory)?;
        set_times(&Root::open(&directory)?, &times)?;
        let view = DirectoryView::open(&directory)?;
        if !interest.follow(&view, &links)? {
            return Ok(view);
        }
    }
    Err(RootfsError::Tree { path: TreePath::root(), why: "has links that lead on and on".to_owned() })
}

/// Whose turn it is to write: layers go into the tree in their order, whoever is read first.
struct Turn {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The layer that may write.
    at: usize,
    /// The next layer that nobody reads yet.
    next: usize,
    noted: Noted,
    failure: Option<RootfsError>,
}

/// What is wanted of a tree besides its files.
#[derive(Default)]
struct Noted {
    /// The links that were written.
    links: Vec<TreePath>,
    /// The mtimes of directories, which what is made in them later would move.
    times: BTreeMap<TreePath, Timestamp>,
}

impl Noted {
    fn wrote(&mut self, path: &TreePath, meta: &Meta) {
        match meta.kind {
            Kind::Symlink => self.links.push(path.clone()),
            Kind::Directory => _ = self.times.insert(path.clone(), meta.mtime),
            _ => {}
        }
    }
}

fn set_times(root: &Root, times: &BTreeMap<TreePath, Timestamp>) -> Result<(), RootfsError> {
    for (path, mtime) in times {
        if root.stat(path)?.is_some_and(|meta| meta.is_dir()) {
            let directory = root.directory(path)?;
            disk::set_mtime(&directory, b"", *mtime).doing("set the time of", path.to_string())?;
        }
    }
    Ok(())
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `layer` may write. `false` if that will never be, because another one failed.
    fn wait(&self, layer: usize) -> bool {
        let mut state = self.state();
        while state.at != layer && state.failure.is_none() {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failure.is_none()
    }

    fn ended(&self, result: Result<(), RootfsError>) {
        let mut state = self.state();
        match result {
            Ok(()) => state.at += 1,
            Err(error) => _ = state.failure.get_or_insert(error),
        }
        self.moved.notify_all();
    }
}

fn read_layers(layers: &[BaseLayer], interest: &Interest, into: &Path) -> Result<Noted, RootfsError> {
    let state = State { at: 0, next: 0, noted: Noted::default(), failure: None };
    let turn = Turn { state: Mutex::new(state), moved: Condvar::new() };
    // Layers are begun in their order, so the one whose turn it is is always being read by somebody.
    let worker = || {
        loop {
            let number = {
                let mut state = turn.state();
                state.next += 1;
                state.next - 1
            };
            let Some(layer) = layers.get(number) else { return };
            let result = read_layer(layer, number, interest, into, &turn);
            let failed = result.is_err();
            turn.ended(result);
            if failed {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(layers.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    let state = turn.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.failure {
        Some(error) => Err(error),
        None => Ok(state.noted),
    }
}

fn read_layer(
    layer: &BaseLayer,
    number: usize,
    interest: &Interest,
    into: &Path,
    turn: &Turn,
) -> Result<(), RootfsError> {
    match layer {
        BaseLayer::Unpacked { path, .. } => {
            if turn.wait(number) {
                from_directory(path, interest, into, &mut |path, meta| turn.state().noted.wrote(path, meta))?;
            }
            Ok(())
        }
        BaseLayer::Blob { open, compression, .. } => {
            let bytes = open().doing("open a layer for", into)?;
            let root = Root::open(into)?;
            let mut work = Reading { root, number, turn, kept: Vec::new(), size: 0, ours: false };
            work.blob(decompress_here(bytes, *compression), interest)
        }
    }
}

/// One thing that a layer says of the tree.
enum Said {
    Gone(TreePath),
    There {
        path: TreePath,
        meta: Meta,
        xattrs: Xattrs,
        content: Option<Vec<u8>>,
        /// What it is another name of.
        first: Option<TreePath>,
    },
}

/// A layer that is read, maybe before its turn.
struct Reading<'a> {
    root: Root,
    number: usize,
    turn: &'a Turn,
    kept: Vec<Said>,
    size: u64,
    /// Its turn has come.
    ours: bool,
}

impl Reading<'_> {
    fn blob(&mut self, input: impl BufRead, interest: &Interest) -> Result<(), RootfsError> {
        let mut tar = TarReader::new(input);
        while let Some(entry) = tar.next()? {
            let Some(path) = TreePath::strict(&entry.path) else {
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                return Err(RootfsError::Escape { path, why: "leads out of the tree by .." });
            };
            let said = if path.name().starts_with(b".wh.") {
                // Of what it names nothing is there unless something above it was wanted.
                if !interest.wants(&path.parent().unwrap_or_default())? {
                    continue;
                }
                Said::Gone(path)
            } else if interest.wants(&path)? {
                let meta = meta_of(&entry);
                let content = content(&entry, &meta, &mut tar).doing("read a layer for", path.to_string())?;
                let first = (entry.kind == EntryKind::HardLink).then(|| TreePath::new(&entry.link));
                Said::There { path, meta, xattrs: entry.xattrs.clone(), content, first }
            } else {
                continue;
            };
            if !self.say(said)? {
                return Ok(());
            }
        }
        // To the very end: there the digest is checked.
        pass_over(&mut tar.into_inner(), u64::MAX)
            .map_err(|error| RootfsError::Archive(error.to_string()))?;
        if self.ours || self.turn.wait(self.number) { self.write_kept() } else { Ok(()) }
    }

    /// Writes it, or keeps it until it is our turn. `false` if nobody wants it any more.
    fn say(&mut self, said: Said) -> Result<bool, RootfsError> {
        if let Said::There { path, content, .. } = &said {
            self.size += path.as_bytes().len() as u64 + 256;
            self.size += content.as_ref().map_or(0, |content| content.len() as u64);
        }
        if self.ours {
            return self.write(said).map(|()| true);
        }
        self.kept.push(said);
        if self.size < KEPT {
            return Ok(true);
        }
        self.ours = self.turn.wait(self.number);
        self.write_kept()?;
        Ok(self.ours)
    }

    fn write_kept(&mut self) -> Result<(), RootfsError> {
        for said in std::mem::take(&mut self.kept) {
            self.write(said)?;
        }
        Ok(())
    }

    fn write(&self, said: Said) -> Result<(), RootfsError> {
        match said {
            Said::Gone(path) => {
                let parent = path.parent().unwrap_or_default();
                match self.root.directory(&parent) {
                    Ok(directory) => {
                        remove(&self.root, &directory, &parent, path.name().get(4..).unwrap_or_default())
                    }
                    Err(_) => Ok(()),
                }
            }
            Said::There { path, meta, xattrs, content, first } => {
                put(&self.root, &path, &meta, &xattrs, &mut content.as_deref().unwrap_or_default())?;
                if let Some(first) = first {
                    link(&self.root, &path, &first)?;
                }
                self.turn.state().noted.wrote(&path, &meta);
                Ok(())
            }
        }
    }
}

/// A file's bytes, unless they are too many or none of the entry's.
fn content(entry: &Entry, meta: &Meta, tar: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    if meta.kind != Kind::File || meta.size > MOST_CONTENT {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    Whole::new(entry, tar).take(meta.size).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A whiteout, without its prefix; `.wh..opq` is what is left of an opaque mark.
fn remove(root: &Root, directory: &OwnedFd, parent: &TreePath, name: &[u8]) -> Result<(), RootfsError> {
    let names = if name == b".wh..opq" { root.list(parent)? } else { vec![name.to_vec()] };
    for name in names {
        if !name.is_empty() && name != b"." && name != b".." {
            disk::remove_all(directory, &name).doing("remove", parent.join(&name).to_string())?;
        }
    }
    Ok(())
}

fn meta_of(entry: &Entry) -> Meta {
    let kind = match entry.kind {
        EntryKind::New(kind) => kind,
        EntryKind::HardLink => Kind::File,
    };
    let mut meta = Meta::new(kind, entry.mode);
    (meta.uid, meta.gid, meta.mtime) = (entry.uid, entry.gid, entry.mtime);
    meta.size = entry.size;
    meta.link = (kind == Kind::Symlink).then(|| entry.link.clone());
    meta
}

fn put(
    root: &Root,
    path: &TreePath,
    meta: &Meta,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    content: &mut impl Read,
) -> Result<(), RootfsError> {
    let (directory, name) = if path.is_root() {
        (root.directory(path)?, b".".to_vec())
    } else {
        (enter(root, &path.parent().unwrap_or_default())?, path.name().to_vec())
    };
    let there = disk::look(&directory, &name).doing("look at", path.to_string())?;
    let keeps = there.as_ref().is_some_and(Meta::is_dir) && meta.is_dir();
    if there.is_some() && !keeps {
        disk::remove_all(&directory, &name).doing("replace", path.to_string())?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match meta.kind {
        Kind::Directory if keeps => {}
        Kind::Directory => {
            rustix::fs::mkdirat(&directory, name.as_slice(), Mode::RWXU).doing("make", path.to_string())?;
        }
        Kind::Symlink => {
            let link = meta.link.clone().unwrap_or_default();
            rustix::fs::symlinkat(link, &directory, name.as_slice()).doing("make", path.to_string())?;
        }
        _ => {
            let file = rustix::fs::openat(&directory, name.as_slice(), flags, Mode::RUSR | Mode::WUSR);
            let mut file = File::from(file.doing("make", path.to_string())?);
            fill(&mut file, meta.size, content).doing("write", path.to_string())?;
        }
    }
    dress(&directory, &name, meta, xattrs).doing("set the attributes of", path.to_string())
}

/// Opens a directory, and makes it and those above it where they aren't any. One after the other: as deep as a path may
/// be, no stack is.
fn enter(root: &Root, path: &TreePath) -> Result<OwnedFd, RootfsError> {
    match root.directory(path) {
        Err(RootfsError::Io { source, .. })
            if source.raw_os_error() != Some(Errno::NAMETOOLONG.raw_os_error()) => {}
        result => return result,
    }
    let mut at = TreePath::root();
    for name in path.components() {
        at = at.join(name);
        if root.directory(&at).is_err() {
            put(root, &at, &Meta::new(Kind::Directory, 0o755), &[], &mut io::empty())?;
        }
    }
    root.directory(path)
}

/// Makes the file at `path` another name of `first`, which its archive has no bytes of its own for. Where nobody wanted
/// `first`, it stays as it is.
fn link(root: &Root, path: &TreePath, first: &TreePath) -> Result<(), RootfsError> {
    if root.stat(first)?.is_none_or(|meta| meta.kind != Kind::File) {
        return Ok(());
    }
    let from = root.directory(&first.parent().unwrap_or_default())?;
    let into = root.directory(&path.parent().unwrap_or_default())?;
    disk::remove_all(&into, path.name()).doing("replace", path.to_string())?;
    rustix::fs::linkat(from, first.name(), into, path.name(), rustix::fs::AtFlags::empty())
        .doing("link", path.to_string())
}

fn fill(file: &mut File, size: u64, content: &mut impl Read) -> io::Result<()> {
    if size <= MOST_CONTENT {
        let mut bytes = Vec::new();
        content.take(size).read_to_end(&mut bytes)?;
        file.write_all(&bytes)?;
    }
    file.set_len(size)
}

/// Owners and attributes are set as far as this process may: what is made is only looked at.
fn dress(directory: &OwnedFd, name: &[u8], meta: &Meta, xattrs: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(meta.uid), rustix::fs::Gid::from_raw(meta.gid));
    match rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if meta.kind != Kind::Symlink {
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    for attribute in xattrs {
        match disk::set_xattrs(directory, name, std::slice::from_ref(attribute)) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(1 | 95)) => {}
            Err(error) => return Err(error),
        }
    }
    disk::set_mtime(directory, name, meta.mtime)
}

/// The same from a layer that is unpacked already.
fn from_directory(
    layer: &Path,
    interest: &Interest,
    into: &Path,
    wrote: &mut dyn FnMut(&TreePath, &Meta),
) -> Result<(), RootfsError> {
    let mut work = Unpacked { from: DirectoryView::open(layer)?, to: Root::open(into)?, interest, wrote };
    for path in interest.points() {
        work.entry(path)?;
    }
    for place in interest.places() {
        if work.from.stat(place)?.is_some_and(|meta| meta.is_dir()) {
            work.below(place)?;
        }
    }
    Ok(())
}

struct Unpacked<'a> {
    from: DirectoryView,
    to: Root,
    interest: &'a Interest,
    wrote: &'a mut dyn FnMut(&TreePath, &Meta),
}

impl Unpacked<'_> {
    fn below(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        for name in self.from.list(path)? {
            let child = path.join(&name);
            if self.interest.wants(&child)? && self.entry(&child)? {
                self.below(&child)?;
            }
        }
        Ok(())
    }

    /// Gives whether it is a directory.
    fn entry(&mut self, path: &TreePath) -> Result<bool, RootfsError> {
        let Some(meta) = self.from.stat(path)? else { return Ok(false) };
        let parent = path.parent().unwrap_or_default();
        if meta.is_whiteout() {
            if let Ok(directory) = self.to.directory(&parent) {
                disk::remove_all(&directory, path.name()).doing("remove", path.to_string())?;
            }
            return Ok(false);
        }
        if meta.is_dir() && is_opaque(&self.from, path)? && self.to.stat(path)?.is_some() {
            let directory = self.to.directory(&parent)?;
            if !path.is_root() {
                disk::remove_all(&directory, path.name()).doing("remove", path.to_string())?;
            }
        }
        let xattrs = self.from.xattrs(path)?;
        if meta.kind == Kind::File {
            put(&self.to, path, &meta, &xattrs, &mut self.from.open(path)?)?;
        } else {
            put(&self.to, path, &meta, &xattrs, &mut io::empty())?;
        }
        (self.wrote)(path, &meta);
        Ok(meta.is_dir())
    }
}

fn is_opaque(view: &DirectoryView, path: &TreePath) -> Result<bool, RootfsError> {
    let marks = view.xattrs(path)?;
    Ok(marks.iter().any(|(name, value)| crate::overlay::OPAQUE.contains(&name.as_slice()) && value == b"y"))
}
