//! The few paths of an image that a COPY may look at, without unpacking it: layers are read through, and of what they
//! hold only the interesting entries are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::delta::disk;
use crate::error::Doing;
use crate::tar_read::{Entry, EntryKind, TarReader};
use crate::{
    BaseLayer, DirectoryView, Kind, Meta, Root, RootfsError, Timestamp, TreePath, View, decompress, resolve,
};

/// Files longer than this are of interest only for what they are: their content is left out.
const MOST_CONTENT: u64 = 4 << 20;

/// Rounds of following links that lead to paths which were not of interest before.
const MAX_ROUNDS: usize = 8;

/// Makes a tree in the new directory `into` that has, of the image made of `layers` (base first), the entries at
/// `interest` and above them, wherever links lead there. Contents of large files are holes.
pub fn skeleton(
    layers: &[BaseLayer],
    interest: &[TreePath],
    into: &Path,
) -> Result<DirectoryView, RootfsError> {
    let mut wanted: BTreeSet<TreePath> = BTreeSet::new();
    for path in interest {
        want(&mut wanted, path);
    }
    for round in 0..MAX_ROUNDS {
        let directory = into.join(round.to_string());
        std::fs::create_dir_all(&directory).doing("make the directory", &directory)?;
        rustix::fs::chmod(&directory, Mode::from_raw_mode(0o755)).doing("change the mode of", &directory)?;
        let mut times = Times::new();
        for layer in layers {
            read_layer(layer, &wanted, &directory, &mut times)?;
        }
        set_times(&Root::open(&directory)?, &times)?;
        let view = DirectoryView::open(&directory)?;
        let before = wanted.len();
        for path in interest {
            want(&mut wanted, &resolve(&view, path)?);
        }
        if wanted.len() == before {
            return Ok(view);
        }
    }
    Err(RootfsError::Tree { path: TreePath::root(), why: "has links that lead on and on".to_owned() })
}

fn want(wanted: &mut BTreeSet<TreePath>, path: &TreePath) {
    wanted.extend(path.ancestors());
    wanted.insert(path.clone());
}

/// The mtimes of directories, which what is made in them later would move.
type Times = BTreeMap<TreePath, Timestamp>;

fn set_times(root: &Root, times: &Times) -> Result<(), RootfsError> {
    for (path, mtime) in times {
        if root.stat(path)?.is_some_and(|meta| meta.is_dir()) {
            let directory = root.directory(path)?;
            disk::set_mtime(&directory, b"", *mtime).doing("set the time of", path.to_string())?;
        }
    }
    Ok(())
}

fn read_layer(
    layer: &BaseLayer,
    wanted: &BTreeSet<TreePath>,
    into: &Path,
    times: &mut Times,
) -> Result<(), RootfsError> {
    match layer {
        BaseLayer::Unpacked { path, .. } => from_directory(path, wanted, into, times),
        BaseLayer::Blob { open, compression, .. } => {
            let bytes = open().doing("open a layer for", into)?;
            from_blob(decompress(bytes, *compression), wanted, into, times)
        }
    }
}

fn from_blob(
    input: impl Read,
    wanted: &BTreeSet<TreePath>,
    into: &Path,
    times: &mut Times,
) -> Result<(), RootfsError> {
    let root = Root::open(into)?;
    let mut tar = TarReader::new(input);
    while let Some(entry) = tar.next()? {
        let Some(path) = TreePath::strict(&entry.path) else {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(RootfsError::Escape { path, why: "leads out of the tree by .." });
        };
        if let Some(name) = path.name().strip_prefix(b".wh.") {
            let parent = path.parent().unwrap_or_default();
            if let Ok(directory) = root.directory(&parent) {
                remove(&root, &directory, &parent, name)?;
            }
        } else if wanted.contains(&path) {
            let meta = meta_of(&entry);
            put(&root, &path, &meta, &entry.xattrs, &mut tar)?;
            if meta.is_dir() {
                times.insert(path, meta.mtime);
            }
        }
    }
    let mut rest = tar.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| RootfsError::Archive(error.to_string()))?;
    Ok(())
}

/// A whiteout, without its prefix; `.wh..opq` is what is left of an opaque mark.
fn remove(
    root: &Root,
    directory: &rustix::fd::OwnedFd,
    parent: &TreePath,
    name: &[u8],
) -> Result<(), RootfsError> {
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
        let parent = path.parent().unwrap_or_default();
        if root.directory(&parent).is_err() {
            let meta = Meta::new(Kind::Directory, 0o755);
            put(root, &parent, &meta, &[], &mut io::empty())?;
        }
        (root.directory(&parent)?, path.name().to_vec())
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

fn fill(file: &mut File, size: u64, content: &mut impl Read) -> io::Result<()> {
    if size > MOST_CONTENT {
        return file.set_len(size);
    }
    let mut bytes = Vec::new();
    content.take(size).read_to_end(&mut bytes)?;
    file.write_all(&bytes)?;
    file.set_len(size)
}

/// Owners and attributes are set as far as this process may: what is made is only looked at.
fn dress(
    directory: &rustix::fd::OwnedFd,
    name: &[u8],
    meta: &Meta,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> io::Result<()> {
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
    wanted: &BTreeSet<TreePath>,
    into: &Path,
    times: &mut Times,
) -> Result<(), RootfsError> {
    let (from, to) = (DirectoryView::open(layer)?, Root::open(into)?);
    for path in wanted {
        let Some(meta) = from.stat(path)? else { continue };
        let parent = path.parent().unwrap_or_default();
        if meta.is_whiteout() {
            if let Ok(directory) = to.directory(&parent) {
                disk::remove_all(&directory, path.name()).doing("remove", path.to_string())?;
            }
            continue;
        }
        if meta.is_dir() && is_opaque(&from, path)? && to.stat(path)?.is_some() {
            let directory = to.directory(&parent)?;
            if !path.is_root() {
                disk::remove_all(&directory, path.name()).doing("remove", path.to_string())?;
            }
        }
        let xattrs = from.xattrs(path)?;
        if meta.kind == Kind::File {
            put(&to, path, &meta, &xattrs, &mut from.open(path)?)?;
        } else {
            put(&to, path, &meta, &xattrs, &mut io::empty())?;
        }
        if meta.is_dir() {
            times.insert(path.clone(), meta.mtime);
        }
    }
    Ok(())
}

fn is_opaque(view: &DirectoryView, path: &TreePath) -> Result<bool, RootfsError> {
    let marks = view.xattrs(path)?;
    Ok(marks.iter().any(|(name, value)| crate::overlay::OPAQUE.contains(&name.as_slice()) && value == b"y"))
}
