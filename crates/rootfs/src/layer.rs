//! Writing a layer: changes in, a compressed tar out, both digests on the way.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::mpsc::{SyncSender, sync_channel};

use kiln_oci::media_type::Compression;
use kiln_oci::{Algorithm, DiffId, Digest, Hasher};

use crate::compress::Compressor;
use crate::tar_write::{HeaderKind, TarWriter};
use crate::{Change, ChangeSource, Kind, Meta, RootfsError, Timestamp, TreePath, What};

/// More threads than this would hold too many blocks in memory.
const MOST_THREADS: usize = 4;

/// How much is handed to the thread that hashes and writes what was compressed, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

/// How a layer is written.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// How hard; `None` is the codec's usual.
    pub level: Option<i32>,
    /// Times later than this (seconds since 1970) become this.
    pub mtime_limit: Option<i64>,
    /// How many threads compress.
    pub threads: usize,
}

impl Default for LayerOptions {
    fn default() -> Self {
        let threads =
            std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, MOST_THREADS));
        Self { compression: Compression::Gzip, level: None, mtime_limit: None, threads }
    }
}

/// A layer that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The digest of the compressed bytes.
    pub digest: Digest,
    /// The digest of the tar.
    pub diff_id: DiffId,
    /// The compressed bytes' length.
    pub size: u64,
    /// The tar's length.
    pub uncompressed: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    out: W,
    hasher: Hasher,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Hasher::new(Algorithm::Sha256), length: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.length += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Hands what is written to another thread.
struct Handing {
    to: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Handing {
    fn hand(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        // Its own error says more.
        self.to.send(piece).map_err(|_| io::Error::other("the writing thread ended"))
    }
}

impl Write for Handing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..length]);
        if self.piece.len() == PIECE {
            self.hand()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes `changes` as a layer to `out`, in a thread beside: what is compressed is hashed and written while the next files
/// are read.
///
/// Sockets are left out: no archive can hold one. Fails with [`RootfsError::Io`] if a changed file can't be read, or if
/// it is shorter than it was when it was looked at.
pub fn write_layer(
    changes: &mut dyn ChangeSource,
    options: &LayerOptions,
    out: impl Write + Send,
) -> Result<LayerBlob, RootfsError> {
    std::thread::scope(|scope| {
        let (to, pieces) = sync_channel::<Vec<u8>>(WAITING);
        let writer = scope.spawn(move || {
            let mut out = Hashing::new(out);
            for piece in pieces {
                out.write_all(&piece)?;
            }
            out.flush().map(|()| out)
        });
        let tar = read_changes(changes, options, Handing { to, piece: Vec::with_capacity(PIECE) });
        // The channel is closed by now: the writer ends. What it failed with is why the other side failed.
        let inner = match writer.join() {
            Ok(inner) => inner.map_err(written)?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let (tar, uncompressed) = tar?;
        let diff_id = DiffId::from_digest(&tar)
            .ok_or_else(|| RootfsError::Archive("a layer's digest is no SHA-256".to_owned()))?;
        Ok(LayerBlob {
            digest: inner.hasher.finish(),
            diff_id,
            size: inner.length,
            uncompressed,
            compression: options.compression,
        })
    })
}

/// Reads and compresses what changed. Gives the tar's digest and length.
fn read_changes(
    changes: &mut dyn ChangeSource,
    options: &LayerOptions,
    out: Handing,
) -> Result<(Digest, u64), RootfsError> {
    let compressor =
        Compressor::new(out, options.compression, options.level, options.threads).map_err(written)?;
    let mut layer = Layer {
        tar: TarWriter::new(Hashing::new(compressor)),
        limit: options.mtime_limit,
        links: HashMap::new(),
        buffer: vec![0; 128 << 10],
    };
    while let Some(change) = changes.next()? {
        layer.change(&change, changes)?;
    }
    let outer = layer.tar.finish().map_err(written)?;
    let (tar, uncompressed) = (outer.hasher.finish(), outer.length);
    outer.out.finish().map_err(written)?.hand().map_err(written)?;
    Ok((tar, uncompressed))
}

fn written(source: io::Error) -> RootfsError {
    RootfsError::Io { action: "write", path: "a layer".to_owned(), source }
}

struct Layer<W: Write> {
    tar: TarWriter<W>,
    limit: Option<i64>,
    /// The first name of each inode that has several.
    links: HashMap<(u64, u64), TreePath>,
    buffer: Vec<u8>,
}

impl<W: Write> Layer<W> {
    fn change(&mut self, change: &Change, source: &mut dyn ChangeSource) -> Result<(), RootfsError> {
        match &change.what {
            What::Deleted => {
                let name = [b".wh.", change.path.name()].concat();
                self.marker(&change.path.parent().unwrap_or_default().join(&name))
            }
            What::Opaque => self.marker(&change.path.join(b".wh..wh..opq")),
            What::Entry(meta) if meta.kind == Kind::Socket => Ok(()),
            What::Entry(meta) => self.entry(&change.path, meta, source),
        }
    }

    /// An empty file whose name says something. Its time is no news: 0, so that it is the same every time.
    fn marker(&mut self, path: &TreePath) -> Result<(), RootfsError> {
        let meta = Meta::new(Kind::File, 0);
        self.tar.header(path, HeaderKind::New(Kind::File), &meta, &[]).map_err(written)
    }

    fn time(&self, time: Timestamp) -> Timestamp {
        match self.limit {
            Some(limit) if time.secs >= limit => Timestamp { secs: limit, nanos: 0 },
            _ => time,
        }
    }

    fn entry(
        &mut self,
        path: &TreePath,
        meta: &Meta,
        source: &mut dyn ChangeSource,
    ) -> Result<(), RootfsError> {
        let mut meta = meta.clone();
        meta.mtime = self.time(meta.mtime);
        if meta.nlink > 1 && meta.kind != Kind::Directory {
            if let Some(first) = self.links.get(&meta.inode) {
                return self.tar.header(path, HeaderKind::HardLink(first), &meta, &[]).map_err(written);
            }
            self.links.insert(meta.inode, path.clone());
        }
        let xattrs = source.xattrs(path)?;
        self.tar.header(path, HeaderKind::New(meta.kind), &meta, &xattrs).map_err(written)?;
        if meta.kind == Kind::File && meta.size > 0 {
            let mut file = source.open(path)?;
            self.content(&mut file, meta.size, path)?;
        }
        Ok(())
    }

    fn content(&mut self, file: &mut std::fs::File, size: u64, path: &TreePath) -> Result<(), RootfsError> {
        let read = |source| RootfsError::Io { action: "read", path: path.to_string(), source };
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let length = file.read(&mut self.buffer[..most]).map_err(read)?;
            if length == 0 {
                let why = "it became shorter while the layer was written; does something still write to it?";
                return Err(read(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
            self.tar.data(&self.buffer[..length]).map_err(written)?;
            left -= length as u64;
        }
        self.tar.pad(size).map_err(written)
    }
}
