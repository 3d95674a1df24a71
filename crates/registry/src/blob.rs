//! Where blobs go to and come from: the two small traits that a caller implements, and the plain implementations.

use std::io;
use std::path::PathBuf;
use std::task::{Context, Poll};

use bytes::Bytes;
use kiln_oci::Digest;
use tokio::io::AsyncRead;

/// Takes the bytes of a blob as they arrive.
pub trait BlobSink: Send {
    /// Whether there is room for the next bytes: a sink that hands them on has the transfer wait until they are taken. An
    /// error ends the transfer.
    fn poll_room(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Takes the next bytes. An error ends the transfer.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// As [`BlobSink::write`]; a sink that keeps the bytes for a while needn't copy them.
    fn take(&mut self, bytes: Bytes) -> io::Result<()> {
        self.write(&bytes)
    }

    /// The digest of all that was written, if the sink works it out anyway: then it is not worked out twice.
    fn digest(&self) -> Option<Digest> {
        None
    }

    /// Forgets everything, because what came was not what the digest names and another place will be asked.
    ///
    /// Gives `false` if that can't be done: the transfer then fails.
    fn restart(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    /// The sink as one that can be given bytes out of order, if it can: then a large blob that comes slowly is fetched in
    /// pieces, over several connections.
    fn ahead(&mut self) -> Option<&mut dyn Ahead> {
        None
    }
}

/// A [`BlobSink`] that can be given bytes ahead of those that it has. They count for nothing until they are taken in.
pub trait Ahead {
    /// Puts `bytes` at `offset`, which lies behind all that was written or taken in.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Takes what was put up to byte `end`, without a gap from what the sink has, as if it had been written.
    fn take_in(&mut self, end: u64) -> io::Result<()>;

    /// Forgets what was put and not taken in.
    fn forget(&mut self) -> io::Result<()>;
}

impl BlobSink for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) -> io::Result<bool> {
        self.clear();
        Ok(true)
    }
}

/// Gives the bytes of a blob, from anywhere in it, as often as an upload needs them.
pub trait BlobSource: Send + Sync {
    /// A reader of the blob's bytes from `offset` on.
    fn open(&self, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>>;
}

impl BlobSource for Bytes {
    fn open(&self, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(Box::new(io::Cursor::new(self.slice(start..))))
    }
}

/// A blob in a file.
#[derive(Clone, Debug)]
pub struct FileSource(pub PathBuf);

impl BlobSource for FileSource {
    fn open(&self, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        use io::Seek as _;
        let mut file = std::fs::File::open(&self.0)?;
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }
}
