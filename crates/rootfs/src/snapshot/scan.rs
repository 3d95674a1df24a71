//! Walks a plain tree beside the records of the last walk: what is new, what is gone, what may have changed and what
//! has.
//!
//! Any change to a file moves its ctime, and nothing can set a ctime. So an entry whose ctime, inode, mtime, size, mode
//! and owner are those of its record is as it was, without a look at its content. Of the others the visible metadata
//! is compared, and where that is equal, the content. The walk keeps one directory per level in memory; records come
//! from a file and go to another. Other threads read directories ahead of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use sha2::{Digest as _, Sha256};

use super::SnapshotMode;
use super::ahead::{Ahead, Listing};
use super::log::ChangeLog;
use super::record::{ContentHash, Record, RecordReader, RecordWriter};
use super::spool::SortedHashes;
use crate::delta::dir_stack::DirStack;
use crate::delta::disk::{look, look_here, open_file, read_link, xattrs, xattrs_of};
use crate::{IgnorePaths, Kind, Meta, Timestamp};

/// Before any time that a file can have.
pub(crate) const LONG_AGO: Timestamp = Timestamp { secs: i64::MIN, nanos: 0 };

/// After any time that a file can have.
pub(crate) const NEVER: Timestamp = Timestamp { secs: i64::MAX, nanos: 0 };

/// How a tree is walked and compared.
pub(crate) struct Rules<'a> {
    /// Where the tree is.
    pub(crate) root: &'a [u8],
    pub(crate) mode: SnapshotMode,
    pub(crate) ignore: &'a IgnorePaths,
    /// Whether inode numbers mean anything: under gVisor they change from mount to mount.
    pub(crate) inodes: bool,
    /// When the step began. Records of entries that changed at this time or later may be out of date although nothing
    /// shows it, since the clock ticks.
    pub(crate) began: Timestamp,
}

/// What a walk is compared with.
pub(crate) enum Before {
    /// Nothing: a first walk, with the hashes that extraction noted.
    Extraction(SortedHashes),
    /// The records of the last walk.
    Records(RecordReader),
    /// The records of a tree that this one is a copy of: inodes and ctimes differ, everything else should not.
    Copied(RecordReader),
}

/// What a walk found besides the records and the log.
pub(crate) struct Scanned {
    /// The latest ctime seen. What changes from now on must get a later one, or it can't be told apart.
    pub(crate) latest: Timestamp,
}

/// One level of the walk.
struct Level {
    entries: Listing,
    /// Whether the records hold this directory too, so that its names are compared.
    recorded: bool,
}

pub(crate) struct Scan<'a> {
    rules: &'a Rules<'a>,
    ahead: &'a Ahead<'a>,
    before: RecordReader,
    hashes: Option<SortedHashes>,
    copied: bool,
    out: RecordWriter,
    log: Option<&'a mut ChangeLog>,
    stack: DirStack<()>,
    levels: Vec<Level>,
    /// The path of the current directory, and the same with zeros for slashes.
    path: Vec<u8>,
    lengths: Vec<usize>,
    /// Hashes of files with several names, by inode.
    by_inode: HashMap<(u64, u64), ContentHash>,
    found: Scanned,
}

/// What a comparison says of an entry.
#[derive(PartialEq, Clone, Copy)]
enum Verdict {
    Same,
    Changed,
}

/// Walks the tree at `root`, writes its records to `out` and what changed to `log`.
pub(crate) fn scan(
    root: OwnedFd,
    rules: &Rules<'_>,
    before: Before,
    out: File,
    log: Option<&mut ChangeLog>,
) -> io::Result<(File, Scanned)> {
    let (before, hashes, copied) = match before {
        Before::Extraction(hashes) => (RecordReader::empty(), Some(hashes), false),
        Before::Records(records) => (records, None, false),
        Before::Copied(records) => (records, None, true),
    };
    let ahead = Ahead::new(root.try_clone()?, rules.ignore);
    let mut scan = Scan {
        rules,
        ahead: &ahead,
        before,
        hashes,
        copied,
        out: RecordWriter::new(out),
        log,
        stack: DirStack::new(root, ())?,
        levels: Vec::new(),
        path: Vec::new(),
        lengths: Vec::new(),
        by_inode: HashMap::new(),
        found: Scanned { latest: LONG_AGO },
    };
    std::thread::scope(|scope| {
        let _readers = ahead.start(scope);
        scan.walk()
    })?;
    Ok((scan.out.finish()?, scan.found))
}

impl Scan<'_> {
    fn walk(&mut self) -> io::Result<()> {
        let Some(meta) = look_at(&self.stack, b"")? else { return Ok(()) };
        let old = self.before.take()?;
        let recorded = old.is_some();
        self.compare(Vec::new(), meta, old)?;
        self.descend(recorded)?;
        while !self.levels.is_empty() {
            self.step()?;
        }
        Ok(())
    }

    /// Reads the directory that the stack has entered.
    fn descend(&mut self, recorded: bool) -> io::Result<()> {
        let entries = self.ahead.list(&self.path, self.stack.handle()?)?;
        self.levels.push(Level { entries, recorded });
        Ok(())
    }

    /// Deals with the next name of the current directory, be it in the tree, in the records or in both.
    fn step(&mut self) -> io::Result<()> {
        let depth = u32::try_from(self.levels.len()).map_err(io::Error::other)?;
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        let there = level.entries.peek();
        let recorded = if level.recorded { self.before.peek(depth) } else { None };
        let (take_old, take_new) = match (recorded.map(|record| record.name.as_slice()), there) {
            (None, None) => return self.ascend(),
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some(old), Some(new)) => (old <= new, new <= old),
        };
        let entry = if take_new { level.entries.take() } else { None };
        let old = if take_old { self.before.take()? } else { None };
        match (entry, old) {
            (Some((name, meta)), old) => {
                let is_dir = meta.is_dir();
                let merges = is_dir && old.as_ref().is_some_and(|old| old.meta.kind == Kind::Directory);
                if old.is_some() && !merges {
                    self.before.skip_below(depth)?;
                }
                let inside = is_dir.then(|| name.clone());
                self.compare(name, meta, old)?;
                if let Some(name) = inside {
                    self.enter(&name, merges)?;
                }
                Ok(())
            }
            (None, Some(old)) => {
                self.before.skip_below(depth)?;
                self.log.as_mut().map_or(Ok(()), |log| log.deleted(&old))
            }
            (None, None) => Ok(()),
        }
    }

    fn enter(&mut self, name: &[u8], recorded: bool) -> io::Result<()> {
        self.stack.enter(name, ())?;
        self.lengths.push(self.path.len());
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.descend(recorded)
    }

    fn ascend(&mut self) -> io::Result<()> {
        self.levels.pop();
        if let Some(log) = &mut self.log {
            log.leave();
        }
        if let Some(length) = self.lengths.pop() {
            self.path.truncate(length);
            self.stack.leave()?;
        }
        Ok(())
    }

    /// Compares an entry with its record, writes the new record, and logs the entry if it changed.
    fn compare(&mut self, name: Vec<u8>, meta: Meta, old: Option<Record>) -> io::Result<()> {
        let depth = u32::try_from(self.levels.len()).map_err(io::Error::other)?;
        self.found.latest = self.found.latest.max(meta.ctime);
        let had_names = old.as_ref().is_some_and(|old| self.is_one_of_several(&old.meta, &meta));
        let (mut record, verdict) = match old {
            Some(old) if self.is_untouched(&old.meta, &meta) => (Record { meta, ..old }, Verdict::Same),
            Some(old) => self.look_closer(depth, name, meta, &old)?,
            None => {
                let content = self.first_hash(&name, &meta)?;
                let xattrs = self.xattr_hash(&name)?;
                (Record { depth, name, meta, xattrs, content }, Verdict::Changed)
            }
        };
        self.out.write(&record)?;
        match &mut self.log {
            None => Ok(()),
            Some(log) if verdict == Verdict::Changed => {
                // Overlayfs parts the names of a file when they are written to, so each is a file of its own in the layer.
                if had_names {
                    record.meta.nlink = 1;
                }
                log.changed(&record)
            }
            Some(log) => {
                log.same(record);
                Ok(())
            }
        }
    }

    /// Whether an entry is a name of the file that it was a name of before, and one of several.
    fn is_one_of_several(&self, old: &Meta, new: &Meta) -> bool {
        old.nlink > 1
            && new.nlink > 1
            && old.kind == new.kind
            && (old.inode == new.inode || !self.rules.inodes)
    }

    /// Whether nothing can have happened to an entry since it was recorded.
    fn is_untouched(&self, old: &Meta, new: &Meta) -> bool {
        !self.copied
            && old.ctime == new.ctime
            && old.ctime < self.rules.began
            && (old.inode == new.inode || !self.rules.inodes)
            && old.nlink == new.nlink
            && old.mtime == new.mtime
            && is_alike(old, new)
    }

    /// Whether an mtime moved by itself. Under gVisor a file has the sandbox's time until the sandbox forgets the file, and then
    /// the node's, some microseconds earlier. Whatever somebody did to it in this step would have moved its ctime past
    /// the step's beginning.
    fn has_drifted(&self, old: &Meta, new: &Meta) -> bool {
        let apart = (i128::from(old.mtime.secs) - i128::from(new.mtime.secs)) * 1_000_000_000
            + i128::from(old.mtime.nanos)
            - i128::from(new.mtime.nanos);
        !self.rules.inodes && new.ctime < self.rules.began && apart.unsigned_abs() < 1_000_000_000
    }

    fn look_closer(
        &mut self,
        depth: u32,
        name: Vec<u8>,
        meta: Meta,
        old: &Record,
    ) -> io::Result<(Record, Verdict)> {
        let xattrs = self.xattr_hash(&name)?;
        let same_times = if meta.kind == Kind::Directory {
            !is_set_mtime(&old.meta, &meta, self.rules.began) || self.has_drifted(&old.meta, &meta)
        } else {
            old.meta.mtime == meta.mtime || self.has_drifted(&old.meta, &meta)
        };
        let visible = same_times && is_alike(&old.meta, &meta) && old.xattrs == xattrs;
        let verdict = |same: bool| if same { Verdict::Same } else { Verdict::Changed };
        let (same, content) = match (self.rules.mode, meta.kind) {
            (_, Kind::Symlink) => {
                let content = Some(self.link_hash(&name)?);
                (visible && content == old.content, content)
            }
            (SnapshotMode::Time, kind) => (kind == old.meta.kind && same_times, None),
            (SnapshotMode::Full, Kind::File) if visible && self.copied => (true, old.content),
            (SnapshotMode::Full, Kind::File) => {
                let content = Some(self.file_hash(&name, &meta)?);
                (visible && content == old.content, content)
            }
            (SnapshotMode::Full | SnapshotMode::Redo, _) => (visible, None),
        };
        Ok((Record { depth, name, meta, xattrs, content }, verdict(same)))
    }

    /// The hash of content that is recorded for the first time: as extraction noted it, else by reading.
    fn first_hash(&mut self, name: &[u8], meta: &Meta) -> io::Result<Option<ContentHash>> {
        match meta.kind {
            Kind::Symlink => return Ok(Some(self.link_hash(name)?)),
            Kind::File if self.rules.mode == SnapshotMode::Full => {}
            _ => return Ok(None),
        }
        let Some(hashes) = &mut self.hashes else { return Ok(Some(self.file_hash(name, meta)?)) };
        let mut key = super::spool::walk_key(&self.path);
        if !key.is_empty() {
            key.push(0);
        }
        key.extend_from_slice(name);
        // Extraction hashes the bytes under the first of several names; the walk may come by another one first.
        match hashes.find(&key)? {
            Some(hash) => {
                if meta.nlink > 1 {
                    self.by_inode.insert(meta.inode, hash);
                }
                Ok(Some(hash))
            }
            None => Ok(Some(self.file_hash(name, meta)?)),
        }
    }

    fn xattr_hash(&self, name: &[u8]) -> io::Result<Option<ContentHash>> {
        // By its path where that fits: it costs half of going by way of /proc. Nothing moves directories meanwhile.
        let path = [self.rules.root, &self.path, name].join(&b'/');
        let xattrs = if path.len() < 4096 { xattrs_of(&path)? } else { xattrs(self.stack.handle()?, name)? };
        if xattrs.is_empty() {
            return Ok(None);
        }
        let mut hasher = Sha256::new();
        for part in xattrs.iter().flat_map(|(name, value)| [name, value]) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Ok(Some(hasher.finalize().into()))
    }

    fn link_hash(&self, name: &[u8]) -> io::Result<ContentHash> {
        Ok(Sha256::digest(read_link(self.stack.handle()?, name)?).into())
    }

    fn file_hash(&mut self, name: &[u8], meta: &Meta) -> io::Result<ContentHash> {
        if meta.nlink > 1
            && let Some(hash) = self.by_inode.get(&meta.inode)
        {
            return Ok(*hash);
        }
        let hash = hash_file(open_file(self.stack.handle()?, name)?)?;
        if meta.nlink > 1 {
            self.by_inode.insert(meta.inode, hash);
        }
        Ok(hash)
    }
}

/// The SHA-256 of what is left to read in `file`.
pub(crate) fn hash_file(mut file: File) -> io::Result<ContentHash> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether two entries look alike but for their times, links, xattrs and content.
pub(crate) fn is_alike(a: &Meta, b: &Meta) -> bool {
    let sized = a.kind != Kind::File || a.size == b.size;
    a.kind == b.kind && a.mode == b.mode && a.uid == b.uid && a.gid == b.gid && a.rdev == b.rdev && sized
}

/// Whether somebody gave a directory another mtime on purpose, in a step that began at `began`.
///
/// Whatever is made or removed in a directory moves its mtime to that instant. That alone is a trace of things that came
/// and went (a temporary file, a mount point made for a step); if something stayed, it is in the layer and so is the
/// directory above it. A time from before the step or from the future was set by hand.
pub(crate) fn is_set_mtime(old: &Meta, new: &Meta, began: Timestamp) -> bool {
    old.mtime != new.mtime && (new.mtime < began || new.mtime > new.ctime)
}

fn look_at(stack: &DirStack<()>, name: &[u8]) -> io::Result<Option<Meta>> {
    if name.is_empty() {
        return look_here(stack.handle()?).map(Some);
    }
    look(stack.handle()?, name)
}
