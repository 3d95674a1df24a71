//! Results of steps: looked up in the volume, then in the cache repository; stored in the repository. A fault is a miss
//! and a warning, never a failed build.

use std::sync::Arc;

use bytes::Bytes;
use kiln_oci::{Descriptor, Document, Manifest, Reference, Repository, Tag};
use kiln_plan::{Hit, Hits, StepKey};
use kiln_registry::{FileSource, Registry};
use kiln_store::{Blob, ReadOnly, ReadWrite, Store};

use crate::images::download;
use crate::record::{Inputs, StepRecord};

/// One place that holds results of steps.
#[derive(Clone)]
pub enum StepPlace {
    /// The warmed volume.
    Volume(Store<ReadOnly>),
    /// A layout on disk (`oci:DIR`).
    Layout(Store<ReadWrite>),
    /// A repository.
    Remote {
        /// The registry.
        registry: Registry,
        /// The repository.
        repository: Repository,
    },
}

/// The layer cache.
#[derive(Clone)]
pub struct StepCache {
    /// Where results are looked up, in order.
    pub places: Vec<StepPlace>,
    /// Results older than this many seconds are misses.
    pub ttl_seconds: u64,
    /// The time now, seconds since 1970.
    pub now: i64,
    /// Hears of faults, as sentences.
    pub warn: Arc<dyn Fn(String) + Send + Sync>,
}

impl StepPlace {
    fn name(&self) -> String {
        match self {
            Self::Volume(store) => format!("volume {}", store.path().display()),
            Self::Layout(store) => format!("oci:{}", store.path().display()),
            Self::Remote { repository, .. } => repository.to_string(),
        }
    }
}

fn tagged(repository: &Repository, key: StepKey) -> Option<Reference> {
    key.hex().parse::<Tag>().ok().map(|tag| repository.tagged(tag))
}

impl StepCache {
    /// Looks up all keys at once: in every place those that the places before lack.
    pub async fn probe(&self, keys: &[StepKey]) -> Hits {
        let mut hits = Hits::new();
        for place in &self.places {
            let missing: Vec<StepKey> = keys.iter().copied().filter(|key| !hits.contains_key(key)).collect();
            let found = futures::future::join_all(missing.iter().map(|key| self.find(place, *key))).await;
            hits.extend(missing.into_iter().zip(found).filter_map(|(key, hit)| Some((key, hit?))));
        }
        hits
    }

    async fn find(&self, place: &StepPlace, key: StepKey) -> Option<Hit> {
        let manifest = match place {
            StepPlace::Volume(store) => self.stored(store, key)?,
            StepPlace::Layout(store) => self.stored(store, key)?,
            StepPlace::Remote { registry, repository } => {
                match registry.manifest(&tagged(repository, key)?).await {
                    Ok(manifest) => match Document::<Manifest>::read(manifest.raw, None) {
                        Ok(document) => document,
                        Err(error) => return self.fault(place, key, error),
                    },
                    Err(error) if error.is_not_found() => return None,
                    Err(error) => return self.fault(place, key, error),
                }
            }
        };
        match StepRecord::read(manifest.value(), key) {
            Ok(record) if record.expired(self.now, self.ttl_seconds) => None,
            Ok(record) => Some(record.hit(&place.name())),
            Err(error) => self.fault(place, key, error),
        }
    }

    fn fault<T>(&self, place: &StepPlace, key: StepKey, error: impl std::fmt::Display) -> Option<T> {
        (self.warn)(format!("the cached step {} in {} is not used: {error}", key.short(), place.name()));
        None
    }

    fn stored<A>(&self, store: &Store<A>, key: StepKey) -> Option<Document<Manifest>> {
        let read = || -> Result<Option<Document<Manifest>>, kiln_store::StoreError> {
            let Some(descriptor) = store.step_record(&key.hex())? else { return Ok(None) };
            let Some(document) = store.document::<Manifest>(&descriptor.digest)? else { return Ok(None) };
            Ok(document.value().layers.iter().all(|layer| store.has(layer)).then_some(document))
        };
        match read() {
            Ok(found) => found,
            Err(error) => {
                (self.warn)(format!("the cached step {} is not used: {error}", key.short()));
                None
            }
        }
    }

    /// Brings a hit's layer to this machine, verified: into `scratch`, unless a place on disk has it.
    ///
    /// `None` means that it can't be had: the hit is a miss after all.
    pub async fn fetch(&self, hit: &Hit, scratch: &Store<ReadWrite>) -> Option<Blob> {
        let descriptor = Descriptor::new(hit.media_type.clone(), hit.digest.clone(), hit.size);
        if let Ok(Some(blob)) = scratch.blob_of(&descriptor) {
            return Some(blob);
        }
        for place in &self.places {
            let found = match place {
                StepPlace::Volume(store) => sound(store, &descriptor),
                StepPlace::Layout(store) => sound(store, &descriptor),
                StepPlace::Remote { registry, repository } => {
                    match download(scratch, registry, repository, &descriptor, false, &|_| ()).await {
                        Ok(got) => Ok(Some(got.into_blob())),
                        Err(error) => Err(error.to_string()),
                    }
                }
            };
            match found {
                Ok(Some(blob)) => return Some(blob),
                Ok(None) => {}
                Err(error) => _ = self.fault::<()>(place, hit.key, error),
            }
        }
        None
    }

    /// The repository of the cache, from which a registry can mount its layers.
    pub fn repository(&self) -> Option<&Repository> {
        self.places.iter().find_map(|place| match place {
            StepPlace::Remote { repository, .. } => Some(repository),
            _ => None,
        })
    }

    /// Stores a result, whose layer lies in the blob `layer`, where results are stored: not in the volume, which is only
    /// read. A fault is a warning.
    pub async fn put(&self, record: &StepRecord, inputs: &Inputs, layer: &Blob) {
        for place in &self.places {
            let stored = match place {
                StepPlace::Volume(_) => continue,
                StepPlace::Layout(store) => put_in_layout(store, record, inputs, layer),
                StepPlace::Remote { registry, repository } => {
                    put_remote(registry, repository, record, inputs, layer).await
                }
            };
            if let Err(error) = stored {
                (self.warn)(format!("the result of a step was not cached in {}: {error}", place.name()));
            }
        }
    }
}

fn sound<A>(store: &Store<A>, descriptor: &Descriptor) -> Result<Option<Blob>, String> {
    let Some(blob) = store.blob_of(descriptor).map_err(|error| error.to_string())? else { return Ok(None) };
    blob.verify().map_err(|error| error.to_string())?;
    Ok(Some(blob))
}

fn put_in_layout(
    store: &Store<ReadWrite>,
    record: &StepRecord,
    inputs: &Inputs,
    layer: &Blob,
) -> Result<(), String> {
    let put = || -> Result<(), kiln_store::StoreError> {
        let _writing = store.writing()?;
        let (manifest, config) = record.write(inputs);
        if !store.has(&record.layer) {
            let mut writer = store.writer(Some(record.layer.digest.clone()))?;
            std::io::copy(&mut layer.reader(), &mut writer).map_err(|source| kiln_store::StoreError::Io {
                action: "write a layer to",
                path: store.path().to_owned(),
                source,
            })?;
            writer.commit()?;
        }
        store.put_as(config.digest(), config.raw())?;
        store.put_as(manifest.digest(), manifest.raw())?;
        let descriptor =
            Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size());
        store.put_step_record(&record.key.hex(), &descriptor)
    };
    put().map_err(|error| error.to_string())
}

async fn put_remote(
    registry: &Registry,
    repository: &Repository,
    record: &StepRecord,
    inputs: &Inputs,
    layer: &Blob,
) -> Result<(), String> {
    let Some(reference) = tagged(repository, record.key) else { return Ok(()) };
    let (manifest, config) = record.write(inputs);
    let push = async {
        registry.push_blob(repository, &record.layer, &FileSource(layer.path().to_owned())).await?;
        let raw = Bytes::copy_from_slice(config.raw());
        registry.push_blob(repository, &manifest.value().config, &raw).await?;
        registry.push_manifest(&reference, manifest.value().media_type(), manifest.raw()).await
    };
    push.await.map(|_| ()).map_err(|error| error.to_string())
}
