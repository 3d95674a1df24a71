//! Whole images for tests: layers, a config, a manifest.

use kiln_oci::{Descriptor, Digest, Document, Manifest, media_type};
use serde_json::json;

use crate::layer::Layer;

/// An image: its manifest and all that the manifest names.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// The layers, base first.
    pub layers: Vec<Layer>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Document<Manifest>,
}

impl TestImage {
    /// All blobs that the manifest names, each with its descriptor.
    pub fn blobs(&self) -> Vec<(Descriptor, Vec<u8>)> {
        let layers = self.layers.iter().map(|layer| (layer.descriptor(), layer.gzip.clone()));
        layers.chain([(self.manifest.value().config.clone(), self.config.clone())]).collect()
    }

    /// The manifest's descriptor.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.manifest.value().media_type().to_owned(),
            self.manifest.digest().clone(),
            self.manifest.size(),
        )
    }
}

/// An OCI image for linux/amd64 with these layers. `config` holds what goes into the member of that name (`Env`, `Cmd`).
///
/// # Panics
/// Never: the config is built here.
pub fn image(layers: Vec<Layer>, config: &serde_json::Value) -> TestImage {
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id().to_string()).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({ "created_by": "testkit" })).collect::<Vec<_>>(),
    }))
    .expect("JSON values serialise");
    let descriptor = Descriptor::new(media_type::OCI_CONFIG, Digest::of(&config), config.len() as u64);
    let manifest =
        Manifest::new(media_type::OCI_MANIFEST, descriptor, layers.iter().map(Layer::descriptor).collect());
    TestImage { layers, config, manifest: Document::author(manifest) }
}
