//! Reading and writing the record of the last build.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{join, join_all};
use kiln_oci::{Descriptor, Document, Manifest};
use kiln_plan::StepKey;
use kiln_store::Store;

use super::{Held, StepCache, StepPlace, tagged};
use crate::build_record::{BuildRecord, Explanations};
use crate::relay::lock;

/// Longer explanations are not read.
const LONGEST: u64 = 16 << 20;

impl StepCache {
    /// The record of the last build called `name`, from the first place that takes results. Where there is none, or none
    /// that can be read, steps are looked up one by one.
    pub(super) async fn last_in(&self, held: &Held, name: StepKey) -> Option<BuildRecord> {
        let manifest = self.last_manifest(held, name).await?;
        match BuildRecord::read(manifest.value()) {
            Ok(record) => Some(record),
            Err(error) => self.bad_entry(held, name, error),
        }
    }

    /// Work that fetches the record of the last build called `name` for a later [`StepCache::probe`], which waits for it.
    /// `None` where that will not ask a repository first of all.
    pub fn fetch_ahead(&self, name: StepKey) -> Option<impl Future<Output = ()> + Send + 'static> {
        let held = self.places.first().filter(|held| matches!(held.place, StepPlace::Remote { .. }))?;
        // Taken now: who asks before the work has begun waits for it, too.
        let mut ahead = Arc::clone(&held.ahead).try_lock_owned().ok()?;
        let this = self.clone();
        Some(async move {
            if let Some(held) = this.places.first() {
                *ahead = Some((name, this.ask_for_manifest(held, name).await));
            }
        })
    }

    async fn last_manifest(&self, held: &Held, name: StepKey) -> Option<Document<Manifest>> {
        let ahead = held.ahead.lock().await.take();
        match ahead {
            Some((known, found)) if known == name => found,
            _ => self.ask_for_manifest(held, name).await,
        }
    }

    async fn ask_for_manifest(&self, held: &Held, name: StepKey) -> Option<Document<Manifest>> {
        let found = self.manifest_in(held, name).await?;
        lock(&held.read).insert(name, found.digest().clone());
        Some(found)
    }

    async fn manifest_in(&self, held: &Held, name: StepKey) -> Option<Document<Manifest>> {
        match &held.place {
            StepPlace::Volume(store) => stored(store, name),
            StepPlace::Layout(store) => stored(store, name),
            StepPlace::Remote { registry, repository } => {
                if held.health.is_deaf() {
                    return None;
                }
                match registry.manifest(&tagged(repository, name)?).await {
                    Ok(manifest) => {
                        held.health.answered();
                        match Document::read(manifest.raw, None) {
                            Ok(document) => Some(document),
                            Err(error) => self.bad_entry(held, name, error),
                        }
                    }
                    Err(error) if error.is_not_found() => {
                        held.health.answered();
                        None
                    }
                    Err(error) => self.unanswered(held, name, &error),
                }
            }
        }
    }

    /// The record of the last build called `name` with what its keys were made of: it explains misses.
    pub async fn last_build(&self, name: StepKey) -> Option<BuildRecord> {
        for held in self.places.iter() {
            let Some(manifest) = self.last_manifest(held, name).await else { continue };
            let Ok(record) = BuildRecord::read(manifest.value()) else { continue };
            let config = &manifest.value().config;
            let raw: Option<Box<[u8]>> = match &held.place {
                StepPlace::Volume(store) => small(store, config),
                StepPlace::Layout(store) => small(store, config),
                StepPlace::Remote { registry, repository } => {
                    registry.pull_bytes(repository, config, LONGEST).await.ok().map(Into::into)
                }
            };
            let why = raw.and_then(|raw| Document::<Explanations>::read(raw, Some(&config.digest)).ok());
            return Some(match why {
                Some(why) => record.explained(why.value().clone()),
                None => record,
            });
        }
        None
    }

    /// Stores the record of a build, of steps that places have once `settled` is over, where another one was read. It only
    /// spares requests, so a place that does not take it is not complained of.
    pub async fn put_build(&self, name: StepKey, record: &BuildRecord, settled: impl Future<Output = ()>) {
        let Some((manifest, config)) = record.write() else { return settled.await };
        let is_read = |held: &&Held| lock(&held.read).get(&name) == Some(manifest.digest());
        let places: Vec<&Held> =
            self.places.iter().filter(|held| !held.health.is_closed() && !is_read(held)).collect();
        // Nobody finds it without the manifest.
        let configs = places.iter().map(async |held| match &held.place {
            StepPlace::Remote { registry, repository } => {
                let raw = Bytes::copy_from_slice(config.raw());
                registry.push_new_blob(repository, &manifest.value().config, &raw).await.is_ok()
            }
            StepPlace::Volume(_) | StepPlace::Layout(_) => true,
        });
        let (taken, ()) = join(join_all(configs), settled).await;
        for (held, _) in places.into_iter().zip(taken).filter(|(_, taken)| *taken) {
            let _: Option<()> = put_record(held, name, &manifest, &config).await;
        }
    }
}

/// Puts a record into a place; into a repository, which has its config, the manifest only. The failure is for nobody.
async fn put_record(
    held: &Held,
    name: StepKey,
    manifest: &Document<Manifest>,
    config: &Document<Explanations>,
) -> Option<()> {
    let media_type = manifest.value().media_type();
    match &held.place {
        StepPlace::Volume(_) => {}
        StepPlace::Layout(store) => {
            let _writing = store.writing().ok()?;
            store.put_as(config.digest(), config.raw()).ok()?;
            store.put_as(manifest.digest(), manifest.raw()).ok()?;
            let descriptor = Descriptor::new(media_type, manifest.digest().clone(), manifest.size());
            store.put_step_record(&name.hex(), &descriptor).ok()?;
        }
        StepPlace::Remote { registry, repository } => {
            let reference = tagged(repository, name)?;
            registry.push_manifest(&reference, media_type, manifest.raw()).await.ok()?;
        }
    }
    Some(())
}

fn stored<A>(store: &Store<A>, name: StepKey) -> Option<Document<Manifest>> {
    let descriptor = store.step_record(&name.hex()).ok()??;
    store.document::<Manifest>(&descriptor.digest).ok()?
}

fn small<A>(store: &Store<A>, descriptor: &Descriptor) -> Option<Box<[u8]>> {
    store.blob_of(descriptor).ok()??.read().ok()
}
