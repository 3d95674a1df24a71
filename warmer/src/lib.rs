//! Which images a volume should hold, and getting them there.
//!
//! Start with [`warm`], what it is asked ([`WarmRequest`]) and what it answers ([`WarmReport`]). The volume's files are
//! `kiln-store`'s; whoever builds from the volume is not known here.

mod event;
mod image;
mod layout;
mod progress;
mod repair;
mod report;
mod request;
mod run;
mod steps;
mod unpack;

pub use event::WarmEvent;
pub use report::{Failure, State, VerifySummary, WarmError, WarmReport, WarmedImage};
pub use request::{Platforms, PruneRequest, WarmRequest};
pub use run::warm;
pub use steps::{StepsFrom, StepsReport, StepsRequest};
