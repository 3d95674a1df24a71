//! Assembling an image: the plan's config and the layers that the steps made become a config and a manifest.

use std::collections::BTreeMap;

use kiln_oci::media_type::{self, Compression};
use kiln_oci::{Descriptor, DiffId, Digest, Document, History, ImageConfig, Manifest};

/// A layer of an image in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The blob: media type, digest, size.
    pub descriptor: Descriptor,
    /// What it is before compression.
    pub diff_id: DiffId,
}

/// The media types of manifests and what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// Docker's schema 2.
    Docker,
    /// OCI's.
    Oci,
}

impl ImageFormat {
    /// The format that a manifest of this media type has.
    pub fn of_manifest(media_type: &str) -> Self {
        if media_type == media_type::DOCKER_MANIFEST { Self::Docker } else { Self::Oci }
    }

    fn manifest(self) -> &'static str {
        match self {
            Self::Docker => media_type::DOCKER_MANIFEST,
            Self::Oci => media_type::OCI_MANIFEST,
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Docker => media_type::DOCKER_CONFIG,
            Self::Oci => media_type::OCI_CONFIG,
        }
    }

    /// The media type of an index of such images.
    pub fn index(self) -> &'static str {
        match self {
            Self::Docker => media_type::DOCKER_INDEX,
            Self::Oci => media_type::OCI_INDEX,
        }
    }

    /// The media type of a layer in such an image.
    pub fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Docker, Compression::Gzip) => media_type::DOCKER_LAYER_GZIP,
            (Self::Docker, Compression::None) => media_type::DOCKER_LAYER,
            (Self::Oci, Compression::Gzip) => media_type::OCI_LAYER_GZIP,
            (Self::Oci, Compression::None) => media_type::OCI_LAYER,
            // Docker's format has no zstd: a base that has such layers makes the image an OCI one.
            (_, Compression::Zstd) => media_type::OCI_LAYER_ZSTD,
        }
    }

    /// A base's layer as it is named in an image of this format. Foreign layers keep their type: it says that the
    /// blob is not pushed.
    pub fn adopt(self, layer: &Descriptor) -> Descriptor {
        let mut descriptor = layer.clone();
        if media_type::is_foreign(&layer.media_type) {
            return descriptor;
        }
        if let Some(compression) = Compression::of_layer(&layer.media_type) {
            self.layer(compression).clone_into(&mut descriptor.media_type);
        }
        descriptor
    }
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest as it is pushed.
    pub manifest: Document<Manifest>,
    /// The config as it is pushed.
    pub config: Document<ImageConfig>,
    /// The layers, base first.
    pub layers: Vec<Layer>,
}

impl Image {
    /// The digest that names the image.
    pub fn digest(&self) -> &Digest {
        self.manifest.digest()
    }
}

/// What an image is made of besides its layers.
#[derive(Clone, Debug)]
pub(crate) struct Parts<'a> {
    /// The plan's config.
    pub config: &'a ImageConfig,
    /// Where the entries of this build begin in the config's history.
    pub own_history: usize,
    /// All layers, base first.
    pub layers: &'a [Layer],
    /// When the image is made, RFC 3339.
    pub created: &'a str,
    /// The manifest's annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// The media types.
    pub format: ImageFormat,
    /// Whether all steps went into one layer.
    pub single_layer: bool,
    /// What made each of the build's own layers, for those that no entry of the history is left for.
    pub origins: &'a [String],
}

/// Makes the config and the manifest.
pub(crate) fn assemble(parts: &Parts<'_>) -> Image {
    let mut config = parts.config.clone();
    config.created = Some(parts.created.to_owned());
    "layers".clone_into(&mut config.rootfs.kind);
    config.rootfs.diff_ids = parts.layers.iter().map(|layer| layer.diff_id).collect();
    if parts.single_layer {
        merge_history(&mut config.history[parts.own_history..]);
    }
    fit_history(&mut config.history, parts.layers.len(), parts.origins);
    for entry in config.history.iter_mut().skip(parts.own_history) {
        entry.created = Some(parts.created.to_owned());
    }
    if config.config.cmd.as_ref().is_some_and(Vec::is_empty) {
        config.config.cmd = None;
    }
    if config.config.entrypoint.as_ref().is_some_and(Vec::is_empty) {
        config.config.entrypoint = None;
    }
    let config = Document::author(config);
    let descriptor = Descriptor::new(parts.format.config(), config.digest().clone(), config.size());
    let layers = parts.layers.iter().map(|layer| parts.format.adopt(&layer.descriptor)).collect();
    let mut manifest = Manifest::new(parts.format.manifest(), descriptor, layers);
    if !parts.annotations.is_empty() {
        manifest.annotations = Some(parts.annotations.clone());
    }
    Image { manifest: Document::author(manifest), config, layers: parts.layers.to_vec() }
}

/// One layer for many instructions: the last of them that had one keeps it.
fn merge_history(entries: &mut [History]) {
    let last = entries.iter().rposition(|entry| !entry.empty_layer);
    for (place, entry) in entries.iter_mut().enumerate() {
        entry.empty_layer = Some(place) != last;
    }
}

/// Readers refuse a config whose history counts other layers than it has. As with BuildKit, layers that a base's history
/// leaves out get entries at the end, named for the topmost layers, and entries too many count for none from the end on.
fn fit_history(history: &mut Vec<History>, layers: usize, origins: &[String]) {
    let mut counted = 0;
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        entry.empty_layer = counted == layers;
        counted += usize::from(!entry.empty_layer);
    }
    let below = layers.saturating_sub(origins.len());
    for place in counted..layers {
        let origin = place.checked_sub(below).and_then(|place| origins.get(place));
        history.push(History {
            created_by: origin.cloned().unwrap_or_default(),
            comment: "layer without history".to_owned(),
            ..History::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> Layer {
        let digest = Digest::of(name.as_bytes());
        Layer {
            descriptor: Descriptor::new(media_type::DOCKER_LAYER_GZIP, digest.clone(), 1),
            diff_id: DiffId::from_digest(&digest).unwrap(),
        }
    }

    fn image(history: &[bool], layers: usize, single_layer: bool) -> Image {
        let config = ImageConfig {
            history: history
                .iter()
                .map(|empty| History { empty_layer: *empty, ..History::default() })
                .collect(),
            ..ImageConfig::default()
        };
        let layers: Vec<Layer> = (0..layers).map(|n| layer(&n.to_string())).collect();
        assemble(&Parts {
            config: &config,
            own_history: 0,
            layers: &layers,
            created: "1970-01-01T00:00:00Z",
            annotations: &BTreeMap::new(),
            format: ImageFormat::Oci,
            single_layer,
            origins: &["the last step".to_owned()],
        })
    }

    #[test]
    fn the_history_always_counts_the_layers() {
        for (history, layers) in
            [(vec![], 2), (vec![false, true, false], 2), (vec![false, false], 1), (vec![true], 3)]
        {
            let image = image(&history, layers, false);
            let counted = image.config.value().history.iter().filter(|entry| !entry.empty_layer).count();
            assert_eq!(counted, layers);
        }
    }

    #[test]
    fn layers_without_history_are_named_at_the_end_by_what_made_the_topmost() {
        let image = image(&[false, true], 3, false);
        let history = &image.config.value().history;
        let names: Vec<&str> = history.iter().map(|entry| entry.created_by.as_str()).collect();
        assert_eq!(names, ["", "", "", "the last step"]);
        assert!(history.iter().all(|entry| entry.created.is_some()));
    }

    #[test]
    fn entries_too_many_count_for_none_from_the_end_on() {
        let image = image(&[false, false, false], 2, false);
        let empty: Vec<bool> = image.config.value().history.iter().map(|entry| entry.empty_layer).collect();
        assert_eq!(empty, [false, false, true]);
    }

    #[test]
    fn one_layer_for_all_belongs_to_the_last_instruction_that_had_one() {
        let image = image(&[false, false, true], 1, true);
        let empty: Vec<bool> = image.config.value().history.iter().map(|entry| entry.empty_layer).collect();
        assert_eq!(empty, [true, false, true]);
    }

    #[test]
    fn a_docker_layer_is_named_as_oci_in_an_oci_image() {
        let image = image(&[false], 1, false);
        assert_eq!(image.manifest.value().layers[0].media_type, media_type::OCI_LAYER_GZIP);
    }
}
