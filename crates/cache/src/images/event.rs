//! What the search for images tells its caller.

use std::path::PathBuf;
use std::time::SystemTime;

use kiln_oci::{Digest, Reference};

/// News of the search for an image. The library prints nothing: the caller makes lines of these.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageEvent {
    /// The registry, or with `--offline` the volume, said what a name means.
    Resolved {
        /// The name.
        reference: Reference,
        /// What it means.
        digest: Digest,
    },
    /// A warning: the registry can't be reached, so that what the volume knows of a name is taken.
    VolumeIsAsked {
        /// The name.
        reference: Reference,
        /// What it meant when it was warmed.
        digest: Digest,
        /// When that was.
        resolved_at: SystemTime,
        /// How the registry failed.
        why: String,
    },
    /// A warning: bytes in the volume are not what they should be. Another copy is looked for.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A blob begins to be downloaded, after the `from` bytes that are here already.
    Downloading {
        /// The blob.
        digest: Digest,
        /// Bytes that an earlier attempt left.
        from: u64,
        /// Its size.
        of: u64,
    },
    /// More of a blob has come.
    Received {
        /// The blob.
        digest: Digest,
        /// How much of it is here.
        bytes: u64,
        /// Its size.
        of: u64,
    },
    /// A blob has come whole, verified.
    Downloaded {
        /// The blob.
        digest: Digest,
        /// Its size.
        bytes: u64,
    },
}

impl ImageEvent {
    /// Whether a person should see this even in quiet logs.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::VolumeIsAsked { .. } | Self::Damaged { .. })
    }
}
