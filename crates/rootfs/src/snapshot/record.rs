//! What is remembered of each entry of a plain tree between two scans, and the file that holds it.
//!
//! Records stand in the order of a tree walk: a directory, then what is in it, siblings sorted by the bytes of their
//! names. A record names only its depth and its last component, so the file is read and written as a stream and
//! neither needs more memory than one record.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use crate::{Kind, Meta, Timestamp};

/// SHA-256 of a file's bytes, or of a symlink's target.
pub(crate) type ContentHash = [u8; 32];

/// One entry of a tree as it was when it was looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// 0 for the root, 1 for what is in it, and so on.
    pub(crate) depth: u32,
    /// The last component of the path; empty for the root.
    pub(crate) name: Vec<u8>,
    /// Everything that stat(2) told. `link` is never set: the hash stands for it.
    pub(crate) meta: Meta,
    /// The hash of all visible xattrs; `None` if there are none.
    pub(crate) xattrs: Option<ContentHash>,
    /// The hash of the content, where it is known.
    pub(crate) content: Option<ContentHash>,
}

const HAS_XATTRS: u8 = 1;
const HAS_CONTENT: u8 = 2;
const HAS_RDEV: u8 = 4;

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
        Kind::Fifo => 3,
        Kind::CharDevice => 4,
        Kind::BlockDevice => 5,
        Kind::Socket => 6,
    }
}

fn kind_of(code: u8) -> io::Result<Kind> {
    Ok(match code {
        0 => Kind::File,
        1 => Kind::Directory,
        2 => Kind::Symlink,
        3 => Kind::Fifo,
        4 => Kind::CharDevice,
        5 => Kind::BlockDevice,
        6 => Kind::Socket,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a scan record of an unknown kind")),
    })
}

impl Record {
    /// Appends the stored form to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let length =
            u16::try_from(self.name.len()).map_err(|_| io::Error::other("a name of over 65535 bytes"))?;
        let meta = &self.meta;
        let flags = if self.xattrs.is_some() { HAS_XATTRS } else { 0 }
            | if self.content.is_some() { HAS_CONTENT } else { 0 }
            | if meta.rdev.is_some() { HAS_RDEV } else { 0 };
        out.extend_from_slice(&length.to_le_bytes());
        out.push(kind_code(meta.kind));
        out.push(flags);
        for word in [self.depth, meta.mode, meta.uid, meta.gid, meta.mtime.nanos, meta.ctime.nanos] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [meta.mtime.secs, meta.ctime.secs] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [meta.size, meta.inode.0, meta.inode.1, meta.nlink] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.name);
        if let Some((major, minor)) = meta.rdev {
            out.extend_from_slice(&major.to_le_bytes());
            out.extend_from_slice(&minor.to_le_bytes());
        }
        for hash in [&self.xattrs, &self.content].into_iter().flatten() {
            out.extend_from_slice(hash);
        }
        Ok(())
    }

    /// Reads what [`Record::encode`] wrote; `None` at the end of the stream.
    pub(crate) fn decode(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; FIXED];
        match from.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let mut fixed = Fixed(&head);
        let (length, [kind, flags]) = (usize::from(u16::from_le_bytes(fixed.take())), fixed.take());
        let [depth, mode, uid, gid, mtime_nanos, ctime_nanos] =
            [(); 6].map(|()| u32::from_le_bytes(fixed.take()));
        let [mtime_secs, ctime_secs] = [(); 2].map(|()| i64::from_le_bytes(fixed.take()));
        let [size, dev, ino, nlink] = [(); 4].map(|()| u64::from_le_bytes(fixed.take()));
        let mut name = vec![0; length];
        from.read_exact(&mut name)?;
        let mut word = [0; 4];
        let mut rdev = None;
        if flags & HAS_RDEV != 0 {
            from.read_exact(&mut word)?;
            let major = u32::from_le_bytes(word);
            from.read_exact(&mut word)?;
            rdev = Some((major, u32::from_le_bytes(word)));
        }
        let mut hash = |present: bool| {
            let mut hash = ContentHash::default();
            if present { from.read_exact(&mut hash).map(|()| Some(hash)) } else { Ok(None) }
        };
        let (xattrs, content) = (hash(flags & HAS_XATTRS != 0)?, hash(flags & HAS_CONTENT != 0)?);
        let meta = Meta {
            kind: kind_of(kind)?,
            mode,
            uid,
            gid,
            mtime: Timestamp { secs: mtime_secs, nanos: mtime_nanos },
            size,
            rdev,
            link: None,
            inode: (dev, ino),
            nlink,
            ctime: Timestamp { secs: ctime_secs, nanos: ctime_nanos },
        };
        Ok(Some(Self { depth, name, meta, xattrs, content }))
    }
}

const FIXED: usize = 2 + 2 + 6 * 4 + 2 * 8 + 4 * 8;

struct Fixed<'a>(&'a [u8]);

impl Fixed<'_> {
    /// The next `N` bytes, or zeros where the buffer ends.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, rest) = self.0.split_first_chunk().map_or(([0; N], &[][..]), |(now, rest)| (*now, rest));
        self.0 = rest;
        now
    }
}

/// Writes records to a file.
pub(crate) struct RecordWriter {
    out: BufWriter<File>,
    buffer: Vec<u8>,
}

impl RecordWriter {
    /// Writes to `file`, which is empty.
    pub(crate) fn new(file: File) -> Self {
        Self { out: BufWriter::with_capacity(256 << 10, file), buffer: Vec::new() }
    }

    /// Adds a record, which must follow those before it in the order of a tree walk.
    pub(crate) fn write(&mut self, record: &Record) -> io::Result<()> {
        self.buffer.clear();
        record.encode(&mut self.buffer)?;
        self.out.write_all(&self.buffer)
    }

    /// Adds one byte before the next record: for files in which each record has a tag.
    pub(crate) fn tag(&mut self, tag: u8) -> io::Result<()> {
        self.out.write_all(&[tag])
    }

    /// Ends the file and gives it back.
    pub(crate) fn finish(self) -> io::Result<File> {
        self.out.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// Reads records, with a look at the next one.
pub(crate) struct RecordReader {
    from: Option<BufReader<File>>,
    next: Option<Record>,
}

impl RecordReader {
    /// Reads `file` from its start.
    pub(crate) fn new(mut file: File) -> io::Result<Self> {
        file.rewind()?;
        let mut from = BufReader::with_capacity(256 << 10, file);
        let next = Record::decode(&mut from)?;
        Ok(Self { from: Some(from), next })
    }

    /// A reader of no records.
    pub(crate) fn empty() -> Self {
        Self { from: None, next: None }
    }

    /// The next record, if there is one and its depth is `depth`.
    pub(crate) fn peek(&self, depth: u32) -> Option<&Record> {
        self.next.as_ref().filter(|record| record.depth == depth)
    }

    /// Takes the next record.
    pub(crate) fn take(&mut self) -> io::Result<Option<Record>> {
        let taken = self.next.take();
        if let Some(from) = &mut self.from {
            self.next = Record::decode(from)?;
        }
        Ok(taken)
    }

    /// Passes over everything that lies deeper than `depth`.
    pub(crate) fn skip_below(&mut self, depth: u32) -> io::Result<()> {
        while self.next.as_ref().is_some_and(|record| record.depth > depth) {
            self.take()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, rdev: Option<(u32, u32)>, hash: bool) -> Record {
        Record {
            depth: 7,
            name: name.into(),
            meta: Meta {
                kind: Kind::File,
                mode: 0o4755,
                uid: u32::MAX - 1,
                gid: 3,
                mtime: Timestamp { secs: -5, nanos: 999_999_999 },
                size: 1 << 40,
                rdev,
                link: None,
                inode: (9, u64::MAX),
                nlink: 2,
                ctime: Timestamp { secs: 1 << 33, nanos: 1 },
            },
            xattrs: hash.then_some([1; 32]),
            content: hash.then_some([2; 32]),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let records =
            [record("", None, false), record("a\u{e9}", Some((8, 1)), true), record("z", None, true)];
        let mut writer = RecordWriter::new(tempfile::tempfile().unwrap());
        for record in &records {
            writer.write(record).unwrap();
        }
        let mut reader = RecordReader::new(writer.finish().unwrap()).unwrap();
        assert!(reader.peek(6).is_none());
        for record in &records {
            assert_eq!(reader.peek(7), Some(record));
            assert_eq!(reader.take().unwrap().as_ref(), Some(record));
        }
        assert!(reader.take().unwrap().is_none());
    }
}
