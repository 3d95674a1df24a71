//! Writing images as archives that `docker load` and `podman load` read, and that are OCI image layouts at once.
//!
//! The same image gives the same bytes: members in a fixed order, times and owners 0. Layers stream through.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, Digest, Document, ImageConfig, Index, Manifest, Reference, media_type};
use serde_json::json;

use crate::error::{OnPath, StoreError};
use crate::index::{annotation, listed_name};
use crate::local_image::Blobs;
use crate::store::LAYOUT_VERSION;

/// Writes one image as a tar archive.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    out: W,
    /// For messages.
    path: PathBuf,
}

impl<W: Write> ArchiveWriter<W> {
    /// Writes to `out`, which messages call `path`.
    pub fn new(out: W, path: &Path) -> Self {
        Self { out, path: path.to_owned() }
    }

    /// Writes the image and ends the archive. Its tags are those of `names`; digests among them are left out. Memory
    /// does not grow with the layers.
    ///
    /// Fails with [`StoreError::Source`] if a layer can't be read whole, and with [`StoreError::Io`].
    pub fn write(
        self,
        manifest: &Document<Manifest>,
        config: &Document<ImageConfig>,
        names: &[Reference],
        blobs: &dyn Blobs,
    ) -> Result<W, StoreError> {
        let tags: Vec<Reference> = names.iter().filter_map(tagged).collect();
        let mut archive = Members { tar: tar::Builder::new(self.out), path: &self.path };
        archive.directory("blobs/")?;
        archive.directory("blobs/sha256/")?;
        archive.bytes("oci-layout", LAYOUT_VERSION)?;
        archive.bytes("index.json", &to_json(&index(manifest, config, &tags)))?;
        archive.bytes("manifest.json", &to_json(&docker_manifest(manifest.value(), &tags)))?;
        if let Some(repositories) = repositories(manifest.value(), &tags) {
            archive.bytes("repositories", &to_json(&repositories))?;
        }
        archive.bytes(&name_of(manifest.digest()), manifest.raw())?;
        archive.bytes(&name_of(config.digest()), config.raw())?;
        let mut seen = HashSet::new();
        for layer in &manifest.value().layers {
            if seen.insert(&layer.digest) {
                archive.blob(layer, blobs)?;
            }
        }
        let mut out = archive.tar.into_inner().on("write", &self.path)?;
        out.flush().on("write", &self.path)?;
        Ok(out)
    }
}

impl ArchiveWriter<BufWriter<File>> {
    /// Writes the image as the file `path`: under another name first, so that nobody finds half of it. What is there and
    /// is no regular file (a pipe, `/dev/stdout`) is written to as it is.
    pub fn write_file(
        path: &Path,
        manifest: &Document<Manifest>,
        config: &Document<ImageConfig>,
        names: &[Reference],
        blobs: &dyn Blobs,
    ) -> Result<(), StoreError> {
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let file = fs::OpenOptions::new().write(true).open(path).on("open", path)?;
            Self::new(BufWriter::new(file), path).write(manifest, config, names, blobs)?;
            return Ok(());
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(directory).on("create the directory", directory)?;
        let temporary = tempfile::Builder::new()
            .prefix(".kiln-")
            .tempfile_in(directory)
            .on("create a file in", directory)?;
        let file = temporary.as_file().try_clone().on("open", path)?;
        Self::new(BufWriter::with_capacity(256 << 10, file), path).write(manifest, config, names, blobs)?;
        crate::disk::persist(temporary, path, crate::store::Durability::Scratch)
    }
}

/// The reference with its tag and without its digest; `None` if it has no tag.
fn tagged(name: &Reference) -> Option<Reference> {
    Some(name.repository.tagged(name.tag_or_latest()?))
}

fn name_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[expect(clippy::expect_used, reason = "values of this file's own making, with text for keys")]
fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON of plain values")
}

fn index(manifest: &Document<Manifest>, config: &Document<ImageConfig>, tags: &[Reference]) -> Index {
    let mut bare = Descriptor::new(manifest.value().media_type(), manifest.digest().clone(), manifest.size());
    bare.platform = config.value().platform().as_ref().map(Into::into);
    let named = |tag: &Reference| {
        let mut descriptor = bare.clone();
        let notes = [
            (annotation::IMAGE_NAME.to_owned(), listed_name(tag)),
            (annotation::REF_NAME.to_owned(), tag.identifier()),
        ];
        descriptor.annotations = Some(notes.into());
        descriptor
    };
    let manifests = if tags.is_empty() { vec![bare.clone()] } else { tags.iter().map(named).collect() };
    Index::new(media_type::OCI_INDEX, manifests)
}

/// What `docker load` reads first.
fn docker_manifest(manifest: &Manifest, tags: &[Reference]) -> serde_json::Value {
    json!([{
        "Config": name_of(&manifest.config.digest),
        // In full: podman takes docker's short form for one of its own, `localhost/…`.
        "RepoTags": tags.iter().map(listed_name).collect::<Vec<_>>(),
        "Layers": manifest.layers.iter().map(|layer| name_of(&layer.digest)).collect::<Vec<_>>(),
    }])
}

/// What docker read before version 1.10: repositories, tags, and the topmost layer of each.
fn repositories(
    manifest: &Manifest,
    tags: &[Reference],
) -> Option<BTreeMap<String, BTreeMap<String, String>>> {
    let top = manifest.layers.last()?.digest.hex();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for tag in tags {
        repositories.entry(tag.repository.to_string()).or_default().insert(tag.identifier(), top.clone());
    }
    (!repositories.is_empty()).then_some(repositories)
}

struct Members<'a, W: Write> {
    tar: tar::Builder<W>,
    path: &'a Path,
}

impl<W: Write> Members<'_, W> {
    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    fn directory(&mut self, name: &str) -> Result<(), StoreError> {
        let mut header = Self::header(tar::EntryType::Directory, 0o755, 0);
        self.tar.append_data(&mut header, name, io::empty()).on("write", self.path)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let mut header = Self::header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
        self.tar.append_data(&mut header, name, bytes).on("write", self.path)
    }

    fn blob(&mut self, descriptor: &Descriptor, blobs: &dyn Blobs) -> Result<(), StoreError> {
        let fail = |source| StoreError::Source {
            path: self.path.to_owned(),
            digest: descriptor.digest.clone(),
            source,
        };
        let from = blobs.open(descriptor).map_err(fail)?;
        let mut exact = Exact { from, left: descriptor.size, failed: false };
        let mut header = Self::header(tar::EntryType::Regular, 0o644, descriptor.size);
        match self.tar.append_data(&mut header, name_of(&descriptor.digest), &mut exact) {
            Err(source) if exact.failed => Err(fail(source)),
            result => result.on("write", self.path),
        }
    }
}

/// Gives exactly as many bytes as the header of the member says, or fails.
struct Exact {
    from: Box<dyn BufRead + Send>,
    left: u64,
    failed: bool,
}

impl Read for Exact {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into).inspect_err(|error| {
            self.failed = error.kind() != io::ErrorKind::Interrupted;
        })?;
        let left = self.left.checked_sub(read as u64);
        self.failed = left.is_none() || (read == 0 && self.left > 0 && !into.is_empty());
        if self.failed {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is longer or shorter than its manifest says",
            ));
        }
        self.left = left.unwrap_or(0);
        Ok(read)
    }
}
