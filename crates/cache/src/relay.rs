//! A layer on its way from one registry straight into another: never whole in memory, never on disk.
//!
//! Invariant: the last bytes are handed on only when all of them have the layer's digest, so no upload of a wrong layer
//! comes to its end.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::stream::poll_fn;
use futures::{SinkExt as _, StreamExt as _};
use kiln_oci::{Descriptor, Digest, Hasher, Repository};
use kiln_registry::{BlobSink, BlobSource, Registry};
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tokio_util::io::StreamReader;

use crate::steps::{Failed, Patience};

/// How many pieces wait for the upload. Each is what came from the network at once.
const PIECES: usize = 4;

/// An upload that broke goes on at the mark before the place where it broke; marks are so many bytes apart.
const MARK: u64 = 1 << 20;

/// The bytes of a layer as a repository serves them, for an upload that takes them while they arrive. It can be opened
/// again, at any place, as often as the upload breaks.
///
/// Reading must be done inside of a tokio runtime.
pub struct Relay {
    source: Arc<Source>,
}

struct Source {
    registry: Registry,
    repository: Repository,
    descriptor: Descriptor,
    patience: Patience,
    /// The state of the hasher at some places.
    marks: Mutex<Vec<(u64, Hasher)>>,
    /// Why the bytes did not come.
    fault: Mutex<Option<Failed>>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("descriptor", &self.source.descriptor).finish_non_exhaustive()
    }
}

impl Relay {
    pub(crate) fn new(
        registry: &Registry,
        repository: &Repository,
        descriptor: Descriptor,
        patience: Patience,
    ) -> Self {
        let (registry, repository) = (registry.unqueued(), repository.clone());
        let (marks, fault) = (Mutex::default(), Mutex::default());
        Self { source: Arc::new(Source { registry, repository, descriptor, patience, marks, fault }) }
    }

    /// Whether an upload failed because the bytes did not come.
    pub fn has_failed(&self) -> bool {
        lock(&self.source.fault).is_some()
    }

    /// Why the bytes did not come, if it was that: else the upload failed for reasons of its own.
    pub(crate) fn fault(&self) -> Option<Failed> {
        lock(&self.source.fault).take()
    }
}

impl BlobSource for Relay {
    fn open(&self, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        // It begins with the first read: an upload that still waits for its turn keeps no connection busy.
        let (source, mut flow) = (Arc::clone(&self.source), None);
        let pieces = poll_fn(move |context| {
            let flow: &mut Flow = flow.get_or_insert_with(|| Arc::clone(&source).begin(offset));
            flow.pieces.poll_next_unpin(context)
        });
        Ok(Box::new(StreamReader::new(pieces)))
    }
}

/// A transfer that is under way. It ends when this is dropped.
struct Flow {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    fn begin(self: Arc<Self>, offset: u64) -> Flow {
        let (sender, pieces) = mpsc::channel(PIECES);
        let task = tokio::spawn(self.run(offset, sender)).abort_handle();
        Flow { pieces, task }
    }

    async fn run(self: Arc<Self>, offset: u64, sender: mpsc::Sender<io::Result<Bytes>>) {
        let (begin, hasher) = self.mark_before(offset);
        let progress = Arc::new(Progress::default());
        let mut through = Through {
            source: Arc::clone(&self),
            progress: Arc::clone(&progress),
            sender,
            hasher,
            position: begin,
            skip: offset - begin,
            held: Bytes::new(),
        };
        let pull = Box::pin(self.registry.pull_blob(&self.repository, &self.descriptor, begin, &mut through));
        let left = self.descriptor.size.saturating_sub(begin);
        let pulled = self.patience.watch(pull, left, &progress.done, &|| progress.held_up()).await;
        let result = match pulled {
            Ok(Ok(())) => through.sound(),
            Ok(Err(error)) => Err(Failed::Registry(Box::new(error))),
            Err(slow) => Err(slow),
        };
        let last = match result {
            Ok(last) => Ok(last),
            Err(failed) => {
                let error = io::Error::other(failed.to_string());
                lock(&self.marks).clear();
                *lock(&self.fault) = Some(failed);
                Err(error)
            }
        };
        // Nobody listens any more where the upload broke: that is its own to say.
        drop(through.sender.send(last).await);
    }

    fn mark_before(&self, offset: u64) -> (u64, Hasher) {
        let marks = lock(&self.marks);
        let found = marks.iter().rev().find(|(place, _)| *place <= offset).cloned();
        found.unwrap_or_else(|| (0, Hasher::new(self.descriptor.digest.algorithm())))
    }

    fn mark(&self, place: u64, hasher: &Hasher) {
        let mut marks = lock(&self.marks);
        if marks.last().map_or(0, |(last, _)| *last) + MARK <= place {
            marks.push((place, hasher.clone()));
        }
    }
}

/// How far a transfer is, and how long it had to wait for the upload.
#[derive(Default)]
struct Progress {
    done: AtomicU64,
    wait: Mutex<Wait>,
}

#[derive(Default)]
struct Wait {
    since: Option<Instant>,
    before: Duration,
}

impl Progress {
    fn waits(&self) {
        lock(&self.wait).since.get_or_insert_with(Instant::now);
    }

    fn goes_on(&self) {
        let mut wait = lock(&self.wait);
        if let Some(since) = wait.since.take() {
            wait.before += since.elapsed();
        }
    }

    fn held_up(&self) -> Duration {
        let wait = lock(&self.wait);
        wait.before + wait.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Hands on what arrives, one piece late.
struct Through {
    source: Arc<Source>,
    progress: Arc<Progress>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    hasher: Hasher,
    position: u64,
    /// So many bytes are hashed only: the upload has them.
    skip: u64,
    /// The last piece that came.
    held: Bytes,
}

impl Through {
    /// The last piece, if all that came is the layer.
    fn sound(&mut self) -> Result<Bytes, Failed> {
        let found = self.hasher.clone().finish();
        if found == self.source.descriptor.digest {
            Ok(std::mem::take(&mut self.held))
        } else {
            Err(Failed::Wrong { found })
        }
    }
}

impl BlobSink for Through {
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let room = self.sender.poll_ready(context);
        match room {
            Poll::Pending => self.progress.waits(),
            Poll::Ready(_) => self.progress.goes_on(),
        }
        room.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.take(Bytes::copy_from_slice(bytes))
    }

    fn take(&mut self, bytes: Bytes) -> io::Result<()> {
        self.hasher.update(&bytes);
        self.position += bytes.len() as u64;
        self.progress.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.source.mark(self.position, &self.hasher);
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= known as u64;
        let news = bytes.slice(known..);
        if news.is_empty() {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.held, news);
        if before.is_empty() {
            return Ok(());
        }
        self.sender.try_send(Ok(before)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.hasher.clone().finish())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
