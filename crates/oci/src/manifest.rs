//! Manifests and indexes, OCI's and docker's: one model reads both (OCI image-spec 1.1, manifest.md and
//! image-index.md; docker's "Image Manifest Version 2, Schema 2").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Descriptor, Platform, media_type};

/// The manifest of one image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type. OCI manifests may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// For artefacts: what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, base first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Members that this crate doesn't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Manifest {
    /// A manifest of media type `media_type` with nothing optional in it.
    pub fn new(media_type: &str, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: None,
            other: Map::new(),
        }
    }

    /// The media type: its own word for it, or else what its config's type implies.
    pub fn media_type(&self) -> &str {
        match &self.media_type {
            Some(media_type) if !media_type.is_empty() => media_type,
            _ if self.config.media_type == media_type::DOCKER_CONFIG => media_type::DOCKER_MANIFEST,
            _ => media_type::OCI_MANIFEST,
        }
    }
}

/// A list of manifests, one per platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type. OCI indexes may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Members that this crate doesn't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Index {
    /// An index of media type `media_type` over `manifests`.
    pub fn new(media_type: &str, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            manifests,
            annotations: None,
            other: Map::new(),
        }
    }

    /// The manifest that serves `wanted` best: exact variant first, then the nearest older one that the platform can
    /// run. Attestations are never chosen. `None` if no manifest is for that platform.
    pub fn select(&self, wanted: &Platform) -> Option<&Descriptor> {
        self.images()
            .filter_map(|manifest| {
                let rank = match manifest.image_platform() {
                    Some(platform) => wanted.rank(&platform)?,
                    // A list with one image and no platform on it serves everybody.
                    None if manifest.platform.is_none() && self.images().count() == 1 => u32::MAX,
                    None => return None,
                };
                Some((rank, manifest))
            })
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, manifest)| manifest)
    }

    /// The manifests that are images, attestations left out.
    pub fn images(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|manifest| {
            !manifest.is_attestation()
                && (manifest.media_type.is_empty()
                    || media_type::is_manifest(&manifest.media_type)
                    || media_type::is_index(&manifest.media_type))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, descriptor::DescriptorPlatform};

    fn entry(platform: &str, name: &str) -> Descriptor {
        let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(name.as_bytes()), 1);
        let mut parts = platform.split('/').map(str::to_owned);
        descriptor.platform = Some(DescriptorPlatform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
            os_version: None,
            other: Map::new(),
        });
        descriptor
    }

    fn selected(entries: &[&str], wanted: &str) -> Option<usize> {
        let index = Index::new(media_type::OCI_INDEX, entries.iter().map(|e| entry(e, e)).collect());
        let found = index.select(&wanted.parse().unwrap())?.digest.clone();
        entries.iter().position(|e| Digest::of(e.as_bytes()) == found)
    }

    #[test]
    fn the_exact_platform_wins() {
        assert_eq!(selected(&["linux/amd64", "linux/arm64"], "linux/arm64"), Some(1));
        assert_eq!(selected(&["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"), Some(1));
    }

    #[test]
    fn an_older_variant_serves_a_newer_machine_and_not_the_other_way() {
        assert_eq!(selected(&["linux/arm/v6"], "linux/arm/v7"), Some(0));
        assert_eq!(selected(&["linux/arm/v7"], "linux/arm/v6"), None);
        assert_eq!(selected(&["linux/arm64"], "linux/arm64/v8"), Some(0));
    }

    #[test]
    fn an_attestation_is_never_chosen() {
        assert_eq!(selected(&["unknown/unknown", "linux/amd64"], "linux/amd64"), Some(1));
        assert_eq!(selected(&["unknown/unknown"], "linux/amd64"), None);
    }
}
