//! `index.json`: which images a store holds, by name and platform.
//!
//! An entry is a descriptor of one platform's manifest, as the OCI image layout wants it, with annotations that skopeo,
//! containerd and podman read and two of our own. It is replaced as a whole, under its lock, so readers need none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_oci::{Descriptor, Digest, Index, Platform, Reference, media_type};

use crate::disk;
use crate::error::{OnPath, StoreError, if_present};
use crate::lock::{self, Lock, Mode};
use crate::store::{ReadWrite, Store};

/// The annotations of entries of an `index.json`.
pub mod annotation {
    /// OCI's: the name of an image within its layout.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// containerd's: the full name of an image.
    pub const IMAGE_NAME: &str = "io.containerd.image.name";
    /// Kiln's: when the registry last said that the name means this image, in seconds since 1970.
    pub const RESOLVED: &str = "dev.kiln.resolved";
    /// Kiln's: the digest that the registry gives for the name, if that is an index which lists this manifest.
    pub const INDEX: &str = "dev.kiln.index";
}

/// What a store knows of a name for a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The manifest of the image for that platform.
    pub descriptor: Descriptor,
    /// What the registry gives for the name, where that is an index.
    pub index: Option<Digest>,
    /// When the registry said so.
    pub resolved_at: SystemTime,
}

impl Entry {
    /// The digest that a registry gives for the name: the index's where there is one, else the manifest's.
    pub fn root(&self) -> &Digest {
        self.index.as_ref().unwrap_or(&self.descriptor.digest)
    }

    fn read(descriptor: &Descriptor) -> Self {
        let note = |key| descriptor.annotations.as_ref().and_then(|notes| notes.get(key));
        let seconds = note(annotation::RESOLVED).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            index: note(annotation::INDEX).and_then(|text| text.parse().ok()),
            resolved_at: UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH),
            descriptor: descriptor.clone(),
        }
    }
}

/// The name under which an image is listed: its digest where the reference has one, else its tag.
pub(crate) fn listed_name(reference: &Reference) -> String {
    match &reference.digest {
        Some(digest) => format!("{}@{digest}", reference.repository),
        None => format!("{}:{}", reference.repository, reference.identifier()),
    }
}

pub(crate) fn note<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Reads the `index.json` at `path`; `None` if there is none.
pub(crate) fn read_index(path: &Path) -> Result<Option<Index>, StoreError> {
    let Some(bytes) = if_present(fs::read(path)).on("read", path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| StoreError::Format {
        path: path.to_owned(),
        why: format!("is no OCI index ({error}); delete it, and the next warmer lists its images anew"),
    })
}

/// Puts `descriptor` into `index`, in the place of the entry with the same name (or as nameless) and platform. A name
/// means either an index or images of its own, so the one takes the other's place.
pub(crate) fn put(index: &mut Index, descriptor: Descriptor) {
    let is_index = |entry: &Descriptor| media_type::is_index(&entry.media_type);
    let same_name =
        |old: &Descriptor| note(old, annotation::REF_NAME) == note(&descriptor, annotation::REF_NAME);
    index.manifests.retain(|old| !same_name(old) || is_index(old) == is_index(&descriptor));
    let same = |old: &Descriptor| same_name(old) && old.image_platform() == descriptor.image_platform();
    match index.manifests.iter().position(same) {
        Some(place) => index.manifests[place] = descriptor,
        None => index.manifests.push(descriptor),
    }
}

/// The bytes of an `index.json`.
pub(crate) fn write_index(index: &Index) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec_pretty(index)
}

impl<A> Store<A> {
    pub(crate) fn index_path(&self) -> PathBuf {
        self.path().join("index.json")
    }

    /// All images of the store, as `index.json` lists them. Empty where there is none.
    pub fn index(&self) -> Result<Index, StoreError> {
        Ok(read_index(&self.index_path())?.unwrap_or_else(|| Index::new(media_type::OCI_INDEX, Vec::new())))
    }

    /// What the store last learnt of `reference` for `platform`: the entry of that name whose platform serves best. A
    /// digest is found under any name.
    pub fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Option<Entry>, StoreError> {
        let index = self.index()?;
        let name = listed_name(reference);
        let best = |matches: &dyn Fn(&Descriptor) -> bool| {
            index
                .manifests
                .iter()
                .filter(|entry| matches(entry))
                .filter_map(|entry| {
                    let offered = entry.image_platform();
                    Some((offered.map_or(Some(u32::MAX), |offered| platform.rank(&offered))?, entry))
                })
                .min_by_key(|(rank, _)| *rank)
                .map(|(_, entry)| Entry::read(entry))
        };
        let named = best(&|entry| note(entry, annotation::REF_NAME) == Some(&name));
        Ok(named.or_else(|| {
            let digest = reference.digest.as_ref()?;
            best(&|entry| Entry::read(entry).root() == digest || entry.digest == *digest)
        }))
    }
}

impl Store<ReadWrite> {
    pub(crate) fn lock_index(&self) -> Result<Lock, StoreError> {
        lock::wait(&self.locks().join("index.lock"), Mode::Exclusive)
    }

    pub(crate) fn make_index(&self) -> Result<(), StoreError> {
        if self.index_path().exists() {
            return Ok(());
        }
        self.change_index(|_| ())
    }

    /// Lists the image `descriptor` as what `reference` means for `platform`, as the registry said at `resolved_at`.
    ///
    /// The blobs should be there before: whoever finds a name expects them. Other entries stay as they are.
    pub fn publish(
        &self,
        reference: &Reference,
        platform: &Platform,
        descriptor: Descriptor,
        resolved_at: SystemTime,
    ) -> Result<(), StoreError> {
        self.publish_entry(reference, platform, Entry { descriptor, index: None, resolved_at })
    }

    /// As [`Store::publish`], for a name that means an index in the registry.
    pub fn publish_entry(
        &self,
        reference: &Reference,
        platform: &Platform,
        entry: Entry,
    ) -> Result<(), StoreError> {
        let name = listed_name(reference);
        let Entry { mut descriptor, index, resolved_at } = entry;
        let seconds = resolved_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let notes = descriptor.annotations.get_or_insert_with(BTreeMap::new);
        notes.insert(annotation::REF_NAME.to_owned(), name.clone());
        notes.insert(annotation::IMAGE_NAME.to_owned(), name);
        notes.insert(annotation::RESOLVED.to_owned(), seconds.to_string());
        match index {
            Some(digest) => notes.insert(annotation::INDEX.to_owned(), digest.to_string()),
            None => notes.remove(annotation::INDEX),
        };
        descriptor.platform = Some(platform.into());
        self.change_index(|index| put(index, descriptor))
    }

    /// Changes `index.json` under its lock. It is written only if it is not as it was.
    pub(crate) fn change_index(&self, change: impl FnOnce(&mut Index)) -> Result<(), StoreError> {
        let _lock = self.lock_index()?;
        let path = self.index_path();
        let old = read_index(&path)?;
        let mut index = old.clone().unwrap_or_else(|| Index::new(media_type::OCI_INDEX, Vec::new()));
        change(&mut index);
        if old.as_ref() == Some(&index) {
            return Ok(());
        }
        let bytes = write_index(&index).map_err(|error| StoreError::Format {
            path: path.clone(),
            why: format!("can't be written: {error}"),
        })?;
        disk::replace(&path, &bytes, self.temporary_file()?, self.durability())
    }
}
