//! Storing results: never in the volume, which is only read.

use bytes::Bytes;
use futures::future::{try_join, try_join_all};
use kiln_oci::{Descriptor, Repository};
use kiln_registry::{FileSource, Registry, RegistryError};
use kiln_store::{Blob, ReadWrite, Store, StoreError};

use super::{Held, StepCache, StepPlace, tagged};
use crate::record::{Inputs, StepRecord};

/// A result that is to be stored.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// Its records, one for each key it is found under. All are of one layer.
    pub records: Vec<StepRecord>,
    /// What the keys were made of.
    pub inputs: Inputs,
    /// The layer's bytes. Without them, the records are stored only where the layer lies already.
    pub layer: Option<Blob>,
    /// A repository of the same registry that has the layer, if its bytes are given.
    pub elsewhere: Option<Repository>,
}

/// Why a result was not stored.
enum NotStored {
    Registry(RegistryError),
    Disk(StoreError),
}

impl StepCache {
    /// Stores a result in every place but the volume. A fault is a warning, the first of each place.
    ///
    /// Gives whether the remote repository has it now.
    pub async fn put(&self, result: &StepResult) -> bool {
        let mut remote = false;
        for held in self.places.iter() {
            if held.health.is_closed() {
                continue;
            }
            let stored = match &held.place {
                StepPlace::Volume(_) => continue,
                StepPlace::Layout(store) => {
                    let (store, result) = (store.clone(), result.clone());
                    let work = tokio::task::spawn_blocking(move || put_in_layout(&store, &result));
                    match work.await {
                        Ok(stored) => stored.map_err(NotStored::Disk),
                        Err(_) => return false,
                    }
                }
                StepPlace::Remote { registry, repository } => {
                    let stored = Box::pin(put_remote(registry, repository, result)).await;
                    remote |= matches!(stored, Ok(true));
                    stored.map(|_| ()).map_err(NotStored::Registry)
                }
            };
            match stored {
                Ok(()) => held.health.written(),
                Err(error) => self.not_stored(held, &error),
            }
        }
        remote
    }

    fn not_stored(&self, held: &Held, error: &NotStored) {
        let (refused, why) = match error {
            NotStored::Registry(error) => {
                let refused =
                    matches!(error, RegistryError::Denied { .. } | RegistryError::Unauthorized { .. });
                (refused, error.to_string())
            }
            NotStored::Disk(error) => (false, error.to_string()),
        };
        if held.health.unwritten(refused) {
            let name = held.place.name();
            (self.warn)(if refused {
                format!("no result of this build is cached in {name}: {why}")
            } else {
                format!("the result of a step was not cached in {name}: {why}")
            });
        }
    }
}

fn put_in_layout(store: &Store<ReadWrite>, result: &StepResult) -> Result<(), StoreError> {
    let _writing = store.writing()?;
    for record in &result.records {
        if !store.has(&record.layer) {
            let Some(layer) = &result.layer else { return Ok(()) };
            let mut writer = store.writer(Some(record.layer.digest.clone()))?;
            std::io::copy(&mut layer.reader(), &mut writer).map_err(|source| StoreError::Io {
                action: "write a layer to",
                path: store.path().to_owned(),
                source,
            })?;
            writer.commit()?;
        }
        let (manifest, config) = record.write(&result.inputs);
        store.put_as(config.digest(), config.raw())?;
        store.put_as(manifest.digest(), manifest.raw())?;
        let descriptor =
            Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size());
        store.put_step_record(&record.key.hex(), &descriptor)?;
    }
    Ok(())
}

/// Gives whether the records are there now.
async fn put_remote(
    registry: &Registry,
    repository: &Repository,
    result: &StepResult,
) -> Result<bool, RegistryError> {
    let Some(first) = result.records.first() else { return Ok(false) };
    let named = result.records.iter().filter_map(|record| Some((tagged(repository, record.key)?, record)));
    let manifests: Vec<_> =
        named.map(|(reference, record)| (reference, record.write(&result.inputs).0)).collect();
    // All have the same.
    let (manifest, config) = first.write(&result.inputs);
    let raw = Bytes::copy_from_slice(config.raw());
    let config = Box::pin(registry.push_new_blob(repository, &manifest.value().config, &raw));
    let layer = async {
        match &result.layer {
            Some(blob) if !is_mounted(registry, repository, result, &first.layer).await? => {
                let file = FileSource(blob.path().to_owned());
                registry.push_new_blob(repository, &first.layer, &file).await.map(|_| ())
            }
            _ => Ok(()),
        }
    };
    if result.layer.is_none() && !registry.blob_exists(repository, &first.layer.digest).await? {
        return Ok(false);
    }
    try_join(layer, config).await?;
    try_join_all(manifests.iter().map(|(reference, manifest)| {
        registry.push_manifest(reference, manifest.value().media_type(), manifest.raw())
    }))
    .await?;
    Ok(true)
}

/// Whether the layer could be had from another repository of the registry.
async fn is_mounted(
    registry: &Registry,
    repository: &Repository,
    result: &StepResult,
    layer: &Descriptor,
) -> Result<bool, RegistryError> {
    match &result.elsewhere {
        Some(from) => registry.mount_blob(repository, &layer.digest, from).await,
        None => Ok(false),
    }
}
