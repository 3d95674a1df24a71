//! The flags of `warmer`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::registry::RegistryFlags;
use super::values::{LogFlags, boolean, bytes, duration};

/// Fills a cache volume with images.
#[derive(Parser, Debug, Clone)]
#[command(name = "warmer", version, args_override_self = true)]
pub(crate) struct WarmerFlags {
    /// The volume
    #[arg(short, long, default_value = "/cache", value_name = "DIR")]
    pub(crate) cache_dir: PathBuf,
    /// An image to warm: by tag, by digest, or oci-layout://DIR. Repeatable
    #[arg(short, long, value_name = "REF")]
    pub(crate) image: Vec<String>,
    /// A Dockerfile whose images are to be warmed: a path or a URL. Repeatable
    #[arg(short, long, value_name = "FILE")]
    pub(crate) dockerfile: Vec<String>,
    /// A build argument for FROM lines. Repeatable
    #[arg(long, value_name = "K=V")]
    pub(crate) build_arg: Vec<String>,
    /// Fetch again although it is there and fresh
    #[arg(long, short, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) force: bool,
    /// A tag that was looked up longer ago is looked up again
    #[arg(long, default_value = "336h", value_parser = duration, value_name = "DURATION")]
    pub(crate) cache_ttl: Duration,
    /// The platform to warm for, or all. Repeatable
    #[arg(
        long,
        alias = "customPlatform",
        alias = "custom-platform",
        value_delimiter = ',',
        value_name = "OS/ARCH[/VARIANT]"
    )]
    pub(crate) platform: Vec<String>,
    /// Keep layers unpacked too, for rung overlay
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) unpack: bool,
    /// Warm the cached layers that the Dockerfiles' builds would hit, too: those of a repository, or of oci:DIR
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) cache_repo: Option<String>,
    /// Drop what was not used for so long
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) prune_unused: Option<Duration>,
    /// Drop what does not fit, least recently used first
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    pub(crate) max_size: Option<u64>,
    /// Hash everything again, repair it from the registry, and exit with 1 if anything was wrong
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) verify: bool,
    /// Allow plain HTTP: HTTPS is tried first
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) insecure: bool,
    /// Don't check certificates
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) skip_tls_verify: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    #[command(flatten)]
    pub(crate) log: LogFlags,
}
