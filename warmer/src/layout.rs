//! Images that lie on disk: an OCI image layout or an archive is copied into the volume under its own names.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use kiln_cache::{ImageError, ImageName};
use kiln_oci::{Descriptor, Digest, Platform, Reference, media_type};
use kiln_store::{
    Choice, Layout, LocalImage, ReadWrite, Resume, Store, StoreError, read_archive, read_layout,
};

use crate::run::Run;
use crate::{Platforms, State, WarmError, WarmEvent, WarmedImage, unpack};

/// Copies the image `name`, which lies on disk, for every platform that is wanted.
pub(crate) async fn warm_local(run: &Arc<Run>, name: &ImageName) -> Result<Vec<WarmedImage>, WarmError> {
    let fail = |source| ImageError::Store { image: Box::new(name.clone()), source };
    let (wanted, all) = (name.clone(), run.request.platforms.clone());
    let found = run.blocking(move || find(&wanted, &all)).await.map_err(fail)?;
    let mut warmed = Vec::new();
    for (image, platform, names) in found {
        let (store, copied) = (run.store.clone(), image.clone());
        let received = run.blocking(move || copy(&store, &copied)).await.map_err(fail)?;
        if run.request.unpack {
            unpack::unpack_layers(run, image.manifest.value(), image.config.value()).await?;
        }
        let digest = image.manifest.digest().clone();
        publish(run, name, &image, &platform, names).await?;
        let text = name.to_string();
        let state = if received == 0 { State::Fresh } else { State::Fetched { received } };
        run.teller.tell(match state {
            State::Fresh => {
                WarmEvent::Fresh { image: text, platform: platform.clone(), digest: digest.clone() }
            }
            State::Fetched { received } => WarmEvent::Warmed {
                image: text,
                platform: platform.clone(),
                digest: digest.clone(),
                received,
            },
        });
        warmed.push(WarmedImage { image: name.clone(), platform, manifest: digest, state });
    }
    Ok(warmed)
}

type Found = Vec<(LocalImage, Platform, Vec<String>)>;

fn find(name: &ImageName, platforms: &Platforms) -> Result<Found, StoreError> {
    let mut found: Found = Vec::new();
    match name {
        ImageName::Layout { path, name: tag, digest } => {
            let layout = Layout::open(path)?;
            let wanted = match platforms {
                Platforms::These(wanted) => wanted.clone(),
                Platforms::All => layout.platforms(tag.as_deref(), digest.as_ref())?,
            };
            for platform in wanted {
                let choice = Choice { name: tag.clone(), digest: digest.clone(), platform };
                let image = read_layout(path, &choice)?;
                let mut names = layout.names(image.manifest.digest())?;
                names.extend(tag.clone());
                add(&mut found, image, choice.platform, names);
            }
        }
        ImageName::Archive { path, name: tag } => {
            let wanted = match platforms {
                Platforms::These(wanted) => wanted.clone(),
                Platforms::All => vec![Platform::host()],
            };
            for platform in wanted {
                let choice = Choice { name: tag.clone(), digest: None, platform };
                let image = read_archive(path, &choice)?;
                add(&mut found, image, choice.platform, tag.iter().cloned().collect());
            }
        }
        ImageName::Registry(_) => {}
    }
    Ok(found)
}

/// Adds an image unless two platforms led to the same.
fn add(found: &mut Found, image: LocalImage, platform: Platform, names: Vec<String>) {
    if found.iter().all(|(other, _, _)| other.manifest.digest() != image.manifest.digest()) {
        let platform = image.platform().unwrap_or(platform);
        found.push((image, platform, names));
    }
}

/// Copies what the volume lacks; gives the number of bytes.
fn copy(store: &Store<ReadWrite>, image: &LocalImage) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for layer in &image.layers {
        if !media_type::is_foreign(&layer.descriptor.media_type) && !store.has(&layer.descriptor) {
            bytes += copy_layer(store, &layer.descriptor, &mut layer.open()?, layer.path(), false)?;
        }
    }
    for (digest, raw) in
        [(image.config.digest(), image.config.raw()), (image.manifest.digest(), image.manifest.raw())]
    {
        if !store.has(&Descriptor::new("", digest.clone(), raw.len() as u64)) {
            store.put_as(digest, raw)?;
            bytes += raw.len() as u64;
        }
    }
    Ok(bytes)
}

/// Copies one layer out of `from`, which lies at `path`, unless the volume has it; gives the number of bytes.
pub(crate) fn copy_layer(
    store: &Store<ReadWrite>,
    layer: &Descriptor,
    from: &mut dyn Read,
    path: &Path,
    replace: bool,
) -> Result<u64, StoreError> {
    let digest = &layer.digest;
    let mut writer = match store.resume(digest)? {
        Resume::Partial(writer) => writer,
        Resume::Present(blob) if blob.len() == layer.size && !replace => return Ok(0),
        Resume::Present(_) => store.writer(Some(digest.clone()))?,
    };
    writer.restart()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(at("read", path, source)),
        };
        let into = writer.path().to_owned();
        io::Write::write_all(&mut writer, &buffer[..read]).map_err(|source| at("write", &into, source))?;
    }
    let bytes = writer.position();
    writer.commit()?;
    Ok(bytes)
}

fn at(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    match source.downcast::<StoreError>() {
        Ok(error) => error,
        Err(source) => StoreError::Io { action, path: path.to_owned(), source },
    }
}

async fn publish(
    run: &Arc<Run>,
    name: &ImageName,
    image: &LocalImage,
    platform: &Platform,
    names: Vec<String>,
) -> Result<(), WarmError> {
    let (manifest, now) = (&image.manifest, run.request.now);
    let descriptor =
        Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size());
    let references = references(name, manifest.digest(), &names);
    let (store, platform, digest) = (run.store.clone(), platform.clone(), manifest.digest().clone());
    run.blocking(move || {
        store.mark_used(&digest, now);
        for reference in references {
            store.publish(&reference, &platform, descriptor.clone(), now)?;
        }
        Ok(())
    })
    .await?;
    Ok(())
}

/// The names under which a Dockerfile may say FROM. A name in a layout may be a bare tag, which names no image outside of
/// it; an image with no other name is found by its digest.
fn references(name: &ImageName, digest: &Digest, names: &[String]) -> Vec<Reference> {
    let mut references: Vec<Reference> = Vec::new();
    for text in names.iter().filter(|text| text.contains(['/', ':'])) {
        if let Ok(reference) = text.parse::<Reference>()
            && !references.contains(&reference)
        {
            references.push(reference);
        }
    }
    if references.is_empty() {
        let path = match name {
            ImageName::Layout { path, .. } | ImageName::Archive { path, .. } => path.as_path(),
            ImageName::Registry(_) => Path::new("image"),
        };
        references.extend(by_digest(path, digest));
    }
    references
}

/// `localhost/DIRECTORY@sha256:…`, with what the grammar of repositories forbids left out.
fn by_digest(path: &Path, digest: &Digest) -> Option<Reference> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let name = if name.is_empty() { "image" } else { &name };
    format!("localhost/{name}@{digest}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_listed_under_full_names_only_or_else_by_digest() {
        let digest = Digest::of(b"manifest");
        let layout: ImageName = "oci-layout:///images/My Base".parse().unwrap();
        let texts = |names: &[&str]| -> Vec<String> {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            references(&layout, &digest, &names).iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(&["latest", "debian:12", "debian:12"]), ["docker.io/library/debian:12"]);
        assert_eq!(texts(&["latest"]), [format!("localhost/mybase@{digest}")]);
    }
}
