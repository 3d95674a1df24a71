//! The flags about registries, which executor and warmer share.

use clap::Args;

use super::values::{boolean, pair};

/// Registries, TLS, mirrors and credentials.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Registries")]
pub(crate) struct RegistryFlags {
    /// Allow plain HTTP for pulling: HTTPS is tried first
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) insecure_pull: bool,
    /// Allow plain HTTP for this registry. Repeatable
    #[arg(long, value_name = "HOST")]
    pub(crate) insecure_registry: Vec<String>,
    /// Pull without checking certificates
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) skip_tls_verify_pull: bool,
    /// Don't check this registry's certificate. Repeatable
    #[arg(long, value_name = "HOST")]
    pub(crate) skip_tls_verify_registry: Vec<String>,
    /// Trust this certificate authority for that registry. Repeatable
    #[arg(long, value_name = "HOST=FILE", value_parser = pair)]
    pub(crate) registry_certificate: Vec<(String, String)>,
    /// Show this certificate to that registry. Repeatable
    #[arg(long, value_name = "HOST=CRT,KEY", value_parser = pair)]
    pub(crate) registry_client_cert: Vec<(String, String)>,
    /// A mirror of docker.io, tried before it. Repeatable
    #[arg(long, value_name = "HOST[/PATH]")]
    pub(crate) registry_mirror: Vec<String>,
    /// Other places for a registry, tried before it, as in docker.io=mirror.example.com/hub;quay.io=… Repeatable
    #[arg(long, value_name = "ORIG=NEW[;…]")]
    pub(crate) registry_map: Vec<String>,
    /// Fail when no mirror has it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) skip_default_registry_fallback: bool,
    /// The built-in credential helpers that are tried after config.json: env, google, ecr, acr, gitlab. Empty: none. Repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) credential_helpers: Option<Vec<String>>,
    /// How often a download is tried again
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) image_download_retry: u32,
    /// How many transfers run at once with one registry
    #[arg(long, default_value_t = 6, hide = true, value_name = "N")]
    pub(crate) max_concurrency: usize,
}

/// What only pushing needs.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Registries")]
pub(crate) struct PushOnlyFlags {
    /// Allow plain HTTP for pushing: HTTPS is tried first
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) insecure: bool,
    /// Push, pull and cache without checking certificates
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) skip_tls_verify: bool,
    /// How often a push is tried again
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) push_retry: u32,
    /// Send blobs in requests of this many bytes. Not given: in one request each, in smaller ones once the registry, or a
    /// proxy before it, finds that too large
    #[arg(long, hide = true, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) push_chunk_size: Option<u64>,
    /// A tag that may not change and is already there is a success
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) push_ignore_immutable_tag_errors: bool,
    /// Don't check push rights before the build
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) skip_push_permission_check: bool,
}
