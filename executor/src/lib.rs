//! One build: the planner's questions answered, the plan walked, the image assembled, the outputs written.
//!
//! Start with [`BuildRequest`], [`build`] and [`Event`]. No choice is made here that the plan could have made, and nothing
//! is printed.

mod attest;
mod bare;
mod build;
mod copy;
mod course;
mod early;
mod error;
mod event;
mod forecast;
mod foreign;
mod house;
mod image;
mod join;
mod layers;
mod mount_cache;
mod mounts;
mod outputs;
mod planning;
mod product;
mod remote;
mod removal;
mod repository;
mod request;
mod results;
mod retry;
mod run_step;
mod scratch;
mod session;
mod stage;
mod trees;
mod uploads;
mod users;

pub use attest::{Attest, ProvenanceFlag};
pub use build::{Built, build, rfc3339};
pub use copy::{CopyError, Downloaded};
pub use error::BuildError;
pub use event::{Event, Observer, StepNews};
pub use forecast::{Download, Forecast, Reason};
pub use house::House;
pub use image::{Image, ImageFormat, Layer};
pub use join::{Joined, join};
pub use outputs::write_text;
pub use product::{Attestation, Product};
pub use removal::remove_tree;
pub use request::{
    BuildRequest, Cache, CachePlace, DockerfileAt, Isolation, Layers, Output, RunMountFlag, Secret,
};
pub use scratch::{LAYER_CACHE, MOUNT_CACHE, Scratch, ScratchError};
pub use trees::IMAGE_MARK;
pub use users::{Identity, identity};
