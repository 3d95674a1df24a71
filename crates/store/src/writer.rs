//! Writing blobs: hashed on their way, put under their name only when whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use kiln_oci::{Algorithm, Digest, Hasher};
use tempfile::NamedTempFile;

use crate::blob::Blob;
use crate::disk;
use crate::error::{OnPath, StoreError, if_present};
use crate::lock::Lock;
use crate::store::{ReadWrite, Store};

/// Writes one blob. Nobody sees it before [`BlobWriter::commit`].
///
/// Dropped instead, a writer of [`Store::writer`] leaves no file; one of [`Store::resume`] leaves what it wrote, for the
/// next one to go on with.
#[derive(Debug)]
#[must_use = "a blob is kept only by commit()"]
pub struct BlobWriter {
    store: Store<ReadWrite>,
    expected: Option<Digest>,
    hasher: Hasher,
    position: u64,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Fresh(NamedTempFile),
    Part { file: File, path: PathBuf, _lock: Lock },
}

/// What [`Store::resume`] found.
#[derive(Debug)]
pub enum Resume {
    /// The blob is there: somebody else wrote it meanwhile, or before.
    Present(Blob),
    /// It is not there yet. The writer stands at [`BlobWriter::position`], and holds the blob's lock.
    Partial(BlobWriter),
}

impl BlobWriter {
    pub(crate) fn fresh(store: &Store<ReadWrite>, expected: Option<Digest>) -> Result<Self, StoreError> {
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        Ok(Self {
            target: Target::Fresh(store.temporary_file()?),
            store: store.clone(),
            expected,
            hasher: Hasher::new(algorithm),
            position: 0,
        })
    }

    pub(crate) fn resumed(store: &Store<ReadWrite>, digest: &Digest, lock: Lock) -> Result<Self, StoreError> {
        let path = part_path(store, digest);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = match options.open(&path) {
            // Another user's warmer began it. The directory is ours to write, so it can be begun again.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                std::fs::remove_file(&path).on("remove", &path)?;
                options.open(&path).on("create", &path)?
            }
            result => result.on("open", &path)?,
        };
        file.set_len(beginning(&file).on("read", &path)?).on("truncate", &path)?;
        let mut hasher = Hasher::new(digest.algorithm());
        let position = hash_rest(&mut file, &mut hasher).on("read", &path)?;
        Ok(Self {
            store: store.clone(),
            expected: Some(digest.clone()),
            hasher,
            position,
            target: Target::Part { file, path, _lock: lock },
        })
    }

    /// How many bytes are written, those of an earlier attempt included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The digest of what is written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Writes `bytes` at `offset`, ahead of [`BlobWriter::position`]. They belong to the blob once they are taken in.
    pub fn write_ahead(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.handle().write_all_at(bytes, offset)
    }

    /// Takes in what was written ahead up to byte `end`, without a gap from [`BlobWriter::position`].
    pub fn take_in(&mut self, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; 128 << 10];
        while self.position < end {
            let most = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(buffer.len());
            let position = self.position;
            self.handle().read_exact_at(&mut buffer[..most], position)?;
            self.hasher.update(&buffer[..most]);
            self.position += most as u64;
        }
        let position = self.position;
        self.handle().seek(SeekFrom::Start(position)).map(|_| ())
    }

    /// Forgets what was written ahead and not taken in.
    pub fn forget_ahead(&mut self) -> io::Result<()> {
        let position = self.position;
        self.handle().set_len(position)
    }

    fn handle(&mut self) -> &mut File {
        match &mut self.target {
            Target::Fresh(temporary) => temporary.as_file_mut(),
            Target::Part { file, .. } => file,
        }
    }

    /// Throws away what was written so far: the source can't go on where it ended.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        let (file, path) = self.file();
        file.set_len(0).and_then(|()| file.rewind()).on("truncate", &path)?;
        self.position = 0;
        self.hasher = Hasher::new(self.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
        Ok(())
    }

    /// Puts the blob under its name, durably if the store is.
    ///
    /// Fails with [`StoreError::Unexpected`] if it was to have another digest; then nothing is kept, not even for
    /// resuming.
    pub fn commit(mut self) -> Result<Digest, StoreError> {
        let found = std::mem::replace(&mut self.hasher, Hasher::sha256()).finish();
        if let Some(expected) = self.expected.clone().filter(|expected| *expected != found) {
            if let Target::Part { path, .. } = &self.target {
                std::fs::remove_file(path).on("remove", path)?;
            }
            return Err(StoreError::Unexpected { expected, found });
        }
        let to = self.store.blob_path(&found);
        if found.algorithm() != Algorithm::Sha256
            && let Some(directory) = to.parent()
        {
            disk::make_directory(directory, 0o755)?;
        }
        let durability = self.store.durability();
        match self.target {
            Target::Part { file, path, _lock } => disk::put_in_place(&file, &path, &to, durability)?,
            Target::Fresh(temporary) => disk::persist(temporary, &to, durability)?,
        }
        Ok(found)
    }

    /// Throws everything away: what came is not what it should be. Unlike a drop, this leaves nothing to resume.
    pub fn abandon(self) -> Result<(), StoreError> {
        match &self.target {
            Target::Fresh(_) => Ok(()),
            Target::Part { path, .. } => {
                if_present(std::fs::remove_file(path)).on("remove", path).map(|_| ())
            }
        }
    }

    fn file(&mut self) -> (&mut File, PathBuf) {
        match &mut self.target {
            Target::Fresh(temporary) => {
                let path = temporary.path().to_owned();
                (temporary.as_file_mut(), path)
            }
            Target::Part { file, path, .. } => (file, path.clone()),
        }
    }

    /// The file that is being written, for messages.
    pub fn path(&self) -> &Path {
        match &self.target {
            Target::Fresh(temporary) => temporary.path(),
            Target::Part { path, .. } => path,
        }
    }
}

/// The partial download of `digest`.
pub(crate) fn part_path(store: &Store<ReadWrite>, digest: &Digest) -> PathBuf {
    store.temporary().join(format!("{}-{}.part", digest.algorithm().name(), digest.hex()))
}

/// The blob that the partial download at `path` is to become.
pub(crate) fn digest_of_part(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.strip_suffix(".part")?.replacen('-', ":", 1).parse().ok()
}

/// Who was killed while it wrote ahead left gaps. How much there is before the first one, less the block in which the
/// last byte before it may lie; where the file system can't tell, all that there is: the digest will.
fn beginning(file: &File) -> io::Result<u64> {
    const BLOCK: u64 = 1 << 20;
    let length = file.metadata()?.len();
    let gap = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0)).unwrap_or(length);
    (&*file).rewind()?;
    Ok(if gap < length { gap.saturating_sub(1) / BLOCK * BLOCK } else { length })
}

fn hash_rest(file: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut seen = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(seen),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                seen += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.handle().write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
