//! What came of warming.

use std::path::PathBuf;

use kiln_cache::{DownloadError, ImageError, ImageName};
use kiln_oci::{Digest, Platform};
use kiln_store::{PruneReport, StoreError};

use crate::StepsReport;

/// What [`crate::warm`] did, image by image.
#[derive(Debug, Default)]
pub struct WarmReport {
    /// The images that are in the volume whole.
    pub images: Vec<WarmedImage>,
    /// The images that are not.
    pub failed: Vec<Failure>,
    /// The layers of steps, where they were asked for.
    pub steps: Option<StepsReport>,
    /// What `--verify` found.
    pub verify: Option<VerifySummary>,
    /// What was pruned.
    pub pruned: Option<PruneReport>,
}

impl WarmReport {
    /// Whether everything was as asked: exit code 0.
    pub fn is_success(&self) -> bool {
        self.failed.is_empty()
            && self.steps.is_none_or(|steps| steps.failed == 0)
            && self.verify.as_ref().is_none_or(|verify| verify.bad.is_empty())
    }
}

/// An image that is in the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmedImage {
    /// What was asked for.
    pub image: ImageName,
    /// For which platform.
    pub platform: Platform,
    /// Its manifest.
    pub manifest: Digest,
    /// What it took.
    pub state: State,
}

/// What it took to have an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything was there.
    Fresh,
    /// So many bytes had to be downloaded or copied. Blobs that another image brought count there.
    Fetched {
        /// Bytes.
        received: u64,
    },
}

/// An image that could not be warmed.
#[derive(Debug)]
pub struct Failure {
    /// What was asked for.
    pub image: ImageName,
    /// Why.
    pub error: WarmError,
}

/// What `--verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifySummary {
    /// How many blobs were hashed.
    pub blobs: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The damaged ones: name, file, and whether the registry's copy took their place.
    pub bad: Vec<(Digest, PathBuf, bool)>,
}

/// Why warming failed.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The image can't be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The volume failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer of the image can't be downloaded.
    #[error("the image {image}: {source}")]
    Download {
        /// The image.
        image: Box<ImageName>,
        /// What failed.
        source: DownloadError,
    },
    /// No thread could be started.
    #[error("can't start the threads for downloads: {0}; the pod may have no processes left (pids limit)")]
    Threads(std::io::Error),
}
