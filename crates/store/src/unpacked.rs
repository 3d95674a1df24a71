//! Unpacked layers: directories in overlayfs form, one per diff ID, put in place by one rename.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kiln_oci::DiffId;

use crate::disk;
use crate::error::{OnPath, StoreError, if_present};
use crate::lock::{self, Lock, Mode};
use crate::store::{Durability, ReadWrite, Store};
use crate::temporary::TemporaryDirectory;

/// A layer that is being unpacked into [`UnpackGuard::path`]. Dropped without [`UnpackGuard::commit`], it is removed.
#[derive(Debug)]
#[must_use = "an unpacked layer is kept only by commit()"]
pub struct UnpackGuard {
    store: Store<ReadWrite>,
    to: PathBuf,
    directory: TemporaryDirectory,
    /// The directory that becomes the layer: inside the temporary one, which keeps its own mode.
    tree: PathBuf,
    _lock: Lock,
}

impl<A> Store<A> {
    /// Where the unpacked layer `diff_id` lies if it is there.
    pub fn unpacked_path(&self, diff_id: &DiffId) -> PathBuf {
        self.path().join("kiln/unpacked/sha256").join(diff_id.hex())
    }

    /// The unpacked layer `diff_id`, an overlay lower directory; `None` if the store lacks it.
    ///
    /// As long as this store (or a clone of it) is open, nobody prunes that directory.
    pub fn unpacked(&self, diff_id: &DiffId) -> Result<Option<PathBuf>, StoreError> {
        let path = self.unpacked_path(diff_id);
        let Some(directory) = if_present(File::open(&path)).on("open", &path)? else { return Ok(None) };
        if !lock::lease(&path, &directory).on("lock", &path)? {
            return Ok(None);
        }
        self.keep_lease(directory);
        Ok(Some(path))
    }
}

impl Store<ReadWrite> {
    /// Begins to unpack the layer `diff_id`; waits while somebody else does. `None` if it is there.
    pub fn unpack(&self, diff_id: &DiffId) -> Result<Option<UnpackGuard>, StoreError> {
        let lock = lock::wait(&self.unpack_lock(diff_id), Mode::Exclusive)?;
        let to = self.unpacked_path(diff_id);
        if to.exists() {
            return Ok(None);
        }
        let directory = self.temporary_directory()?;
        let tree = directory.directory.path().join("tree");
        // What the root of an image looks like unless a layer says otherwise, whatever the umask.
        disk::make_directory(&tree, 0o755)?;
        Ok(Some(UnpackGuard { store: self.clone(), to, directory, tree, _lock: lock }))
    }

    pub(crate) fn unpack_lock(&self, diff_id: &DiffId) -> PathBuf {
        self.locks().join(format!("unpacked-{}.lock", diff_id.hex()))
    }
}

impl UnpackGuard {
    /// The directory to unpack into. Its own mode and owner become those of the layer's root.
    pub fn path(&self) -> &Path {
        &self.tree
    }

    /// Puts the directory under its name; gives its path there.
    pub fn commit(self) -> Result<PathBuf, StoreError> {
        let durability = self.store.durability();
        if durability == Durability::Synced {
            // One call for the whole tree, instead of one per file.
            let tree = File::open(&self.tree).on("open", &self.tree)?;
            rustix::fs::syncfs(&tree).on("sync", &self.tree)?;
        }
        fs::rename(&self.tree, &self.to).on("put in place", &self.to)?;
        if let Some(parent) = self.to.parent() {
            disk::sync_directory(parent, durability)?;
        }
        Ok(self.to.clone())
    }
}

impl Drop for UnpackGuard {
    fn drop(&mut self) {
        // A tree may hold directories that forbid their own removal; what stays is cleaned by the next writer.
        let _ = disk::remove_tree(self.directory.directory.path());
    }
}
