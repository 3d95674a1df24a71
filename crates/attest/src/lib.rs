//! What is said about an image: which packages are in it, as an SPDX document, and how it was made, as SLSA provenance;
//! and how that is attached to the image.
//!
//! Start with [`Inventory`], which is shown an image's layers entry by entry, [`Spdx`] and [`Provenance`], which write
//! documents, and [`attach`], which puts statements into a manifest. Nothing here opens a file or a socket: bytes come
//! in by [`std::io::Read`].

mod attach;
mod files;
mod inventory;
mod package;
mod provenance;
mod rpm;
mod spdx;

pub use attach::{Attached, PREDICATE_PROVENANCE, PREDICATE_SPDX, Statement, Subject, attach, image_purl};
pub use files::{Catalog, Distribution, Found, Unread};
pub use inventory::Inventory;
pub use package::{Ecosystem, Package};
pub use provenance::{Material, Provenance};
pub use spdx::Spdx;
