//! The archives of `docker save` with a `manifest.json`: the form since docker 1.10, which podman, buildah, kaniko and
//! go-containerregistry write too. They hold no manifest in the registry's sense, so one is written here.

use kiln_oci::{Descriptor, DiffId, Digest, Document, ImageConfig, Manifest, Platform, media_type};
use serde::Deserialize;

use crate::archive::Archive;
use crate::error::StoreError;
use crate::layout::same_name;
use crate::local_image::{Choice, LocalImage, Source, hash_member};

/// The member that lists the images.
pub(crate) const MANIFEST: &str = "manifest.json";

/// One image of a `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The compression that a file's first bytes show, and the program that undoes it.
pub(crate) fn compressed(magic: &[u8]) -> Option<(&'static str, &'static str)> {
    match magic {
        [0x1f, 0x8b, ..] => Some(("gzip", "gzip -d")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", "zstd -d")),
        [b'B', b'Z', b'h', ..] => Some(("bzip2", "bzip2 -d")),
        [0xfd, b'7', b'z', b'X', ..] => Some(("xz", "xz -d")),
        _ => None,
    }
}

/// Reads the image that fits `choice`.
pub(crate) fn find(archive: &Archive, choice: &Choice) -> Result<LocalImage, StoreError> {
    let fail = |why: String| StoreError::Format { path: archive.path().to_owned(), why };
    let bytes = archive.read(MANIFEST)?.ok_or_else(|| {
        fail(
            "is no image archive: it has neither a manifest.json (docker save) nor an index.json (OCI)"
                .to_owned(),
        )
    })?;
    let saved: Vec<Saved> = serde_json::from_slice(&bytes)
        .map_err(|error| fail(format!("holds a manifest.json that can't be read ({error})")))?;
    let mut best: Option<(u32, &Saved, Document<ImageConfig>)> = None;
    let mut present = Vec::new();
    for image in &saved {
        let config = read_config(archive, image)?;
        let platform = config.value().platform();
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        present.push(describe(tags, &config, platform.as_ref()));
        let named = choice.name.as_ref().is_none_or(|name| tags.iter().any(|tag| same_name(tag, name)));
        let rank = platform.map_or(Some(u32::MAX), |offered| choice.platform.rank(&offered));
        if let Some(rank) = rank.filter(|_| named)
            && best.as_ref().is_none_or(|(other, _, _)| rank < *other)
        {
            best = Some((rank, image, config));
        }
    }
    let absent = || StoreError::NoImage {
        path: archive.path().to_owned(),
        wanted: choice.describe(),
        present: present.join(", "),
    };
    let (_, image, config) = best.ok_or_else(absent)?;
    let found = load(archive, image, config)?;
    if choice.digest.as_ref().is_some_and(|digest| digest != found.manifest.digest()) {
        return Err(absent());
    }
    Ok(found)
}

fn describe(tags: &[String], config: &Document<ImageConfig>, platform: Option<&Platform>) -> String {
    let name = tags.first().cloned().unwrap_or_else(|| config.digest().to_string());
    platform.map_or(name.clone(), |platform| format!("{name} ({platform})"))
}

/// The digest in a member's name, in any of the forms that are written.
fn digest_in_name(name: &str) -> Option<Digest> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.split('.').next().unwrap_or(file);
    let hex = stem.strip_prefix("sha256:").unwrap_or(stem);
    format!("sha256:{hex}").parse().ok()
}

fn read_config(archive: &Archive, image: &Saved) -> Result<Document<ImageConfig>, StoreError> {
    let bytes = archive.read(&image.config)?.ok_or_else(|| StoreError::Format {
        path: archive.path().to_owned(),
        why: format!("lacks the config {}, which its manifest.json names", image.config),
    })?;
    Document::read(bytes.into(), digest_in_name(&image.config).as_ref())
        .map_err(|source| StoreError::Document { path: archive.path().to_owned(), source })
}

/// Writes the manifest that the archive doesn't have, and puts the image together.
fn load(archive: &Archive, image: &Saved, config: Document<ImageConfig>) -> Result<LocalImage, StoreError> {
    let names = image.layers.as_deref().unwrap_or_default();
    let diff_ids = &config.value().rootfs.diff_ids;
    if names.len() != diff_ids.len() {
        let why = format!("lists {} layers, but the image's config has {}", names.len(), diff_ids.len());
        return Err(StoreError::Format { path: archive.path().to_owned(), why });
    }
    let mut sources = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        sources.push(layer(archive, name, diff_id)?);
    }
    let config_descriptor =
        Descriptor::new(media_type::DOCKER_CONFIG, config.digest().clone(), config.size());
    let layers = sources.iter().map(|(descriptor, _)| descriptor.clone()).collect();
    let manifest = Document::author(Manifest::new(media_type::DOCKER_MANIFEST, config_descriptor, layers));
    LocalImage::assemble(manifest, config, archive.path(), |wanted| {
        let found = sources.iter().find(|(descriptor, _)| descriptor.digest == wanted.digest);
        found.map(|(_, source)| source.clone()).ok_or_else(|| StoreError::NoBlob {
            path: archive.path().to_owned(),
            digest: wanted.digest.clone(),
        })
    })
}

fn layer(archive: &Archive, name: &str, diff_id: &DiffId) -> Result<(Descriptor, Source), StoreError> {
    let fail = |why: String| StoreError::Format { path: archive.path().to_owned(), why };
    let source = archive
        .member(name)
        .ok_or_else(|| fail(format!("lacks the layer {name}, which its manifest.json names")))?;
    let Source::Member { archive: file, path, offset, len } = &source else {
        return Err(fail(format!("has no member {name}")));
    };
    let uncompressed = Digest::sha256(diff_id.0);
    let (media_type, digest) = match compressed(&archive.magic(name)?) {
        None => (media_type::DOCKER_LAYER, uncompressed),
        Some((kind @ ("gzip" | "zstd"), _)) => {
            let media_type =
                if kind == "gzip" { media_type::DOCKER_LAYER_GZIP } else { media_type::OCI_LAYER_ZSTD };
            // go-containerregistry names a layer for its digest. Where the name is something else, only reading tells.
            match digest_in_name(name).filter(|digest| *digest != uncompressed && name.ends_with(".tar.gz")) {
                Some(digest) => (media_type, digest),
                None => (media_type, hash_member(file, path, *offset, *len)?),
            }
        }
        Some((kind, _)) => {
            return Err(fail(format!("holds the layer {name} compressed by {kind}; images have none such")));
        }
    };
    Ok((Descriptor::new(media_type, digest, *len), source))
}
