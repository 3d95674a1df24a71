//! The flags of `executor`: kaniko's, with its spellings, and ours.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::registry::{PushOnlyFlags, RegistryFlags};
use super::values::{LogFlags, boolean, duration, pair};

/// Where digests are written.
#[expect(clippy::struct_field_names, reason = "fields are named as the flags")]
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Output")]
pub(crate) struct DigestFiles {
    /// Write the image's digest to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) digest_file: Option<String>,
    /// Write repository@digest of every destination to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) image_name_with_digest_file: Option<String>,
    /// Write repository:tag@digest of every destination to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) image_name_tag_with_digest_file: Option<String>,
}

/// The flags of a build.
#[derive(Args, Debug, Clone)]
pub(crate) struct ExecutorFlags {
    /// The Dockerfile: a path, also inside the context, or a URL
    #[arg(short = 'f', long, default_value = "Dockerfile", value_name = "FILE")]
    pub(crate) dockerfile: String,
    /// The build context: a directory, dir://, tar://FILE, tar://stdin, https://…
    #[arg(short, long, default_value = "/workspace/", value_name = "CONTEXT")]
    pub(crate) context: String,
    /// An old spelling of gs://BUCKET/context.tar.gz
    #[arg(short, long, hide = true)]
    pub(crate) bucket: Option<String>,
    /// A folder inside the context that is used as its root
    #[arg(long, value_name = "PATH")]
    pub(crate) context_sub_path: Option<String>,
    /// Where to push. Repeatable
    #[arg(short, long, value_name = "REF")]
    pub(crate) destination: Vec<String>,
    /// A build argument; K alone takes its value from the environment. Repeatable
    #[arg(long, value_name = "K=V")]
    pub(crate) build_arg: Vec<String>,
    /// The stage to build, by name or number. Repeatable, or a comma list; the first is pushed
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) target: Vec<String>,
    /// A label for the image. Repeatable
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// An annotation for the manifest. Repeatable
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) annotation: Vec<(String, String)>,
    /// A secret for RUN --mount=type=secret. Repeatable
    #[arg(long, value_name = "id=ID[,src=FILE][,env=VAR]")]
    pub(crate) secret: Vec<String>,
    /// An ssh agent's socket or a key for RUN --mount=type=ssh. Repeatable
    #[arg(long, value_name = "default|ID[=PATH]")]
    pub(crate) ssh: Vec<String>,
    /// A named context for FROM and --from. Repeatable
    #[arg(long, value_name = "NAME=CONTEXT", value_parser = pair)]
    pub(crate) build_context: Vec<(String, String)>,
    /// The platform to build for
    #[arg(
        long,
        alias = "custom-platform",
        alias = "customPlatform",
        value_delimiter = ',',
        value_name = "OS/ARCH[/VARIANT]"
    )]
    pub(crate) platform: Vec<String>,
    /// KEY=VALUE for git contexts: branch, single-branch, depth, recurse-submodules, insecure-skip-tls. Repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) git: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) cache: CacheFlags,
    #[command(flatten)]
    pub(crate) output: OutputFlags,
    #[command(flatten)]
    pub(crate) files: FileFlags,
    #[command(flatten)]
    pub(crate) digest_files: DigestFiles,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    #[command(flatten)]
    pub(crate) push: PushOnlyFlags,
    #[command(flatten)]
    pub(crate) log: LogFlags,
    #[command(flatten)]
    pub(crate) ignored: IgnoredFlags,
}

/// The layer cache and the volume.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Cache")]
pub(crate) struct CacheFlags {
    /// Use and fill the layer cache
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) cache: bool,
    /// Use the volume only, and no registry, for base images
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) offline: bool,
    /// The warmed volume
    #[arg(long, default_value = "/cache", value_name = "DIR")]
    pub(crate) cache_dir: PathBuf,
    /// The repository of cached layers, or oci:DIR; by default the first destination's repository with /cache
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) cache_repo: Option<String>,
    /// Cache the results of RUN
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "true")]
    pub(crate) cache_run_layers: bool,
    /// Cache the results of COPY and ADD
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) cache_copy_layers: bool,
    /// Cached layers older than this count as misses
    #[arg(long, default_value = "336h", value_parser = duration, value_name = "DURATION")]
    pub(crate) cache_ttl: Duration,
    /// Don't push cached layers
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) no_push_cache: bool,
    /// Where RUN --mount=type=cache keeps its files, for example on a volume of their own
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_mount_dir: Option<PathBuf>,
    /// Where the files of RUN --mount=type=cache live on: local (that directory), or remote: in the layer cache too, so that
    /// they survive pods without a volume
    #[arg(long, default_value = "local", value_name = "PLACE", value_parser = ["local", "remote"])]
    pub(crate) cache_mounts: String,
    /// Print the plan and build nothing: a tree, or json
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, default_value = "false", value_parser = ["true", "false", "json", "text"])]
    pub(crate) dryrun: String,
}

/// What becomes of the image.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputFlags {
    /// Don't push the image
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) no_push: bool,
    /// Write an archive that docker loads
    #[arg(long, alias = "tarPath", value_name = "FILE")]
    pub(crate) tar_path: Option<PathBuf>,
    /// Write an OCI layout
    #[arg(long, value_name = "DIR")]
    pub(crate) oci_layout_path: Option<PathBuf>,
    /// How new layers are compressed: gzip, zstd
    #[arg(long, value_parser = ["gzip", "zstd"])]
    pub(crate) compression: Option<String>,
    /// How hard: 1 to 9 for gzip, 1 to 22 for zstd
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    pub(crate) compression_level: Option<i32>,
    /// The manifest's media types: docker, oci. By default as in the base image
    #[arg(long, value_parser = ["docker", "oci"])]
    pub(crate) image_format: Option<String>,
    /// Say which packages are in the image: an SPDX document beside it in the index
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) sbom: bool,
    /// Say how the image was made: SLSA provenance beside it in the index. mode=max tells build arguments too
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, default_value = "false", value_name = "mode=min|max[,builder-id=URL]")]
    pub(crate) provenance: String,
    /// Same inputs, same digest: times are SOURCE_DATE_EPOCH, or 0
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) reproducible: bool,
    /// One layer for all changes of the stage
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) single_snapshot: bool,
}

/// Where and how files are kept while building.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Build")]
pub(crate) struct FileFlags {
    /// How steps are kept apart: auto, overlay, directory, chroot, root
    #[arg(long, default_value = "auto", value_parser = ["auto", "overlay", "directory", "chroot", "root"])]
    pub(crate) isolation: String,
    /// How changed files are found: full (content decides), redo (metadata), time (mtime)
    #[arg(long, alias = "snapshotMode", default_value = "full", value_parser = ["full", "redo", "time"])]
    pub(crate) snapshot_mode: String,
    /// A path that is in no layer. Repeatable
    #[arg(long, value_name = "PATH")]
    pub(crate) ignore_path: Vec<String>,
    /// Leave /var/run out of layers. What the pod has mounted there is in none either way
    #[arg(long, alias = "whitelist-var-run", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean)]
    pub(crate) ignore_var_run: Option<bool>,
    /// After the build, remove the scratch directory and empty the file system (rung root)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) cleanup: bool,
    /// The same before the build
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) pre_cleanup: bool,
    /// Rung root: put the container's own files back after each stage and in the end
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) preserve_context: bool,
    /// Rung root: leave the last stage's files in / even if all was cached
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) materialize: bool,
    /// The directory of the executor, of .docker and of ssl/certs
    #[arg(long, value_name = "DIR")]
    pub(crate) kaniko_dir: Option<PathBuf>,
    /// Where trees, layers and downloads live while building
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch_dir: Option<PathBuf>,
    /// A directory of the pod that RUN steps see. Repeatable
    #[arg(long, value_name = "SRC:TARGET[:ro]")]
    pub(crate) run_mount: Vec<String>,
    /// A device of the pod that RUN steps see. Repeatable
    #[arg(long, value_name = "PATH")]
    pub(crate) device: Vec<PathBuf>,
    /// Use rung root although this is not recognised as a container, or not as Kiln's own image
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) force: bool,
    /// How often unpacking an image is tried again
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) image_fs_extract_retry: u32,
}

/// Flags that kaniko needs and Kiln doesn't: each is accepted with a warning that says why.
#[derive(Args, Debug, Clone)]
pub(crate) struct IgnoredFlags {
    /// Not needed: memory is bounded either way
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean)]
    pub(crate) compressed_caching: Option<bool>,
    /// Not needed: changes are found without a full scan
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean)]
    pub(crate) use_new_run: Option<bool>,
    /// Not needed: unused stages are never built
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean)]
    pub(crate) skip_unused_stages: Option<bool>,
    /// Not needed: metadata is always complete
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean)]
    pub(crate) force_build_metadata: Option<bool>,
}
