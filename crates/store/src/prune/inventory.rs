//! What a store holds, and what of it belongs together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_oci::{DiffId, Digest, Document, ImageConfig, Manifest};

use crate::blob::Blob;
use crate::error::{OnPath, StoreError, if_present};
use crate::index::{annotation, note};
use crate::store::{ReadWrite, Store, read_document};

/// A manifest and what it needs, or a blob that nothing refers to.
#[derive(Debug)]
pub(super) struct Item {
    /// The manifest, or the blob itself.
    pub(super) manifest: Digest,
    /// Its names in `index.json`.
    pub(super) names: Vec<String>,
    /// The steps that led to it.
    pub(super) keys: Vec<String>,
    /// All blobs, the manifest among them.
    blobs: BTreeSet<Digest>,
    /// Its layers' diff IDs.
    unpacked: BTreeSet<DiffId>,
    used: SystemTime,
}

impl Item {
    fn new(manifest: Digest) -> Self {
        Self {
            blobs: BTreeSet::from([manifest.clone()]),
            manifest,
            names: Vec::new(),
            keys: Vec::new(),
            unpacked: BTreeSet::new(),
            used: SystemTime::UNIX_EPOCH,
        }
    }

    pub(super) fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.used).unwrap_or_default()
    }

    /// Whether anybody can find it by a name or key.
    pub(super) fn is_named(&self) -> bool {
        !self.names.is_empty() || !self.keys.is_empty()
    }

    /// What to call it in a report.
    pub(super) fn label(&self) -> String {
        match (self.names.first(), self.keys.first()) {
            (Some(name), _) => name.clone(),
            (None, Some(key)) => format!("step {key}"),
            (None, None) => self.manifest.to_string(),
        }
    }
}

/// Everything in a store, with the number of items that need it.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// What nobody can find by name first, then the least recently used first.
    pub(super) items: Vec<Item>,
    blobs: BTreeMap<Digest, Held>,
    layers: BTreeMap<DiffId, Held>,
    size: u64,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    items: usize,
}

impl Inventory {
    /// Looks at the whole store.
    pub(super) fn take(store: &Store<ReadWrite>) -> Result<Self, StoreError> {
        let mut inventory = Self::default();
        let mut used = BTreeMap::new();
        for digest in store.blobs()? {
            let path = store.blob_path(&digest);
            let Some(file) = if_present(fs::metadata(&path)).on("look at", &path)? else { continue };
            let last = file.modified().ok().max(file.accessed().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
            used.insert(digest.clone(), last);
            inventory.blobs.insert(digest, Held { bytes: file.len(), items: 0 });
        }
        let mut items = named(store)?;
        for item in items.values_mut() {
            fill(store, item);
        }
        let needed: BTreeSet<Digest> = items.values().flat_map(|item| item.blobs.iter().cloned()).collect();
        // A manifest that lost its name keeps its layers together still: a reader may be at it.
        let mut loose: Vec<Item> = inventory
            .blobs
            .keys()
            .filter(|digest| !needed.contains(*digest))
            .cloned()
            .map(Item::new)
            .collect();
        for item in &mut loose {
            fill(store, item);
        }
        let parts: BTreeSet<Digest> = loose
            .iter()
            .flat_map(|item| item.blobs.iter().filter(|blob| **blob != item.manifest).cloned())
            .collect();
        loose.retain(|item| !parts.contains(&item.manifest));
        inventory.items = items.into_values().chain(loose).collect();
        for item in &mut inventory.items {
            item.used = used.get(&item.manifest).copied().unwrap_or(SystemTime::UNIX_EPOCH);
        }
        inventory.items.sort_by_key(|item| (item.is_named(), item.used));
        inventory.weigh(store)?;
        Ok(inventory)
    }

    fn weigh(&mut self, store: &Store<ReadWrite>) -> Result<(), StoreError> {
        let directory = store.path().join("kiln/unpacked/sha256");
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let entry = entry.on("list", &directory)?;
            let diff_id = entry.file_name().to_str().map(|hex| format!("sha256:{hex}").parse());
            if let Some(Ok(diff_id)) = diff_id {
                let bytes = tree_size(&entry.path());
                self.layers.insert(diff_id, Held { bytes, items: 0 });
            }
        }
        for item in &self.items {
            for blob in &item.blobs {
                self.blobs.entry(blob.clone()).or_default().items += 1;
            }
            for layer in &item.unpacked {
                self.layers.entry(*layer).or_default().items += 1;
            }
        }
        // Unpacked layers of no image are only a copy; they go with the sweep, and count as gone.
        self.size = self.blobs.values().map(|held| held.bytes).sum::<u64>()
            + self.layers.values().filter(|held| held.items > 0).map(|held| held.bytes).sum::<u64>();
        Ok(())
    }

    /// How many bytes the items take that were not released.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Notes that `item` went.
    pub(super) fn release(&mut self, item: &Item) {
        let mut freed = 0;
        let mut drop_one = |held: &mut Held| {
            held.items = held.items.saturating_sub(1);
            if held.items == 0 {
                freed += held.bytes;
            }
        };
        for blob in &item.blobs {
            if let Some(held) = self.blobs.get_mut(blob) {
                drop_one(held);
            }
        }
        for layer in &item.unpacked {
            if let Some(held) = self.layers.get_mut(layer) {
                drop_one(held);
            }
        }
        self.size = self.size.saturating_sub(freed);
    }

    /// The blobs that no item needs.
    pub(super) fn unneeded_blobs(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.blobs.iter().filter(|(_, held)| held.items == 0).map(|(digest, held)| (digest, held.bytes))
    }

    /// The unpacked layers that no item needs.
    pub(super) fn unneeded_layers(&self) -> impl Iterator<Item = (&DiffId, u64)> {
        self.layers.iter().filter(|(_, held)| held.items == 0).map(|(layer, held)| (layer, held.bytes))
    }
}

/// The items that a name or key leads to, by their manifests.
fn named(store: &Store<ReadWrite>) -> Result<BTreeMap<Digest, Item>, StoreError> {
    let mut items: BTreeMap<Digest, Item> = BTreeMap::new();
    for entry in store.index()?.manifests {
        let digest = &entry.digest;
        let item = items.entry(digest.clone()).or_insert_with(|| Item::new(digest.clone()));
        item.names.push(note(&entry, annotation::REF_NAME).map_or_else(|| digest.to_string(), str::to_owned));
        if let Some(Ok(index)) = note(&entry, annotation::INDEX).map(str::parse) {
            item.blobs.insert(index);
        }
    }
    for key in store.step_keys()? {
        // A record that can't be read leads nowhere.
        let Ok(Some(record)) = store.step_record(&key) else { continue };
        let digest = record.digest;
        items.entry(digest.clone()).or_insert_with(|| Item::new(digest)).keys.push(key);
    }
    Ok(items)
}

/// Adds what the manifest of `item` names. What can't be read names nothing.
fn fill(store: &Store<ReadWrite>, item: &mut Item) {
    let Some(manifest) = quietly::<Manifest>(store, &item.manifest) else { return };
    item.blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
    item.blobs.insert(manifest.config.digest.clone());
    if let Some(config) = quietly::<ImageConfig>(store, &manifest.config.digest) {
        item.unpacked.extend(config.rootfs.diff_ids);
    }
}

/// Above this size a blob is a layer, not a manifest.
const LARGEST_MANIFEST: u64 = 4 << 20;

fn quietly<T: serde::de::DeserializeOwned + Clone>(store: &Store<ReadWrite>, digest: &Digest) -> Option<T> {
    let blob = Blob::open_quietly(store.blob_path(digest), digest).ok()??;
    if blob.len() > LARGEST_MANIFEST {
        return None;
    }
    Some(Document::<T>::read(read_document(&blob).ok()?, None).ok()?.value().clone())
}

/// The bytes of the files below `directory`; what can't be looked at counts nothing.
fn tree_size(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => tree_size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
