//! What comes out of a build: an image, or an index over the images of several platforms and what is said about them.

use bytes::Bytes;
use kiln_oci::{Descriptor, Digest, Document, Index, Manifest, media_type};

use crate::image::Image;

/// The result of a build, complete but for where it goes.
#[derive(Clone, Debug)]
pub struct Product {
    images: Vec<Image>,
    attestations: Vec<Attestation>,
    index: Option<Document<Index>>,
}

/// A manifest that says something about an image: it stands beside it in the index.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// The manifest.
    pub manifest: Document<Manifest>,
    /// Its config.
    pub config: Bytes,
    /// Its layers, each a statement.
    pub statements: Vec<(Descriptor, Bytes)>,
    /// The image that it is about.
    pub about: Digest,
}

impl Product {
    /// Puts images, one per platform and at least one, and what is said about them together. One image of which nothing
    /// is said needs no index.
    pub fn new(images: Vec<Image>, attestations: Vec<Attestation>) -> Self {
        let index = (images.len() > 1 || !attestations.is_empty()).then(|| index(&images, &attestations));
        Self { images, attestations, index }
    }

    /// The images, one per platform, in the order that was asked for.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// What is said about them.
    pub fn attestations(&self) -> &[Attestation] {
        &self.attestations
    }

    /// The index, where one is needed.
    pub fn index(&self) -> Option<&Document<Index>> {
        self.index.as_ref()
    }

    /// The digest that names the result: the index's, else the image's.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.index {
            Some(index) => Some(index.digest()),
            None => self.images.first().map(Image::digest),
        }
    }
}

fn index(images: &[Image], attestations: &[Attestation]) -> Document<Index> {
    let docker =
        images.iter().all(|image| image.manifest.value().media_type() == media_type::DOCKER_MANIFEST);
    let media_type =
        if docker && attestations.is_empty() { media_type::DOCKER_INDEX } else { media_type::OCI_INDEX };
    let mut manifests: Vec<Descriptor> = images
        .iter()
        .map(|image| {
            let mut descriptor = described(&image.manifest);
            descriptor.platform = image.config.value().platform().as_ref().map(Into::into);
            descriptor
        })
        .collect();
    // Attestations come last: some readers take the first manifest that they find.
    manifests.extend(attestations.iter().map(|attestation| {
        let mut descriptor = described(&attestation.manifest);
        descriptor.platform = Some(kiln_oci::DescriptorPlatform::unknown());
        let notes = [
            ("vnd.docker.reference.digest".to_owned(), attestation.about.to_string()),
            ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
        ];
        descriptor.annotations = Some(notes.into());
        descriptor
    }));
    Document::author(Index::new(media_type, manifests))
}

fn described(manifest: &Document<Manifest>) -> Descriptor {
    Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_oci::{ImageConfig, Platform};

    use super::*;
    use crate::image::{ImageFormat, Parts, assemble};

    fn image(platform: &str, format: ImageFormat) -> Image {
        assemble(&Parts {
            config: &ImageConfig::scratch(&platform.parse::<Platform>().unwrap()),
            own_history: 0,
            layers: &[],
            created: "1970-01-01T00:00:00Z",
            annotations: &BTreeMap::new(),
            format,
            single_layer: false,
            origins: &[],
        })
    }

    #[test]
    fn one_image_is_named_by_its_own_digest() {
        let image = image("linux/amd64", ImageFormat::Oci);
        let product = Product::new(vec![image.clone()], Vec::new());
        assert!(product.index().is_none());
        assert_eq!(product.digest(), Some(image.digest()));
    }

    #[test]
    fn an_index_has_the_format_that_all_its_images_have() {
        let kind = |formats: [ImageFormat; 2]| {
            let images = vec![image("linux/amd64", formats[0]), image("linux/arm/v7", formats[1])];
            let product = Product::new(images, Vec::new());
            let index = product.index().unwrap().value().clone();
            let platforms: Vec<_> =
                index.images().map(|entry| entry.image_platform().unwrap().to_string()).collect();
            assert_eq!(platforms, ["linux/amd64", "linux/arm/v7"]);
            index.media_type.unwrap()
        };
        assert_eq!(kind([ImageFormat::Docker, ImageFormat::Docker]), media_type::DOCKER_INDEX);
        assert_eq!(kind([ImageFormat::Docker, ImageFormat::Oci]), media_type::OCI_INDEX);
    }
}
