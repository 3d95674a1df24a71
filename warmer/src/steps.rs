//! `--cache-repo`: layers of build steps, brought from a cache repository into the volume under their keys. Builds find
//! them there without asking the repository.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::StreamExt as _;
use kiln_cache::{Inputs, StepCache, StepPlace, StepRecord, download};
use kiln_oci::{Descriptor, Repository};
use kiln_plan::{Hit, StepKey};
use kiln_store::{ReadOnly, ReadWrite, Store, StoreError};

use crate::layout::copy_layer;
use crate::progress::Transfer;
use crate::run::Run;
use crate::{WarmEvent, unpack};

/// Where layers of steps come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepsFrom {
    /// A cache repository.
    Repository(Repository),
    /// A layout on disk (`oci:DIR`). It is only read.
    Layout(PathBuf),
}

/// The steps of which a volume should hold the layers.
#[derive(Clone, Debug)]
pub struct StepsRequest {
    /// The cache.
    pub from: StepsFrom,
    /// The keys of the steps that are known.
    pub keys: Vec<StepKey>,
    /// The names of builds ([`kiln_cache::build_name`]): all steps of their last runs are wanted too. Keys alone don't
    /// reach steps that read a build context.
    pub builds: Vec<StepKey>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepsReport {
    /// Layers that were brought.
    pub warmed: usize,
    /// Layers that were there.
    pub fresh: usize,
    /// Layers that can't be had.
    pub failed: usize,
}

/// Brings what the repository has of the wanted steps.
pub(crate) async fn warm_steps(run: &Arc<Run>, wanted: &StepsRequest) -> StepsReport {
    let place = match place(run, &wanted.from).await {
        Ok(place) => place,
        Err(error) => {
            run.teller.tell(WarmEvent::CacheFault { why: error.to_string() });
            return StepsReport { failed: 1, ..StepsReport::default() };
        }
    };
    let now = run.request.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let teller = run.teller.clone();
    let failures = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&failures);
    let warn = Arc::new(move |why| {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        teller.tell(WarmEvent::CacheFault { why });
    });
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let cache = StepCache::new(vec![place.clone()], run.request.ttl.as_secs(), now, warn);
    let mut keys = wanted.keys.clone();
    for build in &wanted.builds {
        let record = cache.last_build(*build).await.unwrap_or_default();
        keys.extend(record.steps.into_iter().flat_map(|step| step.keys));
    }
    let mut hits = std::collections::BTreeMap::new();
    for name in wanted.builds.iter().copied().map(Some).chain([None]) {
        let missing: Vec<StepKey> = keys.iter().copied().filter(|key| !hits.contains_key(key)).collect();
        hits.extend(cache.probe(&missing, &[], name).await);
    }
    let mut report = StepsReport::default();
    let mut work =
        futures::stream::iter(hits.into_values().map(|hit| one(Arc::clone(run), place.clone(), hit)))
            .buffer_unordered(run.request.parallel.max(1));
    while let Some(result) = work.next().await {
        match result {
            Ok(0) => report.fresh += 1,
            Ok(_) => report.warmed += 1,
            Err(why) => {
                report.failed += 1;
                run.teller.tell(WarmEvent::CacheFault { why });
            }
        }
    }
    report.failed = report.failed.max(failures.load(std::sync::atomic::Ordering::Relaxed));
    run.teller.tell(WarmEvent::Steps(report));
    report
}

async fn place(run: &Arc<Run>, from: &StepsFrom) -> Result<StepPlace, StoreError> {
    match from {
        StepsFrom::Repository(repository) => {
            let (registry, repository) = (run.request.registry.clone(), repository.clone());
            Ok(StepPlace::Remote { registry, repository })
        }
        StepsFrom::Layout(path) => {
            let path = path.clone();
            run.blocking(move || Store::<ReadOnly>::open(&path)).await.map(StepPlace::Volume)
        }
    }
}

/// Brings one layer, and gives how many bytes came.
async fn one(run: Arc<Run>, from: StepPlace, hit: Hit) -> Result<u64, String> {
    let layer = Descriptor::new(hit.media_type.clone(), hit.digest.clone(), hit.size);
    let mut received = 0;
    if run.request.force || !run.store.has(&layer) {
        // Closed only with the run.
        let _permit = run.downloads.acquire().await.ok();
        let transfer = Transfer::new(&run.teller, &layer);
        let fail = |why: &dyn std::fmt::Display| format!("the layer {} of a cached step: {why}", hit.digest);
        match from {
            StepPlace::Remote { registry, repository } => {
                let on = |bytes| transfer.at(bytes);
                let got = download(&run.store, &registry, &repository, &layer, run.request.force, &on).await;
                got.map_err(|error| fail(&error))?;
            }
            StepPlace::Volume(from) => {
                let (to, layer, force) = (run.store.clone(), layer.clone(), run.request.force);
                let copied = run.blocking(move || copy(&from, &to, &layer, force)).await;
                copied.map_err(|error| fail(&error))?;
            }
            // The warmer writes to no cache.
            StepPlace::Layout(_) => return Ok(0),
        }
        received = hit.size;
    }
    let record =
        StepRecord { key: hit.key, layer: layer.clone(), diff_id: hit.diff_id, created: hit.created };
    let (store, now) = (run.store.clone(), run.request.now);
    let put = move || -> Result<(), StoreError> {
        let (manifest, config) = record.write(&Inputs::default());
        store.put_as(config.digest(), config.raw())?;
        store.put_as(manifest.digest(), manifest.raw())?;
        store.mark_used(manifest.digest(), now);
        let descriptor =
            Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size());
        store.put_step_record(&record.key.hex(), &descriptor)
    };
    run.blocking(put).await.map_err(|error| error.to_string())?;
    if run.request.unpack {
        let unpacked = unpack::unpack_layer(&run, &layer, hit.diff_id).await;
        unpacked.map_err(|error| error.to_string())?;
    }
    Ok(received)
}

/// Copies a layer of a layout into the volume.
fn copy(
    from: &Store<ReadOnly>,
    to: &Store<ReadWrite>,
    layer: &Descriptor,
    replace: bool,
) -> Result<(), StoreError> {
    let digest = layer.digest.clone();
    let blob = from.blob_of(layer)?.ok_or(StoreError::NoBlob { path: from.path().to_owned(), digest })?;
    copy_layer(to, layer, &mut blob.reader(), blob.path(), replace).map(|_| ())
}
