//! A layer that is read while it arrives from a registry, and that nobody keeps: for builds that look for a few names in
//! it and need no more of it. It takes no room on disk, whatever its size.
//!
//! A stream that turns out slow is given up for the download that others share, which can use several connections but
//! needs a file for that. The reader notices nothing: what it had is compared with the beginning of the file.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use kiln_oci::{Descriptor, Digest, Hasher, Repository};
use kiln_registry::{Ahead, BlobSink, Registry};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::transfer::Growing;

/// Bytes are handed over when there are so many, since each handing over wakes a thread.
const BATCH: usize = 256 << 10;

/// How many such batches wait for the reader.
const WAITING: usize = 4;

/// A stream that is further than this, in bytes, is not given up: they would be fetched again.
const MOST_AGAIN: u64 = 16 << 20;

/// Bytes in memory that goes round, from who receives to who reads and back: new memory is cleared by the kernel, page by
/// page.
type Batch = Vec<u8>;

/// What a layer is read from.
pub(super) struct Fetch {
    pub(super) registry: Registry,
    pub(super) repository: Repository,
    pub(super) descriptor: Descriptor,
    pub(super) runtime: Handle,
    /// Told how many bytes have come.
    pub(super) on: Box<dyn Fn(u64) + Send + Sync>,
    /// Told when all have, and are sound.
    pub(super) done: Box<dyn FnOnce() + Send>,
}

/// Reads a layer while it arrives. The end is only reached if the whole had its digest: believe nothing before.
pub(super) struct Passing<O> {
    runtime: Handle,
    from: Supply,
    current: Batch,
    /// How much of it is read.
    read: usize,
    /// Opens the shared download, at its beginning.
    shared: O,
}

enum Supply {
    Stream(Stream),
    File(BufReader<Growing>),
    /// It has ended, well or not.
    Nothing,
}

struct Stream {
    batches: mpsc::Receiver<Batch>,
    /// Takes back batches that were read.
    used: std::sync::mpsc::Sender<Batch>,
    end: Arc<Mutex<Option<End>>>,
    task: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a stream ended.
enum End {
    Sound,
    Failed(String),
    /// It came slowly: so many bytes, which the hasher has seen.
    Slow(u64, Hasher),
}

impl<O: FnMut() -> io::Result<Growing>> Passing<O> {
    /// Begins to fetch. `shared` is asked for another way to the same bytes if they come slowly.
    pub(super) fn begin(fetch: Fetch, shared: O) -> Self {
        let (sender, batches) = mpsc::channel(WAITING);
        let (used, spare) = std::sync::mpsc::channel();
        let end = Arc::new(Mutex::new(None));
        let (runtime, told) = (fetch.runtime.clone(), Arc::clone(&end));
        let task = runtime.spawn(async move {
            (fetch.on)(0);
            let mut hand = Hand::new(sender, spare, &fetch.descriptor.digest, fetch.on);
            let pulled = fetch.registry.pull_blob(&fetch.repository, &fetch.descriptor, 0, &mut hand).await;
            let ended = match pulled {
                Err(_) if hand.is_slow => End::Slow(hand.position, hand.hasher.clone()),
                Err(error) => End::Failed(error.to_string()),
                Ok(()) => {
                    (fetch.done)();
                    End::Sound
                }
            };
            // Nobody reads any more where that fails.
            drop(hand.sender.send(std::mem::take(&mut hand.batch)).await);
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            // The reader sees the end of the channel, and then looks how it came about.
            drop(hand);
        });
        let from = Supply::Stream(Stream { batches, used, end, task: task.abort_handle() });
        Self { runtime, from, current: Batch::new(), read: 0, shared }
    }

    /// The stream is over: at its end, or because another way is better.
    fn leave_stream(&mut self) -> io::Result<()> {
        let Supply::Stream(stream) = std::mem::replace(&mut self.from, Supply::Nothing) else {
            return Ok(());
        };
        match stream.end.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(End::Sound) => Ok(()),
            Some(End::Failed(why)) => Err(io::Error::other(why)),
            Some(End::Slow(position, hasher)) => {
                let mut file = (self.shared)()?;
                let mut again = Hasher::new(hasher.clone().finish().algorithm());
                let mut begin = (&mut file).take(position);
                let mut buffer = vec![0; BATCH];
                loop {
                    match begin.read(&mut buffer)? {
                        0 => break,
                        length => again.update(&buffer[..length]),
                    }
                }
                if again.finish() != hasher.finish() {
                    return Err(io::Error::other("what came first was not the beginning of the layer"));
                }
                self.from = Supply::File(file.buffered());
                Ok(())
            }
            None => Err(io::Error::other("the transfer was stopped")),
        }
    }
}

impl<O: FnMut() -> io::Result<Growing>> BufRead for Passing<O> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read >= self.current.len()
            && let Supply::Stream(stream) = &mut self.from
        {
            match self.runtime.block_on(stream.batches.next()) {
                Some(batch) => {
                    let used = std::mem::replace(&mut self.current, batch);
                    self.read = 0;
                    // Who would fill it may be at the end.
                    drop(stream.used.send(used));
                }
                None => self.leave_stream()?,
            }
        }
        match &mut self.from {
            Supply::File(file) if self.read >= self.current.len() => file.fill_buf(),
            _ => Ok(self.current.get(self.read..).unwrap_or_default()),
        }
    }

    fn consume(&mut self, length: usize) {
        match &mut self.from {
            Supply::File(file) if self.read >= self.current.len() => file.consume(length),
            _ => self.read += length,
        }
    }
}

impl<O: FnMut() -> io::Result<Growing>> Read for Passing<O> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut there = self.fill_buf()?;
        let length = there.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// Hands on what arrives.
struct Hand {
    sender: mpsc::Sender<Batch>,
    /// Batches that were read.
    spare: std::sync::mpsc::Receiver<Batch>,
    batch: Batch,
    hasher: Hasher,
    position: u64,
    is_slow: bool,
    on: Box<dyn Fn(u64) + Send + Sync>,
}

impl Hand {
    fn new(
        sender: mpsc::Sender<Batch>,
        spare: std::sync::mpsc::Receiver<Batch>,
        digest: &Digest,
        on: Box<dyn Fn(u64) + Send + Sync>,
    ) -> Self {
        let hasher = Hasher::new(digest.algorithm());
        Self { sender, spare, batch: Batch::new(), hasher, position: 0, is_slow: false, on }
    }
}

impl BlobSink for Hand {
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.poll_ready(context).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.position += bytes.len() as u64;
        (self.on)(self.position);
        let length = self.batch.len();
        // No more than what comes: left to itself, a vector would double.
        self.batch.reserve_exact(BATCH.max(length + bytes.len()) - length);
        self.batch.extend_from_slice(bytes);
        if self.batch.len() < BATCH {
            return Ok(());
        }
        let mut next = self.spare.try_recv().unwrap_or_default();
        next.clear();
        if let Err(refused) = self.sender.try_send(std::mem::replace(&mut self.batch, next)) {
            // It goes in the end: it was counted.
            self.batch = refused.into_inner();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.hasher.clone().finish())
    }

    /// Asked for where the stream is slow, and only there. Who was given it once gets it again, however far the stream comes
    /// meanwhile.
    fn ahead(&mut self) -> Option<&mut dyn Ahead> {
        self.is_slow |= self.position <= MOST_AGAIN;
        if self.is_slow { Some(self) } else { None }
    }
}

/// Nothing can be handed on out of order: the stream ends where that is tried.
impl Ahead for Hand {
    fn put(&mut self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the layer comes slowly"))
    }

    fn take_in(&mut self, _end: u64) -> io::Result<()> {
        Ok(())
    }

    fn forget(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kiln_store::{Durability, Store};

    use super::super::transfer::Transfer;
    use super::*;

    /// Reads a stream that was slow after `begin`, while the download brings `whole`.
    fn read_on(begin: &[u8], whole: &[u8]) -> io::Result<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(&directory.path().join("store"), Durability::Scratch).unwrap();
        let mut writer = store.writer(Some(Digest::of(whole))).unwrap();
        writer.write_all(whole).unwrap();
        let digest = writer.commit().unwrap();
        let transfer = Transfer::new(directory.path().join("part"));
        transfer.end(Ok(store.blob(&digest).unwrap().unwrap()));

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut sender, batches) = mpsc::channel(WAITING);
        let mut hasher = Hasher::sha256();
        for piece in begin.chunks(3) {
            hasher.update(piece);
            sender.try_send(piece.to_vec()).unwrap();
        }
        let end = Arc::new(Mutex::new(Some(End::Slow(begin.len() as u64, hasher))));
        let task = runtime.spawn(async {}).abort_handle();
        let (used, _spare) = std::sync::mpsc::channel();
        let from = Supply::Stream(Stream { batches, used, end, task });
        let (runtime, shared) = (runtime.handle().clone(), move || transfer.open());
        let mut passing = Passing { runtime, from, current: Batch::new(), read: 0, shared };
        drop(sender);
        let mut bytes = Vec::new();
        passing.read_to_end(&mut bytes).map(|_| bytes)
    }

    fn hand_of(sender: mpsc::Sender<Batch>) -> Hand {
        let (_, spare) = std::sync::mpsc::channel();
        Hand::new(sender, spare, &Digest::of(b""), Box::new(|_| ()))
    }

    #[test]
    fn a_hand_that_gives_up_has_handed_on_all_that_it_counted() {
        let (sender, mut batches) = mpsc::channel(WAITING);
        let mut hand = hand_of(sender);
        assert!(hand.ahead().is_some(), "it is asked because the stream is slow");
        hand.position = MOST_AGAIN;
        let piece = vec![7; BATCH];
        // Pieces come whether there is room or not.
        while hand.write(&piece).is_ok() {}
        assert!(hand.ahead().is_some() && hand.is_slow, "it was given before");
        let mut handed = hand.batch.len();
        while let Ok(batch) = batches.try_recv() {
            handed += batch.len();
        }
        assert_eq!(handed as u64, hand.position - MOST_AGAIN);
        let (sender, _batches) = mpsc::channel(WAITING);
        let mut hand = Hand { position: MOST_AGAIN + 1, ..hand_of(sender) };
        assert!(hand.ahead().is_none() && !hand.is_slow, "too much would be fetched again");
    }

    #[test]
    fn what_follows_a_slow_stream_comes_from_the_download() {
        assert_eq!(
            read_on(b"the begin", b"the beginning and the rest").unwrap(),
            b"the beginning and the rest"
        );
        assert_eq!(read_on(b"", b"all").unwrap(), b"all");
        assert_eq!(read_on(b"all", b"all").unwrap(), b"all");
    }

    #[test]
    fn a_download_that_begins_otherwise_is_not_taken_for_the_rest() {
        for whole in [b"the Beginning and the rest".as_slice(), b"the", b""] {
            let error = read_on(b"the begin", whole).unwrap_err().to_string();
            assert!(error.contains("beginning"), "{error}");
        }
    }
}
