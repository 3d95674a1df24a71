//! Runs a RUN step: namespaces, mounts, chroot, signals.
//!
//! Start with [`probe`] (which rungs of the isolation ladder work here, by trying), [`choose`] (which one to take, and
//! why) and [`run`] (one step, with its output line by line). Not for: what a step changed in its tree (`kiln-rootfs`),
//! or whether it has to run at all.
//!
//! Kiln has many threads, so a forked child may do nothing that allocates or locks. Everything a step needs is made
//! ready in the parent as a `plan`; the child only walks through it with plain system calls.

mod advice;
mod cancel;
mod choose;
mod compile;
mod error;
mod family;
mod init;
mod lines;
mod plan;
mod probe;
mod program;
mod request;
mod run;
mod rung;
mod setup;
mod standin;
mod supervise;
mod sys;
mod target;
mod text;

pub use cancel::Cancel;
pub use choose::{ChooseError, Situation, choose};
pub use error::{Refusal, SandboxError};
pub use kiln_rootfs::Tree;
pub use probe::{ProbeReport, probe};
pub use request::{Exit, Mount, MountSource, Network, RunRequest, Stream, User};
pub use run::run;
pub use rung::{Enclosure, Rung, UnknownRung, Users};
pub use standin::Relay;
pub use sys::hide_memory;
