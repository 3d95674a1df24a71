//! Records of build steps: a key (a file name here, no more) and the descriptor of the manifest that it led to.

use std::fs;
use std::path::PathBuf;

use kiln_oci::Descriptor;

use crate::disk;
use crate::error::{OnPath, StoreError, if_present};
use crate::store::{ReadWrite, Store};

impl<A> Store<A> {
    pub(crate) fn steps(&self) -> PathBuf {
        self.path().join("kiln/layers")
    }

    fn step_path(&self, key: &str) -> Result<PathBuf, StoreError> {
        if key.is_empty() || key.len() > 200 || !key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let why = format!("can't hold a step named {key:?}: a key is hexadecimal digits");
            return Err(StoreError::Format { path: self.steps(), why });
        }
        Ok(self.steps().join(key))
    }

    /// The manifest that the step `key` (hexadecimal digits) led to; `None` if the store knows none.
    pub fn step_record(&self, key: &str) -> Result<Option<Descriptor>, StoreError> {
        let path = self.step_path(key)?;
        let Some(bytes) = if_present(fs::read(&path)).on("read", &path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StoreError::Format {
            path,
            why: format!("is no record of a step ({error}); delete it"),
        })
    }

    /// The keys of all steps that the store has records of.
    pub fn step_keys(&self) -> Result<Vec<String>, StoreError> {
        let directory = self.steps();
        let Some(entries) = if_present(fs::read_dir(&directory)).on("list", &directory)? else {
            return Ok(Vec::new());
        };
        let mut keys = Vec::new();
        for entry in entries {
            if let Ok(name) = entry.on("list", &directory)?.file_name().into_string()
                && self.step_path(&name).is_ok()
            {
                keys.push(name);
            }
        }
        keys.sort();
        Ok(keys)
    }
}

impl Store<ReadWrite> {
    /// Records that the step `key` leads to `manifest`, whose blobs should be there already.
    pub fn put_step_record(&self, key: &str, manifest: &Descriptor) -> Result<(), StoreError> {
        let path = self.step_path(key)?;
        let bytes = serde_json::to_vec(manifest).map_err(|error| StoreError::Format {
            path: path.clone(),
            why: format!("can't be written: {error}"),
        })?;
        disk::replace(&path, &bytes, self.temporary_file()?, self.durability())
    }

    /// Forgets the step `key`; not an error if nothing is known of it.
    pub fn remove_step_record(&self, key: &str) -> Result<(), StoreError> {
        let path = self.step_path(key)?;
        if_present(fs::remove_file(&path)).on("remove", &path).map(|_| ())
    }
}
