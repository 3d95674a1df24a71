//! The loopback registry as these tests want it: started from where no runtime runs too, with plain images in it.

use kiln_oci::{
    Descriptor, DescriptorPlatform, DiffId, Digest, Document, ImageConfig, Index, Manifest, Platform,
    Reference, media_type,
};
use kiln_registry::{Registry, RegistryOptions, RetryPolicy};
use kiln_testkit::{Fault, Route, TestRegistry};
use std::time::Duration;
use tokio::runtime::Runtime;

/// The registry. It stops with the test.
pub(crate) struct Remote {
    registry: Option<TestRegistry>,
    runtime: Option<Runtime>,
    host: String,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            // Tests drop this inside of a runtime of their own, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// An image with real layers.
pub(crate) struct TestImage {
    pub(crate) manifest: Document<Manifest>,
    pub(crate) config: Document<ImageConfig>,
    pub(crate) layers: Vec<Vec<u8>>,
}

/// So many bytes that look like nothing, the same for the same `seed`.
pub(crate) fn noise(seed: u8, len: u32) -> Vec<u8> {
    let factor = 2_654_435_761_u32.wrapping_add(u32::from(seed) * 2);
    (0..len).map(|number| number.wrapping_mul(factor).to_le_bytes()[3]).collect()
}

pub(crate) fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

pub(crate) fn arm64() -> Platform {
    Platform::new("linux", "arm64", None)
}

/// An image of which each layer is a tar with one file of that name and content.
pub(crate) fn image(platform: &Platform, files: &[(&str, &[u8])]) -> TestImage {
    let tars: Vec<Vec<u8>> = files
        .iter()
        .map(|(name, content)| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).unwrap();
            tar.into_inner().unwrap()
        })
        .collect();
    let mut config = ImageConfig::scratch(platform);
    config.rootfs.diff_ids = tars.iter().map(|tar| DiffId::from_digest(&Digest::of(tar)).unwrap()).collect();
    let config = Document::author(config);
    let layers: Vec<Descriptor> = tars
        .iter()
        .map(|tar| Descriptor::new(media_type::OCI_LAYER, Digest::of(tar), tar.len() as u64))
        .collect();
    let config_descriptor = Descriptor::new(media_type::OCI_CONFIG, config.digest().clone(), config.size());
    let manifest = Document::author(Manifest::new(media_type::OCI_MANIFEST, config_descriptor, layers));
    TestImage { manifest, config, layers: tars }
}

impl TestImage {
    /// All blobs, the manifest among them.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let layers = self.layers.iter().map(|layer| Digest::of(layer));
        layers.chain([self.config.digest().clone(), self.manifest.digest().clone()]).collect()
    }

    pub(crate) fn layer(&self, number: usize) -> Descriptor {
        self.manifest.value().layers[number].clone()
    }
}

impl Remote {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, started) = std::sync::mpsc::channel();
        runtime.spawn(async move { sender.send(TestRegistry::start().await) });
        let registry = started.recv().unwrap();
        Self { host: registry.host(), registry: Some(registry), runtime: Some(runtime) }
    }

    pub(crate) fn registry(&self) -> &TestRegistry {
        self.registry.as_ref().unwrap()
    }

    /// From now on nobody answers.
    pub(crate) fn stop(&mut self) {
        self.registry = None;
    }

    /// The coming answers with a blob's bytes meet these faults, one each.
    pub(crate) fn on_blobs(&self, faults: impl IntoIterator<Item = Fault>) {
        self.registry().on(Route::Blob, faults);
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    fn put_image(&self, repository: &str, tag: &str, image: &TestImage) {
        for layer in &image.layers {
            self.registry().put_blob(repository, layer.clone());
        }
        self.registry().put_blob(repository, image.config.raw().to_vec());
        let raw = image.manifest.raw().to_vec();
        self.registry().put_manifest(repository, tag, media_type::OCI_MANIFEST, raw);
    }

    /// Holds `image` as `debian:TAG`.
    pub(crate) fn put(&self, tag: &str, image: &TestImage) {
        self.put_image("debian", tag, image);
    }

    /// Holds an index over `images` as `debian:TAG`; gives its digest.
    pub(crate) fn put_index(&self, tag: &str, images: &[&TestImage]) -> Digest {
        let manifests = images.iter().map(|image| {
            self.put_image("debian", &image.manifest.digest().to_string(), image);
            let platform = image.config.value().platform().unwrap();
            let size = image.manifest.size();
            let mut descriptor =
                Descriptor::new(media_type::OCI_MANIFEST, image.manifest.digest().clone(), size);
            descriptor.platform = Some(DescriptorPlatform {
                architecture: platform.architecture,
                os: platform.os,
                os_version: None,
                variant: platform.variant,
                other: serde_json::Map::new(),
            });
            descriptor
        });
        let index = Document::author(Index::new(media_type::OCI_INDEX, manifests.collect()));
        self.registry().put_manifest("debian", tag, media_type::OCI_INDEX, index.raw().to_vec())
    }

    /// The requests since the last call, without those that only find out who is there.
    pub(crate) fn requests(&self) -> Vec<String> {
        let seen = self.registry().seen();
        self.registry().forget();
        let seen = seen.iter().filter(|seen| seen.route != Route::Ping);
        seen.map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    /// How often the bytes of `digest` were asked for since the last call of [`Remote::requests`].
    pub(crate) fn downloads(&self, digest: &Digest) -> usize {
        let wanted = format!("/blobs/{digest}");
        let seen = self.registry().seen();
        seen.iter().filter(|seen| seen.route == Route::Blob && seen.path.ends_with(&wanted)).count()
    }
}

/// A client with short patience: three tries.
pub(crate) fn client() -> Registry {
    Registry::new(options()).unwrap()
}

pub(crate) fn options() -> RegistryOptions {
    let retries = RetryPolicy {
        pull: 2,
        push: 2,
        base: Duration::from_millis(1),
        longest: Duration::from_millis(5),
        stall: Duration::from_secs(5),
    };
    RegistryOptions { retries, ..RegistryOptions::default() }
}
