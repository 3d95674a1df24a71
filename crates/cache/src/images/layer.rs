//! One layer of an image that was found: its bytes, from the nearest place that has them sound.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use kiln_oci::media_type::Compression;
use kiln_oci::{Descriptor, DiffId, Repository};
use kiln_store::{Blob, LocalLayer, StoreError};

use super::download::download;
use super::error::ImageError;
use super::event::ImageEvent;
use super::lookup::Images;
use super::name::ImageName;

/// A layer that can be opened. Cheap to clone.
#[derive(Clone)]
pub struct LayerSource {
    inner: Arc<Inner>,
    /// The manifest's blob: while it is open, the volume keeps the image whole.
    lease: Option<Blob>,
}

struct Inner {
    images: Images,
    image: ImageName,
    descriptor: Descriptor,
    diff_id: DiffId,
    /// Where a registry has it.
    repository: Option<Repository>,
    /// Where a layout, an archive or a volume of kaniko's has it.
    local: Option<LocalLayer>,
    /// What was found sound.
    ready: OnceLock<Ready>,
}

/// Bytes whose digest was compared already.
#[derive(Clone)]
enum Ready {
    Blob(Blob),
    Local,
}

impl LayerSource {
    pub(super) fn remote(
        images: &Images,
        image: &ImageName,
        descriptor: Descriptor,
        diff_id: DiffId,
        repository: &Repository,
    ) -> Self {
        Self::new(images, image, descriptor, diff_id, Some(repository.clone()), None)
    }

    pub(super) fn local(
        images: &Images,
        image: &ImageName,
        layer: LocalLayer,
        repository: Option<Repository>,
    ) -> Self {
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id);
        Self::new(images, image, descriptor, diff_id, repository, Some(layer))
    }

    fn new(
        images: &Images,
        image: &ImageName,
        descriptor: Descriptor,
        diff_id: DiffId,
        repository: Option<Repository>,
        local: Option<LocalLayer>,
    ) -> Self {
        let (images, image) = (images.clone(), image.clone());
        let ready = OnceLock::new();
        let inner = Inner { images, image, descriptor, diff_id, repository, local, ready };
        Self { inner: Arc::new(inner), lease: None }
    }

    pub(super) fn keep(&mut self, lease: Blob) {
        self.lease = Some(lease);
    }

    /// What the manifest says of the layer.
    pub fn descriptor(&self) -> &Descriptor {
        &self.inner.descriptor
    }

    /// What the config says of it.
    pub fn diff_id(&self) -> &DiffId {
        &self.inner.diff_id
    }

    /// How its bytes are compressed, by its media type.
    pub fn compression(&self) -> Compression {
        Compression::of_layer(&self.descriptor().media_type).unwrap_or(Compression::Gzip)
    }

    /// The layer unpacked in the volume (`warmer --unpack`), an overlay lower directory.
    pub fn unpacked(&self) -> Option<PathBuf> {
        let volume = self.inner.images.volume()?;
        match volume.unpacked(self.diff_id()) {
            Ok(path) => path,
            Err(error) => {
                self.inner.images.damaged(&volume.unpacked_path(self.diff_id()), &error);
                None
            }
        }
    }

    /// The repository that has it, for mounts across repositories.
    pub fn repository(&self) -> Option<&Repository> {
        self.inner.repository.as_ref()
    }

    /// Whether the bytes are on this machine, as far as names and lengths tell: opening downloads nothing then.
    pub fn is_here(&self) -> bool {
        let (inner, images) = (&self.inner, &self.inner.images);
        inner.ready.get().is_some()
            || inner.local.is_some()
            || images.volume().is_some_and(|volume| volume.has(self.descriptor()))
            || images.scratch().has(self.descriptor())
    }

    /// Opens the layer: its bytes as the registry serves them, compared with their digest before the first is given.
    ///
    /// Damage in the volume is an event that names the file, and the registry's copy is taken. Blocks while hashing and
    /// downloading: call it from a thread that may, never from an async task.
    pub fn open_layer(&self) -> Result<Box<dyn Read + Send>, ImageError> {
        let ready = match self.find_ready()? {
            Some(ready) => ready,
            None => Ready::Blob(self.inner.images.runtime().block_on(self.bring())?),
        };
        self.open_ready(ready)
    }

    /// Sees to it that the bytes are on this machine and sound, so that [`LayerSource::open_layer`] is quick.
    pub async fn fetch(&self) -> Result<(), ImageError> {
        let this = self.clone();
        let found = tokio::task::spawn_blocking(move || this.find_ready()).await;
        let found = match found {
            Ok(found) => found?,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
        };
        match found {
            Some(_) => Ok(()),
            None => self.bring().await.map(|_| ()),
        }
    }

    fn open_ready(&self, ready: Ready) -> Result<Box<dyn Read + Send>, ImageError> {
        match (ready, &self.inner.local) {
            (Ready::Blob(blob), _) => Ok(Box::new(blob.reader_from(0))),
            (Ready::Local, Some(layer)) => layer.open().map_err(ImageError::store(&self.inner.image)),
            (Ready::Local, None) => Err(self.absent()),
        }
    }

    /// The sound bytes that are on this machine, if any.
    fn find_ready(&self) -> Result<Option<Ready>, ImageError> {
        let inner = &self.inner;
        if let Some(ready) = inner.ready.get() {
            return Ok(Some(ready.clone()));
        }
        if let Some(layer) = &inner.local {
            return self.check_local(layer);
        }
        let images = &inner.images;
        if let Some(volume) = images.volume() {
            let sound = volume
                .blob_of(self.descriptor())
                .and_then(|blob| blob.map(|blob| blob.verify().map(|_| blob)).transpose());
            match sound {
                Ok(Some(blob)) => return Ok(Some(self.found(Ready::Blob(blob)))),
                Ok(None) => {}
                Err(error) => images.damaged(&volume.blob_path(&self.descriptor().digest), &error),
            }
        }
        // What lies in the scratch directory was hashed when it was written.
        let scratch = images.scratch().blob_of(self.descriptor()).map_err(ImageError::store(&inner.image))?;
        Ok(scratch.map(|blob| self.found(Ready::Blob(blob))))
    }

    fn found(&self, ready: Ready) -> Ready {
        self.inner.ready.get_or_init(|| ready).clone()
    }

    fn check_local(&self, layer: &LocalLayer) -> Result<Option<Ready>, ImageError> {
        let checked = layer.open().and_then(|mut reader| {
            io::copy(&mut reader, &mut io::sink()).map_err(|source| match source.downcast::<StoreError>() {
                Ok(error) => error,
                Err(source) => StoreError::Io { action: "read", path: layer.path().to_owned(), source },
            })
        });
        match checked {
            Ok(_) => Ok(Some(self.found(Ready::Local))),
            // The registry has another copy of what kaniko kept; a layout that the person named is all there is.
            Err(error) if self.inner.repository.is_some() => {
                self.inner.images.damaged(layer.path(), &error);
                Ok(None)
            }
            Err(error) => Err(ImageError::store(&self.inner.image)(error)),
        }
    }

    fn absent(&self) -> ImageError {
        ImageError::OfflineBlob {
            image: Box::new(self.inner.image.clone()),
            digest: self.descriptor().digest.clone(),
        }
    }

    /// Downloads the layer into the scratch directory.
    async fn bring(&self) -> Result<Blob, ImageError> {
        let (inner, images, descriptor) = (&self.inner, &self.inner.images, self.descriptor());
        let (Some(registry), Some(repository)) = (images.registry(), &inner.repository) else {
            return Err(self.absent());
        };
        let first = std::sync::atomic::AtomicBool::new(true);
        let on = |bytes| {
            let (digest, of) = (descriptor.digest.clone(), descriptor.size);
            images.tell(if first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                ImageEvent::Downloading { digest, from: bytes, of }
            } else {
                ImageEvent::Received { digest, bytes, of }
            });
        };
        let got = download(images.scratch(), registry, repository, descriptor, false, &on)
            .await
            .map_err(ImageError::download(&inner.image))?;
        let blob = got.into_blob();
        images.tell(ImageEvent::Downloaded { digest: descriptor.digest.clone(), bytes: blob.len() });
        self.found(Ready::Blob(blob.clone()));
        Ok(blob)
    }
}

impl fmt::Debug for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerSource").field("descriptor", self.descriptor()).finish_non_exhaustive()
    }
}
