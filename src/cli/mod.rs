//! What was typed: one struct per subcommand, one field per flag. What it means is worked out in `crate::request`.

pub(crate) mod executor;
pub(crate) mod registry;
pub(crate) mod values;
pub(crate) mod warmer;

use clap::{Args, Parser, Subcommand};

/// Builds container images from Dockerfiles inside an ordinary Kubernetes pod, and warms the volumes they read.
#[derive(Parser, Debug)]
#[command(name = "kiln", version, disable_help_subcommand = true, args_override_self = true)]
pub(crate) struct Kiln {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands of `kiln`.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile and push it
    Executor(Box<ExecutorCommand>),
    /// Fill a cache volume with images
    Warmer(Box<warmer::WarmerFlags>),
    /// Say what a Dockerfile means
    Parse(ParseFlags),
    /// Check a Dockerfile
    Lint(LintFlags),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completion(CompletionFlags),
    /// Write the manual pages to a directory
    #[command(hide = true)]
    Man(ManFlags),
    /// Print the reference of all flags, as Markdown
    #[command(hide = true)]
    Flags,
}

/// `executor`: a build, or one of its own subcommands.
#[derive(Parser, Debug)]
#[command(
    name = "executor",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    args_override_self = true
)]
pub(crate) struct ExecutorCommand {
    #[command(subcommand)]
    pub(crate) command: Option<ExecutorSubcommand>,
    #[command(flatten)]
    pub(crate) flags: executor::ExecutorFlags,
}

/// The subcommands of `executor`.
#[derive(Subcommand, Debug)]
pub(crate) enum ExecutorSubcommand {
    /// Store the user and password for a registry in config.json
    Login(LoginFlags),
    /// Push an archive or a layout made before, or join images in an index
    Push(Box<PushFlags>),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completion(CompletionFlags),
}

/// `executor login`.
#[derive(Args, Debug)]
pub(crate) struct LoginFlags {
    /// The registry, as in reg.example.com:5000
    pub(crate) registry: String,
    /// The user name
    #[arg(short, long)]
    pub(crate) username: String,
    /// The password. --password-stdin keeps it out of the process list
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// `executor push`.
#[derive(Args, Debug)]
pub(crate) struct PushFlags {
    /// A docker archive, or the directory of an OCI layout
    #[arg(required_unless_present = "index")]
    pub(crate) path: Option<std::path::PathBuf>,
    /// Join these images, one per platform, in an index
    #[arg(long, num_args = 1.., value_name = "REF")]
    pub(crate) index: Vec<String>,
    /// Where to push. Repeatable
    #[arg(short, long, required = true, value_name = "REF")]
    pub(crate) destination: Vec<String>,
    #[command(flatten)]
    pub(crate) digest_files: executor::DigestFiles,
    #[command(flatten)]
    pub(crate) registry: registry::RegistryFlags,
    #[command(flatten)]
    pub(crate) push: registry::PushOnlyFlags,
    #[command(flatten)]
    pub(crate) log: values::LogFlags,
}

/// `kiln parse`.
#[derive(Args, Debug)]
pub(crate) struct ParseFlags {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The Dockerfile; - is standard input
    #[arg(default_value = "Dockerfile")]
    pub(crate) file: String,
}

/// `kiln lint`.
#[derive(Args, Debug)]
pub(crate) struct LintFlags {
    /// How findings are printed
    #[arg(long, default_value = "text", value_parser = ["text", "json", "sarif"])]
    pub(crate) format: String,
    /// The Dockerfile; - is standard input
    #[arg(default_value = "Dockerfile")]
    pub(crate) file: String,
}

/// `completion`.
#[derive(Args, Debug)]
pub(crate) struct CompletionFlags {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `man`.
#[derive(Args, Debug)]
pub(crate) struct ManFlags {
    /// The directory
    pub(crate) directory: std::path::PathBuf,
}
