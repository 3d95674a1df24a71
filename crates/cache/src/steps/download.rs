//! Bringing a layer from the cache repository, as long as that is faster than anybody would wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_oci::{Descriptor, Repository};
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
pub(super) enum Failed {
    #[error(transparent)]
    Registry(Box<RegistryError>),
    #[error(transparent)]
    Disk(#[from] StoreError),
    #[error("after {seconds} s only {done} of {of} bytes had come: too slow to wait for")]
    Slow { seconds: u64, done: u64, of: u64 },
}

impl Patience {
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
        let mut work = std::pin::pin!(download(scratch, registry, repository, descriptor, false, &follow));
        let began = tokio::time::Instant::now();
        let step = self.grace.min(Duration::from_secs(5));
        loop {
            match tokio::time::timeout(step, work.as_mut()).await {
                Ok(Ok(got)) => return Ok(got.into_blob()),
                Ok(Err(DownloadError::Registry(error))) => return Err(Failed::Registry(error)),
                Ok(Err(DownloadError::Store(error))) => return Err(Failed::Disk(error)),
                Err(_) => {
                    let (took, done) = (began.elapsed(), done.load(Ordering::Relaxed));
                    if self.is_over(took, done, descriptor.size) {
                        return Err(Failed::Slow { seconds: took.as_secs(), done, of: descriptor.size });
                    }
                }
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
