//! One run of the warmer: verify, warm all images side by side, prune.

use std::sync::{Arc, mpsc};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kiln_cache::ImageName;
use kiln_store::{Durability, PruneReport, PruneRules, ReadWrite, Store, StoreError};
use tokio::sync::Semaphore;

use crate::progress::Teller;
use crate::report::Failure;
use crate::{
    PruneRequest, WarmError, WarmEvent, WarmReport, WarmRequest, WarmedImage, image, layout, repair, steps,
};

/// What all parts of a run share.
pub(crate) struct Run {
    pub(crate) request: WarmRequest,
    pub(crate) store: Store<ReadWrite>,
    pub(crate) teller: Teller,
    /// One permit per download.
    pub(crate) downloads: Semaphore,
    /// One permit per layer that is unpacked.
    pub(crate) unpacking: Semaphore,
}

/// How many layers are unpacked at a time: each keeps a processor busy.
const UNPACKING: usize = 2;

/// Sees to it that the volume holds what `request` asks for.
///
/// Every image is tried; those that failed are in the report. `on` is called on this thread. Fails only if the volume
/// itself can't be used, with [`WarmError::Store`] or [`WarmError::Threads`]. Killed at any instant, it leaves the volume
/// in order, and what it downloaded so far for the next run.
pub fn warm(request: WarmRequest, on: &dyn Fn(WarmEvent)) -> Result<WarmReport, WarmError> {
    let store = Store::create(&request.volume, Durability::Synced)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(WarmError::Threads)?;
    let (sender, events) = mpsc::channel();
    let run = Arc::new(Run {
        downloads: Semaphore::new(request.parallel.max(1)),
        unpacking: Semaphore::new(UNPACKING),
        teller: Teller::new(sender),
        request,
        store,
    });
    let work = runtime.spawn(run.whole());
    // Ends when the last sender is gone: the run's own, which goes with it.
    for event in events {
        on(event);
    }
    match runtime.block_on(work) {
        Ok(report) => report,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(WarmError::Threads(std::io::Error::other(error))),
        },
    }
}

impl Run {
    async fn whole(self: Arc<Self>) -> Result<WarmReport, WarmError> {
        let mut report = WarmReport::default();
        {
            let store = self.store.clone();
            // Until the images are named, their blobs must not be pruned by another warmer.
            let _writing = self.blocking(move || store.writing()).await?;
            if self.request.verify {
                report.verify = Some(repair::verify(&self).await?);
            }
            self.images(&mut report).await;
            if let Some(steps) = &self.request.steps {
                report.steps = Some(steps::warm_steps(&self, steps).await);
            }
        }
        if let Some(rules) = self.request.prune {
            report.pruned = Some(self.prune(rules).await?);
        }
        Ok(report)
    }

    async fn images(self: &Arc<Self>, report: &mut WarmReport) {
        let mut names: Vec<&ImageName> = Vec::new();
        for name in &self.request.images {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut running: FuturesUnordered<_> = names
            .iter()
            .enumerate()
            .map(|(place, name)| async move { (place, (*name).clone(), self.one(name).await) })
            .collect();
        let mut warmed = Vec::new();
        let mut failed = Vec::new();
        while let Some((place, image, result)) = running.next().await {
            match result {
                Ok(images) => warmed.push((place, images)),
                Err(error) => {
                    self.teller.tell(WarmEvent::Failed { image: image.to_string(), why: error.to_string() });
                    failed.push((place, Failure { image, error }));
                }
            }
        }
        // In the order in which they were asked for.
        warmed.sort_by_key(|(place, _)| *place);
        failed.sort_by_key(|(place, _)| *place);
        report.images = warmed.into_iter().flat_map(|(_, images)| images).collect();
        report.failed = failed.into_iter().map(|(_, failure)| failure).collect();
    }

    async fn one(self: &Arc<Self>, name: &ImageName) -> Result<Vec<WarmedImage>, WarmError> {
        match name {
            ImageName::Registry(reference) => image::warm_reference(self, name, reference).await,
            ImageName::Layout { .. } | ImageName::Archive { .. } => layout::warm_local(self, name).await,
        }
    }

    async fn prune(&self, rules: PruneRequest) -> Result<PruneReport, WarmError> {
        let rules =
            PruneRules { unused_for: rules.unused_for, max_size: rules.max_size, now: self.request.now };
        let store = self.store.clone();
        let report = self.blocking(move || store.prune(&rules)).await?;
        self.teller.tell(if report.busy {
            WarmEvent::PruneSkipped
        } else {
            WarmEvent::Pruned {
                images: report.images.clone(),
                freed: report.freed,
                left: report.left,
                in_use: report.in_use.clone(),
            }
        });
        Ok(report)
    }

    /// Runs `work` where it may wait for locks and disks.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(StoreError::Io {
                    action: "finish the work on",
                    path: self.request.volume.clone(),
                    source: std::io::Error::other(error),
                }),
            },
        }
    }
}
