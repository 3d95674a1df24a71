//! Writing a layer's files into a tree: onto what is there, or as a layer of its own in overlayfs' format.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;

use kiln_oci::{DiffId, Digest, Hasher};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::contents::{copy_pieces, copy_whole};
use crate::delta::disk;
use crate::error::Doing;
use crate::remove::remove_unless_kept;
use crate::tar_read::{Entry, EntryKind, TarReader};
use crate::{
    Compression, IgnorePaths, Kind, Meta, Root, RootfsError, Timestamp, TreePath, Xattrs, decompress,
};

/// What becomes of whiteouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// What they name is removed from the tree.
    Apply,
    /// They are kept in overlayfs' format: the tree is one layer of a stack.
    ToOverlay,
}

/// Told of every entry that is written.
pub trait Record {
    /// `hash` is the SHA-256 of a regular file's content.
    fn wrote(&mut self, path: &TreePath, meta: &Meta, hash: Option<[u8; 32]>) -> io::Result<()>;
}

/// How a layer is written.
pub struct ExtractOptions<'a> {
    /// What becomes of whiteouts.
    pub whiteouts: Whiteouts,
    /// Paths that are passed over.
    pub ignore: IgnorePaths,
    /// Whether device nodes can be made. Where not, they are left out and counted.
    pub can_mknod: bool,
    /// Whether files can be given to anybody. Where not, all of them are ours.
    pub can_chown: bool,
    /// Told of every entry.
    pub record: Option<&'a mut dyn Record>,
}

/// What was written.
#[derive(Debug)]
pub struct Extracted {
    /// How many entries were written.
    pub entries: u64,
    /// How many bytes their contents have.
    pub bytes: u64,
    /// Device nodes that could not be made.
    pub skipped: Vec<TreePath>,
    /// Hard links to files that this layer doesn't hold: name and target. Only with [`Whiteouts::ToOverlay`]; whoever
    /// knows the layers below has to make them.
    pub dangling: Vec<(TreePath, TreePath)>,
    /// What was passed over because a directory lies there that stays: it holds what is ignored.
    pub(crate) in_the_way: Vec<InTheWay>,
}

/// An entry that could not take the place of a directory with something ignored in it.
#[derive(Debug, Clone)]
pub(crate) struct InTheWay {
    pub(crate) path: TreePath,
    /// What is to be there.
    pub(crate) meta: Meta,
    pub(crate) xattrs: Xattrs,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Writes a layer into the tree `into`, from its bytes as a registry has them; `said` is what its media type says of their
/// compression. Also gives what its archive hashes to, which nobody has compared with anything yet.
///
/// Fails as [`extract`] does, or as reading `layer` does.
pub fn extract_layer(
    layer: impl BufRead + Send + 'static,
    said: Compression,
    into: &Root,
    options: &mut ExtractOptions<'_>,
) -> Result<(DiffId, Extracted), RootfsError> {
    let mut tar = Hashing { input: decompress(layer, said), hasher: Hasher::sha256() };
    let extracted = extract(&mut tar, into, options)?;
    Ok((DiffId(digest_bytes(&tar.hasher.finish())), extracted))
}

/// Writes the layer `tar` (not compressed), which is read to its end, into the tree `into`.
///
/// Fails with [`RootfsError::Archive`] if it is damaged, with [`RootfsError::Escape`] if it names anything outside the
/// tree, and with [`RootfsError::Io`] if a file can't be written.
pub fn extract(
    tar: impl BufRead,
    into: &Root,
    options: &mut ExtractOptions<'_>,
) -> Result<Extracted, RootfsError> {
    let mut work = Extraction {
        tar: TarReader::new(tar),
        into,
        options,
        parent: None,
        real: None,
        written: HashSet::new(),
        cleared: HashSet::new(),
        hasher: RandomState::new(),
        directories: Vec::new(),
        done: Counted::default(),
    };
    while let Some(entry) = work.tar.next()? {
        work.entry(&entry)?;
    }
    work.finish()
}

#[derive(Default)]
struct Counted {
    entries: u64,
    bytes: u64,
    skipped: Vec<TreePath>,
    dangling: Vec<(TreePath, TreePath)>,
    in_the_way: Vec<InTheWay>,
}

struct Hashing<R> {
    input: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        // What is consumed was given out: it is there, and getting it again reads nothing.
        if let Ok(there) = self.input.fill_buf() {
            self.hasher.update(&there[..length.min(there.len())]);
        }
        self.input.consume(length);
    }
}

/// What a file was made with: the umask, a default ACL or its directory may have decided otherwise than was asked for.
#[derive(Clone, Copy)]
struct Made {
    owner: (u32, u32),
    mode: u32,
}

struct Extraction<'a, 'o, R> {
    tar: TarReader<R>,
    into: &'a Root,
    options: &'a mut ExtractOptions<'o>,
    /// The directory of the last entry: most entries lie beside their predecessor.
    parent: Option<(TreePath, OwnedFd)>,
    /// The directory that was looked at last for what is ignored, and where it really is.
    real: Option<(TreePath, TreePath)>,
    /// Hashes of the paths that this layer wrote: an opaque mark hides only what lies below them.
    written: HashSet<u64>,
    /// Hashes of the directories that such a mark has emptied.
    cleared: HashSet<u64>,
    hasher: RandomState,
    /// Times that are set at the end, since writing into a directory changes its own.
    directories: Vec<(TreePath, Timestamp)>,
    done: Counted,
}

fn escape(path: &[u8], why: &'static str) -> RootfsError {
    RootfsError::Escape { path: String::from_utf8_lossy(path).into_owned(), why }
}

impl<R: BufRead> Extraction<'_, '_, R> {
    fn entry(&mut self, entry: &Entry) -> Result<(), RootfsError> {
        let path = TreePath::strict(&entry.path)
            .ok_or_else(|| escape(&entry.path, "leads out of the tree by .."))?;
        if self.is_ignored(&path)? {
            return Ok(());
        }
        if path.name().starts_with(WHITEOUT) {
            return self.whiteout(&path);
        }
        self.done.entries += 1;
        if path.is_root() {
            return self.root(entry);
        }
        let mark = self.hasher.hash_one(path.as_bytes());
        self.written.insert(mark);
        self.enter_parent(&path)?;
        match entry.kind {
            EntryKind::HardLink => self.hard_link(&path, entry),
            EntryKind::New(kind) => self.new_entry(&path, kind, entry),
        }
    }

    /// Where `path` really is, as far as that matters: only what is ignored is told by it.
    fn real(&mut self, path: &TreePath) -> Result<TreePath, RootfsError> {
        if self.options.ignore.is_empty() {
            return Ok(path.clone());
        }
        let parent = path.parent().unwrap_or_default();
        let real = match &self.real {
            Some((looked_at, real)) if *looked_at == parent => real,
            _ => {
                let real = self.into.real(&parent)?;
                &self.real.insert((parent, real)).1
            }
        };
        Ok(real.join(path.name()))
    }

    /// Whether `path` is ignored, as it is written or as the links on the way lead.
    fn is_ignored(&mut self, path: &TreePath) -> Result<bool, RootfsError> {
        let real = self.real(path)?;
        Ok(self.options.ignore.is_ignored(path) || self.options.ignore.is_ignored(&real))
    }

    fn handle(&self) -> &OwnedFd {
        match &self.parent {
            Some((_, handle)) => handle,
            None => unreachable!("entries are written after their parent is entered"),
        }
    }

    /// Opens the directory that `path` lies in, and makes it where the archive doesn't say it.
    fn enter_parent(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        let parent = path.parent().unwrap_or_default();
        if self.parent.as_ref().is_some_and(|(open, _)| *open == parent) {
            return Ok(());
        }
        let handle = match self.into.directory(&parent) {
            Ok(handle) => handle,
            Err(RootfsError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                self.make_parents(&parent)?;
                self.into.directory(&parent)?
            }
            Err(error) => return Err(error),
        };
        self.parent = Some((parent, handle));
        Ok(())
    }

    fn make_parents(&self, path: &TreePath) -> Result<(), RootfsError> {
        let mut at = TreePath::root();
        for name in path.components() {
            let next = at.join(name);
            if self.into.directory(&next).is_err() {
                let above = self.into.directory(&at)?;
                disk::remove_all(&above, name).doing("replace", next.to_string())?;
                rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))
                    .doing("make the directory", next.to_string())?;
                rustix::fs::chmodat(&above, name, Mode::from_raw_mode(0o755), AtFlags::empty())
                    .doing("change the mode of", next.to_string())?;
            }
            at = next;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        let parent = path.parent().unwrap_or_default();
        let overlay = self.options.whiteouts == Whiteouts::ToOverlay;
        if path.name() == OPAQUE {
            if overlay {
                self.enter_parent(path)?;
                return disk::set_opaque(self.handle(), b"").doing("mark as opaque", parent.to_string());
            }
            let real = self.into.real(&parent)?;
            // Nothing of an earlier layer comes back: once is enough, however often the mark is there.
            let first = self.cleared.insert(self.hasher.hash_one(real.as_bytes()));
            return if first { self.clear(&parent, &real) } else { Ok(()) };
        }
        let name = &path.name()[WHITEOUT.len()..];
        if name.is_empty() || name == b"." || name == b".." {
            return Err(escape(path.as_bytes(), "is a whiteout of no file"));
        }
        let target = parent.join(name);
        if self.is_ignored(&target)? {
            return Ok(());
        }
        if overlay {
            self.enter_parent(path)?;
            disk::remove_all(self.handle(), name).doing("remove", target.to_string())?;
            return disk::make_whiteout(self.handle(), name).doing("make a whiteout for", target.to_string());
        }
        let Ok(directory) = self.into.directory(&parent) else { return Ok(()) };
        let real = self.real(&target)?;
        remove_unless_kept(&directory, name, &real, &self.options.ignore)
            .doing("remove", target.to_string())?;
        self.forget(&target);
        Ok(())
    }

    /// Whether a directory lies where something else is to be, and stays because it holds what is ignored (in a pod:
    /// /var/run with the service account's token, where images have a link). The entry is passed over then, and noted.
    fn is_in_the_way(&mut self, path: &TreePath, name: &[u8]) -> Result<bool, RootfsError> {
        let real = self.real(path)?;
        let ignore = &self.options.ignore;
        if ignore.is_empty() || !ignore.reaches_below(&real) {
            return Ok(false);
        }
        let gone = remove_unless_kept(self.handle(), name, &real, ignore);
        Ok(!gone.doing("replace", path.to_string())?)
    }

    /// The kept handle may be of a directory that was just removed or replaced.
    fn forget(&mut self, path: &TreePath) {
        if self.parent.as_ref().is_some_and(|(open, _)| open.starts_with(path)) {
            self.parent = None;
        }
        if self.real.as_ref().is_some_and(|(looked_at, _)| looked_at.starts_with(path)) {
            self.real = None;
        }
    }

    /// Removes what earlier layers left in the directory `path`, which is at `real` once links are followed.
    fn clear(&mut self, path: &TreePath, real: &TreePath) -> Result<(), RootfsError> {
        let Ok(directory) = self.into.directory(path) else { return Ok(()) };
        for name in self.into.list(path)? {
            let (child, real) = (path.join(&name), real.join(&name));
            if self.options.ignore.is_ignored(&child) || self.options.ignore.is_ignored(&real) {
                continue;
            }
            if self.written.contains(&self.hasher.hash_one(child.as_bytes())) {
                let is_directory = self.into.stat(&child)?.is_some_and(|meta| meta.is_dir());
                if is_directory {
                    self.clear(&child, &real)?;
                }
                continue;
            }
            remove_unless_kept(&directory, &name, &real, &self.options.ignore)
                .doing("remove", child.to_string())?;
            self.forget(&child);
        }
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> Result<(), RootfsError> {
        self.parent = Some((TreePath::root(), self.into.directory(&TreePath::root())?));
        let meta = self.meta(Kind::Directory, entry);
        // The name is needed by calls that can't do without one.
        self.set_meta(b".", &TreePath::root(), &meta, entry, None)?;
        self.directories.push((TreePath::root(), entry.mtime));
        Ok(())
    }

    fn meta(&self, kind: Kind, entry: &Entry) -> Meta {
        let mut meta = Meta::new(kind, entry.mode);
        if self.options.can_chown {
            (meta.uid, meta.gid) = (entry.uid, entry.gid);
        } else {
            meta.uid = rustix::process::geteuid().as_raw();
            meta.gid = rustix::process::getegid().as_raw();
        }
        meta.mtime = entry.mtime;
        meta.rdev = matches!(kind, Kind::CharDevice | Kind::BlockDevice).then_some(entry.rdev);
        meta.size = if kind == Kind::File { entry.size } else { 0 };
        if kind == Kind::Symlink {
            meta.link = Some(entry.link.clone());
            meta.size = entry.link.len() as u64;
        }
        meta
    }

    /// Sets everything but the content. `made` says how it was made, where that is known: most files are right at once, and
    /// each change of an inode costs more than a look at it.
    fn set_meta(
        &self,
        name: &[u8],
        path: &TreePath,
        meta: &Meta,
        entry: &Entry,
        made: Option<Made>,
    ) -> Result<(), RootfsError> {
        let directory = self.handle();
        let doing = "set the attributes of";
        if self.options.can_chown && made.is_none_or(|made| made.owner != (meta.uid, meta.gid)) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(meta.uid), rustix::fs::Gid::from_raw(meta.gid));
            rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .doing("change the owner of", path.to_string())?;
        }
        // A new owner takes set-user-ID bits away, but those are never there yet.
        if meta.kind != Kind::Symlink && made.is_none_or(|made| made.mode != meta.mode) {
            rustix::fs::chmodat(directory, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .doing("change the mode of", path.to_string())?;
        }
        for (key, value) in &entry.xattrs {
            match disk::set_xattrs(directory, name, &[(key.clone(), value.clone())]) {
                Ok(()) => {}
                // What only a privileged process may set is left out where we are none, as every builder does.
                Err(error) if matches!(error.raw_os_error(), Some(1 | 95)) => {}
                Err(error) => return Err(error).doing(doing, path.to_string()),
            }
        }
        disk::set_mtime(directory, name, meta.mtime).doing("set the time of", path.to_string())
    }

    fn new_entry(&mut self, path: &TreePath, kind: Kind, entry: &Entry) -> Result<(), RootfsError> {
        let meta = self.meta(kind, entry);
        let name = path.name().to_vec();
        let (mut hash, mut made) = (None, None);
        if kind != Kind::Directory && self.is_in_the_way(path, &name)? {
            let xattrs = entry.xattrs.clone();
            self.done.in_the_way.push(InTheWay { path: path.clone(), meta, xattrs });
            return Ok(());
        }
        match kind {
            Kind::Directory => self.directory(path, &name)?,
            Kind::File => {
                let (how, content) = self.file(path, &name, &meta, entry)?;
                (made, hash) = (Some(how), content);
            }
            Kind::Symlink => self.replaced(path, &name, |directory, name| {
                rustix::fs::symlinkat(entry.link.as_slice(), directory, name)
            })?,
            Kind::CharDevice | Kind::BlockDevice if !self.options.can_mknod && !meta.is_whiteout() => {
                self.done.skipped.push(path.clone());
                return self.left_out(path, &name);
            }
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice | Kind::Socket => {
                self.replaced(path, &name, |directory, name| {
                    disk::make_special(directory, name, &meta)
                        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
                })?;
            }
        }
        self.set_meta(&name, path, &meta, entry, made)?;
        if kind == Kind::Directory {
            self.directories.push((path.clone(), entry.mtime));
        }
        self.wrote(path, &meta, hash)
    }

    /// Removes what lies where something is left out: in the image it isn't there any more.
    fn left_out(&mut self, path: &TreePath, name: &[u8]) -> Result<(), RootfsError> {
        disk::remove_all(self.handle(), name).doing("remove", path.to_string())?;
        if self.options.whiteouts == Whiteouts::ToOverlay {
            disk::make_whiteout(self.handle(), name).doing("make a whiteout for", path.to_string())?;
        }
        self.forget(path);
        Ok(())
    }

    fn wrote(&mut self, path: &TreePath, meta: &Meta, hash: Option<[u8; 32]>) -> Result<(), RootfsError> {
        match &mut self.options.record {
            Some(record) => record.wrote(path, meta, hash).doing("record", path.to_string()),
            None => Ok(()),
        }
    }

    /// Makes something; if something else is there already, in its place.
    fn replaced(
        &mut self,
        path: &TreePath,
        name: &[u8],
        make: impl Fn(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), RootfsError> {
        let made = match make(self.handle(), name) {
            Err(Errno::EXIST) => {
                disk::remove_all(self.handle(), name).doing("replace", path.to_string())?;
                make(self.handle(), name)
            }
            result => result,
        };
        self.forget(path);
        if self.parent.is_none() {
            self.enter_parent(path)?;
        }
        made.doing("make", path.to_string())
    }

    fn directory(&mut self, path: &TreePath, name: &[u8]) -> Result<(), RootfsError> {
        let mode = Mode::from_raw_mode(0o700);
        match rustix::fs::mkdirat(self.handle(), name, mode) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let there = disk::look(self.handle(), name).doing("look at", path.to_string())?;
                if there.is_some_and(|meta| meta.is_dir()) {
                    return disk::clear_xattrs(self.handle(), name, &[]).doing("update", path.to_string());
                }
                self.replaced(path, name, |directory, name| rustix::fs::mkdirat(directory, name, mode))
            }
            Err(error) => Err(error).doing("make the directory", path.to_string()),
        }
    }

    /// Makes a file with its content. Says how it was made, and gives its digest where somebody records it.
    fn file(
        &mut self,
        path: &TreePath,
        name: &[u8],
        meta: &Meta,
        entry: &Entry,
    ) -> Result<(Made, Option<[u8; 32]>), RootfsError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Writing would take other bits away.
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        let open = |directory: &OwnedFd| rustix::fs::openat(directory, name, flags, mode);
        let file = match open(self.handle()) {
            Err(Errno::EXIST) => {
                disk::remove_all(self.handle(), name).doing("replace", path.to_string())?;
                open(self.handle())
            }
            result => result,
        };
        let mut file = File::from(file.doing("make", path.to_string())?);
        let there = rustix::fs::fstat(&file).doing("look at", path.to_string())?;
        let made = Made { owner: (there.st_uid, there.st_gid), mode: there.st_mode & 0o7777 };
        let mut hasher = (self.options.record.is_some() && entry.pieces.is_none()).then(Hasher::sha256);
        let written = match &entry.pieces {
            None => copy_whole(&mut self.tar, &mut file, hasher.as_mut()),
            Some(pieces) => copy_pieces(&mut self.tar, &file, pieces, entry.size),
        };
        self.done.bytes += written.doing("write", path.to_string())?;
        Ok((made, hasher.map(|hasher| digest_bytes(&hasher.finish()))))
    }

    fn hard_link(&mut self, path: &TreePath, entry: &Entry) -> Result<(), RootfsError> {
        let target = TreePath::strict(&entry.link)
            .ok_or_else(|| escape(&entry.path, "is a hard link out of the tree"))?;
        if target == *path {
            return Ok(());
        }
        // As in kaniko: what it names is no part of the image.
        if self.is_ignored(&target)? {
            return Ok(());
        }
        let (from, from_name) = match self.into.parent(&target) {
            Ok(found) => found,
            Err(_) if self.options.whiteouts == Whiteouts::ToOverlay => {
                self.done.dangling.push((path.clone(), target));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let name = path.name().to_vec();
        if self.is_in_the_way(path, &name)? {
            let (path, meta) = (path.clone(), Meta::new(Kind::File, 0));
            self.done.in_the_way.push(InTheWay { path, meta, xattrs: Vec::new() });
            return Ok(());
        }
        let link = |directory: &OwnedFd| {
            rustix::fs::linkat(&from, &from_name, directory, name.as_slice(), AtFlags::empty())
        };
        let linked = match link(self.handle()) {
            Err(Errno::EXIST) => {
                disk::remove_all(self.handle(), &name).doing("replace", path.to_string())?;
                link(self.handle())
            }
            result => result,
        };
        match linked {
            Err(Errno::NOENT) if self.options.whiteouts == Whiteouts::ToOverlay => {
                self.done.dangling.push((path.clone(), target));
                return Ok(());
            }
            result => result.doing("link", format!("{path} to {target}"))?,
        }
        if self.options.record.is_some()
            && let Some(meta) = self.into.stat(path)?
        {
            return self.wrote(path, &meta, None);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Extracted, RootfsError> {
        // Deepest first, so that no later change touches a time that is set already.
        for (path, mtime) in std::mem::take(&mut self.directories).into_iter().rev() {
            let Ok((directory, name)) = self.into.parent(&path) else { continue };
            let name = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str()).to_vec();
            match disk::look(&directory, &name) {
                // Replaced by a later entry.
                Ok(Some(meta)) if meta.is_dir() => {}
                _ => continue,
            }
            disk::set_mtime(&directory, &name, mtime).doing("set the time of", path.to_string())?;
        }
        let mut input = self.tar.into_inner();
        // What follows the end marker belongs to the digests as well.
        io::copy(&mut input, &mut io::sink()).map_err(|error| RootfsError::Archive(error.to_string()))?;
        let Counted { entries, bytes, skipped, dangling, in_the_way } = self.done;
        Ok(Extracted { entries, bytes, skipped, dangling, in_the_way })
    }
}

fn digest_bytes(digest: &Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_bytes());
    bytes
}
