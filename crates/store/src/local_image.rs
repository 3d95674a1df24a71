//! An image that lies on disk, whatever form it was found in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_oci::{Descriptor, DiffId, Digest, Document, Hasher, ImageConfig, Manifest, Platform};

use crate::blob::{Blob, CHUNK};
use crate::error::{OnPath, StoreError};
use crate::store::Store;

/// Which image of a layout or archive is meant.
#[derive(Clone, Debug)]
pub struct Choice {
    /// By name: a tag, or a full reference.
    pub name: Option<String>,
    /// By the digest of its manifest, or of an index that lists it.
    pub digest: Option<Digest>,
    /// For this platform.
    pub platform: Platform,
}

impl Choice {
    /// Whichever image there is for `platform`.
    pub fn of(platform: Platform) -> Self {
        Self { name: None, digest: None, platform }
    }

    /// What was asked for, for people.
    pub(crate) fn describe(&self) -> String {
        let digest = self.digest.as_ref().map(ToString::to_string);
        let what = [self.name.clone(), digest].into_iter().flatten().collect::<Vec<_>>().join("@");
        if what.is_empty() {
            format!("for {}", self.platform)
        } else {
            format!("{what} for {}", self.platform)
        }
    }
}

/// An image on disk: its manifest and config are read and verified, its layers can be opened.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// The manifest. Archives of `docker save`'s old form have none: there it is written by this crate.
    pub manifest: Document<Manifest>,
    /// The config.
    pub config: Document<ImageConfig>,
    /// The layers, base first.
    pub layers: Vec<LocalLayer>,
}

/// A layer of a [`LocalImage`].
#[derive(Clone, Debug)]
pub struct LocalLayer {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// What the config says of it.
    pub diff_id: DiffId,
    pub(crate) source: Source,
}

/// Where a layer's bytes lie.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A file of their own.
    Blob(PathBuf),
    /// A part of an archive.
    Member { archive: Arc<File>, path: PathBuf, offset: u64, len: u64 },
}

impl LocalLayer {
    /// Reads the layer's bytes as stored. The reader fails at its end unless they have the descriptor's digest.
    ///
    /// Fails with [`StoreError::NoBlob`], [`StoreError::Size`] or [`StoreError::Io`].
    pub fn open(&self) -> Result<Box<dyn BufRead + Send>, StoreError> {
        self.source.open(&self.descriptor)
    }

    /// The file that holds the layer, for messages.
    pub fn path(&self) -> &std::path::Path {
        match &self.source {
            Source::Blob(path) | Source::Member { path, .. } => path,
        }
    }
}

impl Source {
    pub(crate) fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn BufRead + Send>, StoreError> {
        match self {
            Self::Blob(path) => {
                let blob = Blob::open(path.clone(), &descriptor.digest)?.ok_or_else(|| {
                    StoreError::NoBlob { path: path.clone(), digest: descriptor.digest.clone() }
                })?;
                Ok(Box::new(blob.sized(descriptor)?.reader()))
            }
            Self::Member { archive, path, offset, len } => {
                if descriptor.size != 0 && descriptor.size != *len {
                    let (expected, found) = (descriptor.size, *len);
                    return Err(StoreError::Size { path: path.clone(), expected, found });
                }
                let reader = MemberReader {
                    archive: Arc::clone(archive),
                    path: path.clone(),
                    position: *offset,
                    end: offset + len,
                    expected: Some(descriptor.digest.clone()),
                    hasher: Hasher::new(descriptor.digest.algorithm()),
                };
                Ok(Box::new(BufReader::with_capacity(CHUNK, reader)))
            }
        }
    }
}

/// Reads a part of an archive, and fails at its end unless the digest fits.
struct MemberReader {
    archive: Arc<File>,
    path: PathBuf,
    position: u64,
    end: u64,
    expected: Option<Digest>,
    hasher: Hasher,
}

impl Read for MemberReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = into.len().min(left);
        if wanted == 0 && !into.is_empty() {
            let found = self.hasher.clone().finish();
            return match self.expected.clone().filter(|expected| *expected != found) {
                Some(expected) => {
                    Err(StoreError::Corrupt { path: self.path.clone(), expected, found }.into())
                }
                None => Ok(0),
            };
        }
        let read = self.archive.read_at(&mut into[..wanted], self.position)?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&into[..read]);
        self.position += read as u64;
        Ok(read)
    }
}

/// Whatever holds blobs that can be read: a store, or an image on disk.
pub trait Blobs: Sync {
    /// Reads the blob that `descriptor` names. The reader should fail at its end unless the digest fits.
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn BufRead + Send>>;
}

impl<A: Sync> Blobs for Store<A> {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn BufRead + Send>> {
        if let Some(blob) = self.blob_of(descriptor)? {
            return Ok(Box::new(blob.reader()));
        }
        let (path, digest) = (self.path().to_owned(), descriptor.digest.clone());
        Err(io::Error::new(io::ErrorKind::NotFound, StoreError::NoBlob { path, digest }))
    }
}

impl Blobs for LocalImage {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn BufRead + Send>> {
        if descriptor.digest == *self.config.digest() {
            return Ok(Box::new(io::Cursor::new(self.config.raw().to_vec())));
        }
        let layer = self.layers.iter().find(|layer| layer.descriptor.digest == descriptor.digest);
        match layer {
            Some(layer) => Ok(layer.open()?),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no layer {}", descriptor.digest))),
        }
    }
}

impl LocalImage {
    /// Puts the parts together; `source` says where each layer lies.
    pub(crate) fn assemble(
        manifest: Document<Manifest>,
        config: Document<ImageConfig>,
        path: &std::path::Path,
        source: impl Fn(&Descriptor) -> Result<Source, StoreError>,
    ) -> Result<Self, StoreError> {
        let (layers, diff_ids) = (&manifest.value().layers, &config.value().rootfs.diff_ids);
        if layers.len() != diff_ids.len() {
            let why = format!(
                "holds a manifest {} with {} layers whose config has {}: it is no image that can be built from",
                manifest.digest(),
                layers.len(),
                diff_ids.len()
            );
            return Err(StoreError::Format { path: path.to_owned(), why });
        }
        let layers = layers
            .iter()
            .zip(diff_ids)
            .map(|(descriptor, diff_id)| {
                let source = source(descriptor)?;
                Ok(LocalLayer { descriptor: descriptor.clone(), diff_id: *diff_id, source })
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Self { manifest, config, layers })
    }

    /// The platform that the config names.
    pub fn platform(&self) -> Option<Platform> {
        self.config.value().platform()
    }
}

/// Hashes a part of an archive.
pub(crate) fn hash_member(
    archive: &Arc<File>,
    path: &std::path::Path,
    offset: u64,
    len: u64,
) -> Result<Digest, StoreError> {
    let mut reader = MemberReader {
        archive: Arc::clone(archive),
        path: path.to_owned(),
        position: offset,
        end: offset + len,
        expected: None,
        hasher: Hasher::sha256(),
    };
    io::copy(&mut reader, &mut io::sink()).on("read", path)?;
    Ok(reader.hasher.finish())
}
