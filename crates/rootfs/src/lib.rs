//! Layers to file trees and back: the path jail, extraction, change detection, layer writing.
//!
//! Start with [`View`] (a look at a tree), [`extract`] (a layer's files) and [`write_layer`] (changes become a layer). No
//! process and no namespace is made here: an overlay is described, and mounted by whoever runs the step.

mod changes;
mod compress;
mod contents;
mod decompress;
mod delta;
mod entries;
mod error;
mod extract;
mod ignore_paths;
mod interest;
mod layer;
mod meta;
mod overlay;
mod remove;
mod root;
mod skeleton;
mod snapshot;
mod tar_read;
mod tar_write;
mod tree_path;
mod view;
mod whole;

pub use changes::{Change, ChangeSource, Unignored, What};
pub use decompress::{apart, decompress};
pub use delta::{Delta, DeltaBuilder};
pub use entries::{LayerEntry, LayerWhat, entries};
pub use error::RootfsError;
pub use extract::{ExtractOptions, Extracted, Record, Whiteouts, extract, extract_layer};
pub(crate) use ignore_paths::HidingView;
pub use ignore_paths::IgnorePaths;
pub use interest::Interest;
pub use kiln_oci::media_type::Compression;
pub use layer::{LayerBlob, LayerOptions, write_layer};
pub use meta::{Kind, Meta, Timestamp};
pub use overlay::OverlayView;
pub use root::Root;
pub use skeleton::skeleton;
pub use snapshot::*;
pub use tar_read::{Entry, EntryKind, TarReader, begins_as_tar};
pub use tree_path::TreePath;
pub use view::{DirectoryView, EmptyView, View, Xattrs, resolve, resolve_parent};
pub use whole::Whole;
