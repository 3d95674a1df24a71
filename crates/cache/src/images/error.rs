//! Why an image can't be had.

use kiln_oci::{Digest, DocumentError, Platform};
use kiln_registry::RegistryError;
use kiln_store::StoreError;

use super::download::DownloadError;
use super::name::ImageName;

/// Why an image, or a layer of one, can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry failed.
    #[error("the image {image}: {source}")]
    Registry {
        /// The image.
        image: Box<ImageName>,
        /// What the registry says.
        source: Box<RegistryError>,
    },
    /// A layer's download failed, for all who wanted it.
    #[error(transparent)]
    Transfer(std::sync::Arc<ImageError>),
    /// Without a registry, only the volume is left, and it lacks the image.
    #[error(
        "the image {image} for {platform} is not in the volume, and --offline forbids to ask the registry; warm it \
         with `kiln warmer --image {image}`, or build without --offline"
    )]
    Offline {
        /// The image.
        image: Box<ImageName>,
        /// The platform.
        platform: Platform,
    },
    /// Without a registry, a blob that the volume lacks can't be had.
    #[error(
        "the image {image} is not whole in the volume: it lacks the blob {digest}, and --offline forbids to ask the \
         registry; warm it again with `kiln warmer --force --image {image}`"
    )]
    OfflineBlob {
        /// The image.
        image: Box<ImageName>,
        /// The blob.
        digest: Digest,
    },
    /// The image is not made for the platform.
    #[error(
        "the image {image} has no variant for {platform}; it is made for {offered}. Choose one with --custom-platform"
    )]
    Platform {
        /// The image.
        image: Box<ImageName>,
        /// The platform that was asked for.
        platform: Platform,
        /// The platforms that there are.
        offered: String,
    },
    /// What the name leads to can't be built from.
    #[error("the image {image} can't be built from: {why}")]
    NoImage {
        /// The image.
        image: Box<ImageName>,
        /// What it is instead.
        why: String,
    },
    /// A manifest or config can't be read.
    #[error("the image {image}: {source}")]
    Document {
        /// The image.
        image: Box<ImageName>,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A foreign layer is at none of its addresses.
    #[error(
        "the image {image}: its layer {digest} lies outside of registries, and can't be had from there ({}): \
         mirror it, or begin with an image whose layers are in its registry",
        .tried.join("; ")
    )]
    Elsewhere {
        /// The image.
        image: Box<ImageName>,
        /// The layer.
        digest: Digest,
        /// What was wrong with each address.
        tried: Vec<String>,
    },
    /// A layout, an archive or the scratch directory failed.
    #[error("the image {image}: {source}")]
    Store {
        /// The image.
        image: Box<ImageName>,
        /// What failed.
        source: StoreError,
    },
}

impl ImageError {
    pub(super) fn store(image: &ImageName) -> impl FnOnce(StoreError) -> Self {
        let image = Box::new(image.clone());
        |source| Self::Store { image, source }
    }

    pub(super) fn registry(image: &ImageName) -> impl FnOnce(RegistryError) -> Self {
        let image = Box::new(image.clone());
        |source| Self::Registry { image, source: Box::new(source) }
    }

    pub(super) fn download(image: &ImageName) -> impl FnOnce(DownloadError) -> Self {
        let image = Box::new(image.clone());
        |error| match error {
            DownloadError::Registry(source) => Self::Registry { image, source },
            DownloadError::Store(source) => Self::Store { image, source },
        }
    }

    /// Whether the image is nowhere to be found, rather than out of reach.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Registry { source, .. } => source.is_not_found(),
            Self::Offline { .. } | Self::Platform { .. } => true,
            _ => false,
        }
    }
}
