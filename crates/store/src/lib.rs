//! Images on disk: the cache volume, OCI image layouts and docker archives.
//!
//! Start with [`Store`], whose type says whether it may be written, [`Blob`], whose reader fails at its end unless the
//! digest fits, and [`LocalImage`], what every reader of layouts and archives gives. A step's key is a file name here,
//! no more. Nothing here speaks to a registry.

mod archive;
mod archive_writer;
mod blob;
mod disk;
mod docker_save;
mod error;
mod index;
mod kaniko;
mod layout;
mod layout_writer;
mod local_image;
mod lock;
mod map;
mod prune;
mod steps;
mod store;
mod stored;
mod temporary;
mod unpacked;
mod verify;
mod writer;

pub use archive::read_archive;
pub use archive_writer::ArchiveWriter;
pub use blob::{Blob, BlobReader};
pub use error::StoreError;
pub use index::{Entry, annotation};
pub use kaniko::find_kaniko_image;
pub use layout::{Layout, read_base_layout, read_layout};
pub use layout_writer::OciLayoutWriter;
pub use local_image::{Blobs, Choice, LocalImage, LocalLayer};
pub use lock::Lock;
pub use prune::{PruneReport, PruneRules};
pub use store::{Durability, ReadOnly, ReadWrite, Store};
pub use stored::{Content, Stored, StoredBlob, read_stored};
pub use unpacked::UnpackGuard;
pub use verify::{BadBlob, VerifyReport};
pub use writer::{BlobWriter, Resume};
