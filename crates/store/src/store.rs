//! The store itself: its directory, and what each access allows.
//!
//! ```text
//! oci-layout, index.json            an OCI image layout
//! blobs/ALGORITHM/HEX               exactly what the registry serves
//! kiln/unpacked/sha256/DIFF-ID/     layers, unpacked (`unpacked`)
//! kiln/layers/KEY                   results of build steps (`steps`)
//! kiln/locks/                       flock files, never deleted by hand (`lock`)
//! kiln/tmp/                         what is being written (`temporary`)
//! ```
//!
//! Invariant: a name that can be seen names a whole thing. Everything is made under `kiln/tmp` and renamed.

use std::fs;
use std::marker::PhantomData;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_oci::{Algorithm, Descriptor, Digest, Document, Hasher};

use crate::blob::Blob;
use crate::disk;
use crate::error::{OnPath, StoreError};
use crate::lock::{self, Lock, Mode};
use crate::writer::{BlobWriter, Resume};

/// The access of a store that is only read: the executor's, of the warmed volume.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

/// The access of a store that is written: the warmer's, and that of the executor's scratch.
#[derive(Clone, Copy, Debug)]
pub struct ReadWrite;

/// What the file `oci-layout` says.
pub(crate) const LAYOUT_VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// What has to survive a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Everything: each file and each name is synced. For volumes.
    Synced,
    /// Nothing: for scratch directories, which die with their pod.
    Scratch,
}

/// A directory of content-addressed blobs: an OCI image layout with Kiln's own folder in it. Cheap to clone.
///
/// What only a writer can do does not compile for a reader:
///
/// ```compile_fail
/// let volume = kiln_store::Store::<kiln_store::ReadOnly>::open("/cache".as_ref()).unwrap();
/// volume.writer(None); // no such method
/// ```
#[derive(Debug)]
pub struct Store<A> {
    inner: Arc<Inner>,
    access: PhantomData<A>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    durability: Durability,
    /// The directories that were handed out as paths: leased for as long as the store is open.
    leases: Mutex<Vec<fs::File>>,
}

impl<A> Clone for Store<A> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), access: PhantomData }
    }
}

impl<A> Store<A> {
    fn at(path: &Path, durability: Durability) -> Self {
        let inner = Inner { path: path.to_owned(), durability, leases: Mutex::default() };
        Self { inner: Arc::new(inner), access: PhantomData }
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    pub(crate) fn durability(&self) -> Durability {
        self.inner.durability
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.path().join("kiln/locks")
    }

    pub(crate) fn keep_lease(&self, lease: fs::File) {
        self.inner.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(lease);
    }

    /// Where the blob `digest` lies if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path().join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Opens the blob `digest`, or gives `None` if the store has no such name.
    ///
    /// Its bytes are checked when they are read, not here. Fails with [`StoreError::Io`] if the file is there and
    /// can't be opened.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        match self.durability() {
            Durability::Synced => Blob::open(self.blob_path(digest), digest),
            Durability::Scratch => Blob::open_scratch(self.blob_path(digest), digest),
        }
    }

    /// Opens the blob that `descriptor` names; fails with [`StoreError::Size`] if it has another length.
    pub fn blob_of(&self, descriptor: &Descriptor) -> Result<Option<Blob>, StoreError> {
        self.blob(&descriptor.digest)?.map(|blob| blob.sized(descriptor)).transpose()
    }

    /// Whether the blob that `descriptor` names is there in its full length. What can't be looked at isn't there.
    pub fn has(&self, descriptor: &Descriptor) -> bool {
        fs::metadata(self.blob_path(&descriptor.digest))
            .is_ok_and(|file| file.is_file() && (descriptor.size == 0 || descriptor.size == file.len()))
    }

    /// Reads the manifest, index or config `digest`, verified; `None` if the store has no such blob.
    ///
    /// Fails with [`StoreError::Corrupt`] or [`StoreError::Document`], both of which name the file.
    pub fn document<T: serde::de::DeserializeOwned>(
        &self,
        digest: &Digest,
    ) -> Result<Option<Document<T>>, StoreError> {
        let Some(blob) = self.blob(digest)? else { return Ok(None) };
        let bytes = read_document(&blob)?;
        Document::read(bytes, Some(digest))
            .map(Some)
            .map_err(|source| StoreError::Document { path: blob.path().to_owned(), source })
    }
}

/// The size above which nothing is taken for a manifest or config: what registries allow, times four.
const LARGEST_DOCUMENT: u64 = 16 << 20;

/// The bytes of a blob that should be a document.
pub(crate) fn read_document(blob: &Blob) -> Result<Box<[u8]>, StoreError> {
    if blob.len() > LARGEST_DOCUMENT {
        let why = format!("has {} bytes: too many for a manifest or config", blob.len());
        return Err(StoreError::Format { path: blob.path().to_owned(), why });
    }
    blob.read()
}

impl Store<ReadOnly> {
    /// Opens the store at `path` for reading. An empty directory is an empty store; so is one that only kaniko filled.
    ///
    /// Fails with [`StoreError::Io`] if `path` can't be listed.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        fs::read_dir(path).on("open the volume", path)?;
        Ok(Self::at(path, Durability::Synced))
    }
}

impl Store<ReadWrite> {
    /// Opens the store at `path` for writing, and makes it if it is not there (mode 0755).
    ///
    /// The directories inside get the permissions of `path` itself, so that whoever may write the volume may write all
    /// of it. What killed writers left is cleaned away.
    pub fn create(path: &Path, durability: Durability) -> Result<Self, StoreError> {
        if !path.is_dir() {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).on("create the directory", parent)?;
            }
            disk::make_directory(path, 0o755)?;
        }
        let mode = fs::metadata(path).on("look at", path)?.permissions().mode() & 0o777;
        for directory in [
            "blobs",
            "blobs/sha256",
            "kiln",
            "kiln/locks",
            "kiln/tmp",
            "kiln/layers",
            "kiln/unpacked",
            "kiln/unpacked/sha256",
        ] {
            disk::make_directory(&path.join(directory), mode)?;
        }
        let store = Self::at(path, durability);
        store.clean_temporary()?;
        let marker = path.join("oci-layout");
        if !marker.exists() {
            disk::replace(&marker, LAYOUT_VERSION, store.temporary_file()?, durability)?;
        }
        store.make_index()?;
        disk::sync_directory(path, durability)?;
        Ok(store)
    }

    /// The same store, for reading only.
    pub fn read_only(&self) -> Store<ReadOnly> {
        Store { inner: Arc::clone(&self.inner), access: PhantomData }
    }

    /// A writer for a new blob, which must have the digest `expected` if that is given. Nobody else is kept from
    /// writing the same.
    pub fn writer(&self, expected: Option<Digest>) -> Result<BlobWriter, StoreError> {
        BlobWriter::fresh(self, expected)
    }

    /// Waits until nobody else writes the blob `digest`, then gives the blob if it is there by now, and otherwise a
    /// writer that goes on where the last partial download ended.
    pub fn resume(&self, digest: &Digest) -> Result<Resume, StoreError> {
        let lock = self.lock(digest)?;
        self.resume_locked(digest, lock)
    }

    /// As [`Store::resume`], but gives `None` instead of waiting.
    pub fn try_resume(&self, digest: &Digest) -> Result<Option<Resume>, StoreError> {
        let Some(lock) = self.try_lock(digest)? else { return Ok(None) };
        self.resume_locked(digest, lock).map(Some)
    }

    /// Where the blob `digest` lies while [`Store::resume`]'s writer writes it.
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        crate::writer::part_path(self, digest)
    }

    /// As [`Store::try_resume`], but gives a writer also where the blob is there: what it writes takes the place of a
    /// blob that is damaged.
    pub fn try_replace(&self, digest: &Digest) -> Result<Option<BlobWriter>, StoreError> {
        let Some(lock) = self.try_lock(digest)? else { return Ok(None) };
        BlobWriter::resumed(self, digest, lock).map(Some)
    }

    fn resume_locked(&self, digest: &Digest, lock: Lock) -> Result<Resume, StoreError> {
        match self.blob(digest)? {
            Some(blob) => Ok(Resume::Present(blob)),
            None => BlobWriter::resumed(self, digest, lock).map(Resume::Partial),
        }
    }

    /// Writes `bytes` as a blob, unless it is there already, and gives its digest.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        self.put_as(&hasher.finish(), bytes)
    }

    /// Writes `bytes`, which must have the digest `digest`, as a blob, unless a blob of that name and length is there
    /// already.
    pub fn put_as(&self, digest: &Digest, bytes: &[u8]) -> Result<Digest, StoreError> {
        if self.has(&Descriptor::new("", digest.clone(), bytes.len() as u64)) {
            return Ok(digest.clone());
        }
        let mut writer = self.writer(Some(digest.clone()))?;
        std::io::Write::write_all(&mut writer, bytes).on("write a blob to", self.path())?;
        writer.commit()
    }

    /// Waits for the lock of the blob `digest`: its holder is the one who writes it.
    pub fn lock(&self, digest: &Digest) -> Result<Lock, StoreError> {
        lock::wait(&self.digest_lock(digest), Mode::Exclusive)
    }

    /// As [`Store::lock`], but gives `None` if somebody else holds it.
    pub fn try_lock(&self, digest: &Digest) -> Result<Option<Lock>, StoreError> {
        lock::attempt(&self.digest_lock(digest), Mode::Exclusive)
    }

    pub(crate) fn digest_lock(&self, digest: &Digest) -> PathBuf {
        self.locks().join(format!("{}-{}.lock", digest.algorithm().name(), digest.hex()))
    }

    /// Announces that blobs are being written which no image names yet: until the lock is dropped, nothing is pruned.
    /// Waits while somebody prunes.
    pub fn writing(&self) -> Result<Lock, StoreError> {
        lock::wait(&self.writing_lock(), Mode::Shared)
    }

    pub(crate) fn writing_lock(&self) -> PathBuf {
        self.locks().join("writing.lock")
    }
}
