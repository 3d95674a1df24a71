//! Small images to put into stores.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_oci::{
    Descriptor, DiffId, Digest, Document, ImageConfig, Manifest, Platform, Reference, media_type,
};
use kiln_store::{Blobs, Durability, ReadWrite, Store};

/// An image whose layers are these bytes, as if they were tar archives.
pub(crate) struct TestImage {
    pub(crate) manifest: Document<Manifest>,
    pub(crate) config: Document<ImageConfig>,
    pub(crate) layers: Vec<Vec<u8>>,
}

pub(crate) fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

pub(crate) fn arm(variant: &str) -> Platform {
    Platform::new("linux", "arm", Some(variant))
}

/// A time: so many days after 2026-01-01.
pub(crate) fn day(number: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600 + number * 86_400)
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(crate) fn image(platform: &Platform, layers: &[&[u8]]) -> TestImage {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| layer.to_vec()).collect();
    let mut config = ImageConfig::scratch(platform);
    config.rootfs.diff_ids =
        layers.iter().map(|layer| DiffId::from_digest(&Digest::of(layer)).unwrap()).collect();
    let config = Document::author(config);
    let descriptors = layers
        .iter()
        .map(|layer| Descriptor::new(media_type::OCI_LAYER, Digest::of(layer), layer.len() as u64));
    let manifest = Manifest::new(
        media_type::OCI_MANIFEST,
        Descriptor::new(media_type::OCI_CONFIG, config.digest().clone(), config.size()),
        descriptors.collect(),
    );
    TestImage { manifest: Document::author(manifest), config, layers }
}

impl TestImage {
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::new(media_type::OCI_MANIFEST, self.manifest.digest().clone(), self.manifest.size())
    }

    /// Writes all blobs, and publishes the image under `name`.
    pub(crate) fn put(&self, store: &Store<ReadWrite>, name: &str, at: SystemTime) {
        for layer in &self.layers {
            store.put(layer).unwrap();
        }
        store.put(self.config.raw()).unwrap();
        store.put(self.manifest.raw()).unwrap();
        let platform = self.config.value().platform().unwrap();
        store.publish(&reference(name), &platform, self.descriptor(), at).unwrap();
        store.mark_used(self.manifest.digest(), at);
    }

    pub(crate) fn is_whole_in<A>(&self, store: &Store<A>) -> bool {
        let layers = self.layers.iter().map(|layer| Digest::of(layer));
        let documents = [self.manifest.digest().clone(), self.config.digest().clone()];
        layers
            .chain(documents)
            .all(|digest| store.blob(&digest).unwrap().is_some_and(|blob| blob.verify().is_ok()))
    }
}

impl Blobs for TestImage {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn io::BufRead + Send>> {
        let layer = self.layers.iter().find(|layer| Digest::of(layer) == descriptor.digest).unwrap();
        Ok(Box::new(io::Cursor::new(layer.clone())))
    }
}

pub(crate) fn volume(path: &Path) -> Store<ReadWrite> {
    Store::create(path, Durability::Scratch).unwrap()
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
