//! Re-hashing everything that a store holds.

use std::fs;
use std::path::PathBuf;

use kiln_oci::{Algorithm, Digest};

use crate::blob::Blob;
use crate::error::{OnPath, StoreError, if_present};
use crate::store::{ReadWrite, Store};

/// What [`Store::verify`] found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// How many blobs were read.
    pub blobs: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The blobs whose bytes are not what their names say.
    pub bad: Vec<BadBlob>,
}

/// A blob that is not what its name says.
#[derive(Debug)]
pub struct BadBlob {
    /// Its name.
    pub digest: Digest,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: StoreError,
}

impl<A> Store<A> {
    /// The blobs that the store holds, in the order of their digests. Files with other names are passed over.
    pub fn blobs(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.path().join("blobs").join(algorithm.name());
            let Some(entries) = if_present(fs::read_dir(&directory)).on("list", &directory)? else {
                continue;
            };
            for entry in entries {
                let name = entry.on("list", &directory)?.file_name();
                let digest = name.to_str().map(|hex| format!("{}:{hex}", algorithm.name()).parse());
                if let Some(Ok(digest)) = digest {
                    digests.push(digest);
                }
            }
        }
        digests.sort();
        Ok(digests)
    }

    /// Reads every blob and compares its digest with its name. `on` is called with each digest before it is read.
    ///
    /// Damage is reported, not repaired: see [`Store::try_replace`] and [`Store::discard`].
    pub fn verify(&self, on: &mut dyn FnMut(&Digest)) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        for digest in self.blobs()? {
            on(&digest);
            let path = self.blob_path(&digest);
            let checked = Blob::open_quietly(path.clone(), &digest)
                .and_then(|blob| blob.map_or(Ok(None), |blob| blob.verify().map(Some)));
            match checked {
                Ok(Some(bytes)) => {
                    report.blobs += 1;
                    report.bytes += bytes;
                }
                // Pruned meanwhile.
                Ok(None) => {}
                Err(why) => {
                    report.blobs += 1;
                    report.bad.push(BadBlob { digest, path, why });
                }
            }
        }
        Ok(report)
    }
}

impl Store<ReadWrite> {
    /// Takes a damaged blob away, so that nobody finds it; a sound one stays. Gives whether it went.
    pub fn discard(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _lock = self.lock(digest)?;
        let path = self.blob_path(digest);
        match Blob::open_quietly(path.clone(), digest) {
            Ok(None) => return Ok(false),
            Ok(Some(blob)) if blob.verify().is_ok() => return Ok(false),
            Ok(Some(_)) | Err(_) => {}
        }
        if path.is_dir() {
            crate::disk::remove_tree(&path).on("remove", &path)?;
            return Ok(true);
        }
        Ok(if_present(fs::remove_file(&path)).on("remove", &path)?.is_some())
    }
}
