//! A build as a value: everything the command line, the environment and the clock say, worked out. Nothing below reads
//! them again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kiln_oci::media_type::Compression;
use kiln_oci::{Redacted, Reference, Repository};
use kiln_sandbox::Rung;

use crate::house::House;
use crate::image::ImageFormat;

/// One build.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// Where the Dockerfile may be, in the order to try: as given, then inside the context.
    pub dockerfile: DockerfileAt,
    /// The build context.
    pub context: kiln_context::ContextRequest,
    /// The named contexts of files; those that are images are in `plan`.
    pub named_contexts: BTreeMap<String, kiln_context::ContextRequest>,
    /// A snapshot of the environment: credentials of contexts are looked up in it.
    pub environment: kiln_registry::Environment,
    /// What shapes the plan. Its platform is the first of `platforms`.
    pub plan: kiln_plan::Request,
    /// The platforms to build for, at least one: an image each, joined in an index where there are several.
    pub platforms: Vec<kiln_oci::Platform>,
    /// Where the image goes.
    pub output: Output,
    /// The layer cache and the volume.
    pub cache: Cache,
    /// How and where steps run.
    pub isolation: Isolation,
    /// How layers are made.
    pub layers: Layers,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// `--ssh`: agent sockets or keys, by id.
    pub ssh: BTreeMap<String, PathBuf>,
    /// Print the plan and build nothing.
    pub dry_run: bool,
    /// Tell the plan ([`crate::Event::Plans`]), then build.
    pub print_plan: bool,
    /// The time now, seconds since 1970.
    pub now: i64,
}

/// Where the Dockerfile is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileAt {
    /// A path as given, made absolute, and the words as given, for looking inside the context.
    Path {
        /// From the working directory.
        absolute: PathBuf,
        /// As given.
        given: String,
    },
    /// Fetched already (a URL): its name and its bytes.
    Text {
        /// For messages.
        name: String,
        /// What it says.
        bytes: Vec<u8>,
    },
}

/// Where the image goes.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// `--destination`.
    pub destinations: Vec<Reference>,
    /// Whether to push to them.
    pub push: bool,
    /// `--tar-path`.
    pub archive: Option<PathBuf>,
    /// `--oci-layout-path`.
    pub layout: Option<PathBuf>,
    /// `--image-format`; `None` is as in the base image.
    pub format: Option<ImageFormat>,
    /// `--annotation`.
    pub annotations: BTreeMap<String, String>,
    /// Whether push rights are checked before the build.
    pub check_push: bool,
    /// `--push-ignore-immutable-tag-errors`.
    pub ignore_immutable: bool,
    /// `--sbom`, `--provenance`.
    pub attest: crate::attest::Attest,
}

/// The layer cache and the volume.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `--cache`.
    pub enabled: bool,
    /// Where cached layers are.
    pub place: Option<CachePlace>,
    /// The results of which instructions are cached: RUN.
    pub run_layers: bool,
    /// COPY, ADD.
    pub copy_layers: bool,
    /// Older ones are misses.
    pub ttl: Duration,
    /// Whether new ones are stored.
    pub push: bool,
    /// `--cache-dir`, if it is there.
    pub volume: Option<PathBuf>,
    /// No registry for base images.
    pub offline: bool,
    /// `--cache-mount-dir`.
    pub mounts: PathBuf,
    /// `--cache-mounts=remote`: the files of cache mounts are kept in the layer cache too.
    pub remote_mounts: bool,
}

/// Where cached layers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// A repository.
    Remote(Repository),
    /// A layout on disk.
    Layout(PathBuf),
}

/// How and where steps run.
#[derive(Clone, Debug)]
pub struct Isolation {
    /// The rung asked for; `None` is auto.
    pub rung: Option<Rung>,
    /// The scratch directory's parent.
    pub scratch: PathBuf,
    /// Whether this is Kiln's own image.
    pub own_image: bool,
    /// Whether this is a container.
    pub container: bool,
    /// Whether this is gVisor, whose inode numbers change.
    pub gvisor: bool,
    /// `--force`.
    pub force: bool,
    /// `--kaniko-dir`.
    pub kaniko_dir: PathBuf,
    /// What of Kiln's own files rung root leaves alone: never part of a layer.
    pub own: Vec<PathBuf>,
    /// `--image-fs-extract-retry`: how often unpacking a base image is tried again.
    pub extract_retry: u32,
    /// `--run-mount`.
    pub run_mounts: Vec<RunMountFlag>,
    /// `--device`.
    pub devices: Vec<PathBuf>,
    /// `--cleanup` and its like.
    pub house: House,
}

/// `--run-mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMountFlag {
    /// In the pod.
    pub source: PathBuf,
    /// In the step.
    pub target: PathBuf,
    /// Not to be written.
    pub readonly: bool,
}

/// How layers are made.
#[derive(Clone, Debug)]
pub struct Layers {
    /// `--compression`.
    pub compression: Compression,
    /// `--compression-level`.
    pub level: Option<i32>,
    /// Times later than this become this; it is the image's creation time, too.
    pub mtime_limit: Option<i64>,
    /// `--single-snapshot`.
    pub single: bool,
    /// `--snapshot-mode`.
    pub mode: kiln_rootfs::SnapshotMode,
    /// `--ignore-path`, and /var/run with `--ignore-var-run`.
    pub ignored: Vec<String>,
}

/// A secret's value: read by `src/` when the build starts.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The bytes.
    pub value: Redacted<Vec<u8>>,
}
