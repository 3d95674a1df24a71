//! Manifests, indexes and configs by digest, from the nearest place that has them sound.

use kiln_oci::{Descriptor, Digest, Document, Index, Manifest, Platform, Repository};
use kiln_store::{LocalImage, Store, StoreError, find_kaniko_image};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::download::{blocking, download};
use super::error::ImageError;
use super::event::ImageEvent;
use super::lookup::Images;
use super::name::ImageName;

/// What a digest names.
pub(super) enum Root {
    Index(Document<Index>),
    Manifest(Box<Document<Manifest>>),
    /// An image that kaniko put into the volume, whole.
    Kaniko(Box<LocalImage>),
}

/// What tells an index from a manifest.
#[derive(Deserialize)]
struct Shape {
    #[serde(default, rename = "schemaVersion")]
    schema_version: u32,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

/// The platforms of `index`, for people.
pub(super) fn offered(index: &Index) -> String {
    let platforms: Vec<String> =
        index.images().filter_map(|image| Some(image.image_platform()?.to_string())).collect();
    if platforms.is_empty() { "no platform".to_owned() } else { platforms.join(", ") }
}

fn read_root(image: &ImageName, raw: Box<[u8]>, digest: &Digest) -> Result<Root, ImageError> {
    let document = |source| ImageError::Document { image: Box::new(image.clone()), source };
    let shape = Document::<Shape>::read(raw.clone(), Some(digest)).map_err(document)?;
    let no_image =
        |why: &str| Err(ImageError::NoImage { image: Box::new(image.clone()), why: why.to_owned() });
    match shape.value() {
        Shape { schema_version: 1, .. } => no_image(
            "it has docker's schema 1 manifest; pull and push it with a current docker or skopeo, and use that copy",
        ),
        Shape { manifests: Some(_), .. } => {
            Document::read(raw, Some(digest)).map(Root::Index).map_err(document)
        }
        Shape { config: None, .. } => no_image("what its name leads to is neither a manifest nor an index"),
        Shape { .. } => Document::read(raw, Some(digest))
            .map(|manifest| Root::Manifest(Box::new(manifest)))
            .map_err(document),
    }
}

impl Images {
    /// The manifest or index `digest`.
    pub(super) async fn root(
        &self,
        image: &ImageName,
        repository: &Repository,
        digest: &Digest,
        platform: &Platform,
    ) -> Result<Root, ImageError> {
        if let Some(raw) = self.at_hand(digest).await {
            match read_root(image, raw, digest) {
                Ok(root) => return Ok(root),
                // Whatever it is, the registry's may be better.
                Err(error) if self.registry().is_none() => return Err(error),
                Err(_) => {}
            }
        }
        if let Some(found) = self.kaniko(digest, platform).await {
            return Ok(Root::Kaniko(Box::new(found)));
        }
        let Some(registry) = self.registry() else {
            return Err(ImageError::Offline { image: Box::new(image.clone()), platform: platform.clone() });
        };
        let pinned = repository.pin(digest.clone()).reference();
        let answer = registry.manifest(&pinned).await.map_err(ImageError::registry(image))?;
        let root = read_root(image, answer.raw.clone(), digest)?;
        // Kept for whoever asks again, other stages and other platforms among them.
        self.scratch().put_as(digest, &answer.raw).map_err(ImageError::store(image))?;
        Ok(root)
    }

    /// The config that `descriptor` names.
    pub(super) async fn config<T: DeserializeOwned>(
        &self,
        image: &ImageName,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<Document<T>, ImageError> {
        let read = |raw| {
            Document::read(raw, Some(&descriptor.digest))
                .map_err(|source| ImageError::Document { image: Box::new(image.clone()), source })
        };
        if let Some(raw) = self.at_hand(&descriptor.digest).await {
            return read(raw);
        }
        let Some(registry) = self.registry() else {
            let digest = descriptor.digest.clone();
            return Err(ImageError::OfflineBlob { image: Box::new(image.clone()), digest });
        };
        let got = download(self.scratch(), registry, repository, descriptor, false, &|_| ())
            .await
            .map_err(ImageError::download(image))?;
        read(got.into_blob().read().map_err(ImageError::store(image))?)
    }

    /// The small blob `digest` from the volume or the scratch directory, verified.
    async fn at_hand(&self, digest: &Digest) -> Option<Box<[u8]>> {
        if let Some(volume) = self.volume() {
            let (volume, wanted) = (volume.clone(), digest.clone());
            match blocking(move || read_blob(&volume, &wanted)).await {
                Ok(Some(raw)) => return Some(raw),
                Ok(None) => {}
                Err(error) => self.damaged(&volume_path(self, digest), &error),
            }
        }
        let (scratch, digest) = (self.scratch().clone(), digest.clone());
        blocking(move || read_blob(&scratch, &digest)).await.ok().flatten()
    }

    /// The image `digest` as kaniko's warmer stored it.
    async fn kaniko(&self, digest: &Digest, platform: &Platform) -> Option<LocalImage> {
        let directory = self.volume()?.path().to_owned();
        let path = directory.join(digest.to_string());
        let (digest, platform) = (digest.clone(), platform.clone());
        match blocking(move || find_kaniko_image(&directory, &digest, &platform)).await {
            Ok(found) => found,
            Err(error) => {
                self.damaged(&path, &error);
                None
            }
        }
    }

    pub(super) fn damaged(&self, path: &std::path::Path, why: &StoreError) {
        self.tell(ImageEvent::Damaged { path: path.to_owned(), why: why.to_string() });
    }
}

fn volume_path(images: &Images, digest: &Digest) -> std::path::PathBuf {
    images.volume().map(|volume| volume.blob_path(digest)).unwrap_or_default()
}

fn read_blob<A>(store: &Store<A>, digest: &Digest) -> Result<Option<Box<[u8]>>, StoreError> {
    store.blob(digest)?.map(|blob| blob.read()).transpose()
}
