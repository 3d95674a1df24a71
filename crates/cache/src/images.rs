//! The images that a build stands on: found in the volume, at the registry, or in files that the person names.
//!
//! Invariant: a name that may move is asked for at the registry first, so that no build silently takes last week's
//! image; bytes come from the nearest place that has them sound, and are compared with their digest before anybody sees
//! them.

mod document;
mod download;
mod elsewhere;
mod error;
mod event;
mod layer;
mod lookup;
mod name;
mod passing;
mod transfer;

pub use download::{DownloadError, Downloaded, download};
pub use error::ImageError;
pub use event::ImageEvent;
pub use layer::LayerSource;
pub use lookup::{ImageOptions, Images, Origin, ResolvedImage};
pub use name::{ImageName, ImageNameError};
