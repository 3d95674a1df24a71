//! Cache mounts beyond one machine: locks that several builds on one volume respect, and `--cache-mounts=remote`, which
//! brings the files of a mount from the layer cache when there are none here, and puts them there when the build ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_cache::{Inputs, StepRecord, StepResult};
use kiln_oci::media_type::{self, Compression};
use kiln_oci::{Descriptor, Digest, Platform};
use kiln_plan::{Recipe, StepKey};
use kiln_rootfs::{
    Delta, EmptyView, ExtractOptions, IgnorePaths, LayerOptions, Root, Whiteouts, extract_layer, write_layer,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::BuildError;
use crate::event::Event;
use crate::planning::blocking;
use crate::session::Session;

/// How often a lock that somebody else holds is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// Waits for the lock of a cache mount, shared or alone. A build that is told to stop stops waiting. Where the file system
/// knows no locks, there is none.
pub(crate) fn lock(session: &Session, path: &Path, alone: bool) -> Result<File, BuildError> {
    let doing = |source| BuildError::Write { path: path.to_owned(), source };
    let file = File::create(path).map_err(doing)?;
    let operation =
        if alone { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    let mut told = false;
    loop {
        match flock(&file, operation) {
            Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(doing(error.into())),
        }
        if !std::mem::replace(&mut told, true) {
            session.tell(Event::Note(format!("waiting for the cache mount {}", path.display())));
        }
        session.check_cancelled()?;
        std::thread::sleep(AGAIN);
    }
}

/// The cache mounts that a build used, by the names of their directories.
pub(crate) type Used = BTreeMap<String, Mounted>;

/// A cache mount that is kept in the layer cache too.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    directory: PathBuf,
    lock: PathBuf,
    key: StepKey,
    /// The layer that its files came from.
    brought: Option<Digest>,
}

fn key(name: &str, platform: &Platform) -> StepKey {
    let mut recipe = Recipe::new("cache mount");
    recipe.add("name", name);
    recipe.add("platform", platform.to_string());
    recipe.key()
}

/// Notes that a step uses the cache mount in `directory`, and brings its files if nothing is there yet.
pub(crate) fn begin(
    session: &Session,
    platform: &Platform,
    name: &str,
    directory: &Path,
    lock: &Path,
) -> Result<(), BuildError> {
    let mut used = session.cache_mounts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if used.contains_key(name) {
        return Ok(());
    }
    let key = key(name, platform);
    let brought = if directory.exists() { None } else { bring(session, key, directory)? };
    let (directory, lock) = (directory.to_owned(), lock.to_owned());
    used.insert(name.to_owned(), Mounted { directory, lock, key, brought });
    Ok(())
}

/// Brings the files; gives the layer that they came from. What can't be had is a mount that begins empty.
fn bring(session: &Session, key: StepKey, directory: &Path) -> Result<Option<Digest>, BuildError> {
    let doing = |source| BuildError::Write { path: directory.to_owned(), source };
    let Some(hit) = session.runtime.block_on(session.cache.probe(&[key], &[], None)).remove(&key) else {
        return Ok(None);
    };
    let Ok(blob) = session.runtime.block_on(session.bring(&hit)) else { return Ok(None) };
    let parent = directory.parent().unwrap_or(directory);
    fs::create_dir_all(parent).map_err(doing)?;
    let aside = tempfile::tempdir_in(parent).map_err(doing)?;
    let files = aside.path().join("files");
    fs::create_dir(&files).map_err(doing)?;
    let mut options = ExtractOptions {
        whiteouts: Whiteouts::Apply,
        ignore: IgnorePaths::default(),
        can_mknod: false,
        can_chown: rustix::process::geteuid().is_root(),
        record: None,
    };
    let compression = Compression::of_layer(&hit.media_type).unwrap_or(Compression::Gzip);
    let extracted =
        Root::open(&files).and_then(|root| extract_layer(blob.reader(), compression, &root, &mut options));
    match extracted {
        Ok((diff_id, _)) if diff_id == hit.diff_id => {}
        Ok(_) => return Ok(None),
        Err(error) => {
            session.tell(Event::Warning(format!("a cache mount begins empty: {error}")));
            return Ok(None);
        }
    }
    match fs::rename(&files, directory) {
        Ok(()) => Ok(Some(hit.digest)),
        // Another build was quicker.
        Err(_) if directory.exists() => Ok(None),
        Err(error) => Err(doing(error)),
    }
}

/// Begins to put the cache mounts that changed into the layer cache. Every fault is a warning.
pub(crate) async fn keep(session: &Arc<Session>) {
    let used =
        std::mem::take(&mut *session.cache_mounts.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    for mounted in used.into_values() {
        let shared = Arc::clone(session);
        let kept = blocking(move || {
            let result = pack(&shared, &mounted);
            if let Err(error) = &result {
                let path = mounted.directory.display();
                shared.tell(Event::Warning(format!("the cache mount {path} was not kept: {error}")));
            }
            Ok(result.ok().flatten())
        });
        if let Ok(Some(result)) = kept.await {
            let cache = session.cache.clone();
            session.cache_uploads.spawn(async move {
                cache.put(&result).await;
                Ok(())
            });
        }
    }
}

/// The files as a layer; nothing where they are as they came, or somebody is writing to them.
fn pack(session: &Session, mounted: &Mounted) -> Result<Option<StepResult>, BuildError> {
    let lock = File::create(&mounted.lock)
        .map_err(|source| BuildError::Write { path: mounted.lock.clone(), source })?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Ok(None);
    }
    let delta = Delta::new(mounted.directory.clone());
    let mut changes = delta.changes(Arc::new(EmptyView)).map_err(BuildError::other)?;
    let mut writer = session.blobs.writer(None).map_err(BuildError::other)?;
    let blob =
        write_layer(changes.as_mut(), &LayerOptions::default(), &mut writer).map_err(BuildError::other)?;
    writer.commit().map_err(|error| BuildError::other(io::Error::other(error)))?;
    if mounted.brought.as_ref() == Some(&blob.digest) {
        return Ok(None);
    }
    let media_type = match blob.compression {
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        Compression::None => media_type::OCI_LAYER,
    };
    let layer = Descriptor::new(media_type, blob.digest, blob.size);
    let bytes = session.blobs.blob_of(&layer).map_err(BuildError::other)?;
    let record = StepRecord { key: mounted.key, layer, diff_id: blob.diff_id, created: session.request.now };
    let inputs = Inputs::default();
    Ok(Some(StepResult { records: vec![record], inputs, layer: bytes, elsewhere: None }))
}
