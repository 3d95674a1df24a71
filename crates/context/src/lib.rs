//! Build contexts and the files that COPY and ADD take from them: where they are, which ones are meant, what they hold.
//!
//! Start with [`Place`] (where a context is), [`fetch`] (it becomes a directory), [`ContextView`] (the directory less what
//! .dockerignore names) and [`select`] (source words become files). Every kind of place is a [`Source`]. No instruction
//! is parsed here and no layer written.

mod access;
mod archive;
mod digest;
mod error;
mod event;
mod fetch;
mod filter;
pub mod git;
mod parts;
mod place;
mod remote;
mod select;
mod steady;
#[cfg(test)]
mod tests;

pub use access::{Access, Observer};
pub use archive::{is_archive, open_archive};
pub use digest::{digest, digest_parts};
pub use error::ContextError;
pub use event::Event;
pub use fetch::{Arrived, Fetched, Pin, Source, fetch};
pub use filter::ContextView;
pub use parts::Parts;
pub use place::{ContextRequest, Place};
pub use remote::{ObjectName, Store, azure::Account};
pub use select::{Item, Selector, Visit, select, walk};
pub use steady::SteadyView;
