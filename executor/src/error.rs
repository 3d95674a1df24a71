//! Why a build failed: what was tried, on what, and what to do next. `src/` shows it and picks the exit code.

use std::path::PathBuf;

use kiln_dockerfile::{Diagnostic, Source, Span};
use kiln_oci::Digest;

/// A failed build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile is wrong: every error in it.
    #[error("{}", first_message(errors))]
    Dockerfile {
        /// The file.
        source_text: Box<Source>,
        /// The errors, in its order.
        errors: Vec<Diagnostic>,
    },
    /// An instruction failed for a reason outside the Dockerfile.
    #[error("{} line {line}: {instruction}: {cause}", source_text.name)]
    Step {
        /// The file.
        source_text: Box<Source>,
        /// The instruction's first line.
        line: u32,
        /// Where it stands in the file.
        span: Span,
        /// The instruction.
        instruction: String,
        /// What went wrong.
        cause: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A RUN step ended with something else than 0.
    #[error("{} line {line}: {instruction}: {how}; its last lines are above", source_text.name)]
    RunFailed {
        /// The file.
        source_text: Box<Source>,
        /// The instruction's first line.
        line: u32,
        /// Where it stands in the file.
        span: Span,
        /// The instruction.
        instruction: String,
        /// `exit code 7`, `signal 9`.
        how: String,
        /// The exit code; 255 for a signal.
        code: u8,
    },
    /// The Dockerfile can't be read.
    #[error("could not read the Dockerfile: {0}")]
    NoDockerfile(String),
    /// A cached layer that the plan counted on can't be had: the build goes on without it.
    #[error("the cached layer {digest} can't be had any more")]
    Lost {
        /// The layer's blob.
        digest: Digest,
    },
    /// The build was told to stop.
    #[error("the build was cancelled")]
    Cancelled,
    /// Something else, said in full.
    #[error("{0}")]
    Other(String),
    /// A file could not be written.
    #[error("could not write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn first_message(errors: &[Diagnostic]) -> String {
    errors.first().map_or_else(|| "the Dockerfile is wrong".to_owned(), |error| error.message.clone())
}

impl BuildError {
    /// An error that is said in full.
    pub fn other(cause: impl std::fmt::Display) -> Self {
        Self::Other(cause.to_string())
    }

    /// The process's exit code: a failed RUN's own, 1 for anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::RunFailed { code, .. } => *code,
            _ => 1,
        }
    }
}
