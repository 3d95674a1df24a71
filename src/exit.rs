//! Exit codes, and the one place that ends the process.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All done.
    Done,
    /// A RUN step failed with this code; pipelines branch on it.
    StepFailed(u8),
    /// Anything else, wrong usage too.
    Failed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::StepFailed(code) => Self::from(code),
            Outcome::Failed => Self::FAILURE,
        }
    }
}
