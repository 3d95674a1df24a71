//! Runs real steps in real namespaces, as root. What this machine refuses is left out by name, never in silence.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

mod enclosed;
mod host;
mod machine;
mod mounts;
mod processes;
mod secrecy;
