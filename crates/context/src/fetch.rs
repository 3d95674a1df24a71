//! Contexts that are at hand: a directory, read in place, or an archive, unpacked into the scratch directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::{ContextError, archive};

/// Where a context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextRequest {
    /// A directory, absolute; read in place.
    Directory {
        /// The directory.
        path: PathBuf,
        /// The folder in it that is used as its root.
        sub_path: Option<String>,
    },
    /// An archive.
    Archive {
        /// The file; `None` is standard input.
        path: Option<PathBuf>,
        /// The folder in it that is used as its root.
        sub_path: Option<String>,
    },
}

/// A context that is on disk now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its root.
    pub root: PathBuf,
}

impl ContextRequest {
    /// As a person would write it.
    pub fn name(&self) -> String {
        match self {
            Self::Directory { path, .. } => format!("dir://{}", path.display()),
            Self::Archive { path: Some(path), .. } => format!("tar://{}", path.display()),
            Self::Archive { path: None, .. } => "tar://stdin".to_owned(),
        }
    }
}

/// Gets a context. An archive is unpacked into `scratch`, a directory that must be there.
pub fn fetch(request: &ContextRequest, scratch: &Path) -> Result<Fetched, ContextError> {
    let fail = |why: String| ContextError::Fetch { context: request.name(), why };
    let (root, sub_path) = match request {
        ContextRequest::Directory { path, sub_path } => (path.clone(), sub_path),
        ContextRequest::Archive { path, sub_path } => {
            let file = match path {
                Some(path) => File::open(path).map_err(|error| fail(error.to_string()))?,
                None => spooled(scratch).map_err(|error| fail(error.to_string()))?,
            };
            if !archive::is_archive(&file) {
                return Err(fail("it is no tar archive, compressed or not".to_owned()));
            }
            archive::unpack(&file, &request.name(), scratch)?;
            (scratch.to_owned(), sub_path)
        }
    };
    let root = match sub_path {
        Some(sub_path) => {
            let below = kiln_rootfs::TreePath::strict(sub_path)
                .ok_or_else(|| fail(format!("--context-sub-path {sub_path} leads out of it")))?;
            below.below(&root)
        }
        None => root,
    };
    match std::fs::metadata(&root) {
        Ok(meta) if meta.is_dir() => Ok(Fetched { root }),
        Ok(_) => Err(fail(format!("{} is not a directory", root.display()))),
        Err(error) => Err(fail(format!("{}: {error}", root.display()))),
    }
}

/// Standard input in a nameless file: an archive is looked at before it is unpacked.
fn spooled(scratch: &Path) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(scratch)?;
    io::copy(&mut io::stdin().lock(), &mut file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_context_is_said_by_its_name() {
        let scratch = tempfile::tempdir().unwrap();
        let request = ContextRequest::Directory { path: "/no/such".into(), sub_path: None };
        assert!(fetch(&request, scratch.path()).unwrap_err().to_string().contains("dir:///no/such"));
        let file = scratch.path().join("text");
        std::fs::write(&file, "no archive").unwrap();
        let request = ContextRequest::Archive { path: Some(file), sub_path: None };
        assert!(fetch(&request, scratch.path()).unwrap_err().to_string().contains("no tar archive"));
    }

    #[test]
    fn a_sub_path_does_not_lead_out() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("c/sub")).unwrap();
        let request = |sub: &str| ContextRequest::Directory {
            path: scratch.path().join("c"),
            sub_path: Some(sub.into()),
        };
        assert!(fetch(&request("sub"), scratch.path()).is_ok());
        assert!(fetch(&request("../c"), scratch.path()).is_err());
        assert!(fetch(&request("nope"), scratch.path()).is_err());
    }
}
