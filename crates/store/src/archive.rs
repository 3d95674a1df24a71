//! Reading images from tar archives: `docker save`'s forms, old and new, and OCI layouts in a tar.
//!
//! An archive is listed once, header by header; what is asked for is then read where it lies.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::docker_save;
use crate::error::{OnPath, StoreError};
use crate::layout::Layout;
use crate::local_image::{Choice, LocalImage, Source};

/// Reads one image of the archive at `path`: `docker save`'s (any version's), podman's, buildah's, kaniko's, or a tar of
/// an OCI image layout.
///
/// Fails with [`StoreError::NoImage`], which lists what there is, with [`StoreError::Format`] if it is no such archive,
/// and with the errors of reading.
pub fn read_archive(path: &Path, choice: &Choice) -> Result<LocalImage, StoreError> {
    let archive = match Layout::in_archive(Archive::open(path)?)? {
        Err(archive) => archive,
        Ok(layout) => match layout.find(choice) {
            // Docker lists tags in `manifest.json` only, in some of its versions.
            Err(error @ (StoreError::NoImage { .. } | StoreError::NoBlob { .. })) => {
                match layout.into_archive().filter(|archive| archive.has(docker_save::MANIFEST)) {
                    Some(archive) => archive,
                    None => return Err(error),
                }
            }
            result => return result,
        },
    };
    docker_save::find(&archive, choice)
}

/// A tar archive, listed.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<File>,
    path: PathBuf,
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    File { offset: u64, len: u64 },
    Link(String),
}

/// Above this size no member is read into memory.
const LARGEST_DOCUMENT: u64 = 16 << 20;

/// How many links a name may go through.
const LINKS: usize = 8;

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).on("open", path)?;
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).on("read", path)?;
        if let Some((name, program)) = crate::docker_save::compressed(&magic[..read]) {
            let why = format!("is compressed by {name}: unpack it first, with `{program}`");
            return Err(StoreError::Format { path: path.to_owned(), why });
        }
        let mut members = HashMap::new();
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().on("read the archive", path)? {
            let entry = entry.on("read the archive", path)?;
            let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            let member = if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                // A symbolic link counts from its own directory, a hard link from the root.
                let directory =
                    if kind.is_symlink() { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
                Member::Link(normal(&format!("{directory}/{target}")))
            } else if kind.is_file() || kind.is_contiguous() {
                Member::File { offset: entry.raw_file_position(), len: entry.size() }
            } else {
                continue;
            };
            members.insert(name, member);
        }
        Ok(Self { file: Arc::new(file), path: path.to_owned(), members })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn locate(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normal(name);
        for _ in 0..LINKS {
            match self.members.get(&name)? {
                Member::File { offset, len } => return Some((*offset, *len)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.locate(name).is_some()
    }

    /// The whole member `name`, which should be a document; `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((offset, len)) = self.locate(name) else { return Ok(None) };
        if len > LARGEST_DOCUMENT {
            let why = format!("has a member {name} of {len} bytes: too many for a manifest or config");
            return Err(StoreError::Format { path: self.path.clone(), why });
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, offset).on("read", &self.path)?;
        Ok(Some(bytes))
    }

    /// The first bytes of the member `name`.
    pub(crate) fn magic(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let Some((offset, len)) = self.locate(name) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; usize::try_from(len.min(4)).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, offset).on("read", &self.path)?;
        Ok(bytes)
    }

    /// Where the member `name` lies.
    pub(crate) fn member(&self, name: &str) -> Option<Source> {
        let (offset, len) = self.locate(name)?;
        Some(Source::Member { archive: Arc::clone(&self.file), path: self.path.clone(), offset, len })
    }
}

/// A member's name without `.`, `..` and doubled slashes.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
