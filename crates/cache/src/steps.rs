//! Results of steps: looked up in the volume, then in the cache repository; stored in the repository. A fault is a miss
//! and one warning, never a failed build.

mod download;
mod health;
mod last;
mod put;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kiln_oci::{Descriptor, Digest, Document, Manifest, Reference, Repository, Tag};
use kiln_plan::{Hit, Hits, StepKey};
use kiln_registry::{Registry, RegistryError};
use kiln_store::{Blob, ReadOnly, ReadWrite, Store};

use crate::record::StepRecord;
use crate::relay::Relay;
pub(crate) use download::Failed;
pub use download::Patience;
use health::Health;
pub use put::StepResult;

/// One place that holds results of steps.
#[derive(Clone)]
pub enum StepPlace {
    /// A store that is only read: the warmed volume.
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

/// The layer cache. Cheap to clone; clones share what they learnt of their places.
#[derive(Clone)]
pub struct StepCache {
    places: Arc<[Held]>,
    ttl_seconds: u64,
    now: i64,
    patience: Patience,
    warn: Arc<dyn Fn(String) + Send + Sync>,
}

/// The name of a build, and its record if there is one.
type Ahead = (StepKey, Option<Document<Manifest>>);

/// Where the bytes of a hit are.
#[derive(Debug)]
pub enum HitBytes {
    /// On this machine, verified.
    Here(Blob),
    /// In the cache repository: they can be sent on while they arrive.
    There(Relay),
}

/// A place, and how it does.
struct Held {
    place: StepPlace,
    health: Health,
    /// A record of a last build that was fetched before it was asked for.
    ahead: Arc<tokio::sync::Mutex<Option<Ahead>>>,
    /// The digests of the records of last builds that were read here.
    read: Mutex<HashMap<StepKey, Digest>>,
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

pub(crate) fn tagged(repository: &Repository, key: StepKey) -> Option<Reference> {
    key.hex().parse::<Tag>().ok().map(|tag| repository.tagged(tag))
}

/// Whether an error is about one thing that a place holds, not about the place.
fn is_of_one_entry(error: &RegistryError) -> bool {
    match error {
        RegistryError::Everywhere { tried, .. } => tried.iter().all(is_of_one_entry),
        RegistryError::Corrupt { .. }
        | RegistryError::Length { .. }
        | RegistryError::NotFound { .. }
        | RegistryError::Protocol { .. } => true,
        _ => false,
    }
}

impl StepCache {
    /// A cache that is looked up in `places`, in order. Results older than `ttl_seconds` at the time `now` (seconds since
    /// 1970) are misses. `warn` hears of faults, as sentences.
    pub fn new(
        places: Vec<StepPlace>,
        ttl_seconds: u64,
        now: i64,
        warn: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Self {
        let hold =
            |place| Held { place, health: Health::default(), ahead: Arc::default(), read: Mutex::default() };
        let places = places.into_iter().map(hold).collect();
        Self { places, ttl_seconds, now, patience: Patience::default(), warn }
    }

    /// The same cache with another patience for slow downloads.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Looks up all keys at once: in every place those that the places before lack. Where the last build called `last`
    /// left a record, that is read first, and says it of most keys in one request.
    ///
    /// Keys `in_passing` are of results that are hardly ever stored: a place on disk is looked through for them, and so is
    /// that record, but no registry is asked.
    pub async fn probe(&self, keys: &[StepKey], in_passing: &[StepKey], last: Option<StepKey>) -> Hits {
        let mut hits = Hits::new();
        for held in self.places.iter() {
            let mut missing = lacking(keys, &hits);
            let mut passing = lacking(in_passing, &hits);
            if let Some(name) = last.filter(|_| !missing.is_empty() || !passing.is_empty())
                && let Some(record) = self.last_in(held, name).await
            {
                let found = missing.iter().chain(&passing).filter_map(|key| record.find(*key));
                let young = found.filter(|found| !found.expired(self.now, self.ttl_seconds));
                hits.extend(young.map(|found| (found.key, found.hit(&held.place.name()))));
                missing = lacking(keys, &hits);
                passing = lacking(in_passing, &hits);
            }
            if !matches!(held.place, StepPlace::Remote { .. }) {
                missing.append(&mut passing);
            }
            let found = futures::future::join_all(missing.iter().map(|key| self.find(held, *key))).await;
            hits.extend(missing.into_iter().zip(found).filter_map(|(key, hit)| Some((key, hit?))));
        }
        hits
    }

    async fn find(&self, held: &Held, key: StepKey) -> Option<Hit> {
        let manifest = match &held.place {
            StepPlace::Volume(store) => self.stored(held, store, key)?,
            StepPlace::Layout(store) => self.stored(held, store, key)?,
            StepPlace::Remote { registry, repository } => {
                if held.health.is_deaf() {
                    return None;
                }
                match registry.manifest(&tagged(repository, key)?).await {
                    Ok(manifest) => {
                        held.health.answered();
                        match Document::<Manifest>::read(manifest.raw, None) {
                            Ok(document) => document,
                            Err(error) => return self.bad_entry(held, key, error),
                        }
                    }
                    Err(error) if error.is_not_found() => {
                        held.health.answered();
                        return None;
                    }
                    Err(error) => return self.unanswered(held, key, &error),
                }
            }
        };
        match StepRecord::read(manifest.value(), key) {
            Ok(record) if record.expired(self.now, self.ttl_seconds) => None,
            Ok(record) => Some(record.hit(&held.place.name())),
            Err(error) => self.bad_entry(held, key, error),
        }
    }

    /// One entry can't be used.
    fn bad_entry<T>(&self, held: &Held, key: StepKey, error: impl std::fmt::Display) -> Option<T> {
        (self.warn)(format!("the cached step {} in {} is not used: {error}", key.short(), held.place.name()));
        None
    }

    /// The place failed, or what it has of one entry is wrong.
    fn unanswered<T>(&self, held: &Held, key: StepKey, error: &RegistryError) -> Option<T> {
        if is_of_one_entry(error) {
            return self.bad_entry(held, key, error);
        }
        if held.health.unanswered() {
            let name = held.place.name();
            (self.warn)(format!("the cache {name} can't be read, and counts as empty: {error}"));
        }
        None
    }

    fn stored<A>(&self, held: &Held, store: &Store<A>, key: StepKey) -> Option<Document<Manifest>> {
        let read = || -> Result<Option<Document<Manifest>>, kiln_store::StoreError> {
            let Some(descriptor) = store.step_record(&key.hex())? else { return Ok(None) };
            let Some(document) = store.document::<Manifest>(&descriptor.digest)? else { return Ok(None) };
            Ok(document.value().layers.iter().all(|layer| store.has(layer)).then_some(document))
        };
        match read() {
            Ok(found) => found,
            Err(error) => self.bad_entry(held, key, error),
        }
    }

    /// Brings a hit's layer to this machine, verified: into `scratch`, unless a place on disk has it.
    ///
    /// `None` means that it can't be had: the hit is a miss after all, and a warning said why. `on` hears how many bytes
    /// are here.
    pub async fn fetch(
        &self,
        hit: &Hit,
        scratch: &Store<ReadWrite>,
        on: &(dyn Fn(u64) + Send + Sync),
    ) -> Option<Blob> {
        if let Some(blob) = self.on_disk(hit, scratch).await {
            return Some(blob);
        }
        let (held, registry, repository) = self.ready_remote(hit)?;
        match self.patience.download(scratch, registry, repository, &layer_of(hit), on).await {
            Ok(blob) => {
                held.health.answered();
                Some(blob)
            }
            Err(failed) => self.did_not_come(held, hit, failed),
        }
    }

    /// Finds a hit's layer for an upload: on disk, verified, or in the cache repository, which is not asked yet.
    ///
    /// `None` means that it can't be had, as with [`StepCache::fetch`].
    pub async fn locate(&self, hit: &Hit, scratch: &Store<ReadWrite>) -> Option<HitBytes> {
        if let Some(blob) = self.on_disk(hit, scratch).await {
            return Some(HitBytes::Here(blob));
        }
        let (_, registry, repository) = self.ready_remote(hit)?;
        Some(HitBytes::There(Relay::new(registry, repository, layer_of(hit), self.patience)))
    }

    /// Whether an upload out of `relay` failed because the layer did not come: the hit is a miss then, and a warning said
    /// why.
    pub fn is_lost(&self, hit: &Hit, relay: &Relay) -> bool {
        let fault = relay.fault();
        if let (Some((held, ..)), Some(failed)) = (self.remote(), fault) {
            let _: Option<()> = self.did_not_come(held, hit, failed);
            return true;
        }
        false
    }

    fn did_not_come<T>(&self, held: &Held, hit: &Hit, failed: Failed) -> Option<T> {
        match failed {
            Failed::Registry(error) => self.unanswered(held, hit.key, &error),
            Failed::Slow { seconds, done, .. } => {
                held.health.was_slow(done, seconds);
                self.bad_entry(held, hit.key, failed)
            }
            failed => self.bad_entry(held, hit.key, failed),
        }
    }

    /// The layer of a hit, verified, if a place on disk has it.
    async fn on_disk(&self, hit: &Hit, scratch: &Store<ReadWrite>) -> Option<Blob> {
        let (this, hit, scratch) = (self.clone(), hit.clone(), scratch.clone());
        // A large layer takes a while to hash.
        tokio::task::spawn_blocking(move || this.find_on_disk(&hit, &scratch)).await.ok().flatten()
    }

    fn find_on_disk(&self, hit: &Hit, scratch: &Store<ReadWrite>) -> Option<Blob> {
        let descriptor = layer_of(hit);
        // What lies in the scratch directory was hashed when it was written.
        if let Ok(Some(blob)) = scratch.blob_of(&descriptor) {
            return Some(blob);
        }
        self.places.iter().find_map(|held| {
            let found = match &held.place {
                StepPlace::Volume(store) => sound(store, &descriptor),
                StepPlace::Layout(store) => sound(store, &descriptor),
                StepPlace::Remote { .. } => Ok(None),
            };
            found.unwrap_or_else(|error| self.bad_entry(held, hit.key, error))
        })
    }

    /// The repository, unless it is known to be of no use for this layer.
    fn ready_remote(&self, hit: &Hit) -> Option<(&Held, &Registry, &Repository)> {
        let (held, registry, repository) = self.remote()?;
        if held.health.is_deaf() {
            return None;
        }
        if held.health.is_too_slow(hit.size, self.patience.rest) {
            return self.bad_entry(held, hit.key, format!("{} bytes take too long to come", hit.size));
        }
        Some((held, registry, repository))
    }

    fn remote(&self) -> Option<(&Held, &Registry, &Repository)> {
        self.places.iter().find_map(|held| match &held.place {
            StepPlace::Remote { registry, repository } => Some((held, registry, repository)),
            _ => None,
        })
    }

    /// The layer of a hit as the volume keeps it unpacked (`warmer --unpack`), an overlay lower directory.
    pub fn unpacked(&self, hit: &Hit) -> Option<std::path::PathBuf> {
        self.places.iter().find_map(|held| match &held.place {
            StepPlace::Volume(store) => store.unpacked(&hit.diff_id).ok().flatten(),
            _ => None,
        })
    }

    /// Whether the bytes of a hit are on this machine, as far as names and lengths tell.
    pub fn is_here(&self, hit: &Hit) -> bool {
        let descriptor = layer_of(hit);
        self.places.iter().any(|held| match &held.place {
            StepPlace::Volume(store) => store.has(&descriptor),
            StepPlace::Layout(store) => store.has(&descriptor),
            StepPlace::Remote { .. } => false,
        })
    }

    /// The repository of the cache, from which a registry can mount its layers.
    pub fn repository(&self) -> Option<&Repository> {
        self.remote().map(|(_, _, repository)| repository)
    }
}

fn layer_of(hit: &Hit) -> Descriptor {
    Descriptor::new(hit.media_type.clone(), hit.digest.clone(), hit.size)
}

/// The keys that have no hit, each once.
fn lacking(keys: &[StepKey], hits: &Hits) -> Vec<StepKey> {
    let mut missing: Vec<StepKey> = keys.iter().copied().filter(|key| !hits.contains_key(key)).collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

fn sound<A>(store: &Store<A>, descriptor: &Descriptor) -> Result<Option<Blob>, String> {
    let Some(blob) = store.blob_of(descriptor).map_err(|error| error.to_string())? else { return Ok(None) };
    blob.verify().map_err(|error| error.to_string())?;
    Ok(Some(blob))
}
