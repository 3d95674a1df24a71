//! What a Dockerfile says, as data: instructions with the span each came from. Nothing is expanded here.

use crate::{Diagnostic, Span, Word};

/// A parsed file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dockerfile {
    /// The escape character: `\` or a backtick.
    pub escape: char,
    /// The parser directives, in order.
    pub directives: Vec<Directive>,
    /// The instructions, in order. There is at least one.
    pub instructions: Vec<Instruction>,
    /// What the parser itself warns of (empty continuation lines, …). [`crate::lint`] gives these too.
    pub warnings: Vec<Diagnostic>,
}

/// `# name=value` at the top of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Directive {
    /// Lower case.
    pub name: String,
    /// Everything after `=`, trimmed.
    pub value: String,
    /// Counted from 1.
    pub line: u32,
    /// The directive's line.
    pub span: Span,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// The keyword as written, for casing checks. [`Kind::keyword`] is its normal form.
    pub keyword: String,
    /// The keyword's place.
    pub keyword_span: Span,
    /// The instruction with its continuation lines and heredocs.
    pub span: Span,
    /// First and last line, counted from 1.
    pub lines: (u32, u32),
    /// The flags as written, in order.
    pub flags: Vec<Flag>,
    /// The logical line: keyword as written, flags and arguments, continuation lines joined, heredoc bodies left out.
    /// What a history entry or a message shows.
    pub text: String,
    /// The comments right above it, without `#`; directives are none.
    pub comments: Vec<String>,
    /// What it says.
    pub kind: Kind,
}

/// `--name=value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Flag {
    /// Without the dashes.
    pub name: String,
    /// Quotes and escapes removed; `None` without `=`.
    pub value: Option<String>,
    /// Its place.
    pub span: Span,
}

/// The instructions.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// FROM.
    From(From),
    /// ARG, several per line.
    Arg(Vec<ArgDeclaration>),
    /// ENV.
    Env(Vec<Pair>),
    /// LABEL.
    Label(Vec<Pair>),
    /// RUN.
    Run(Run),
    /// CMD.
    Cmd(Command),
    /// ENTRYPOINT.
    Entrypoint(Command),
    /// SHELL: always the exec form.
    Shell(Vec<String>),
    /// COPY.
    Copy(Copy),
    /// ADD.
    Add(Copy, AddOptions),
    /// WORKDIR.
    Workdir(Word),
    /// USER.
    User(Word),
    /// VOLUME.
    Volume(Vec<Word>),
    /// EXPOSE.
    Expose(Vec<Word>),
    /// STOPSIGNAL.
    Stopsignal(Word),
    /// HEALTHCHECK.
    Healthcheck(Healthcheck),
    /// ONBUILD: the trigger's text as an image config keeps it, heredocs included.
    Onbuild(Onbuild),
    /// MAINTAINER.
    Maintainer(String),
}

impl Kind {
    /// The keyword in upper case.
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::From(_) => "FROM",
            Self::Arg(_) => "ARG",
            Self::Env(_) => "ENV",
            Self::Label(_) => "LABEL",
            Self::Run(_) => "RUN",
            Self::Cmd(_) => "CMD",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Shell(_) => "SHELL",
            Self::Copy(_) => "COPY",
            Self::Add(..) => "ADD",
            Self::Workdir(_) => "WORKDIR",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Expose(_) => "EXPOSE",
            Self::Stopsignal(_) => "STOPSIGNAL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Onbuild(_) => "ONBUILD",
            Self::Maintainer(_) => "MAINTAINER",
        }
    }
}

/// FROM `[--platform=P] image [AS name]`.
#[derive(Clone, Debug, PartialEq)]
pub struct From {
    /// `--platform`.
    pub platform: Option<Word>,
    /// The image, a stage's name, a named context, or `scratch`.
    pub image: Word,
    /// The stage's name, lower case.
    pub name: Option<String>,
    /// The stage's name as written, for casing checks.
    pub name_word: Option<Word>,
}

/// One `NAME[=default]` of ARG.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgDeclaration {
    /// The name; may hold variables.
    pub key: Word,
    /// The default.
    pub value: Option<Word>,
}

/// One pair of ENV or LABEL.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The name.
    pub key: Word,
    /// The value.
    pub value: Word,
    /// The old form without `=`.
    pub legacy: bool,
}

/// A command line.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Given to the shell.
    Shell(String),
    /// The JSON form, decoded.
    Exec(Vec<String>),
}

/// RUN.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The command; in shell form with its heredoc markers (`<<EOF`) still in it.
    pub command: Command,
    /// Heredocs, in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order, not expanded.
    pub mounts: Vec<MountFlag>,
    /// `--network`.
    pub network: Network,
    /// `--security`.
    pub security: Security,
    /// `--device`, in order, not expanded.
    pub devices: Vec<Word>,
}

/// `RUN --network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// The pod's.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `RUN --security`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// As every other step.
    #[default]
    Sandbox,
    /// With all privileges.
    Insecure,
}

/// One `--mount` as written. [`MountFlag::resolve`] expands and checks it.
#[derive(Clone, Debug, PartialEq)]
pub struct MountFlag {
    /// The value: `type=cache,target=/c`.
    pub value: Word,
}

/// `RUN --mount`'s kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// `bind`, the default.
    #[default]
    Bind,
    /// `cache`.
    Cache,
    /// `tmpfs`.
    Tmpfs,
    /// `secret`.
    Secret,
    /// `ssh`.
    Ssh,
}

/// `sharing` of a cache mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Several at once.
    Shared,
    /// One of its own for each at once.
    Private,
    /// One after another.
    Locked,
}

/// A mount with its options read. What was not written is empty, zero or `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// `type`.
    pub kind: MountKind,
    /// `from`: a stage, image or named context.
    pub from: String,
    /// `source`, `src`.
    pub source: String,
    /// `target`, `dst`, `destination`.
    pub target: String,
    /// `ro`, `readonly`, or not `rw`. Bind, secret and ssh: true unless said.
    pub readonly: bool,
    /// `id`.
    pub id: String,
    /// `sharing`.
    pub sharing: Option<Sharing>,
    /// `required`.
    pub required: bool,
    /// `size` of a tmpfs, bytes.
    pub size: u64,
    /// `env` of a secret.
    pub env: Option<String>,
    /// `mode`, as a number.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

/// COPY, and what ADD shares with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// `--from`. BuildKit refuses variables in it.
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`, in order. BuildKit takes them as they are: nothing is expanded.
    pub excludes: Vec<Word>,
    /// The sources that are no heredocs.
    pub sources: Vec<Word>,
    /// The sources that are files written in the Dockerfile.
    pub heredocs: Vec<Heredoc>,
    /// The destination.
    pub destination: Word,
}

/// The flags that only ADD has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddOptions {
    /// `--checksum`.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`; `None` where not written.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`; `None` where not written.
    pub unpack: Option<bool>,
}

/// A heredoc.
#[derive(Clone, Debug, PartialEq)]
pub struct Heredoc {
    /// The delimiter, unquoted: the name of the file for COPY and ADD.
    pub name: String,
    /// Whether variables are expanded: the delimiter was not quoted.
    pub expand: bool,
    /// `<<-`.
    pub strip_tabs: bool,
    /// The file descriptor before `<<`, 0 where none.
    pub fd: u32,
    /// The body, tabs stripped if asked for, ending with its newline.
    pub content: String,
    /// The body with its tabs. Where a RUN's command is more than one heredoc marker, the shell is given the command, and
    /// for each heredoc a newline, this and the name.
    pub written: String,
    /// The body's place.
    pub span: Span,
}

/// HEALTHCHECK; durations in nanoseconds, 0 where not written.
#[derive(Clone, Debug, PartialEq)]
pub struct Healthcheck {
    /// The command; `None` for `HEALTHCHECK NONE`.
    pub command: Option<Command>,
    /// `--interval`.
    pub interval: i64,
    /// `--timeout`.
    pub timeout: i64,
    /// `--start-period`.
    pub start_period: i64,
    /// `--start-interval`.
    pub start_interval: i64,
    /// `--retries`.
    pub retries: i64,
}

/// ONBUILD.
#[derive(Clone, Debug, PartialEq)]
pub struct Onbuild {
    /// The text that goes into the image config and is parsed again by the build that uses it: see
    /// [`crate::parse_trigger`].
    pub trigger: String,
    /// The trigger's place.
    pub span: Span,
}
