//! snapshot
mod log;
mod mountinfo;
mod record;
mod scan;
mod spool;
pub use mountinfo::mount_points;
pub(crate) use scan::{is_alike, is_set_mtime};
/// How changes are found on rungs that keep plain trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SnapshotMode {
    /// Metadata says which files may differ, content decides.
    #[default]
    Full,
    /// Metadata alone.
    Redo,
    /// The mtime alone.
    Time,
}
