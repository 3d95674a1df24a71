//! A layer on its way from a registry, that is read while it arrives: what decompresses and writes files doesn't wait for
//! the last byte.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kiln_store::Blob;
use tokio::sync::Notify;

use super::error::ImageError;

/// How a download ended, for all who wait for it.
pub(super) type End = Result<Blob, Arc<ImageError>>;

/// Readers are woken when so many bytes more are there.
const STEP: u64 = 256 << 10;

/// How much is read of the file at a time, in bytes.
const BUFFER: usize = 128 << 10;

/// One download, shared by all who want the layer.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Where the bytes are put.
    path: PathBuf,
    state: Mutex<State>,
    moved: Condvar,
    ended: Notify,
}

#[derive(Debug)]
struct State {
    /// How many bytes are there.
    bytes: u64,
    /// How often it had to begin again because what came was wrong.
    restarts: u32,
    /// How it ended, once it did.
    end: Option<End>,
}

impl Transfer {
    /// A download into the file `path` that begins now.
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        let state = State { bytes: 0, restarts: 0, end: None };
        Arc::new(Self { path, state: Mutex::new(state), moved: Condvar::new(), ended: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes are in the file.
    pub(super) fn arrived(&self, bytes: u64) {
        let mut state = self.state();
        if bytes < state.bytes {
            state.restarts += 1;
        }
        let steps = (state.bytes / STEP, bytes / STEP);
        state.bytes = bytes;
        if steps.0 != steps.1 {
            self.moved.notify_all();
        }
    }

    /// It is over.
    pub(super) fn end(&self, result: End) {
        self.state().end = Some(result);
        self.moved.notify_all();
        self.ended.notify_waiters();
    }

    /// Whether it is over and the blob is not there.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state().end, Some(Err(_)))
    }

    /// Waits until it is over.
    pub(super) async fn finished(&self) -> End {
        loop {
            let ended = self.ended.notified();
            if let Some(end) = self.state().end.clone() {
                return end;
            }
            ended.await;
        }
    }

    /// Waits until there is something to open, and opens it.
    pub(super) fn open(self: &Arc<Self>) -> io::Result<Growing> {
        let mut state = self.state();
        while state.bytes < STEP && state.end.is_none() {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (file, restarts) = match &state.end {
            Some(Ok(blob)) => (File::open(blob.path())?, state.restarts),
            Some(Err(error)) => return Err(io::Error::other(Arc::clone(error))),
            // Named by its digest only when it is whole; an open file follows it there.
            None => match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    drop(state);
                    return self.open_finished();
                }
                result => (result?, state.restarts),
            },
        };
        Ok(Growing { transfer: Arc::clone(self), file, position: 0, restarts })
    }

    /// The file was renamed, or somebody else writes it elsewhere.
    fn open_finished(self: &Arc<Self>) -> io::Result<Growing> {
        let mut state = self.state();
        loop {
            match &state.end {
                Some(Ok(blob)) => {
                    let (file, restarts) = (File::open(blob.path())?, state.restarts);
                    return Ok(Growing { transfer: Arc::clone(self), file, position: 0, restarts });
                }
                Some(Err(error)) => return Err(io::Error::other(Arc::clone(error))),
                None => state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Reads a layer while it arrives. The end is only reached if the whole has its digest: believe nothing before.
#[derive(Debug)]
pub(super) struct Growing {
    transfer: Arc<Transfer>,
    file: File,
    position: u64,
    restarts: u32,
}

impl Growing {
    /// The same, in larger parts.
    pub(super) fn buffered(self) -> BufReader<Self> {
        BufReader::with_capacity(BUFFER, self)
    }

    /// Waits for bytes. Gives how many can be read; 0 at the end.
    fn wait(&self) -> io::Result<u64> {
        let mut state = self.transfer.state();
        loop {
            if state.restarts != self.restarts {
                return Err(self.spoilt(state));
            }
            match &state.end {
                Some(Ok(blob)) => return Ok(blob.len() - self.position.min(blob.len())),
                Some(Err(error)) => return Err(io::Error::other(Arc::clone(error))),
                None if state.bytes >= self.position + STEP => return Ok(state.bytes - self.position),
                None => state = self.transfer.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// What was read is not the layer. It is told when the download is over, so that who asks again gets another one and
    /// not the failure of this one.
    fn spoilt(&self, mut state: MutexGuard<'_, State>) -> io::Error {
        loop {
            match &state.end {
                Some(Err(error)) => return io::Error::other(Arc::clone(error)),
                Some(Ok(_)) => {
                    return io::Error::other(
                        "what was downloaded first was not what it should be; try again",
                    );
                }
                None => state = self.transfer.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Read for Growing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.wait()?;
        let most = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..most], self.position)?;
        if read == 0 {
            // It was emptied to begin again.
            return Err(self.spoilt(self.transfer.state()));
        }
        self.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kiln_oci::Digest;
    use kiln_store::{Durability, Store};

    use super::*;

    fn bytes() -> Vec<u8> {
        (0..3 * STEP + 17).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn a_layer_is_read_while_it_arrives_and_ends_when_it_is_verified() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(&directory.path().join("store"), Durability::Scratch).unwrap();
        let (bytes, path) = (bytes(), directory.path().join("part"));
        let transfer = Transfer::new(path.clone());
        let (told, first) = std::sync::mpsc::channel();
        let reading = {
            let transfer = Arc::clone(&transfer);
            std::thread::spawn(move || {
                let mut reader = transfer.open().unwrap();
                let mut begin = vec![0; 1000];
                reader.read_exact(&mut begin).unwrap();
                told.send(()).unwrap();
                reader.read_to_end(&mut begin).unwrap();
                begin
            })
        };
        let half = usize::try_from(2 * STEP).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(&bytes[..half]).unwrap();
        transfer.arrived(2 * STEP);
        first.recv().unwrap();
        file.write_all(&bytes[half..]).unwrap();
        let mut writer = store.writer(Some(Digest::of(&bytes))).unwrap();
        writer.write_all(&bytes).unwrap();
        let digest = writer.commit().unwrap();
        transfer.end(Ok(store.blob(&digest).unwrap().unwrap()));
        assert_eq!(reading.join().unwrap(), bytes);
    }

    #[test]
    fn a_reader_of_what_turned_out_wrong_fails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("part");
        std::fs::write(&path, bytes()).unwrap();
        let transfer = Transfer::new(path);
        transfer.arrived(2 * STEP);
        let mut reader = transfer.open().unwrap();
        let mut begin = vec![0; 1000];
        reader.read_exact(&mut begin).unwrap();
        transfer.arrived(0);
        let reading = std::thread::spawn(move || reader.read_exact(&mut begin));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!reading.is_finished(), "who asks again now would get the same download");
        let gone = ImageError::OfflineBlob {
            image: Box::new("debian:12".parse().unwrap()),
            digest: Digest::of(b"layer"),
        };
        transfer.end(Err(Arc::new(gone)));
        assert!(reading.join().unwrap().unwrap_err().to_string().contains("--offline"));
        assert!(transfer.open().unwrap_err().to_string().contains("--offline"));
    }
}
