//! Steps: what is left of a Dockerfile when metadata is folded away. Everything in them is expanded and absolute.

use std::fmt;

use kiln_dockerfile::{Mount, Network, Security, Span};

use crate::{ContentQuestion, Parts, Recipe, StepKey, Verdict};

/// An image by the name that a Dockerfile or a flag gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageName {
    /// In a registry or the volume: the full reference as text, tag or digest included.
    Reference(String),
    /// `oci-layout://DIR`, with an optional tag or digest after it.
    Layout(String),
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(text) => f.write_str(text),
            Self::Layout(path) => write!(f, "oci-layout://{path}"),
        }
    }
}

/// What a stage begins with. Stages are named by their place in [`crate::BuildPlan::stages`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image.
    Image(ImageName),
}

/// A file tree that COPY or a mount reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeSource {
    /// The build context.
    Context,
    /// A named context of files.
    Named(String),
    /// An earlier stage, by its place in the plan.
    Stage(usize),
    /// An image, for the stage's platform.
    Image(ImageName),
    /// An empty tree.
    Empty,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// The instruction's place in the Dockerfile; for a trigger of the base image, FROM's.
    pub span: Span,
    /// First and last line, counted from 1.
    pub lines: (u32, u32),
    /// The instruction as a person reads it.
    pub text: String,
    /// What is to be done.
    pub op: Op,
    /// What its key was made of.
    pub recipe: Recipe,
    /// The parts of the files that it reads from contexts, as far as they are known.
    pub parts: Parts,
    /// Its keys.
    pub keys: StepKeys,
    /// Questions whose answers, once their stages have run, give keys by content.
    pub late: Vec<Late>,
    /// What is to happen. [`crate::BuildPlan::decide`] sets it.
    pub verdict: Verdict,
}

/// Files of an earlier stage that a step reads: what they hold can take the place of how they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// The recipe's field that the answer replaces.
    pub field: String,
    /// What to ask when the stage has run.
    pub question: ContentQuestion,
}

/// The keys under which a step's result is looked up and stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepKeys {
    /// From recipes alone: known before anything runs.
    pub recipe: StepKey,
    /// With the content of what was read from earlier stages in place of how it was made: known late, and only where such
    /// a step went before. The first is by content as far as that is known; the others are for builds that know less.
    pub content: Vec<StepKey>,
}

impl StepKeys {
    /// From a recipe alone.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        Self { recipe: recipe.key(), content: Vec::new() }
    }

    /// All keys, the recipe's first.
    pub fn all(&self) -> impl Iterator<Item = StepKey> {
        std::iter::once(self.recipe).chain(self.content.iter().copied())
    }

    /// The key that says least of how things were made.
    pub(crate) fn best(&self) -> StepKey {
        self.content.first().copied().unwrap_or(self.recipe)
    }
}

/// The three things that a step can do.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// RUN.
    Run(Box<RunStep>),
    /// COPY, ADD.
    Copy(Box<CopyStep>),
    /// WORKDIR.
    MakeDirectory(DirectoryStep),
}

/// RUN.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStep {
    /// The command line, shell included.
    pub argv: Vec<String>,
    /// A heredoc that begins with `#!`: put at `/dev/pipes/NAME` for the step; `argv` names it.
    pub script: Option<Script>,
    /// The environment: the config's and the build args in scope, in order.
    pub env: Vec<(String, String)>,
    /// Proxy settings from build args: in the environment, in no key and no history.
    pub proxy: Vec<(String, String)>,
    /// USER, not looked up yet.
    pub user: String,
    /// WORKDIR, absolute.
    pub workdir: String,
    /// `--mount`.
    pub mounts: Vec<RunMount>,
    /// `--network`.
    pub network: Network,
    /// `--security`.
    pub security: Security,
}

/// A script given as a heredoc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its file name.
    pub name: String,
    /// Its text.
    pub content: String,
}

/// A mount of a RUN step.
#[derive(Clone, Debug, PartialEq)]
pub struct RunMount {
    /// As resolved; `target` is absolute and clean.
    pub mount: Mount,
    /// What is mounted, for bind and cache mounts.
    pub source: TreeSource,
}

/// COPY, and ADD where `add` is there.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyStep {
    /// Where paths are looked up.
    pub from: TreeSource,
    /// The sources that are no heredocs, expanded, in order.
    pub sources: Vec<CopySource>,
    /// Files written in the Dockerfile, expanded.
    pub inline: Vec<InlineFile>,
    /// The destination, absolute and clean, with its trailing slash if it was written with one.
    pub destination: String,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`.
    pub excludes: Vec<String>,
    /// What only ADD has.
    pub add: Option<AddStep>,
}

/// One source word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path or pattern.
    Path(String),
    /// A URL (ADD only).
    Http(String),
    /// A git address (ADD only).
    Git(String),
}

/// A file written in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFile {
    /// Its name.
    pub name: String,
    /// Its text.
    pub content: String,
}

/// What only ADD has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddStep {
    /// `--checksum`.
    pub checksum: Option<String>,
    /// `--keep-git-dir`; `None` where not written.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`; `None` means local archives only.
    pub unpack: Option<bool>,
}

/// WORKDIR: a directory that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryStep {
    /// Absolute and clean.
    pub path: String,
    /// USER, who owns what is made; empty means 0:0.
    pub owner: String,
}
