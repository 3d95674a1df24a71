//! What a warmer is asked to do: plain values.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kiln_cache::ImageName;
use kiln_oci::Platform;
use kiln_registry::Registry;

use crate::StepsRequest;

/// Which platforms of an image are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// Every one that the image is made for.
    All,
    /// These.
    These(Vec<Platform>),
}

/// What may stay in the volume when the images are warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneRequest {
    /// `--prune-unused`: drop what was not used for so long.
    pub unused_for: Option<Duration>,
    /// `--max-size`: then drop what was used least recently, until so many bytes are left.
    pub max_size: Option<u64>,
}

/// What to warm, and how.
#[derive(Clone)]
pub struct WarmRequest {
    /// The volume's directory; it is made if it is not there.
    pub volume: PathBuf,
    /// The images.
    pub images: Vec<ImageName>,
    /// The layers of steps, from a cache repository.
    pub steps: Option<StepsRequest>,
    /// For these platforms.
    pub platforms: Platforms,
    /// Where they come from.
    pub registry: Registry,
    /// Whether to fetch what is there and fresh.
    pub force: bool,
    /// For how long what a tag meant counts as known. A tag is asked for on every run, with one HEAD request; where the
    /// registry can't be reached, a younger answer is good enough, and an older one is a failure.
    pub ttl: Duration,
    /// Whether to keep layers unpacked too.
    pub unpack: bool,
    /// Whether to hash everything that is there, and to repair it.
    pub verify: bool,
    /// What to drop in the end.
    pub prune: Option<PruneRequest>,
    /// How many blobs are downloaded at a time; 0 counts as 1.
    pub parallel: usize,
    /// The time now.
    pub now: SystemTime,
}

impl WarmRequest {
    /// A request for `images` for this machine's platform, with the defaults of the command line.
    pub fn new(volume: PathBuf, images: Vec<ImageName>, registry: Registry, now: SystemTime) -> Self {
        Self {
            volume,
            images,
            steps: None,
            platforms: Platforms::These(vec![Platform::host()]),
            registry,
            force: false,
            ttl: Duration::from_secs(336 * 3600),
            unpack: false,
            verify: false,
            prune: None,
            parallel: 4,
            now,
        }
    }
}
