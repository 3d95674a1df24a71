//! What a warmer tells while it works.

use std::path::PathBuf;

use kiln_oci::{DiffId, Digest, Platform};

use crate::StepsReport;

/// News of warming. The library prints nothing: the caller makes bars and lines of these.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarmEvent {
    /// An image's name was asked for.
    Resolved {
        /// The image.
        image: String,
        /// What the registry gives for it.
        digest: Digest,
    },
    /// A warning: the registry can't be reached, and what the tag meant not long ago is good enough.
    Unreachable {
        /// The image.
        image: String,
        /// How the registry failed.
        why: String,
    },
    /// A blob begins to be downloaded.
    Downloading {
        /// The blob.
        digest: Digest,
        /// Bytes that an earlier attempt left.
        from: u64,
        /// Its size.
        of: u64,
    },
    /// More of a blob has come. Told now and then, not for every packet.
    Received {
        /// The blob.
        digest: Digest,
        /// How much of it is here.
        bytes: u64,
        /// Its size.
        of: u64,
    },
    /// A blob is in the volume, verified.
    Downloaded {
        /// The blob.
        digest: Digest,
        /// How many bytes came over the network.
        received: u64,
        /// Its size.
        of: u64,
    },
    /// A blob could not be downloaded.
    DownloadFailed {
        /// The blob.
        digest: Digest,
    },
    /// A layer was unpacked.
    Unpacked {
        /// The layer.
        diff_id: DiffId,
    },
    /// A warning: a layer is kept as a blob only.
    NotUnpacked {
        /// The layer.
        diff_id: DiffId,
        /// Why.
        why: String,
    },
    /// An image is in the volume whole, as it was before.
    Fresh {
        /// The image.
        image: String,
        /// For which platform.
        platform: Platform,
        /// Its manifest.
        digest: Digest,
    },
    /// An image is in the volume whole, now.
    Warmed {
        /// The image.
        image: String,
        /// For which platform.
        platform: Platform,
        /// Its manifest.
        digest: Digest,
        /// How many bytes were downloaded or copied for it.
        received: u64,
    },
    /// An image could not be warmed. The others go on.
    Failed {
        /// The image.
        image: String,
        /// Why.
        why: String,
    },
    /// A warning: a cached step can't be had, or the cache repository can't be read.
    CacheFault {
        /// Why.
        why: String,
    },
    /// The cached steps are in the volume.
    Steps(StepsReport),
    /// A blob is being hashed.
    Verifying {
        /// The blob.
        digest: Digest,
    },
    /// A blob of the volume is damaged.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A damaged blob was replaced by the registry's.
    Repaired {
        /// The blob.
        digest: Digest,
    },
    /// A damaged blob could not be had again, and was deleted.
    Discarded {
        /// The blob.
        digest: Digest,
        /// Why no other copy was found.
        why: String,
    },
    /// Pruning was left out, because another warmer writes to the volume.
    PruneSkipped,
    /// The volume was pruned.
    Pruned {
        /// The names that went.
        images: Vec<String>,
        /// The bytes that came free.
        freed: u64,
        /// The bytes that are left.
        left: u64,
        /// What should have gone, but is being read.
        in_use: Vec<String>,
    },
}
