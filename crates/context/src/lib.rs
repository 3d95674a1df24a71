//! Build contexts and the files that COPY and ADD take from them: where they are, which ones are meant, what they hold.
//!
//! Start with [`fetch`] (a context becomes a directory), [`ContextView`] (the directory less what .dockerignore names)
//! and [`select`] (source words become files). No instruction is parsed here and no layer written.

mod archive;
mod digest;
mod error;
mod fetch;
mod filter;
mod select;

pub use archive::{is_archive, open_archive, unpack};
pub use digest::digest;
pub use error::ContextError;
pub use fetch::{ContextRequest, Fetched, fetch};
pub use filter::ContextView;
pub use select::{Item, Selector, Visit, select, walk};
