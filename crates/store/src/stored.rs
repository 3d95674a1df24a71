//! What lies under a name in a layout or archive, whole and byte for byte: an image, or an index with every image and
//! attestation that it lists. This is what is sent on to a registry.

use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Digest, Index, Manifest, Platform, media_type};

use crate::archive::read_archive;
use crate::error::StoreError;
use crate::index::{annotation, note};
use crate::layout::{Layout, same_name};
use crate::local_image::{Choice, LocalImage, Source};

/// A manifest or index, and all that it names.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its media type, digest and size.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub raw: Box<[u8]>,
    /// What an index lists, in its order.
    pub children: Vec<Stored>,
    /// What a manifest names: layers that live here, then the config.
    pub blobs: Vec<StoredBlob>,
}

/// A blob that a manifest names.
#[derive(Clone, Debug)]
pub struct StoredBlob {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// Where its bytes are.
    pub content: Content,
}

/// Where the bytes of a blob are. They are not compared with its digest here: whoever receives them does that.
#[derive(Clone, Debug)]
pub enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file.
    Section {
        /// The file.
        path: PathBuf,
        /// Where they begin.
        offset: u64,
        /// How many there are.
        len: u64,
    },
}

/// How deep indexes may list indexes.
const DEPTH: usize = 4;

/// Reads what is to be passed on from the layout directory or archive at `path`: the entry that has one of `names`, else
/// the only one there is, else the image for `platform`.
///
/// Fails with [`StoreError::NoImage`], which lists what there is, with [`StoreError::NoBlob`] if something that an index
/// lists is not there, and with the errors of reading.
pub fn read_stored(path: &Path, names: &[String], platform: &Platform) -> Result<Stored, StoreError> {
    let choice = Choice::of(platform.clone());
    let layout = if path.is_dir() { Some(Layout::open(path)?) } else { Layout::of_file(path)? };
    let Some(layout) = layout else { return Ok(Stored::image(&read_archive(path, &choice)?)) };
    let images: Vec<&Descriptor> =
        layout.index().manifests.iter().filter(|entry| !entry.is_attestation()).collect();
    let named = images.iter().find(|entry| {
        let own =
            [annotation::REF_NAME, annotation::IMAGE_NAME].into_iter().filter_map(|key| note(entry, key));
        own.into_iter().any(|own| names.iter().any(|name| same_name(own, name)))
    });
    let only = images.first().filter(|first| images.iter().all(|other| other.digest == first.digest));
    match named.or(only) {
        Some(entry) => layout.stored(entry, DEPTH),
        None if path.is_dir() => Ok(Stored::image(&layout.find(&choice)?)),
        None => Ok(Stored::image(&read_archive(path, &choice)?)),
    }
}

impl Stored {
    fn image(image: &LocalImage) -> Self {
        let manifest = &image.manifest;
        let layers =
            image.layers.iter().filter(|layer| !media_type::is_foreign(&layer.descriptor.media_type));
        let mut blobs: Vec<StoredBlob> = layers
            .map(|layer| StoredBlob {
                descriptor: layer.descriptor.clone(),
                content: Content::of(&layer.source, layer.descriptor.size),
            })
            .collect();
        blobs.push(StoredBlob {
            descriptor: manifest.value().config.clone(),
            content: Content::Bytes(image.config.raw().to_vec()),
        });
        Self {
            descriptor: Descriptor::new(
                manifest.value().media_type(),
                manifest.digest().clone(),
                manifest.size(),
            ),
            raw: manifest.raw().into(),
            children: Vec::new(),
            blobs,
        }
    }
}

impl Content {
    pub(crate) fn of(source: &Source, size: u64) -> Self {
        match source {
            Source::Blob(path) => Self::Section { path: path.clone(), offset: 0, len: size },
            Source::Member { path, offset, len, .. } => {
                Self::Section { path: path.clone(), offset: *offset, len: *len }
            }
        }
    }
}

impl Layout {
    /// Everything behind an entry. What isn't there is an error: half an index can't be passed on as it is.
    fn stored(&self, entry: &Descriptor, depth: usize) -> Result<Stored, StoreError> {
        let digest: &Digest = &entry.digest;
        if media_type::is_index(&entry.media_type) && depth > 0 {
            let index = self.document::<Index>(digest)?;
            let children = index.value().manifests.iter().map(|child| self.stored(child, depth - 1));
            return Ok(Stored {
                descriptor: Descriptor::new(entry.media_type.clone(), digest.clone(), index.size()),
                children: children.collect::<Result<_, _>>()?,
                raw: index.raw().into(),
                blobs: Vec::new(),
            });
        }
        let manifest = self.document::<Manifest>(digest)?;
        let value = manifest.value();
        let layers = value.layers.iter().filter(|layer| !media_type::is_foreign(&layer.media_type));
        let blobs = layers.chain([&value.config]).map(|blob| {
            let source = self.source(&blob.digest)?;
            Ok(StoredBlob { descriptor: blob.clone(), content: Content::of(&source, blob.size) })
        });
        Ok(Stored {
            descriptor: Descriptor::new(value.media_type(), digest.clone(), manifest.size()),
            children: Vec::new(),
            blobs: blobs.collect::<Result<_, StoreError>>()?,
            raw: manifest.raw().into(),
        })
    }
}
