//! Pruning: taking away what was not used for long, or does not fit.
//!
//! What goes or stays together is an item: a manifest with its config, layers and unpacked layers. An item that a reader
//! has leased (its manifest's file is locked, see `lock`) stays whole. The order makes it safe to be killed or to meet a
//! reader at any instant: the name goes first, then the manifest while its lock is held exclusively, then what no item
//! that stays refers to, each blob and directory again only if nobody reads it. Blobs of warmers that have not named
//! their image yet are safe because those hold `writing.lock`.

mod inventory;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_oci::Digest;

use crate::disk;
use crate::error::{OnPath, StoreError, if_present};
use crate::lock::{self, Mode};
use crate::store::{ReadWrite, Store};
use crate::writer;
use inventory::{Inventory, Item};

/// What may stay in a store.
#[derive(Clone, Copy, Debug)]
pub struct PruneRules {
    /// Drop what was last used longer ago than this.
    pub unused_for: Option<Duration>,
    /// Then drop what was used least recently until no more than this many bytes are left.
    pub max_size: Option<u64>,
    /// The time now.
    pub now: SystemTime,
}

/// What [`Store::prune`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// The names and keys that no longer mean anything here.
    pub images: Vec<String>,
    /// How many blobs and unpacked layers were removed.
    pub removed: u64,
    /// How many bytes that gave back.
    pub freed: u64,
    /// How many bytes are left.
    pub left: u64,
    /// What should have gone but is being read.
    pub in_use: Vec<String>,
    /// Somebody is writing to the store, so that nothing was done.
    pub busy: bool,
}

impl Store<ReadWrite> {
    /// Notes that the image `manifest` was used at `at`, for [`PruneRules::unused_for`]. Warmers do so for every image
    /// that they are asked for; readers can't where the volume is read-only. A fault is passed over.
    pub fn mark_used(&self, manifest: &Digest, at: SystemTime) {
        let times = fs::FileTimes::new().set_accessed(at).set_modified(at);
        if let Ok(file) = fs::File::open(self.blob_path(manifest)) {
            let _ = file.set_times(times);
        }
    }

    /// Removes what `rules` don't keep, and nothing that is being read.
    ///
    /// While somebody holds [`Store::writing`], nothing is done, and the report says [`PruneReport::busy`]. Entries that
    /// kaniko made are never touched.
    pub fn prune(&self, rules: &PruneRules) -> Result<PruneReport, StoreError> {
        let Some(_alone) = lock::attempt(&self.writing_lock(), Mode::Exclusive)? else {
            return Ok(PruneReport { busy: true, ..PruneReport::default() });
        };
        let mut inventory = Inventory::take(self)?;
        let mut report = PruneReport::default();
        for item in std::mem::take(&mut inventory.items) {
            let stale = rules.unused_for.is_some_and(|limit| item.age(rules.now) > limit);
            let too_much = rules.max_size.is_some_and(|limit| inventory.size() > limit);
            if (stale || too_much) && self.retire(&item, &mut report)? {
                inventory.release(&item);
            }
        }
        self.sweep(&inventory, &mut report)?;
        if let Some(limit) = rules.unused_for {
            self.drop_partial_downloads(limit, rules.now, &mut report)?;
        }
        report.left = inventory.size();
        Ok(report)
    }

    /// Takes away the names and the manifest of `item`, unless it is being read; gives whether it went.
    fn retire(&self, item: &Item, report: &mut PruneReport) -> Result<bool, StoreError> {
        let path = self.blob_path(&item.manifest);
        let claim = lock::claim(&path).on("lock", &path)?;
        if claim.is_none() && path.exists() {
            report.in_use.push(item.label());
            return Ok(false);
        }
        if !item.names.is_empty() {
            self.change_index(|index| index.manifests.retain(|entry| entry.digest != item.manifest))?;
        }
        for key in &item.keys {
            self.remove_step_record(key)?;
        }
        // From here on nobody can begin to read this image: those who opened the file see that its name is gone.
        if let Some(bytes) = if_present(fs::metadata(&path)).on("look at", &path)? {
            if_present(fs::remove_file(&path)).on("remove", &path)?;
            report.removed += 1;
            report.freed += bytes.len();
        }
        if item.is_named() {
            report.images.push(item.label());
        }
        Ok(true)
    }

    /// Removes every blob and unpacked layer that nothing refers to any more.
    fn sweep(&self, inventory: &Inventory, report: &mut PruneReport) -> Result<(), StoreError> {
        for (digest, size) in inventory.unneeded_blobs() {
            self.remove(&self.blob_path(digest), size, report)?;
            // Nobody waits for a lock that nobody needs; whoever does all the same notices that it went.
            let lock_file = self.digest_lock(digest);
            if let Some(_held) = lock::attempt(&lock_file, Mode::Exclusive)? {
                if_present(fs::remove_file(&lock_file)).on("remove", &lock_file)?;
            }
        }
        for (diff_id, size) in inventory.unneeded_layers() {
            self.remove(&self.unpacked_path(diff_id), size, report)?;
        }
        Ok(())
    }

    /// Removes partial downloads that nobody went on with.
    fn drop_partial_downloads(
        &self,
        limit: Duration,
        now: SystemTime,
        report: &mut PruneReport,
    ) -> Result<(), StoreError> {
        let directory = self.temporary();
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let path = entry.on("list", &directory)?.path();
            let Some(digest) = writer::digest_of_part(&path) else { continue };
            let Some(_held) = self.try_lock(&digest)? else { continue };
            let Some(file) = if_present(fs::metadata(&path)).on("look at", &path)? else { continue };
            let touched = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if now.duration_since(touched).is_ok_and(|age| age > limit) {
                fs::remove_file(&path).on("remove", &path)?;
                report.removed += 1;
                report.freed += file.len();
            }
        }
        Ok(())
    }

    /// Removes the file or directory `path`, unless it is being read.
    fn remove(&self, path: &Path, size: u64, report: &mut PruneReport) -> Result<(), StoreError> {
        let Some(_claim) = lock::claim(path).on("lock", path)? else {
            if path.exists() {
                report.in_use.push(path.display().to_string());
            }
            return Ok(());
        };
        if path.is_dir() {
            // Renamed first, so that nobody finds half a layer.
            let aside = self.temporary_directory()?;
            fs::rename(path, aside.directory.path().join("tree")).on("remove", path)?;
            disk::remove_tree(aside.directory.path()).on("remove", path)?;
        } else {
            fs::remove_file(path).on("remove", path)?;
        }
        report.removed += 1;
        report.freed += size;
        Ok(())
    }
}
