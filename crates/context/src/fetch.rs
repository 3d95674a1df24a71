//! Getting a context: it is a directory afterwards, one that was there before or one in the scratch directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kiln_oci::Digest;

use crate::git::{self, GitRequest};
use crate::place::{ContextRequest, Place};
use crate::remote::{ObjectName, WebArchive};
use crate::{Access, ContextError, Event, archive};

/// Somewhere that a context can be had from.
pub trait Source {
    /// As a person would write it, without a login.
    fn name(&self) -> String;

    /// Gets the files. `into` is an empty directory.
    fn fetch(&self, into: &Path, access: &Access) -> Result<Arrived, ContextError>;
}

/// What a source gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Where the files are.
    pub root: PathBuf,
    /// How many bytes came from elsewhere.
    pub bytes: u64,
    /// Exactly what it was; nothing for what is on this machine.
    pub pin: Option<Pin>,
}

/// Something elsewhere, named so that it can't be another one: an archive by its digest, a revision by its commit or tag object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where it was; no login and no signature is in it.
    pub uri: String,
    /// What made the digest, as in `sha256`; `sha1` for most commits.
    pub algorithm: &'static str,
    /// In hexadecimal.
    pub digest: String,
}

impl Pin {
    /// An archive.
    pub(crate) fn archive(uri: String, digest: Option<Digest>) -> Option<Self> {
        digest.map(|digest| Self { uri, algorithm: digest.algorithm().name(), digest: digest.hex() })
    }
}

/// A context that is on disk now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its root.
    pub root: PathBuf,
    /// Exactly what it was, if it came from elsewhere.
    pub pin: Option<Pin>,
}

/// Gets a context. What does not lie in a directory already comes into `scratch`, a directory that must be there.
pub fn fetch(request: &ContextRequest, scratch: &Path, access: &Access) -> Result<Fetched, ContextError> {
    let web;
    let source: &dyn Source = match &request.place {
        Place::Directory(path) => &Directory(path),
        Place::Archive(path) => &ArchiveFile(path),
        Place::Stdin => &Stdin,
        Place::Object(object) => object as &ObjectName,
        Place::Git(request) => request.as_ref() as &GitRequest,
        Place::Web(url) => {
            web = WebArchive(url.clone());
            &web
        }
    };
    let fail = |why: String| ContextError::Fetch { context: source.name(), why };
    let elsewhere = !matches!(request.place, Place::Directory(_) | Place::Archive(_));
    if elsewhere {
        (access.on)(Event::Begins { source: source.name() });
    }
    let Arrived { root, bytes, pin } = source.fetch(scratch, access)?;
    if elsewhere {
        (access.on)(Event::Done { source: source.name(), bytes });
    }
    let root = match &request.sub_path {
        Some(sub_path) => {
            let below = kiln_rootfs::TreePath::strict(sub_path)
                .ok_or_else(|| fail(format!("--context-sub-path {sub_path} leads out of it")))?;
            below.below(&root)
        }
        None => root,
    };
    match std::fs::metadata(&root) {
        Ok(meta) if meta.is_dir() => Ok(Fetched { root, pin }),
        Ok(_) => Err(fail(format!("{} is not a directory", root.display()))),
        Err(error) => Err(fail(format!("{}: {error}", root.display()))),
    }
}

/// A directory, used as it is.
struct Directory<'a>(&'a Path);

impl Source for Directory<'_> {
    fn name(&self) -> String {
        format!("dir://{}", self.0.display())
    }

    fn fetch(&self, _: &Path, _: &Access) -> Result<Arrived, ContextError> {
        Ok(Arrived { root: self.0.to_owned(), bytes: 0, pin: None })
    }
}

/// An archive in a file.
struct ArchiveFile<'a>(&'a Path);

impl Source for ArchiveFile<'_> {
    fn name(&self) -> String {
        format!("tar://{}", self.0.display())
    }

    fn fetch(&self, into: &Path, _: &Access) -> Result<Arrived, ContextError> {
        let fail = |error: io::Error| ContextError::Fetch { context: self.name(), why: error.to_string() };
        archive::unpack_stream(File::open(self.0).map_err(fail)?, &self.name(), into, false)?;
        Ok(Arrived { root: into.to_owned(), bytes: 0, pin: None })
    }
}

/// An archive on standard input, unpacked as it comes.
struct Stdin;

impl Source for Stdin {
    fn name(&self) -> String {
        "tar://stdin".to_owned()
    }

    fn fetch(&self, into: &Path, _: &Access) -> Result<Arrived, ContextError> {
        archive::unpack_stream(io::stdin(), &self.name(), into, false)?;
        Ok(Arrived { root: into.to_owned(), bytes: 0, pin: None })
    }
}

impl Source for GitRequest {
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn fetch(&self, into: &Path, access: &Access) -> Result<Arrived, ContextError> {
        // A repository of its own for the question: the one in `into` begins with what was decided.
        let asking = ::tempfile::tempdir_in(into.parent().unwrap_or(into)).map_err(|error| {
            ContextError::Fetch { context: self.name(), why: format!("could not make a directory: {error}") }
        })?;
        let mut revision = git::resolve(self, asking.path(), access)?;
        if self.address.commit.is_some() {
            revision.reference = None;
        }
        (access.on)(Event::Commit { source: self.name(), commit: revision.commit.clone() });
        let bytes = git::check_out(self, &revision, into, access)?;
        let root = match &self.address.sub_dir {
            None => into.to_owned(),
            Some(folder) => {
                git::folder(into, folder).map_err(|why| ContextError::Fetch { context: self.name(), why })?
            }
        };
        Ok(Arrived { root, bytes, pin: Some(self.pin(&revision)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::access;

    #[test]
    fn a_missing_context_is_said_by_its_name() {
        let scratch = tempfile::tempdir().unwrap();
        let (runtime, access) = access();
        let request = ContextRequest::directory("/no/such");
        let error = fetch(&request, scratch.path(), &access).unwrap_err().to_string();
        assert!(error.contains("dir:///no/such"), "{error}");
        let file = scratch.path().join("text");
        std::fs::write(&file, "no archive").unwrap();
        let request = ContextRequest { place: Place::Archive(file), sub_path: None };
        let error = fetch(&request, scratch.path(), &access).unwrap_err().to_string();
        assert!(error.contains("no tar archive"), "{error}");
        drop(runtime);
    }

    #[test]
    fn a_sub_path_does_not_lead_out() {
        let scratch = tempfile::tempdir().unwrap();
        let (_runtime, access) = access();
        std::fs::create_dir_all(scratch.path().join("c/sub")).unwrap();
        let request = |sub: &str| ContextRequest {
            place: Place::Directory(scratch.path().join("c")),
            sub_path: Some(sub.into()),
        };
        assert!(fetch(&request("sub"), scratch.path(), &access).is_ok());
        assert!(fetch(&request("../c"), scratch.path(), &access).is_err());
        assert!(fetch(&request("nope"), scratch.path(), &access).is_err());
    }
}
