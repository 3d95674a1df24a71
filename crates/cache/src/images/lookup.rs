//! The order of lookup, from a name to an image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_oci::{Digest, Document, ImageConfig, Manifest, PinnedReference, Platform, Reference, Repository};
use kiln_registry::Registry;
use kiln_store::{Choice, LocalImage, ReadOnly, ReadWrite, Store, read_archive, read_base_layout};

use super::document::{Root, offered};
use super::download::blocking;
use super::error::ImageError;
use super::event::ImageEvent;
use super::layer::LayerSource;
use super::name::ImageName;

/// Where images may come from.
#[derive(Clone)]
pub struct ImageOptions {
    /// The warmed volume, Kiln's or kaniko's.
    pub volume: Option<Store<ReadOnly>>,
    /// What is downloaded goes here.
    pub scratch: Store<ReadWrite>,
    /// The registries; `None` with `--offline`.
    pub registry: Option<Registry>,
    /// Who hears of what happens. It is called from transfers and must not block for long.
    pub observer: Arc<dyn Fn(ImageEvent) + Send + Sync>,
}

/// Finds images. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    options: ImageOptions,
    runtime: tokio::runtime::Handle,
    downloads: tokio::sync::Semaphore,
}

/// How many layers are downloaded at a time.
const DOWNLOADS: usize = 4;

/// Where an image was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Under this name in a registry, whether the bytes come from there or from the volume.
    Registry(PinnedReference),
    /// In an OCI image layout or archive that the person named.
    Local(PathBuf),
}

/// An image: its manifest and config, verified, and its layers, which can be opened.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// What was asked for.
    pub reference: ImageName,
    /// Where it was found; the digest is that of [`ResolvedImage::manifest`].
    pub origin: Origin,
    /// The manifest for the platform.
    pub manifest: Document<Manifest>,
    /// The config.
    pub config: Document<ImageConfig>,
    /// The layers, base first.
    pub layers: Vec<LayerSource>,
}

impl Images {
    /// Finds images as `options` allow. Downloads that [`LayerSource::open_layer`] needs run on `runtime`.
    pub fn new(options: ImageOptions, runtime: tokio::runtime::Handle) -> Self {
        let downloads = tokio::sync::Semaphore::new(DOWNLOADS);
        Self { inner: Arc::new(Inner { options, runtime, downloads }) }
    }

    pub(super) fn volume(&self) -> Option<&Store<ReadOnly>> {
        self.inner.options.volume.as_ref()
    }

    pub(super) fn scratch(&self) -> &Store<ReadWrite> {
        &self.inner.options.scratch
    }

    pub(super) fn registry(&self) -> Option<&Registry> {
        self.inner.options.registry.as_ref()
    }

    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.inner.runtime
    }

    /// Waits for a turn to download; dropped when that is done.
    pub(super) async fn download_turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        self.inner.downloads.acquire().await.ok()
    }

    pub(super) fn tell(&self, event: ImageEvent) {
        (self.inner.options.observer)(event);
    }

    /// Finds the image that `name` means for `platform`.
    ///
    /// A tag is asked for at the registry, or, where that can't be reached, in the volume, with a warning. Manifest,
    /// config and layers of a digest come from the volume where it has them, and from the registry else. No layer is
    /// read or downloaded here.
    pub async fn resolve(&self, name: &ImageName, platform: &Platform) -> Result<ResolvedImage, ImageError> {
        match name {
            ImageName::Registry(reference) => self.resolve_reference(name, reference, platform).await,
            ImageName::Layout { path, name: tag, digest } => {
                let choice = Choice { name: tag.clone(), digest: digest.clone(), platform: platform.clone() };
                self.resolve_local(name, path, move |path| read_base_layout(path, &choice)).await
            }
            ImageName::Archive { path, name: tag } => {
                let choice = Choice { name: tag.clone(), digest: None, platform: platform.clone() };
                self.resolve_local(name, path, move |path| read_archive(path, &choice)).await
            }
        }
    }

    async fn resolve_local(
        &self,
        name: &ImageName,
        path: &Path,
        read: impl FnOnce(&Path) -> Result<LocalImage, kiln_store::StoreError> + Send + 'static,
    ) -> Result<ResolvedImage, ImageError> {
        let here = path.to_owned();
        let found = blocking(move || read(&here)).await.map_err(ImageError::store(name))?;
        let layers =
            found.layers.into_iter().map(|layer| LayerSource::local(self, name, layer, None)).collect();
        Ok(ResolvedImage {
            reference: name.clone(),
            origin: Origin::Local(path.to_owned()),
            manifest: found.manifest,
            config: found.config,
            layers,
        })
    }

    async fn resolve_reference(
        &self,
        name: &ImageName,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, ImageError> {
        let repository = &reference.repository;
        let digest = match &reference.digest {
            Some(digest) => digest.clone(),
            None => self.resolve_tag(name, reference, platform).await?,
        };
        let mut root = self.root(name, repository, &digest, platform).await?;
        if let Root::Index(index) = &root {
            let Some(chosen) = index.value().select(platform) else {
                return Err(ImageError::Platform {
                    image: Box::new(name.clone()),
                    platform: platform.clone(),
                    offered: offered(index.value()),
                });
            };
            root = self.root(name, repository, &chosen.digest, platform).await?;
        }
        match root {
            Root::Manifest(manifest) => self.assemble(name, repository, *manifest).await,
            Root::Kaniko(found) => {
                let layers = found.layers.into_iter();
                let layers = layers
                    .map(|layer| LayerSource::local(self, name, layer, Some(repository.clone())))
                    .collect();
                let origin = Origin::Registry(repository.pin(found.manifest.digest().clone()));
                let (manifest, config) = (found.manifest, found.config);
                Ok(ResolvedImage { reference: name.clone(), origin, manifest, config, layers })
            }
            Root::Index(_) => Err(ImageError::NoImage {
                image: Box::new(name.clone()),
                why: "its index leads to another index".to_owned(),
            }),
        }
    }

    /// What a tag means now.
    async fn resolve_tag(
        &self,
        name: &ImageName,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Digest, ImageError> {
        let Some(registry) = self.registry() else {
            let known = self.volume_knows(reference, platform);
            let (digest, _) = known.ok_or_else(|| ImageError::Offline {
                image: Box::new(name.clone()),
                platform: platform.clone(),
            })?;
            self.tell(ImageEvent::Resolved { reference: reference.clone(), digest: digest.clone() });
            return Ok(digest);
        };
        let found = match self.volume() {
            Some(_) => registry.head(reference).await.map(|resolved| resolved.descriptor.digest),
            // Nobody here can have the manifest, so it is asked for at once.
            None => match registry.manifest(reference).await {
                Ok(manifest) => {
                    let kept = self.scratch().put_as(&manifest.digest, &manifest.raw);
                    kept.map(|_| Ok(manifest.digest)).map_err(ImageError::store(name))?
                }
                Err(error) => Err(error),
            },
        };
        match found {
            Ok(digest) => {
                self.tell(ImageEvent::Resolved { reference: reference.clone(), digest: digest.clone() });
                Ok(digest)
            }
            Err(error) if error.is_unreachable() => {
                let Some((digest, resolved_at)) = self.volume_knows(reference, platform) else {
                    return Err(ImageError::registry(name)(error));
                };
                self.tell(ImageEvent::VolumeIsAsked {
                    reference: reference.clone(),
                    digest: digest.clone(),
                    resolved_at,
                    why: error.to_string(),
                });
                Ok(digest)
            }
            Err(error) => Err(ImageError::registry(name)(error)),
        }
    }

    /// The volume's own idea of a tag.
    fn volume_knows(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Option<(Digest, std::time::SystemTime)> {
        let volume = self.volume()?;
        match volume.resolve(reference, platform) {
            Ok(entry) => entry.map(|entry| (entry.descriptor.digest, entry.resolved_at)),
            Err(error) => {
                self.damaged(volume.path(), &error);
                None
            }
        }
    }

    async fn assemble(
        &self,
        name: &ImageName,
        repository: &Repository,
        manifest: Document<Manifest>,
    ) -> Result<ResolvedImage, ImageError> {
        let config: Document<ImageConfig> = self.config(name, repository, &manifest.value().config).await?;
        let (descriptors, diff_ids) = (&manifest.value().layers, &config.value().rootfs.diff_ids);
        if descriptors.len() != diff_ids.len() {
            let why = format!(
                "its manifest lists {} layers, its config {}: it is no container image",
                descriptors.len(),
                diff_ids.len()
            );
            return Err(ImageError::NoImage { image: Box::new(name.clone()), why });
        }
        let layers = descriptors
            .iter()
            .zip(diff_ids)
            .map(|(descriptor, diff_id)| {
                LayerSource::remote(self, name, descriptor.clone(), *diff_id, repository)
            })
            .collect();
        let origin = Origin::Registry(repository.pin(manifest.digest().clone()));
        // From now on the volume keeps this image whole: see `prune` in kiln-store.
        let lease = self.volume().and_then(|volume| volume.blob(manifest.digest()).ok().flatten());
        let mut image = ResolvedImage { reference: name.clone(), origin, manifest, config, layers };
        if let Some(lease) = lease {
            for layer in &mut image.layers {
                layer.keep(lease.clone());
            }
        }
        Ok(image)
    }
}

impl ResolvedImage {
    /// Where the image's blobs can be had at a registry, for mounts across repositories.
    pub fn repository(&self) -> Option<&Repository> {
        match &self.origin {
            Origin::Registry(pinned) => Some(pinned.repository()),
            Origin::Local(_) => None,
        }
    }
}
