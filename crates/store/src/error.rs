//! What can go wrong on disk. Each message names the path, and what to do next where something can be done.

use std::io;
use std::path::{Path, PathBuf};

use kiln_oci::{Digest, DocumentError};

/// Why a store, layout or archive can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("can't {action} {path}: {source}{}", advice(source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes under a blob's name are not what the name says.
    #[error(
        "the blob {path} is damaged: its bytes have the digest {found}, not {expected}; delete it, or repair the \
         volume with `kiln warmer --verify`"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The digest in its name.
        expected: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
    /// A blob's file is longer or shorter than it must be.
    #[error(
        "the blob {path} is damaged: it has {found} bytes, not {expected}; delete it, or repair the volume with \
         `kiln warmer --verify`"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// The length that its descriptor gives.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// What was written is not what was to be written.
    #[error(
        "what was received for the blob {expected} has the digest {found}: it was changed on its way, and is not kept"
    )]
    Unexpected {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// A manifest, config or index can't be read.
    #[error("{path}: {source}")]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A file has another form than it should.
    #[error("{path} {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A layout or archive lacks the image that was asked for.
    #[error("{path} holds no image {wanted}; it holds {present}")]
    NoImage {
        /// The layout or archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        present: String,
    },
    /// A manifest names a blob that is not there.
    #[error("{path} lacks the blob {digest}, which its image needs; it was copied in part")]
    NoBlob {
        /// The layout or archive.
        path: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// A source of blobs failed while its bytes were copied.
    #[error("can't read the blob {digest} that goes into {path}: {source}")]
    Source {
        /// The layout or archive that is being written.
        path: PathBuf,
        /// The blob.
        digest: Digest,
        /// What its reader says.
        source: io::Error,
    },
}

/// What the person can do about the commonest faults of a disk.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => {
            "; give the volume more room, or let `kiln warmer --max-size` keep it in bounds"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; the volume is mounted read-only: a warmer needs it writable",
        io::ErrorKind::PermissionDenied => {
            "; the volume must belong to this user, or be writable by its group (fsGroup)"
        }
        io::ErrorKind::Unsupported => "; the file system of the volume has no locks (flock)",
        _ => "",
    }
}

/// Puts what was tried, and on what, to an I/O error: `file.sync_all().on("sync", &path)?`.
pub(crate) trait OnPath<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> OnPath<T> for Result<T, io::Error> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source })
    }
}

impl<T> OnPath<T> for Result<T, rustix::io::Errno> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(io::Error::from).on(action, path)
    }
}

/// `Ok(None)` where the file is not there.
pub(crate) fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl From<StoreError> for io::Error {
    /// Readers give [`StoreError`]s through `io::Read`: [`StoreError::in_io`] finds them there again.
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } | StoreError::Source { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl StoreError {
    /// The store's error inside an I/O error that one of its readers gave.
    pub fn in_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether this says that the bytes on disk are damaged, so that another copy of them should be tried.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } | Self::Size { .. } | Self::Document { .. } | Self::NoBlob { .. } => true,
            // A medium that can't be read any more is damaged too.
            Self::Io { action, .. } => *action == "read",
            _ => false,
        }
    }
}
