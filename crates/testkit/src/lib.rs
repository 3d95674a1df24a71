//! For tests only: a loopback registry with scripted faults, layer builders, and the text form of a file tree. Nothing
//! that ships depends on it. It speaks bytes and text, so every crate's tests can use it.
//!
//! Start with [`TestRegistry`] (`on` scripts what it does wrong), [`parse_tree`] (a tree from lines) and
//! [`LayerBuilder`] (a layer from a tree).

mod image;
mod layer;
mod registry;
mod stand_in;
mod tls;
mod tree;

pub use image::{TestImage, image};
pub use layer::{Layer, LayerBuilder};
pub use registry::{Auth, Fault, RegistryBuilder, Route, Seen, TestRegistry};
pub use stand_in::{Asked, StandIn};
pub use tls::TestAuthority;
pub use tree::{Content, EntryKind, TreeEntry, parse_tree, print_tree};
