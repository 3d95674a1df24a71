//! Writing images into OCI image layouts that other tools read: no Kiln folder, others' images kept.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Digest, Document, Hasher, ImageConfig, Index, Manifest, media_type};
use tempfile::NamedTempFile;

use crate::disk;
use crate::error::{OnPath, StoreError};
use crate::index::{annotation, put, read_index, write_index};
use crate::local_image::Blobs;
use crate::lock;
use crate::store::{Durability, LAYOUT_VERSION};

/// Adds images to an OCI image layout (OCI image-spec 1.1, image-layout.md).
///
/// Blobs come first, then the manifest, then the entry in `index.json`, each by a rename: a reader finds the old state or
/// the new one.
#[derive(Debug)]
pub struct OciLayoutWriter {
    directory: PathBuf,
}

impl OciLayoutWriter {
    /// Opens the layout in `directory`, and makes it if it is not there.
    pub fn create(directory: &Path) -> Result<Self, StoreError> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).on("create the directory", &blobs)?;
        let writer = Self { directory: directory.to_owned() };
        let marker = directory.join("oci-layout");
        if !marker.exists() {
            disk::replace(&marker, LAYOUT_VERSION, writer.temporary()?, Durability::Scratch)?;
        }
        Ok(writer)
    }

    /// Adds an image with all its blobs, which come from `blobs` unless they are there, under each of `names`; without a
    /// name, it takes the place of the nameless image for its platform.
    pub fn add(
        &self,
        manifest: &Document<Manifest>,
        config: &Document<ImageConfig>,
        names: &[String],
        blobs: &dyn Blobs,
    ) -> Result<(), StoreError> {
        self.add_unlisted(manifest, config.raw(), blobs)?;
        let media_type = manifest.value().media_type();
        let mut descriptor = Descriptor::new(media_type, manifest.digest().clone(), manifest.size());
        descriptor.platform = config.value().platform().as_ref().map(Into::into);
        self.list(&descriptor, names)
    }

    /// Adds a manifest with all that it names, and no entry: for what an index lists. `config` is the bytes of its
    /// config.
    pub fn add_unlisted(
        &self,
        manifest: &Document<Manifest>,
        config: &[u8],
        blobs: &dyn Blobs,
    ) -> Result<(), StoreError> {
        for layer in &manifest.value().layers {
            // Layers that live elsewhere stay there.
            if !media_type::is_foreign(&layer.media_type) {
                self.copy(layer, blobs)?;
            }
        }
        self.put(&manifest.value().config.digest, config)?;
        self.put(manifest.digest(), manifest.raw())
    }

    /// Adds an index, whose manifests are here already ([`OciLayoutWriter::add_unlisted`]), under each of `names`.
    pub fn add_index(&self, index: &Document<Index>, names: &[String]) -> Result<(), StoreError> {
        self.put(index.digest(), index.raw())?;
        let media_type = index.value().media_type.as_deref().unwrap_or(media_type::OCI_INDEX);
        self.list(&Descriptor::new(media_type, index.digest().clone(), index.size()), names)
    }

    fn list(&self, descriptor: &Descriptor, names: &[String]) -> Result<(), StoreError> {
        self.change_index(|index| {
            if names.is_empty() {
                put(index, descriptor.clone());
            }
            for name in names {
                let mut named = descriptor.clone();
                named.annotations = Some([(annotation::REF_NAME.to_owned(), name.clone())].into());
                put(index, named);
            }
        })
    }

    fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        tempfile::Builder::new()
            .prefix(".kiln-")
            .tempfile_in(&self.directory)
            .on("create a file in", &self.directory)
    }

    fn path(&self, digest: &Digest) -> Result<PathBuf, StoreError> {
        let directory = self.directory.join("blobs").join(digest.algorithm().name());
        disk::make_directory(&directory, 0o755)?;
        Ok(directory.join(digest.hex()))
    }

    fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        disk::replace(&self.path(digest)?, bytes, self.temporary()?, Durability::Scratch)
    }

    fn copy(&self, descriptor: &Descriptor, blobs: &dyn Blobs) -> Result<(), StoreError> {
        let to = self.path(&descriptor.digest)?;
        if fs::metadata(&to).is_ok_and(|file| file.len() == descriptor.size) {
            return Ok(());
        }
        let failed =
            |source| StoreError::Source { path: to.clone(), digest: descriptor.digest.clone(), source };
        let mut from = blobs.open(descriptor).map_err(failed)?;
        let temporary = self.temporary()?;
        let mut hasher = Hasher::new(descriptor.digest.algorithm());
        let mut file = temporary.as_file();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            hasher.update(&buffer[..read]);
            file.write_all(&buffer[..read]).on("write", temporary.path())?;
        }
        let found = hasher.finish();
        if found != descriptor.digest {
            return Err(StoreError::Unexpected { expected: descriptor.digest.clone(), found });
        }
        disk::persist(temporary, &to, Durability::Scratch)
    }

    fn change_index(&self, change: impl FnOnce(&mut Index)) -> Result<(), StoreError> {
        // The directory itself is the lock: other tools' readers need not see a file of ours.
        let _lock = lock::wait_for_directory(&self.directory)?;
        let path = self.directory.join("index.json");
        let mut index = read_index(&path)?.unwrap_or_else(|| Index::new(media_type::OCI_INDEX, Vec::new()));
        change(&mut index);
        let bytes = write_index(&index).map_err(|error| StoreError::Format {
            path: path.clone(),
            why: format!("can't be written: {error}"),
        })?;
        disk::replace(&path, &bytes, self.temporary()?, Durability::Scratch)
    }
}
