//! Writing a layer: changes in, a compressed tar out, both digests on the way.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use kiln_oci::media_type::Compression;
use kiln_oci::{Algorithm, DiffId, Digest, Hasher};

use crate::compress::Compressor;
use crate::tar_write::{HeaderKind, TarWriter};
use crate::{Change, ChangeSource, Kind, Meta, RootfsError, Timestamp, TreePath, What};

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
        Self { compression: Compression::Gzip, level: None, mtime_limit: None, threads: 2 }
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

/// Writes `changes` as a layer to `out`.
///
/// Sockets are left out: no archive can hold one. Fails with [`RootfsError::Io`] if a changed file can't be read, or if
/// it is shorter than it was when it was looked at.
pub fn write_layer(
    changes: &mut dyn ChangeSource,
    options: &LayerOptions,
    out: impl Write,
) -> Result<LayerBlob, RootfsError> {
    let compressor = Compressor::new(Hashing::new(out), options.compression, options.level, options.threads)
        .map_err(written)?;
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
    let inner = outer.out.finish().map_err(written)?;
    let diff_id = DiffId::from_digest(&tar)
        .ok_or_else(|| RootfsError::Archive("a layer's digest is no SHA-256".to_owned()))?;
    Ok(LayerBlob {
        digest: inner.hasher.finish(),
        diff_id,
        size: inner.length,
        uncompressed,
        compression: options.compression,
    })
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
