//! What a build tells its observer. A library says nothing itself: `src/` makes lines, bars or JSON of these.

use std::time::Duration;

use kiln_oci::{Digest, Reference};

/// News of a build.
#[derive(Clone, Debug)]
pub enum Event {
    /// How steps are kept apart, and why.
    Isolation {
        /// The rung's name.
        rung: String,
        /// Why this one.
        reason: String,
    },
    /// A base image was found.
    Base {
        /// Its name in the Dockerfile.
        image: String,
        /// Its manifest.
        digest: Digest,
        /// Whether all its layers are on this machine.
        local: bool,
    },
    /// What is planned for each platform, where that was asked for.
    Plans(Vec<crate::Forecast>),
    /// A stage begins.
    Stage {
        /// Its name or number.
        name: String,
    },
    /// A step is looked at.
    Step {
        /// Its stage's name or number.
        stage: String,
        /// Its place in the stage, from 1.
        number: usize,
        /// How many the stage has.
        of: usize,
        /// The instruction.
        text: String,
        /// What happens with it.
        what: StepNews,
    },
    /// A line that a RUN step wrote.
    Output {
        /// Whether it came on standard error.
        error: bool,
        /// The line, its newline included if it had one.
        line: Vec<u8>,
    },
    /// Bytes of a blob went over the wire or into a file.
    Transfer {
        /// The blob.
        digest: Digest,
        /// Whether it goes out.
        upload: bool,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        of: u64,
    },
    /// News of a context, or of a repository that ADD names.
    Context(kiln_context::Event),
    /// Something is odd, and the build goes on.
    Warning(String),
    /// Something worth a line.
    Note(String),
    /// The image stands at a destination.
    Pushed {
        /// The destination.
        reference: Reference,
        /// The image.
        digest: Digest,
    },
    /// All done.
    Finished {
        /// The image.
        digest: Digest,
        /// How long it took.
        took: Duration,
    },
}

/// What happens with a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepNews {
    /// It was found in a cache.
    Cached {
        /// Where.
        origin: String,
    },
    /// The cache has no result of it.
    Missed,
    /// It runs now.
    Runs,
    /// It ended well.
    Done {
        /// How long it took.
        took: Duration,
        /// The layer's size in bytes, compressed.
        size: u64,
    },
}

/// Whoever listens. Called from several threads.
pub type Observer = std::sync::Arc<dyn Fn(Event) + Send + Sync>;
