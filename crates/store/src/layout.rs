//! Reading OCI image layouts, from directories and from tar archives of one.

use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, media_type};

use crate::archive::Archive;
use crate::blob::Blob;
use crate::error::{OnPath, StoreError, if_present};
use crate::index::{annotation, listed_name, note, read_index};
use crate::local_image::{Choice, LocalImage, Source};
use crate::store::read_document;

/// An OCI image layout that is only read (OCI image-spec 1.1, image-layout.md).
#[derive(Debug)]
pub struct Layout {
    place: Place,
    index: Index,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Archive(Archive),
}

/// Reads one image of the layout in `directory`.
///
/// Fails with [`StoreError::NoImage`], which lists what there is, and with the errors of reading.
pub fn read_layout(directory: &Path, choice: &Choice) -> Result<LocalImage, StoreError> {
    Layout::open(directory)?.find(choice)
}

/// Reads one image of the layout in `directory`, as [`read_layout`] does; where index.json lists one image and no index, that
/// one, whatever platform it is made for.
pub fn read_base_layout(directory: &Path, choice: &Choice) -> Result<LocalImage, StoreError> {
    let layout = Layout::open(directory)?;
    match (layout.find(choice), layout.listed(choice.name.as_deref(), choice.digest.as_ref())?.as_slice()) {
        (Err(StoreError::NoImage { .. }), [only]) if layout.index.manifests.contains(&only.descriptor) => {
            layout.load(&only.descriptor)
        }
        (found, _) => found,
    }
}

/// How deep indexes may list indexes.
const DEPTH: usize = 4;

/// One image that a layout lists.
struct Listed {
    descriptor: Descriptor,
    platform: Option<Platform>,
}

impl Layout {
    /// Opens the layout in `directory`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("index.json");
        let index = read_index(&path)?.ok_or_else(|| StoreError::Format {
            path: directory.to_owned(),
            why: "is no OCI image layout: it has no index.json".to_owned(),
        })?;
        Ok(Self { place: Place::Directory(directory.to_owned()), index })
    }

    /// The layout in the archive at `path`; `None` if there is none in it.
    pub(crate) fn of_file(path: &Path) -> Result<Option<Self>, StoreError> {
        Ok(Self::in_archive(Archive::open(path)?)?.ok())
    }

    /// The layout in an archive; `None` if there is none in it.
    pub(crate) fn in_archive(archive: Archive) -> Result<Result<Self, Archive>, StoreError> {
        let Some(bytes) = archive.read("index.json")? else { return Ok(Err(archive)) };
        match serde_json::from_slice(&bytes) {
            Ok(index) => Ok(Ok(Self { place: Place::Archive(archive), index })),
            Err(error) => {
                let why = format!("holds an index.json that is no OCI index ({error})");
                Err(StoreError::Format { path: archive.path().to_owned(), why })
            }
        }
    }

    pub(crate) fn into_archive(self) -> Option<Archive> {
        match self.place {
            Place::Archive(archive) => Some(archive),
            Place::Directory(_) => None,
        }
    }

    /// What `index.json` lists.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Where the layout lies.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Directory(path) => path,
            Place::Archive(archive) => archive.path(),
        }
    }

    /// The platforms of the images that fit `name` and `digest`, without doubles, in the layout's order.
    pub fn platforms(
        &self,
        name: Option<&str>,
        digest: Option<&Digest>,
    ) -> Result<Vec<Platform>, StoreError> {
        let mut platforms = Vec::new();
        for listed in self.listed(name, digest)? {
            if let Some(platform) = listed.platform
                && !platforms.contains(&platform)
            {
                platforms.push(platform);
            }
        }
        Ok(platforms)
    }

    /// The names of the entries that lead to the manifest `digest`: containerd's full name where there is one, else the
    /// layout's own.
    pub fn names(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for entry in &self.index.manifests {
            let leads = self.flatten(entry, DEPTH)?.iter().any(|listed| listed.descriptor.digest == *digest);
            let name = note(entry, annotation::IMAGE_NAME).or_else(|| note(entry, annotation::REF_NAME));
            if let Some(name) = name.filter(|_| leads) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Reads the image that fits `choice` best.
    pub fn find(&self, choice: &Choice) -> Result<LocalImage, StoreError> {
        let listed = self.listed(choice.name.as_deref(), choice.digest.as_ref())?;
        let best = listed
            .iter()
            .filter_map(|image| {
                // An image that names no platform serves everybody, if nothing better is there.
                let rank =
                    image.platform.as_ref().map_or(Some(u32::MAX), |offered| choice.platform.rank(offered));
                Some((rank?, image))
            })
            .min_by_key(|(rank, _)| *rank);
        match best {
            Some((_, image)) => self.load(&image.descriptor),
            None => Err(StoreError::NoImage {
                path: self.path().to_owned(),
                wanted: choice.describe(),
                present: self.describe()?,
            }),
        }
    }

    /// Reads the image with the manifest `descriptor`.
    pub fn load(&self, descriptor: &Descriptor) -> Result<LocalImage, StoreError> {
        let manifest: Document<Manifest> = self.document(&descriptor.digest)?;
        let config = self.document(&manifest.value().config.digest)?;
        LocalImage::assemble(manifest, config, self.path(), |layer| self.source(&layer.digest))
    }

    fn describe(&self) -> Result<String, StoreError> {
        let mut texts = Vec::new();
        for entry in &self.index.manifests {
            let name =
                note(entry, annotation::REF_NAME).map_or_else(|| entry.digest.to_string(), str::to_owned);
            let platforms: Vec<_> = self
                .flatten(entry, DEPTH)?
                .into_iter()
                .filter_map(|listed| Some(listed.platform?.to_string()))
                .collect();
            texts.push(format!("{name} ({})", platforms.join(", ")));
        }
        Ok(if texts.is_empty() { "none".to_owned() } else { texts.join(", ") })
    }

    fn listed(&self, name: Option<&str>, digest: Option<&Digest>) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        for entry in self.index.manifests.iter().filter(|entry| !entry.is_attestation()) {
            if !name.is_none_or(|name| is_named(entry, name)) {
                continue;
            }
            let all = self.flatten(entry, DEPTH)?;
            match digest {
                Some(digest) if entry.digest != *digest => {
                    let is_index = |listed: &Listed| {
                        note(&listed.descriptor, annotation::INDEX) == Some(&digest.to_string())
                    };
                    found.extend(
                        all.into_iter()
                            .filter(|listed| listed.descriptor.digest == *digest || is_index(listed)),
                    );
                }
                _ => found.extend(all),
            }
        }
        Ok(found)
    }

    /// The images behind `entry`: itself, or what it lists.
    fn flatten(&self, entry: &Descriptor, depth: usize) -> Result<Vec<Listed>, StoreError> {
        if media_type::is_index(&entry.media_type) && depth > 0 {
            let nested: Document<Index> = self.document(&entry.digest)?;
            let mut found = Vec::new();
            for image in nested.value().images() {
                // Layouts often hold some platforms of an index only.
                if self.has(&image.digest)? {
                    found.extend(self.flatten(image, depth - 1)?);
                }
            }
            return Ok(found);
        }
        let mut platform = entry.image_platform();
        if platform.is_none() {
            let manifest: Document<Manifest> = self.document(&entry.digest)?;
            platform = self.document::<ImageConfig>(&manifest.value().config.digest)?.value().platform();
        }
        Ok(vec![Listed { descriptor: entry.clone(), platform }])
    }

    fn blob_name(digest: &Digest) -> String {
        format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
    }

    fn has(&self, digest: &Digest) -> Result<bool, StoreError> {
        let name = Self::blob_name(digest);
        match &self.place {
            Place::Directory(path) => {
                let path = path.join(name);
                Ok(if_present(std::fs::metadata(&path)).on("look at", &path)?.is_some())
            }
            Place::Archive(archive) => Ok(archive.has(&name)),
        }
    }

    pub(crate) fn document<T: serde::de::DeserializeOwned>(
        &self,
        digest: &Digest,
    ) -> Result<Document<T>, StoreError> {
        let name = Self::blob_name(digest);
        let absent = || StoreError::NoBlob { path: self.path().to_owned(), digest: digest.clone() };
        let (path, bytes) = match &self.place {
            Place::Directory(path) => {
                let blob = Blob::open(path.join(name), digest)?.ok_or_else(absent)?;
                (blob.path().to_owned(), read_document(&blob)?)
            }
            Place::Archive(archive) => {
                (archive.path().to_owned(), archive.read(&name)?.ok_or_else(absent)?.into())
            }
        };
        Document::read(bytes, Some(digest)).map_err(|source| StoreError::Document { path, source })
    }

    pub(crate) fn source(&self, digest: &Digest) -> Result<Source, StoreError> {
        let name = Self::blob_name(digest);
        match &self.place {
            Place::Directory(path) => Ok(Source::Blob(path.join(name))),
            Place::Archive(archive) => archive.member(&name).ok_or_else(|| StoreError::NoBlob {
                path: archive.path().to_owned(),
                digest: digest.clone(),
            }),
        }
    }
}

/// Whether the entry of a layout has the name `wanted`, which may be a tag or a reference in any of docker's forms.
fn is_named(entry: &Descriptor, wanted: &str) -> bool {
    let names = [annotation::REF_NAME, annotation::IMAGE_NAME].into_iter().filter_map(|key| note(entry, key));
    names.into_iter().any(|name| same_name(name, wanted))
}

/// Whether two names mean the same image: `debian:12` and `docker.io/library/debian:12` do.
pub(crate) fn same_name(one: &str, other: &str) -> bool {
    one == other
        || matches!(
            (one.parse::<Reference>(), other.parse::<Reference>()),
            (Ok(one), Ok(other)) if listed_name(&one) == listed_name(&other)
        )
}
