//! One step, from the request to its exit code.

use std::fs::File;

use crate::advice::refuse;
use crate::cancel::Cancel;
use crate::compile;
use crate::error::SandboxError;
use crate::plan::{Failure, Place, Plan};
use crate::request::{Exit, RunRequest, Stream};
use crate::standin::StandIns;
use crate::supervise::{Outcome, Output, carry_out};
use crate::sys;

/// Runs one step to its end and gives its exit code or signal.
///
/// `output` gets each line that the step prints, without its line feed, from the calling thread; lines over 64 KiB come
/// in pieces. When this returns, in whatever way, every process of the step is gone, what was mounted is unmounted, and
/// mount points that were not there before are removed, unless the step put something there. Calls from several
/// threads run side by side. After [`Cancel::cancel`] it returns [`SandboxError::Cancelled`] within four seconds.
pub fn run(
    mut request: RunRequest,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<Exit, SandboxError> {
    if cancel.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    sys::hide_memory().map_err(|error| SandboxError::io("making Kiln's memory unreadable", error))?;
    let stdin = request.stdin.take();
    let stand_ins = StandIns::make(&mut request)?;
    let result = carry_out_step(&mut request, stdin, output, cancel);
    // A tree that could not be restored is worse than whatever the step came to.
    match stand_ins.map(StandIns::undo) {
        Some(Err(error)) => Err(error),
        _ => result,
    }
}

fn carry_out_step(
    request: &mut RunRequest,
    stdin: Option<File>,
    output: Output<'_>,
    cancel: &Cancel,
) -> Result<Exit, SandboxError> {
    let plan = compile::step(request)?;
    let outcome = carry_out(&plan, stdin, output, Some(cancel))?;
    exit(&plan, request, &outcome)
}

fn exit(plan: &Plan, request: &RunRequest, outcome: &Outcome) -> Result<Exit, SandboxError> {
    match *outcome {
        Outcome::Ended(exit) => Ok(exit),
        Outcome::Cancelled => Err(SandboxError::Cancelled),
        Outcome::Died(status) => Err(SandboxError::Supervisor(match status {
            Exit::Code(code) => format!("exit code {code}"),
            Exit::Signal(signal) => format!("signal {signal}"),
        })),
        Outcome::Failed(Failure { place: Place::Program, errno }) => {
            let program = request.argv.first().map(|name| name.to_string_lossy().into_owned());
            Err(SandboxError::Program { program: program.unwrap_or_default(), errno: errno.raw_os_error() })
        }
        Outcome::Failed(failure) => Err(SandboxError::Refused(refuse(plan, failure, None))),
    }
}
