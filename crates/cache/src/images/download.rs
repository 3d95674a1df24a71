//! One blob from a registry into a store: resumed where an earlier attempt ended, verified, once for all who want it.

use std::io::{self, Write};
use std::time::Duration;

use kiln_oci::{Descriptor, Digest, Repository};
use kiln_registry::{Ahead, BlobSink, Registry, RegistryError};
use kiln_store::{Blob, BlobWriter, ReadWrite, Resume, Store, StoreError};

/// Why a blob could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The registry failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What [`download`] did.
#[derive(Debug)]
pub enum Downloaded {
    /// The blob was there, or somebody else brought it while we waited.
    Present(Blob),
    /// It was downloaded.
    Fetched {
        /// The blob.
        blob: Blob,
        /// How many bytes came over the network.
        received: u64,
    },
}

impl Downloaded {
    /// The blob.
    pub fn into_blob(self) -> Blob {
        match self {
            Self::Present(blob) | Self::Fetched { blob, .. } => blob,
        }
    }
}

/// How long to wait before looking again whether another process has finished the blob.
const WAIT: Duration = Duration::from_millis(50);

/// Sees to it that `store` has the blob that `descriptor` names, and takes it from `repository` if it has not.
///
/// Somebody else who downloads the same is waited for. A blob that is there in another length than the descriptor's is
/// damaged, and replaced; with `replace` any blob that is there is. `on` hears how many bytes are here, first with what
/// an earlier attempt left.
pub async fn download(
    store: &Store<ReadWrite>,
    registry: &Registry,
    repository: &Repository,
    descriptor: &Descriptor,
    replace: bool,
    on: &(dyn Fn(u64) + Send + Sync),
) -> Result<Downloaded, DownloadError> {
    let mut writer = match begin(store, descriptor, replace).await? {
        Begun::Present(blob) => return Ok(Downloaded::Present(blob)),
        Begun::Writer(writer) => writer,
    };
    let mut again = true;
    loop {
        let begun_at = writer.position();
        if begun_at > descriptor.size && descriptor.size != 0 {
            writer.restart()?;
            continue;
        }
        on(begun_at);
        let mut sink = Sink { writer, on, failed: None };
        // A part that is whole already was not named only because its writer was killed.
        if descriptor.size == 0 || begun_at < descriptor.size {
            let pulled = registry.pull_blob(repository, descriptor, begun_at, &mut sink).await;
            if let Some(error) = sink.failed {
                return Err(error.into());
            }
            if let Err(error) = pulled {
                // What broke off is gone on with next time; what is wrong is not.
                if is_rubbish(&error) {
                    sink.writer.abandon()?;
                }
                return Err(DownloadError::Registry(Box::new(error)));
            }
        }
        let received = sink.writer.position().saturating_sub(begun_at);
        match commit(sink.writer).await {
            Ok(()) => {
                let blob = store.blob(&descriptor.digest)?.ok_or_else(|| StoreError::NoBlob {
                    path: store.path().to_owned(),
                    digest: descriptor.digest.clone(),
                })?;
                return Ok(Downloaded::Fetched { blob, received });
            }
            // The part that an earlier attempt left was not what it should be: once more, from the start.
            Err(StoreError::Unexpected { .. }) if begun_at > 0 && again => {
                again = false;
                writer = match begin(store, descriptor, replace).await? {
                    Begun::Present(blob) => return Ok(Downloaded::Present(blob)),
                    Begun::Writer(writer) => writer,
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether what came is not the beginning of the blob.
fn is_rubbish(error: &RegistryError) -> bool {
    match error {
        RegistryError::Corrupt { .. } | RegistryError::Length { .. } => true,
        RegistryError::Everywhere { tried, .. } => tried.iter().any(is_rubbish),
        _ => false,
    }
}

pub(super) enum Begun {
    Present(Blob),
    Writer(BlobWriter),
}

pub(super) async fn begin(
    store: &Store<ReadWrite>,
    descriptor: &Descriptor,
    replace: bool,
) -> Result<Begun, StoreError> {
    loop {
        let replace = replace || damaged(store, descriptor)?;
        let (store, digest) = (store.clone(), descriptor.digest.clone());
        // What an earlier attempt left is hashed here, which takes a while.
        let begun = blocking(move || {
            if replace {
                return Ok(store.try_replace(&digest)?.map(Begun::Writer));
            }
            Ok(store.try_resume(&digest)?.map(|resumed| match resumed {
                Resume::Present(blob) => Begun::Present(blob),
                Resume::Partial(writer) => Begun::Writer(writer),
            }))
        })
        .await?;
        match begun {
            Some(begun) => return Ok(begun),
            None => tokio::time::sleep(WAIT).await,
        }
    }
}

/// Whether the blob is there, but not in its length.
fn damaged(store: &Store<ReadWrite>, descriptor: &Descriptor) -> Result<bool, StoreError> {
    match store.blob_of(descriptor) {
        Err(StoreError::Size { .. }) => Ok(true),
        Err(error) => Err(error),
        Ok(_) => Ok(false),
    }
}

/// Syncing takes long on a slow disk: not on a thread that others' transfers need.
pub(super) async fn commit(writer: BlobWriter) -> Result<(), StoreError> {
    blocking(move || writer.commit().map(|_| ())).await
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::Io {
                action: "finish the work on",
                path: "the volume".into(),
                source: io::Error::other(error),
            }),
        },
    }
}

struct Sink<'a> {
    writer: BlobWriter,
    on: &'a (dyn Fn(u64) + Send + Sync),
    failed: Option<StoreError>,
}

impl BlobSink for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.writer.write_all(bytes);
        self.noting(written)?;
        (self.on)(self.writer.position());
        Ok(())
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.writer.digest())
    }

    fn restart(&mut self) -> io::Result<bool> {
        self.writer.restart()?;
        (self.on)(0);
        Ok(true)
    }

    fn ahead(&mut self) -> Option<&mut dyn Ahead> {
        Some(self)
    }
}

impl Ahead for Sink<'_> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let put = self.writer.write_ahead(offset, bytes);
        self.noting(put)
    }

    fn take_in(&mut self, end: u64) -> io::Result<()> {
        let taken = self.writer.take_in(end);
        self.noting(taken)?;
        (self.on)(self.writer.position());
        Ok(())
    }

    fn forget(&mut self) -> io::Result<()> {
        self.writer.forget_ahead()
    }
}

impl Sink<'_> {
    /// Keeps what the disk said: the registry's error would only say that it could not be written.
    fn noting(&mut self, result: io::Result<()>) -> io::Result<()> {
        result.map_err(|source| {
            let kind = source.kind();
            self.failed =
                Some(StoreError::Io { action: "write", path: self.writer.path().to_owned(), source });
            kind.into()
        })
    }
}
