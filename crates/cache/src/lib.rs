//! Where things are looked up, in order: the volume, then the registry. Every fault is a miss, and an event.
//!
//! Start with [`Images`], which finds the images that a build stands on, and [`ResolvedImage`], what it gives.

mod build_record;
mod images;
mod record;
mod relay;
mod steps;

pub use build_record::{BuildRecord, Difference, RecordedStep, build_name};
pub use images::{
    DownloadError, Downloaded, ImageError, ImageEvent, ImageName, ImageNameError, ImageOptions, Images,
    LayerSource, Origin, ResolvedImage, download,
};
pub use record::{BadRecord, Input, Inputs, STEP_CONFIG, StepRecord};
pub use relay::Relay;
pub use steps::{HitBytes, Patience, StepCache, StepPlace, StepResult};
