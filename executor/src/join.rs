//! Joining images of several platforms in an index: each was built and pushed on a machine of its own.

use std::io::Write as _;
use std::path::Path;

use kiln_oci::{
    Descriptor, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, Repository, media_type,
};
use kiln_registry::{BlobSink, FileSource, Registry};

use crate::error::BuildError;

/// Configs are small; what is longer is none.
const MOST_CONFIG: u64 = 16 << 20;

/// An index that stands at a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its digest.
    pub digest: Digest,
    /// The platforms of the images in it.
    pub platforms: Vec<Platform>,
}

/// One manifest of the index to be, and where it is now.
struct Part {
    descriptor: Descriptor,
    from: Repository,
    raw: Box<[u8]>,
}

/// Makes an index of the images that `references` name, and puts it at every destination, with all that it names. What an
/// index among them lists goes in as it is, attestations included. Bytes that can't be mounted go through `scratch`.
///
/// Fails if two images are for the same platform.
pub async fn join(
    registry: &Registry,
    references: &[Reference],
    destinations: &[Reference],
    scratch: &Path,
) -> Result<Joined, BuildError> {
    let mut parts = Vec::new();
    for reference in references {
        collect(registry, reference, &mut parts).await?;
    }
    let platforms = platforms(&parts)?;
    // Attestations come last, as in an index that was built in one go.
    parts.sort_by_key(|part| part.descriptor.is_attestation());
    let docker = parts.iter().all(|part| part.descriptor.media_type == media_type::DOCKER_MANIFEST);
    let kind = if docker { media_type::DOCKER_INDEX } else { media_type::OCI_INDEX };
    let entries = parts.iter().map(|part| part.descriptor.clone()).collect();
    let index = Document::author(Index::new(kind, entries));
    for destination in destinations {
        for part in &parts {
            copy(registry, part, &destination.repository, scratch).await?;
        }
        registry.push_manifest(destination, kind, index.raw()).await.map_err(BuildError::other)?;
    }
    Ok(Joined { digest: index.digest().clone(), platforms })
}

/// The manifests that `reference` stands for.
async fn collect(
    registry: &Registry,
    reference: &Reference,
    parts: &mut Vec<Part>,
) -> Result<(), BuildError> {
    let found = registry.manifest(reference).await.map_err(BuildError::other)?;
    let from = reference.repository.clone();
    let unreadable = |error| BuildError::other(format!("{reference}: {error}"));
    if !media_type::is_index(&found.media_type) {
        let manifest = Document::<Manifest>::read(found.raw.clone(), None).map_err(unreadable)?;
        let config = &manifest.value().config;
        let raw = registry.pull_bytes(&from, config, MOST_CONFIG).await.map_err(BuildError::other)?;
        let config = Document::<ImageConfig>::read(raw.into(), Some(&config.digest)).map_err(unreadable)?;
        let platform = config.value().platform().ok_or_else(|| {
            BuildError::other(format!(
                "{reference} names no platform in its config: it can't be put in an index"
            ))
        })?;
        let mut descriptor = found.descriptor();
        descriptor.platform = Some((&platform).into());
        parts.push(Part { descriptor, from, raw: found.raw });
        return Ok(());
    }
    let index = Document::<Index>::read(found.raw, None).map_err(unreadable)?;
    for entry in &index.value().manifests {
        if media_type::is_index(&entry.media_type) {
            return Err(BuildError::other(format!("{reference} is an index that lists another index")));
        }
        let name = by_digest(&from, &entry.digest);
        let found = registry.manifest(&name).await.map_err(BuildError::other)?;
        parts.push(Part { descriptor: entry.clone(), from: from.clone(), raw: found.raw });
    }
    Ok(())
}

fn by_digest(repository: &Repository, digest: &Digest) -> Reference {
    Reference { repository: repository.clone(), tag: None, digest: Some(digest.clone()) }
}

/// The images' platforms, each there once.
fn platforms(parts: &[Part]) -> Result<Vec<Platform>, BuildError> {
    let mut platforms = Vec::new();
    for part in parts.iter().filter(|part| !part.descriptor.is_attestation()) {
        let Some(platform) = part.descriptor.image_platform() else { continue };
        if platforms.contains(&platform) {
            return Err(BuildError::other(format!(
                "two of the images are for {platform} ({} is the second): leave one out",
                part.descriptor.digest
            )));
        }
        platforms.push(platform);
    }
    Ok(platforms)
}

/// Sees to it that `to` has a manifest and all that it names.
async fn copy(registry: &Registry, part: &Part, to: &Repository, scratch: &Path) -> Result<(), BuildError> {
    if part.from == *to {
        return Ok(());
    }
    let manifest = Document::<Manifest>::read(part.raw.clone(), Some(&part.descriptor.digest))
        .map_err(BuildError::other)?;
    let layers = manifest.value().layers.iter().filter(|layer| !media_type::is_foreign(&layer.media_type));
    for blob in layers.chain([&manifest.value().config]) {
        copy_blob(registry, blob, &part.from, to, scratch).await?;
    }
    let name = by_digest(to, &part.descriptor.digest);
    let pushed = registry.push_manifest(&name, &part.descriptor.media_type, &part.raw).await;
    pushed.map(|_| ()).map_err(BuildError::other)
}

async fn copy_blob(
    registry: &Registry,
    blob: &Descriptor,
    from: &Repository,
    to: &Repository,
    scratch: &Path,
) -> Result<(), BuildError> {
    if registry.mount_blob(to, &blob.digest, from).await.map_err(BuildError::other)?
        || registry.blob_exists(to, &blob.digest).await.map_err(BuildError::other)?
    {
        return Ok(());
    }
    // Made here: most joins mount every blob, and run where nothing can be written.
    let file = std::fs::create_dir_all(scratch)
        .and_then(|()| tempfile::NamedTempFile::new_in(scratch))
        .map_err(|source| BuildError::Write { path: scratch.to_owned(), source })?;
    let mut sink = Saved(file);
    registry.pull_blob(from, blob, 0, &mut sink).await.map_err(BuildError::other)?;
    let source = FileSource(sink.0.path().to_owned());
    registry.push_blob(to, blob, &source).await.map(|_| ()).map_err(BuildError::other)
}

struct Saved(tempfile::NamedTempFile);

impl BlobSink for Saved {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    fn restart(&mut self) -> std::io::Result<bool> {
        use std::io::Seek as _;
        self.0.as_file_mut().set_len(0)?;
        self.0.rewind()?;
        Ok(true)
    }
}
