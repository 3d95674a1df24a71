//! What a scan found to have changed, on scratch, and given back as a [`ChangeSource`] for a layer.
//!
//! Whether anything changed below a directory, which is in the layer if so, is known only when the scan has left it. It is
//! written down as possible, and decided when the log is read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::OwnedFd;

use super::record::{Record, RecordWriter};
use crate::delta::changes::{link_in, open_in, xattrs_in};
use crate::delta::dir_stack::DirStack;
use crate::delta::failed;
use crate::{Change, ChangeSource, Kind, RootfsError, TreePath, What};

const CHANGED: u8 = b'c';
const DELETED: u8 = b'd';
const PARENT: u8 = b'p';

/// Takes down changes in the order of a tree walk.
pub(crate) struct ChangeLog {
    out: RecordWriter,
    /// The directories above the place of the walk that are not written yet, with `None` for those that are.
    above: Vec<Option<Record>>,
}

impl ChangeLog {
    /// Writes to `file`, which is empty.
    pub(crate) fn new(file: File) -> Self {
        Self { out: RecordWriter::new(file), above: Vec::new() }
    }

    /// An entry that is new or not as it was.
    pub(crate) fn changed(&mut self, record: &Record) -> io::Result<()> {
        self.put(CHANGED, record)?;
        if record.meta.kind == Kind::Directory {
            self.above.push(None);
        }
        Ok(())
    }

    /// An entry that is as it was. A directory is needed if something below it changed.
    pub(crate) fn same(&mut self, record: Record) {
        if record.meta.kind == Kind::Directory {
            self.above.push((record.depth > 0).then_some(record));
        }
    }

    /// An entry that is gone.
    pub(crate) fn deleted(&mut self, record: &Record) -> io::Result<()> {
        self.put(DELETED, record)
    }

    /// The walk leaves a directory.
    pub(crate) fn leave(&mut self) {
        self.above.pop();
    }

    /// Ends the log.
    pub(crate) fn finish(self) -> io::Result<File> {
        self.out.finish()
    }

    fn put(&mut self, tag: u8, record: &Record) -> io::Result<()> {
        for above in self.above.iter_mut().filter_map(Option::take) {
            self.out.tag(PARENT)?;
            self.out.write(&above)?;
        }
        self.out.tag(tag)?;
        self.out.write(record)
    }
}

/// The changes of a log, in the order of a tree walk, with contents read from the tree itself.
///
/// The tree must stay as it was when it was scanned until the last file has been read.
pub(crate) struct LoggedChanges {
    log: BufReader<File>,
    reader: DirStack<()>,
    /// The path of the record read last.
    path: Vec<Vec<u8>>,
    /// Directories above it that are not out yet, and how deep they lie.
    above: Vec<(u32, Change)>,
    ready: VecDeque<Change>,
}

impl LoggedChanges {
    /// Reads `log`; the tree is at `root`.
    pub(crate) fn new(mut log: File, root: OwnedFd) -> io::Result<Self> {
        log.rewind()?;
        let log = BufReader::with_capacity(64 << 10, log);
        let reader = DirStack::new(root, ())?;
        Ok(Self { log, reader, path: Vec::new(), above: Vec::new(), ready: VecDeque::new() })
    }

    fn read(&mut self) -> io::Result<Option<(u8, Record)>> {
        let mut tag = [0];
        match self.log.read_exact(&mut tag) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        Ok(Record::decode(&mut self.log)?.map(|record| (tag[0], record)))
    }

    fn take_in(&mut self, tag: u8, record: Record) -> Result<(), RootfsError> {
        let depth = record.depth;
        self.path.truncate(usize::try_from(depth).unwrap_or(usize::MAX).saturating_sub(1));
        if depth > 0 {
            self.path.push(record.name);
        }
        self.above.retain(|(above, _)| *above < depth);
        let path = TreePath::new(self.path.join(&b'/'));
        let mut meta = record.meta;
        if tag == DELETED {
            self.out(Change { path, what: What::Deleted });
            return Ok(());
        }
        if meta.kind == Kind::Symlink {
            meta.link = Some(link_in(&mut self.reader, &path)?);
        }
        let change = Change { path, what: What::Entry(meta) };
        if tag == PARENT {
            self.above.push((depth, change));
        } else {
            self.out(change);
        }
        Ok(())
    }

    fn out(&mut self, change: Change) {
        self.ready.extend(self.above.drain(..).map(|(_, above)| above));
        self.ready.push_back(change);
    }
}

impl ChangeSource for LoggedChanges {
    fn next(&mut self) -> Result<Option<Change>, RootfsError> {
        while self.ready.is_empty() {
            match self.read().map_err(|error| failed("read the log of changes", b"", error))? {
                Some((tag, record)) => self.take_in(tag, record)?,
                None => break,
            }
        }
        Ok(self.ready.pop_front())
    }

    fn open(&mut self, path: &TreePath) -> Result<File, RootfsError> {
        open_in(&mut self.reader, path)
    }

    fn xattrs(&mut self, path: &TreePath) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RootfsError> {
        xattrs_in(&mut self.reader, path)
    }
}
