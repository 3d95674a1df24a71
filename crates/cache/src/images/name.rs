//! What a person may write for an image: a reference, or a place on disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kiln_oci::{Digest, Reference, ReferenceError};

/// An image by its name in a registry, or in a layout or archive on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageName {
    /// `debian:12`.
    Registry(Reference),
    /// `oci-layout://DIR[:NAME][@DIGEST]`.
    Layout {
        /// The layout's directory.
        path: PathBuf,
        /// The image's name in the layout.
        name: Option<String>,
        /// The digest of its manifest or index.
        digest: Option<Digest>,
    },
    /// `docker-archive://FILE[:NAME]` or `oci-archive://FILE[:NAME]`: what the file holds decides, not the prefix.
    Archive {
        /// The archive.
        path: PathBuf,
        /// The image's name in the archive.
        name: Option<String>,
    },
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageNameError {
    /// It is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It has no path.
    #[error(
        "{0:?} names no directory or file: write oci-layout://DIR, docker-archive://FILE or oci-archive://FILE"
    )]
    NoPath(String),
    /// What follows `@` is no digest.
    #[error("{0:?}: what follows @ is not a digest (sha256: and 64 hexadecimal digits)")]
    Digest(String),
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        if let Some(rest) = text.strip_prefix("oci-layout://") {
            let (rest, digest) = match rest.rsplit_once('@') {
                Some((rest, digest)) => {
                    let digest = digest.parse().map_err(|_| ImageNameError::Digest(text.to_owned()))?;
                    (rest, Some(digest))
                }
                None => (rest, None),
            };
            let (path, name) = path_and_name(text, rest)?;
            return Ok(Self::Layout { path, name, digest });
        }
        for prefix in ["docker-archive://", "oci-archive://"] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (path, name) = path_and_name(text, rest)?;
                return Ok(Self::Archive { path, name });
            }
        }
        Ok(Self::Registry(text.parse()?))
    }
}

/// Splits at the first colon after the path: names may hold colons, paths here may not.
fn path_and_name(text: &str, rest: &str) -> Result<(PathBuf, Option<String>), ImageNameError> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name).filter(|name| !name.is_empty())),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ImageNameError::NoPath(text.to_owned()));
    }
    Ok((path.into(), name.map(str::to_owned)))
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, name, digest) = match self {
            Self::Registry(reference) => return write!(f, "{reference}"),
            Self::Layout { path, name, digest } => {
                write!(f, "oci-layout://")?;
                (path, name, digest.as_ref())
            }
            Self::Archive { path, name } => {
                write!(f, "docker-archive://")?;
                (path, name, None)
            }
        };
        write!(f, "{}", path.display())?;
        if let Some(name) = name {
            write!(f, ":{name}")?;
        }
        digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl From<Reference> for ImageName {
    fn from(reference: Reference) -> Self {
        Self::Registry(reference)
    }
}

impl TryFrom<&kiln_plan::ImageName> for ImageName {
    type Error = ImageNameError;

    /// The image that a plan asks for.
    fn try_from(name: &kiln_plan::ImageName) -> Result<Self, ImageNameError> {
        name.to_string().parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_references_layouts_or_archives() {
        let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
        for text in [
            "docker.io/library/debian:12",
            "oci-layout:///images/base",
            "oci-layout://base:debian:12",
            &format!("oci-layout:///images/base:x@{digest}"),
            "docker-archive:///a.tar:r.example:5000/x:1",
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), *text);
        }
        let ImageName::Layout { path, name, digest } = "oci-layout:///a:b:1".parse().unwrap() else {
            panic!()
        };
        assert_eq!((path, name, digest), ("/a".into(), Some("b:1".to_owned()), None));
    }

    #[test]
    fn a_name_without_a_path_or_with_half_a_digest_is_refused() {
        for text in ["oci-layout://", "docker-archive://:x", "oci-layout:///a@sha256:12", "UPPER/case:x y"] {
            text.parse::<ImageName>().unwrap_err();
        }
    }
}
