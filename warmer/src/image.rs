//! One image of a registry, for the platforms that are wanted.

use std::sync::Arc;

use futures::future::try_join_all;
use kiln_cache::{Downloaded, ImageError, ImageName, download};
use kiln_oci::{
    Descriptor, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, Repository, media_type,
};
use kiln_store::Entry;

use crate::progress::Transfer;
use crate::run::Run;
use crate::{Platforms, State, WarmError, WarmEvent, WarmedImage, unpack};

/// One image that is to be warmed.
pub(crate) struct Work<'a> {
    pub(crate) run: &'a Arc<Run>,
    pub(crate) name: &'a ImageName,
    pub(crate) reference: &'a Reference,
}

/// What a digest names.
enum Root {
    Index(Document<Index>),
    Manifest(Box<Document<Manifest>>),
}

/// Warms `reference` for every platform that is wanted.
pub(crate) async fn warm_reference(
    run: &Arc<Run>,
    name: &ImageName,
    reference: &Reference,
) -> Result<Vec<WarmedImage>, WarmError> {
    let work = Work { run, name, reference };
    let root = match &reference.digest {
        Some(digest) => digest.clone(),
        None => match run.request.registry.head(reference).await {
            Ok(resolved) => resolved.descriptor.digest,
            Err(error) if error.is_unreachable() && !run.request.force => {
                let Some(known) = work.known() else { return Err(work.registry(error).into()) };
                let (image, why) = (name.to_string(), error.to_string());
                run.teller.tell(WarmEvent::Unreachable { image, why });
                return Ok(known);
            }
            Err(error) => return Err(work.registry(error).into()),
        },
    };
    run.teller.tell(WarmEvent::Resolved { image: name.to_string(), digest: root.clone() });
    let (document, root_bytes) = work.root(&root).await?;
    match document {
        Root::Manifest(manifest) => {
            let platform = match &run.request.platforms {
                Platforms::These(wanted) => wanted.first().cloned(),
                Platforms::All => None,
            };
            Ok(vec![work.manifest(*manifest, platform, None, root_bytes).await?])
        }
        Root::Index(index) => {
            let chosen = work.choose(&index)?;
            let mut warmed = Vec::new();
            for (descriptor, platform) in chosen {
                let (document, bytes) = work.root(&descriptor.digest).await?;
                let Root::Manifest(manifest) = document else {
                    return Err(work.no_image("its index leads to another index").into());
                };
                warmed.push(work.manifest(*manifest, Some(platform), Some(&index), bytes).await?);
            }
            if let Some(first) = warmed.first_mut()
                && root_bytes > 0
                && let State::Fresh = first.state
            {
                first.state = State::Fetched { received: root_bytes };
            }
            Ok(warmed)
        }
    }
}

impl Work<'_> {
    fn repository(&self) -> &Repository {
        &self.reference.repository
    }

    fn registry(&self, source: kiln_registry::RegistryError) -> ImageError {
        ImageError::Registry { image: Box::new(self.name.clone()), source: Box::new(source) }
    }

    fn no_image(&self, why: &str) -> ImageError {
        ImageError::NoImage { image: Box::new(self.name.clone()), why: why.to_owned() }
    }

    fn document(&self) -> impl Fn(kiln_oci::DocumentError) -> ImageError {
        let image = self.name.clone();
        move |source| ImageError::Document { image: Box::new(image.clone()), source }
    }

    /// What the volume has of this tag, if that is young enough and whole for every platform that is wanted.
    fn known(&self) -> Option<Vec<WarmedImage>> {
        let request = &self.run.request;
        let Platforms::These(wanted) = &request.platforms else { return None };
        let store = &self.run.store;
        wanted
            .iter()
            .map(|platform| {
                let entry = store.resolve(self.reference, platform).ok()??;
                let age = request.now.duration_since(entry.resolved_at).unwrap_or_default();
                let manifest: Document<Manifest> = store.document(&entry.descriptor.digest).ok()??;
                let whole = manifest
                    .value()
                    .layers
                    .iter()
                    .all(|layer| store.has(layer) || media_type::is_foreign(&layer.media_type))
                    && store.has(&manifest.value().config);
                (whole && age <= request.ttl).then(|| WarmedImage {
                    image: self.name.clone(),
                    platform: platform.clone(),
                    manifest: entry.descriptor.digest,
                    state: State::Fresh,
                })
            })
            .collect()
    }

    /// The manifests of `index` that are wanted, each once, with their platforms.
    fn choose<'i>(&self, index: &'i Document<Index>) -> Result<Vec<(&'i Descriptor, Platform)>, ImageError> {
        let index = index.value();
        let mut chosen: Vec<(&Descriptor, Platform)> = Vec::new();
        match &self.run.request.platforms {
            Platforms::All => {
                chosen.extend(index.images().filter_map(|image| Some((image, image.image_platform()?))));
                if chosen.is_empty() {
                    return Err(self.no_image("its index lists no image with a platform"));
                }
            }
            Platforms::These(wanted) => {
                for platform in wanted {
                    let image = index.select(platform).ok_or_else(|| ImageError::Platform {
                        image: Box::new(self.name.clone()),
                        platform: platform.clone(),
                        offered: offered(index),
                    })?;
                    if !chosen.iter().any(|(other, _)| other.digest == image.digest) {
                        chosen.push((image, image.image_platform().unwrap_or_else(|| platform.clone())));
                    }
                }
            }
        }
        Ok(chosen)
    }

    /// The manifest or index `digest`, from the volume where it has it, and how many bytes had to be fetched. What was
    /// fetched is in the volume then.
    async fn root(&self, digest: &Digest) -> Result<(Root, u64), WarmError> {
        let store = self.run.store.clone();
        let wanted = digest.clone();
        let here = async {
            if self.run.request.force {
                return None;
            }
            let read = move || store.blob(&wanted)?.map(|blob| blob.read()).transpose();
            match self.run.blocking(read).await {
                Ok(raw) => raw,
                Err(error) => {
                    let path = self.run.store.blob_path(digest);
                    self.run.teller.tell(WarmEvent::Damaged { path, why: error.to_string() });
                    None
                }
            }
        };
        if let Some(raw) = here.await
            && let Ok(root) = self.read_root(raw, digest)
        {
            return Ok((root, 0));
        }
        let pinned = self.repository().pin(digest.clone()).reference();
        let answer =
            self.run.request.registry.manifest(&pinned).await.map_err(|error| self.registry(error))?;
        let bytes = answer.raw.len() as u64;
        let root = self.read_root(answer.raw.clone(), digest)?;
        let (store, wanted) = (self.run.store.clone(), digest.clone());
        self.run
            .blocking(move || {
                store.discard(&wanted)?;
                store.put_as(&wanted, &answer.raw)
            })
            .await?;
        Ok((root, bytes))
    }

    fn read_root(&self, raw: Box<[u8]>, digest: &Digest) -> Result<Root, ImageError> {
        let shape: Document<serde_json::Value> =
            Document::read(raw.clone(), Some(digest)).map_err(self.document())?;
        let shape = shape.value();
        if shape["schemaVersion"] == 1 {
            return Err(self.no_image(
                "it has docker's schema 1 manifest; pull and push it with a current docker or skopeo, and use that copy",
            ));
        }
        if shape["manifests"].is_array() {
            return Document::read(raw, Some(digest)).map(Root::Index).map_err(self.document());
        }
        if shape["config"].is_object() {
            let manifest = Document::read(raw, Some(digest)).map_err(self.document())?;
            return Ok(Root::Manifest(Box::new(manifest)));
        }
        Err(self.no_image("what its name leads to is neither a manifest nor an index"))
    }

    /// Brings everything that `manifest` names, and names the image in the volume.
    async fn manifest(
        &self,
        manifest: Document<Manifest>,
        platform: Option<Platform>,
        index: Option<&Document<Index>>,
        fetched: u64,
    ) -> Result<WarmedImage, WarmError> {
        let value = manifest.value();
        // Layers that live elsewhere stay there: registries don't have them.
        let blobs = std::iter::once(&value.config)
            .chain(value.layers.iter().filter(|layer| !media_type::is_foreign(&layer.media_type)));
        let received = try_join_all(blobs.map(|descriptor| self.blob(descriptor))).await?;
        let received = received.into_iter().sum::<u64>() + fetched;
        let config: Document<ImageConfig> = match self.run.store.document(&value.config.digest)? {
            Some(config) => config,
            None => return Err(self.no_image("its config was deleted while it was warmed").into()),
        };
        let platform = platform.or_else(|| config.value().platform()).unwrap_or_else(Platform::host);
        if self.run.request.unpack {
            unpack::unpack_layers(self.run, value, config.value()).await?;
        }
        self.publish(&manifest, &platform, index).await?;
        let state = if received == 0 { State::Fresh } else { State::Fetched { received } };
        let (image, digest) = (self.name.to_string(), manifest.digest().clone());
        self.run.teller.tell(match state {
            State::Fresh => WarmEvent::Fresh { image, platform: platform.clone(), digest: digest.clone() },
            State::Fetched { received } => {
                WarmEvent::Warmed { image, platform: platform.clone(), digest: digest.clone(), received }
            }
        });
        Ok(WarmedImage { image: self.name.clone(), platform, manifest: digest, state })
    }

    async fn publish(
        &self,
        manifest: &Document<Manifest>,
        platform: &Platform,
        index: Option<&Document<Index>>,
    ) -> Result<(), WarmError> {
        let descriptor =
            Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size());
        let now = self.run.request.now;
        let entry = Entry { descriptor, index: index.map(|index| index.digest().clone()), resolved_at: now };
        let (store, reference, platform) = (self.run.store.clone(), self.reference.clone(), platform.clone());
        let digest = manifest.digest().clone();
        self.run
            .blocking(move || {
                store.mark_used(&digest, now);
                store.publish_entry(&reference, &platform, entry)
            })
            .await?;
        Ok(())
    }

    /// Sees to it that the volume has one blob; gives how many bytes came for it.
    async fn blob(&self, descriptor: &Descriptor) -> Result<u64, WarmError> {
        let run = self.run;
        if !run.request.force && run.store.has(descriptor) {
            return Ok(0);
        }
        // Closed only with the run.
        let _permit = run.downloads.acquire().await.ok();
        let transfer = Transfer::new(&run.teller, descriptor);
        let got = download(
            &run.store,
            &run.request.registry,
            self.repository(),
            descriptor,
            run.request.force,
            &|bytes| transfer.at(bytes),
        )
        .await;
        match got {
            Ok(Downloaded::Present(_)) => Ok(0),
            Ok(Downloaded::Fetched { received, .. }) => {
                let (digest, of) = (descriptor.digest.clone(), descriptor.size);
                run.teller.tell(WarmEvent::Downloaded { digest, received, of });
                Ok(received)
            }
            Err(source) => {
                run.teller.tell(WarmEvent::DownloadFailed { digest: descriptor.digest.clone() });
                Err(WarmError::Download { image: Box::new(self.name.clone()), source })
            }
        }
    }
}

/// The platforms of `index`, for people.
fn offered(index: &Index) -> String {
    let platforms: Vec<String> =
        index.images().filter_map(|image| Some(image.image_platform()?.to_string())).collect();
    if platforms.is_empty() { "no platform".to_owned() } else { platforms.join(", ") }
}
