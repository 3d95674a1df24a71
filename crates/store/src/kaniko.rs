//! Volumes that kaniko warmed: an image is found by its digest alone.
//!
//! Two forms: a directory `sha256:HEX` that is an OCI image layout, and, from older versions, an archive `sha256:HEX`
//! with the manifest beside it in `sha256:HEX.json`. They are read, and never written or deleted.

use std::fs;
use std::path::Path;

use kiln_oci::{Digest, Document, ImageConfig, Manifest, Platform};

use crate::archive::Archive;
use crate::error::{OnPath, StoreError, if_present};
use crate::layout::Layout;
use crate::local_image::{Choice, LocalImage};

/// Reads the image with the manifest `digest` from the kaniko volume `directory`; `None` if it isn't there.
///
/// Fails like [`crate::read_layout`] and [`crate::read_archive`] if it is there and damaged.
pub fn find_kaniko_image(
    directory: &Path,
    digest: &Digest,
    platform: &Platform,
) -> Result<Option<LocalImage>, StoreError> {
    let path = directory.join(digest.to_string());
    let Some(metadata) = if_present(fs::metadata(&path)).on("look at", &path)? else { return Ok(None) };
    if metadata.is_dir() {
        let choice = Choice { name: None, digest: Some(digest.clone()), platform: platform.clone() };
        return Layout::open(&path)?.find(&choice).map(Some);
    }
    let beside = directory.join(format!("{digest}.json"));
    let Some(raw) = if_present(fs::read(&beside)).on("read", &beside)? else { return Ok(None) };
    let manifest: Document<Manifest> = Document::read(raw.into(), Some(digest))
        .map_err(|source| StoreError::Document { path: beside, source })?;
    let archive = Archive::open(&path)?;
    let config = read_config(&archive, &manifest)?;
    LocalImage::assemble(manifest, config, &path, |layer| {
        let names = [format!("{}.tar.gz", layer.digest.hex()), layer.digest.to_string()];
        names
            .iter()
            .find_map(|name| archive.member(name))
            .ok_or_else(|| StoreError::NoBlob { path: path.clone(), digest: layer.digest.clone() })
    })
    .map(Some)
}

fn read_config(
    archive: &Archive,
    manifest: &Document<Manifest>,
) -> Result<Document<ImageConfig>, StoreError> {
    let digest = &manifest.value().config.digest;
    for name in [digest.to_string(), digest.hex(), format!("{}.json", digest.hex())] {
        if let Some(bytes) = archive.read(&name)? {
            return Document::read(bytes.into(), Some(digest))
                .map_err(|source| StoreError::Document { path: archive.path().to_owned(), source });
        }
    }
    Err(StoreError::NoBlob { path: archive.path().to_owned(), digest: digest.clone() })
}
