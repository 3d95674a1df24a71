//! Blobs that are there: opened, leased against pruning, mapped, verified while they are read.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::{Descriptor, Digest, Hasher};
use memmap2::Mmap;

use crate::error::{OnPath, StoreError, if_present};
use crate::{lock, map};

/// A blob of a store. While one of its clones or readers lives, no `prune` deletes it.
#[derive(Clone, Debug)]
pub struct Blob {
    inner: Arc<Opened>,
}

#[derive(Debug)]
struct Opened {
    digest: Digest,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Blob {
    /// Opens and leases the blob at `path`; `None` if it is not there or about to be deleted.
    pub(crate) fn open(path: PathBuf, digest: &Digest) -> Result<Option<Self>, StoreError> {
        let Some(file) = if_present(File::open(&path)).on("open", &path)? else { return Ok(None) };
        let metadata = file.metadata().on("look at", &path)?;
        if !metadata.is_file() {
            return Err(StoreError::Format { path, why: "is no regular file, as a blob must be".to_owned() });
        }
        if !lock::lease(&path, &file).on("lock", &path)? {
            return Ok(None);
        }
        let len = metadata.len();
        Ok(Some(Self { inner: Arc::new(Opened { digest: digest.clone(), path, file, len }) }))
    }

    /// Opens a blob of a scratch directory, which nobody prunes: no lease. Its writer's lock may outlive the writing there,
    /// because a process that is started meanwhile has the file open too until it runs its program.
    pub(crate) fn open_scratch(path: PathBuf, digest: &Digest) -> Result<Option<Self>, StoreError> {
        let Some(file) = if_present(File::open(&path)).on("open", &path)? else { return Ok(None) };
        let len = file.metadata().on("look at", &path)?.len();
        Ok(Some(Self { inner: Arc::new(Opened { digest: digest.clone(), path, file, len }) }))
    }

    /// The same, without leaving a trace in the file's access time, where that is allowed: for housekeeping.
    pub(crate) fn open_quietly(path: PathBuf, digest: &Digest) -> Result<Option<Self>, StoreError> {
        let flag = rustix::fs::OFlags::NOATIME.bits().cast_signed();
        match OpenOptions::new().read(true).custom_flags(flag).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::open(path, digest),
            Err(error) => if_present::<Self>(Err(error)).on("open", &path),
            Ok(file) => {
                if !lock::lease(&path, &file).on("lock", &path)? {
                    return Ok(None);
                }
                let len = file.metadata().on("look at", &path)?.len();
                Ok(Some(Self { inner: Arc::new(Opened { digest: digest.clone(), path, file, len }) }))
            }
        }
    }

    /// The digest that the bytes must have.
    pub fn digest(&self) -> &Digest {
        &self.inner.digest
    }

    /// The length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a blob is a file, not a collection")]
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// Where the blob lies, for messages.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// This blob, if its length is the one that `descriptor` gives; fails with [`StoreError::Size`] otherwise. A
    /// descriptor without a size (0) says nothing.
    pub fn sized(self, descriptor: &Descriptor) -> Result<Self, StoreError> {
        if descriptor.size != 0 && descriptor.size != self.len() {
            let (expected, found) = (descriptor.size, self.len());
            return Err(StoreError::Size { path: self.path().to_owned(), expected, found });
        }
        Ok(self)
    }

    /// Reads the blob from its start. The bytes are hashed on their way, and the reader fails at its end, with
    /// [`StoreError::Corrupt`] inside the I/O error, unless they have the blob's digest: read to the end before
    /// believing what was read.
    pub fn reader(&self) -> BlobReader {
        let hasher = Hasher::new(self.digest().algorithm());
        BlobReader { blob: self.clone(), position: 0, hasher: Some(hasher), part: Part::Nothing }
    }

    /// Reads the blob from `offset` on without checking its digest: for pushes, where the registry checks it.
    pub fn reader_from(&self, offset: u64) -> BlobReader {
        BlobReader { blob: self.clone(), position: offset, hasher: None, part: Part::Nothing }
    }

    /// All bytes, verified. For documents, not for layers.
    pub fn read(&self) -> Result<Box<[u8]>, StoreError> {
        let mut bytes = Vec::new();
        match self.reader().read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes.into()),
            Err(error) => Err(self.error_of(error)),
        }
    }

    /// Reads all bytes and compares their digest; gives their number.
    pub fn verify(&self) -> Result<u64, StoreError> {
        let mut reader = self.reader();
        loop {
            match reader.fill_buf() {
                Ok([]) => return Ok(reader.position),
                Ok(bytes) => {
                    let seen = bytes.len();
                    reader.consume(seen);
                }
                Err(error) => return Err(self.error_of(error)),
            }
        }
    }

    fn error_of(&self, error: io::Error) -> StoreError {
        match error.downcast::<StoreError>() {
            Ok(error) => error,
            Err(source) => StoreError::Io { action: "read", path: self.path().to_owned(), source },
        }
    }
}

/// Reads a [`Blob`]; see [`Blob::reader`].
#[derive(Debug)]
pub struct BlobReader {
    blob: Blob,
    position: u64,
    /// `None` if nobody wants the digest checked, or once it was.
    hasher: Option<Hasher>,
    part: Part,
}

/// What is at hand of the blob, from byte `start` on.
#[derive(Debug)]
enum Part {
    Nothing,
    Mapped { start: u64, map: Mmap },
    Read { start: u64, bytes: Vec<u8> },
}

/// How much is read at a time where nothing can be mapped.
pub(crate) const CHUNK: usize = 128 << 10;

/// How much of a map is handed out at a time, so that hashing and using it share the processor's cache.
const SLICE: usize = 256 << 10;

impl BlobReader {
    /// The blob that is read.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    fn at_hand(&self) -> &[u8] {
        let (start, bytes): (u64, &[u8]) = match &self.part {
            Part::Nothing => return &[],
            Part::Mapped { start, map } => (*start, map),
            Part::Read { start, bytes } => (*start, bytes),
        };
        let from = usize::try_from(self.position - start).unwrap_or(usize::MAX).min(bytes.len());
        let rest = &bytes[from..];
        &rest[..rest.len().min(SLICE)]
    }

    /// Brings the next part to hand; nothing at the end of the blob.
    fn advance(&mut self) -> io::Result<()> {
        let blob = &self.blob.inner;
        let left = blob.len.saturating_sub(self.position);
        let start = self.position;
        if left == 0 {
            self.part = Part::Nothing;
            return self.check();
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX);
        // The old window goes before the next one comes.
        let old = std::mem::replace(&mut self.part, Part::Nothing);
        let mut bytes = match old {
            Part::Read { bytes, .. } => bytes,
            _ => match map::window(&blob.file, start, len.min(map::WINDOW)) {
                Some(map) => {
                    self.part = Part::Mapped { start, map };
                    return Ok(());
                }
                None => Vec::new(),
            },
        };
        bytes.resize(len.min(CHUNK), 0);
        let read = loop {
            match blob.file.read_at(&mut bytes, start) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.on("read", &blob.path)?,
            }
        };
        if read == 0 {
            // Shorter than when it was opened.
            let (expected, found) = (blob.len, start);
            return Err(StoreError::Size { path: blob.path.clone(), expected, found }.into());
        }
        bytes.truncate(read);
        self.part = Part::Read { start, bytes };
        Ok(())
    }

    fn check(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let (expected, found) = (self.blob.digest().clone(), hasher.clone().finish());
        if found == expected {
            return Ok(());
        }
        // Asked again, it fails again.
        self.hasher = Some(hasher);
        Err(StoreError::Corrupt { path: self.blob.path().to_owned(), expected, found }.into())
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at_hand().is_empty() {
            self.advance()?;
        }
        Ok(self.at_hand())
    }

    fn consume(&mut self, amount: usize) {
        if let Some(mut hasher) = self.hasher.take() {
            let bytes = self.at_hand();
            hasher.update(&bytes[..amount.min(bytes.len())]);
            self.hasher = Some(hasher);
        }
        self.position += amount as u64;
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let from = self.fill_buf()?;
        let amount = from.len().min(into.len());
        into[..amount].copy_from_slice(&from[..amount]);
        // What was handed out is hashed, not what the map holds a moment later.
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&into[..amount]);
        }
        self.position += amount as u64;
        Ok(amount)
    }
}
