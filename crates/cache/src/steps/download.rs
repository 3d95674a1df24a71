//! Bringing a layer from the cache repository, as long as that is faster than anybody would wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_oci::{Descriptor, Digest, Repository};
use kiln_registry::{Registry, RegistryError};
use kiln_store::{Blob, ReadWrite, Store, StoreError};

use crate::images::{DownloadError, download};

/// When a download is too slow to be worth it: running the step again is then the better way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long every download may take, whatever its speed.
    pub grace: Duration,
    /// How long the rest may take after that, at the speed so far.
    pub rest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { grace: Duration::from_secs(20), rest: Duration::from_secs(600) }
    }
}

/// Why a layer did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Registry(Box<RegistryError>),
    #[error(transparent)]
    Disk(#[from] StoreError),
    #[error("after {seconds} s only {done} of {of} bytes had come: too slow to wait for")]
    Slow { seconds: u64, done: u64, of: u64 },
    #[error("what came is {found}, which is another layer")]
    Wrong { found: Digest },
}

impl Patience {
    /// For what there is no other way to have.
    pub const ENDLESS: Self = Self { grace: Duration::MAX, rest: Duration::MAX };

    /// Downloads the blob into `scratch`.
    pub(super) async fn download(
        &self,
        scratch: &Store<ReadWrite>,
        registry: &Registry,
        repository: &Repository,
        descriptor: &Descriptor,
        on: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Blob, Failed> {
        let done = AtomicU64::new(0);
        let follow = |bytes: u64| {
            done.store(bytes, Ordering::Relaxed);
            on(bytes);
        };
        let work = Box::pin(download(scratch, registry, repository, descriptor, false, &follow));
        match self.watch(work, descriptor.size, &done, &|| Duration::ZERO).await? {
            Ok(got) => Ok(got.into_blob()),
            Err(DownloadError::Registry(error)) => Err(Failed::Registry(error)),
            Err(DownloadError::Store(error)) => Err(Failed::Disk(error)),
        }
    }

    /// Does `work`, which brings `of` bytes and counts them in `done`, as long as it is worth waiting for. `held_up` says
    /// for how long it waited for others than the sender.
    pub(crate) async fn watch<T>(
        &self,
        work: impl Future<Output = T>,
        of: u64,
        done: &AtomicU64,
        held_up: &(dyn Fn() -> Duration + Sync),
    ) -> Result<T, Failed> {
        let mut work = std::pin::pin!(work);
        let began = tokio::time::Instant::now();
        let step = self.grace.min(Duration::from_secs(5));
        loop {
            if let Ok(result) = tokio::time::timeout(step, work.as_mut()).await {
                return Ok(result);
            }
            let (took, done) = (began.elapsed().saturating_sub(held_up()), done.load(Ordering::Relaxed));
            if self.is_over(took, done, of) {
                return Err(Failed::Slow { seconds: took.as_secs(), done, of });
            }
        }
    }

    /// Whether `done` of `of` bytes after `took` is too few.
    fn is_over(&self, took: Duration, done: u64, of: u64) -> bool {
        if took < self.grace {
            return false;
        }
        let left = u128::from(of.saturating_sub(done));
        left * took.as_millis() > self.rest.as_millis() * u128::from(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_given_up_when_its_rest_would_take_too_long() {
        let patience = Patience { grace: Duration::from_secs(10), rest: Duration::from_secs(100) };
        let over = |seconds, done| patience.is_over(Duration::from_secs(seconds), done, 1_000_000);
        assert!(!over(5, 0), "within the grace");
        assert!(over(10, 10_000), "1 kB/s");
        assert!(!over(10, 100_000), "10 kB/s: 90 s are left");
        assert!(over(60, 0), "nothing came");
    }
}
