//! Descriptors: what a manifest says of a blob (OCI image-spec 1.1, descriptor.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Digest, Platform};

/// Names content by media type, digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is. Some old manifests leave it out.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The content's length in bytes.
    #[serde(default)]
    pub size: u64,
    /// Where foreign content can be fetched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The platform that a manifest in an index is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// Members that this crate doesn't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The `platform` member of a descriptor, with the members that only indexes have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// For example `amd64`; `unknown` in attestation manifests.
    #[serde(default)]
    pub architecture: String,
    /// For example `linux`; `unknown` in attestation manifests.
    #[serde(default)]
    pub os: String,
    /// The version of the operating system, for Windows.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// For example `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Members that this crate doesn't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl From<&Platform> for DescriptorPlatform {
    fn from(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            os_version: None,
            variant: platform.variant.clone(),
            other: Map::new(),
        }
    }
}

impl DescriptorPlatform {
    /// `unknown/unknown`: what attestations are filed under, so that nobody runs one.
    pub fn unknown() -> Self {
        Self {
            architecture: "unknown".to_owned(),
            os: "unknown".to_owned(),
            os_version: None,
            variant: None,
            other: Map::new(),
        }
    }
}

impl Descriptor {
    /// A descriptor with nothing optional in it.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: None,
            platform: None,
            other: Map::new(),
        }
    }

    /// The platform, if the descriptor names one that an image can be built for. Attestations, which BuildKit files
    /// under `unknown/unknown`, give `None`.
    pub fn image_platform(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        if platform.os == "unknown" || platform.architecture.is_empty() || platform.architecture == "unknown"
        {
            return None;
        }
        Some(Platform::new(&platform.os, &platform.architecture, platform.variant.as_deref()))
    }

    /// Whether this is an attestation (SBOM or provenance) that stands in an index beside the image it is about.
    pub fn is_attestation(&self) -> bool {
        self.annotations.as_ref().is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"))
    }
}
