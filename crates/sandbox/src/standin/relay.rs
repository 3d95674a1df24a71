//! A Unix socket in a tree whose connections end at a socket of the pod, where that one itself can't be lent.

use std::io;
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A listening socket and the thread that passes its connections on.
pub(super) struct Relay {
    stopped: Arc<AtomicBool>,
    path: PathBuf,
    thread: JoinHandle<()>,
}

impl Relay {
    /// Listens at `at` (a short path, as sockets need) with the permissions of the socket at `source`.
    pub(super) fn start(source: &Path, at: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(source)?;
        // Says now, not at the first connection, if nobody listens there.
        drop(UnixStream::connect(source)?);
        let listener = UnixListener::bind(at)?;
        super::copy::set_mode(at, meta.mode() & 0o7777)?;
        std::os::unix::fs::chown(at, Some(meta.uid()), Some(meta.gid()))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (seen, source) = (Arc::clone(&stopped), source.to_owned());
        let thread = thread::Builder::new().name("socket relay".into()).spawn(move || {
            for connection in listener.incoming().flatten() {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(onward) = UnixStream::connect(&source) {
                    pass_on(connection, onward);
                }
            }
        })?;
        Ok(Self { stopped, path: at.to_owned(), thread })
    }

    /// Stops listening. Connections end by themselves: their other ends were in the step, which is gone.
    pub(super) fn stop(self) {
        self.stopped.store(true, Ordering::SeqCst);
        if UnixStream::connect(&self.path).is_ok() {
            let _ = self.thread.join();
        }
    }
}

/// Copies both ways until one side closes, in two threads of its own.
fn pass_on(near: UnixStream, far: UnixStream) {
    let one_way = |mut from: UnixStream, mut to: UnixStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
    for (from, to) in [(near, far), (far_too, near_too)] {
        let _ = thread::Builder::new().name("socket relay".into()).spawn(move || one_way(from, to));
    }
}
