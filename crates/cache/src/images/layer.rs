//! One layer of an image that was found: its bytes, from the nearest place that has them sound.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kiln_oci::media_type::{self, Compression};
use kiln_oci::{Descriptor, DiffId, Repository};
use kiln_registry::Registry;
use kiln_store::{Blob, LocalLayer, StoreError};

use super::download::download;
use super::elsewhere;
use super::error::ImageError;
use super::event::ImageEvent;
use super::lookup::Images;
use super::name::ImageName;
use super::passing::{Fetch, Passing};
use super::transfer::Transfer;
use crate::relay::Relay;
use crate::steps::Patience;

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
    /// Its bytes were given once before they were known to be sound; the next who asks gets them verified.
    trusted: AtomicBool,
    /// Its bytes were given once without being kept; the next who asks has them downloaded.
    passed: AtomicBool,
    /// The download, once somebody wanted it.
    transfer: Mutex<Option<Arc<Transfer>>>,
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
        let transfer = Mutex::default();
        let (trusted, passed) = (AtomicBool::new(false), AtomicBool::new(false));
        let inner =
            Inner { images, image, descriptor, diff_id, repository, local, ready, trusted, passed, transfer };
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
    pub fn open_layer(&self) -> Result<Box<dyn BufRead + Send>, ImageError> {
        let ready = match self.find_ready()? {
            Some(ready) => ready,
            None => Ready::Blob(self.inner.images.runtime().block_on(self.bring())?),
        };
        self.open_ready(ready)
    }

    /// Opens the layer and gives its bytes before all are known to be sound: while they arrive, or while they are read
    /// from the volume.
    ///
    /// Reading fails at the end unless the whole has its digest: believe nothing before. Whoever asks again then gets
    /// other bytes, verified before.
    pub fn stream(&self) -> io::Result<Box<dyn BufRead + Send>> {
        if self.inner.ready.get().is_none() && !self.inner.trusted.swap(true, Ordering::Relaxed) {
            if let Some(layer) = &self.inner.local {
                if let Ok(reader) = layer.open() {
                    return Ok(Box::new(Checked { reader, source: self.clone(), then: Ready::Local }));
                }
            } else if let Some(volume) = self.inner.images.volume()
                && let Ok(Some(blob)) = volume.blob_of(self.descriptor())
            {
                let reader = Box::new(blob.reader());
                return Ok(Box::new(Checked { reader, source: self.clone(), then: Ready::Blob(blob) }));
            }
        }
        if let Some(ready) = self.find_ready().map_err(io::Error::other)? {
            return self.open_ready(ready).map_err(io::Error::other);
        }
        Ok(Box::new(self.transfer().map_err(io::Error::other)?.open()?.buffered()))
    }

    /// As [`LayerSource::stream`], but what comes from a registry is not kept on this machine, unless `is_wanted` says that
    /// somebody else has a use for it. Whoever asks again has it downloaded.
    ///
    /// `is_wanted` may ask a registry, which takes its time. Where that is `unlikely`, it is taken to say no, and the first
    /// bytes come meanwhile: for nothing if it says yes.
    pub fn pass(
        &self,
        unlikely: bool,
        is_wanted: impl FnOnce() -> bool,
    ) -> io::Result<Box<dyn BufRead + Send>> {
        let (inner, images) = (&self.inner, &self.inner.images);
        let (Some(registry), Some(repository)) = (images.registry(), &inner.repository) else {
            return self.stream();
        };
        let elsewhere = media_type::is_foreign(&self.descriptor().media_type);
        if elsewhere || self.is_here() || self.is_begun() || inner.passed.swap(true, Ordering::Relaxed) {
            return self.stream();
        }
        let begin = || {
            let (told, Descriptor { digest, size: bytes, .. }) = (images.clone(), self.descriptor().clone());
            let fetch = Fetch {
                // Lower layers are wanted before higher ones, and would wait for their turn until those are read.
                registry: registry.unqueued(),
                repository: repository.clone(),
                descriptor: self.descriptor().clone(),
                runtime: images.runtime().clone(),
                on: Box::new(self.teller()),
                done: Box::new(move || told.tell(ImageEvent::Downloaded { digest, bytes })),
            };
            let this = self.clone();
            Passing::begin(fetch, move || this.transfer().map_err(io::Error::other)?.open())
        };
        let begun = unlikely.then(begin);
        if is_wanted() {
            return self.stream();
        }
        Ok(Box::new(begun.unwrap_or_else(begin)))
    }

    /// Makes events of how many bytes are here.
    fn teller(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let (images, first) = (self.inner.images.clone(), AtomicBool::new(true));
        let Descriptor { digest, size: of, .. } = self.descriptor().clone();
        move |bytes| {
            let digest = digest.clone();
            images.tell(if first.swap(false, Ordering::Relaxed) {
                ImageEvent::Downloading { digest, from: bytes, of }
            } else {
                ImageEvent::Received { digest, bytes, of }
            });
        }
    }

    /// Whether a download that keeps the bytes has begun.
    fn is_begun(&self) -> bool {
        self.inner.transfer.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Begins to download the layer, if it is not on this machine. Does not wait, and fails later: when it is opened.
    pub fn begin(&self) {
        if !self.is_here() && self.unpacked().is_none() {
            drop(self.transfer());
        }
    }

    /// The layer's bytes for an upload that takes them while they arrive. `None` if they are on this machine, or somebody
    /// here wants them too: then they are had from here.
    pub fn relay(&self) -> Option<Relay> {
        if self.is_begun() || self.is_here() {
            return None;
        }
        let (registry, repository) = (self.inner.images.registry()?, self.inner.repository.as_ref()?);
        Some(Relay::new(registry, repository, self.descriptor().clone(), Patience::ENDLESS))
    }

    /// The download, begun if nobody did that yet or the last one failed.
    fn transfer(&self) -> Result<Arc<Transfer>, ImageError> {
        let mut transfer = self.inner.transfer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = transfer.as_ref().filter(|transfer| !transfer.has_failed()) {
            return Ok(Arc::clone(running));
        }
        let images = &self.inner.images;
        if images.registry().is_none() || self.inner.repository.is_none() {
            return Err(self.absent());
        }
        let begun = Transfer::new(images.scratch().partial_path(&self.descriptor().digest));
        *transfer = Some(Arc::clone(&begun));
        let (this, shared) = (self.clone(), Arc::clone(&begun));
        images.runtime().spawn(async move {
            let result = this.download(&|bytes| shared.arrived(bytes)).await;
            shared.end(result.map_err(Arc::new));
        });
        Ok(begun)
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

    fn open_ready(&self, ready: Ready) -> Result<Box<dyn BufRead + Send>, ImageError> {
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

    /// Waits until the layer is in the scratch directory.
    async fn bring(&self) -> Result<Blob, ImageError> {
        let transfer = self.transfer()?;
        transfer.finished().await.map_err(ImageError::Transfer)
    }

    /// Downloads the layer into the scratch directory.
    async fn download(&self, arrived: &(dyn Fn(u64) + Send + Sync)) -> Result<Blob, ImageError> {
        let (inner, images, descriptor) = (&self.inner, &self.inner.images, self.descriptor());
        let (Some(registry), Some(repository)) = (images.registry(), &inner.repository) else {
            return Err(self.absent());
        };
        let _turn = images.download_turn().await;
        let tell = self.teller();
        let on = |bytes| {
            arrived(bytes);
            tell(bytes);
        };
        let blob = if media_type::is_foreign(&descriptor.media_type) {
            self.foreign(registry, repository, &on).await?
        } else {
            let got = download(images.scratch(), registry, repository, descriptor, false, &on).await;
            got.map_err(ImageError::download(&inner.image))?.into_blob()
        };
        images.tell(ImageEvent::Downloaded { digest: descriptor.digest.clone(), bytes: blob.len() });
        self.found(Ready::Blob(blob.clone()));
        Ok(blob)
    }
}

impl LayerSource {
    /// Downloads a foreign layer from where its manifest says that it is. Some registries have it all the same.
    async fn foreign(
        &self,
        registry: &Registry,
        repository: &Repository,
        on: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Blob, ImageError> {
        let (inner, scratch) = (&self.inner, self.inner.images.scratch());
        let mut tried = match elsewhere::fetch(scratch, registry, self.descriptor(), on).await {
            Ok(blob) => return Ok(blob),
            Err(tried) => tried,
        };
        match download(scratch, registry, repository, self.descriptor(), false, on).await {
            Ok(got) => Ok(got.into_blob()),
            Err(error) => {
                tried.push(error.to_string());
                let (image, digest) = (Box::new(inner.image.clone()), self.descriptor().digest.clone());
                Err(ImageError::Elsewhere { image, digest, tried })
            }
        }
    }
}

/// Reads bytes that are verified at their end, and notes that they were.
struct Checked {
    reader: Box<dyn BufRead + Send>,
    source: LayerSource,
    then: Ready,
}

impl BufRead for Checked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let there = self.reader.fill_buf()?;
        if there.is_empty() {
            self.source.found(self.then.clone());
        }
        Ok(there)
    }

    fn consume(&mut self, length: usize) {
        self.reader.consume(length);
    }
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut there = self.fill_buf()?;
        let length = there.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl fmt::Debug for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerSource").field("descriptor", self.descriptor()).finish_non_exhaustive()
    }
}
