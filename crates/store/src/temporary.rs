//! `kiln/tmp`: what is being written.
//!
//! Whoever makes something here locks it, and makes and locks it while holding `kiln/locks/tmp.lock` shared. Whoever
//! cleans up holds that lock exclusively, so what it finds unlocked has lost its writer. Partial downloads
//! (`ALGORITHM-HEX.part`) stay, to be resumed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::disk;
use crate::error::{OnPath, StoreError};
use crate::lock::{self, Mode};
use crate::store::{ReadWrite, Store};

/// A directory under `kiln/tmp`, locked while it is filled.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory {
    pub(crate) directory: TempDir,
    pub(crate) _lock: File,
}

impl Store<ReadWrite> {
    pub(crate) fn temporary(&self) -> PathBuf {
        self.path().join("kiln/tmp")
    }

    fn temporary_lock(&self) -> PathBuf {
        self.locks().join("tmp.lock")
    }

    /// A new file under `kiln/tmp`; it is deleted when it is dropped.
    pub(crate) fn temporary_file(&self) -> Result<NamedTempFile, StoreError> {
        let directory = self.temporary();
        let _making = lock::wait(&self.temporary_lock(), Mode::Shared)?;
        let file = tempfile::Builder::new()
            .prefix("w-")
            .tempfile_in(&directory)
            .on("create a file in", &directory)?;
        lock::hold(file.as_file()).on("lock", file.path())?;
        Ok(file)
    }

    /// A new directory under `kiln/tmp`.
    pub(crate) fn temporary_directory(&self) -> Result<TemporaryDirectory, StoreError> {
        let parent = self.temporary();
        let _making = lock::wait(&self.temporary_lock(), Mode::Shared)?;
        let directory =
            tempfile::Builder::new().prefix("u-").tempdir_in(&parent).on("create a directory in", &parent)?;
        let handle = File::open(directory.path()).on("open", directory.path())?;
        lock::hold(&handle).on("lock", directory.path())?;
        Ok(TemporaryDirectory { directory, _lock: handle })
    }

    /// Removes what writers that are no more left under `kiln/tmp`, unless somebody is making something there.
    pub(crate) fn clean_temporary(&self) -> Result<(), StoreError> {
        let Some(_alone) = lock::attempt(&self.temporary_lock(), Mode::Exclusive)? else { return Ok(()) };
        let directory = self.temporary();
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let path = entry.on("list", &directory)?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                continue;
            }
            // Somebody else's fault or file is no reason not to open the volume.
            let _ = remove_if_abandoned(&path);
        }
        Ok(())
    }
}

fn remove_if_abandoned(path: &Path) -> std::io::Result<()> {
    let Some(_claim) = lock::claim(path)? else { return Ok(()) };
    if fs::symlink_metadata(path)?.is_dir() { disk::remove_tree(path) } else { fs::remove_file(path) }
}
