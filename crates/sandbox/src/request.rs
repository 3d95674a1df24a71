//! What one RUN step is: the tree it runs in, what it runs, as whom, and what it is lent while it runs.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;

use kiln_rootfs::Tree;

use crate::Enclosure;

/// One RUN step.
#[derive(Debug)]
pub struct RunRequest {
    /// The way in, as probed. [`Tree::Directory`] is entered by mounts or by chroot, as this says.
    pub enclosure: Enclosure,
    /// The tree that the step sees as `/`.
    pub tree: Tree,
    /// Program and arguments. A program without a slash is looked for along the PATH of `env`, inside the tree.
    pub argv: Vec<OsString>,
    /// The whole environment: nothing of Kiln's own is added.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory inside the tree. It must be there.
    pub cwd: PathBuf,
    /// Whom the step runs as.
    pub user: User,
    /// What the step reads from standard input; /dev/null without it.
    pub stdin: Option<File>,
    /// What the step is lent. Later mounts may lie below earlier ones.
    pub mounts: Vec<Mount>,
    /// Which network the step sees.
    pub network: Network,
    /// A host name of the step's own, where namespaces allow; without it, it sees the pod's.
    pub hostname: Option<String>,
    /// What the step reads at /etc/resolv.conf; usually the pod's own. On rung root the pod's file is there already.
    pub resolv_conf: Option<Vec<u8>>,
    /// What the step reads at /etc/hosts; as `resolv_conf`.
    pub hosts: Option<Vec<u8>>,
}

impl RunRequest {
    /// A step that runs `argv` in `tree` as root, in `/`, with an empty environment, no mount and the pod's network.
    pub fn new(
        enclosure: Enclosure,
        tree: Tree,
        argv: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self {
            enclosure,
            tree,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: User::default(),
            stdin: None,
            mounts: Vec::new(),
            network: Network::Default,
            hostname: None,
            resolv_conf: None,
            hosts: None,
        }
    }
}

/// Whom a step runs as: numbers only. Names are looked up by the caller, in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// Which network a step sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The pod's.
    #[default]
    Default,
    /// A loopback interface and nothing else. Refused where no network namespace can be made.
    None,
}

/// Something a step is lent at a path while it runs.
#[derive(Debug)]
pub struct Mount {
    /// What is lent.
    pub source: MountSource,
    /// Where the step sees it: absolute, inside the tree; symlinks are followed inside the tree.
    pub target: PathBuf,
}

/// What a step is lent. On the rungs that can't mount, each is played by renaming, copying and putting back.
#[derive(Debug)]
pub enum MountSource {
    /// A directory or file of the pod. Writes go through to it unless `readonly`.
    Bind {
        /// The directory or file, resolved by the caller: symlinks in it are followed in the pod.
        path: PathBuf,
        /// Whether the step may not write.
        readonly: bool,
    },
    /// Part of a stack of layers (another stage's tree), mounted for this step. Only where mounts work:
    /// elsewhere a stage is a plain directory, and `Bind` serves.
    Overlay {
        /// The layers, top first.
        lowers: Vec<PathBuf>,
        /// Takes writes, which are thrown away with it: upper and work directory. Read-only without it.
        writable: Option<(PathBuf, PathBuf)>,
        /// The directory or file inside the stack; symlinks are followed inside the stack.
        source: PathBuf,
    },
    /// An empty directory in memory, gone afterwards.
    Tmpfs {
        /// Most bytes it may hold; the kernel's default (half the memory) without it.
        size: Option<u64>,
        /// Its permissions, such as 0o1777.
        mode: u32,
        /// Whether the step may not write. Only where mounts work.
        readonly: bool,
    },
    /// A file of its own, such as a secret: in memory where mounts work, else on disk for as long as the step runs.
    File {
        /// Its contents: read from the start to the end.
        contents: File,
        /// Its permissions, such as 0o400.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A listening Unix socket of the pod, such as an ssh agent's.
    Socket(PathBuf),
    /// A device node of the pod.
    Device(PathBuf),
}

impl MountSource {
    /// One word for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bind { .. } | Self::Overlay { .. } => "bind",
            Self::Tmpfs { .. } => "tmpfs",
            Self::File { .. } => "file",
            Self::Socket(_) => "socket",
            Self::Device(_) => "device",
        }
    }
}

/// Which of its two outputs a step wrote a line to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It ended by itself, with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// Whether the step succeeded.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}
