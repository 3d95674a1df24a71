//! A layer that is sent to the image's destination while it is still being written. It has no digest yet, so nobody can
//! ask whether the registry has it: this is for what a RUN leaves, with its times of this very moment.
//!
//! It is a head start and no more. Whatever goes wrong, the finished layer is sent in the usual way.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;
use kiln_oci::{Descriptor, Digest, Repository};
use kiln_registry::{GrowingBlob, Registry};
use kiln_store::BlobWriter;
use tokio::io::AsyncReadExt as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Layers shorter than this, in bytes, are written before it would pay.
const LEAST: u64 = 32 << 20;

/// How much is read at a time, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

/// Layers that are, or were, on their way before they were whole.
#[derive(Default)]
pub(crate) struct Early(Mutex<Vec<Begun>>);

struct Begun {
    to: Repository,
    digest: Digest,
    arrival: JoinHandle<bool>,
}

impl Early {
    /// Whether the layer `digest` was sent to `to` early, and has arrived. Waits for one that is on its way.
    pub(crate) async fn arrived(&self, to: &Repository, digest: &Digest) -> bool {
        let begun = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = all.iter().position(|begun| begun.to == *to && begun.digest == *digest);
            at.map(|at| all.swap_remove(at))
        };
        match begun {
            Some(begun) => begun.arrival.await.unwrap_or(false),
            None => false,
        }
    }

    fn add(&self, begun: Begun) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(begun);
    }
}

/// Where a layer goes before it is whole.
pub(crate) struct Ahead {
    pub(crate) registry: Registry,
    pub(crate) runtime: Handle,
    pub(crate) to: Repository,
}

/// Writes a layer to its file, and lets an upload follow.
pub(crate) struct Followed {
    out: BlobWriter,
    ahead: Option<Ahead>,
    follower: Option<Follower>,
}

struct Follower {
    to: Repository,
    written: watch::Sender<u64>,
    becomes: oneshot::Sender<Descriptor>,
    arrival: JoinHandle<bool>,
}

impl Followed {
    /// A layer that goes to `out`, and to `ahead` as well once it is long enough.
    pub(crate) fn new(out: BlobWriter, ahead: Option<Ahead>) -> Self {
        Self { out, ahead, follower: None }
    }

    /// Puts the layer under its name, and tells the upload what it became.
    pub(crate) fn commit(self, layer: &Descriptor, early: &Early) -> Result<(), kiln_store::StoreError> {
        self.out.commit()?;
        if let Some(Follower { to, written, becomes, arrival }) = self.follower {
            drop(written);
            if becomes.send(layer.clone()).is_ok() {
                early.add(Begun { to, digest: layer.digest.clone(), arrival });
            }
        }
        Ok(())
    }

    fn follow(&mut self) {
        match &self.follower {
            Some(follower) => drop(follower.written.send_replace(self.out.position())),
            None if self.out.position() >= LEAST => {
                if let Some(ahead) = self.ahead.take() {
                    self.follower = Some(begin(ahead, self.out.path().to_owned(), self.out.position()));
                }
            }
            None => {}
        }
    }
}

impl Write for Followed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.follow();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn begin(ahead: Ahead, path: PathBuf, position: u64) -> Follower {
    let Ahead { registry, runtime, to } = ahead;
    let (written, position) = watch::channel(position);
    let (becomes, became) = oneshot::channel();
    let (sender, pieces) = mpsc::channel(WAITING);
    let repository = to.clone();
    let arrival = runtime.spawn(async move {
        let sent = registry.push_growing(&repository, GrowingBlob { pieces, becomes: became });
        // Both end when either does: without a reader there are no more pieces, without an upload nobody takes them.
        let (sent, _) = tokio::join!(sent, read(path, position, sender));
        match sent {
            Ok(arrived) => arrived,
            Err(error) => {
                tracing::debug!(
                    "a layer could not be sent while it was written, and goes afterwards: {error}"
                );
                false
            }
        }
    });
    Follower { to, written, becomes, arrival }
}

/// Reads the file as far as it is written, until its writer is done.
async fn read(
    path: PathBuf,
    mut position: watch::Receiver<u64>,
    to: mpsc::Sender<bytes::Bytes>,
) -> io::Result<()> {
    let mut file = tokio::fs::File::open(&path).await?;
    let mut at = 0;
    loop {
        let written = *position.borrow_and_update();
        while at < written {
            let most = usize::try_from(written - at).unwrap_or(PIECE).min(PIECE);
            let mut piece = BytesMut::with_capacity(most);
            let length = (&mut file).take(most as u64).read_buf(&mut piece).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += length as u64;
            if to.send(piece.freeze()).await.is_err() {
                return Ok(());
            }
        }
        // The last value is still there when its sender is gone.
        if position.changed().await.is_err() && *position.borrow() == at {
            return Ok(());
        }
    }
}
