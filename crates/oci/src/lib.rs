//! The vocabulary of container images: values only, no file and no socket.
//!
//! Start with [`Digest`] (the name of stored bytes), [`Reference`] (the name of an image) and
//! [`Document`] (a manifest or config with the bytes it was read from). Nothing here does I/O.

mod config;
mod descriptor;
mod digest;
mod document;
mod layer_id;
mod manifest;
pub mod media_type;
mod platform;
mod redacted;
mod reference;

pub use config::{Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use descriptor::{Descriptor, DescriptorPlatform};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use document::{Document, DocumentError};
pub use layer_id::{ChainId, DiffId};
pub use manifest::{Index, Manifest};
pub use platform::{Platform, PlatformError};
pub use redacted::Redacted;
pub use reference::{PinnedReference, Reference, ReferenceError, Repository, Tag};
