//! A Unix socket in a tree whose connections end at a socket of the pod, where that one itself can't be lent.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// A listening socket and the thread that passes its connections on. It ends when this is dropped; connections end by
/// themselves, when their other ends go away with the step.
#[derive(Debug)]
pub struct Relay {
    /// Readable when the thread is to end.
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens at `at` with the permissions of the socket at `source`.
    pub(super) fn start(source: &Path, at: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(source)?;
        Self::start_as(source, at, (meta.mode() & 0o7777, meta.uid(), meta.gid()))
    }

    /// Listens at `at` with this mode, user and group. Fails if nobody listens at `source` now.
    pub fn start_as(source: &Path, at: &Path, (mode, uid, gid): (u32, u32, u32)) -> io::Result<Self> {
        // Says now, not at the first connection, if nobody listens there.
        drop(UnixStream::connect(source)?);
        let listener = bind(at)?;
        listener.set_nonblocking(true)?;
        super::copy::set_mode(at, mode)?;
        super::copy::give(at, uid, gid)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let (told, source) = (stop.try_clone()?, source.to_owned());
        let thread = thread::Builder::new().name("socket relay".into());
        let thread = thread.spawn(move || listen(&listener, &told, &source))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if rustix::io::write(&self.stop, &1u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The address of a socket is a short text: a long path is named through its directory.
fn bind(at: &Path) -> io::Result<UnixListener> {
    let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
        return UnixListener::bind(at);
    };
    let directory = std::fs::File::open(parent)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixListener::bind(short)
}

fn listen(listener: &UnixListener, stop: &OwnedFd, source: &Path) {
    loop {
        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        let polled = poll(&mut fds, None);
        if !fds[0].revents().is_empty() || polled.is_err_and(|error| error != Errno::INTR) {
            return;
        }
        let Ok((near, _)) = listener.accept() else { continue };
        if let Ok(far) = UnixStream::connect(source)
            && near.set_nonblocking(false).is_ok()
        {
            pass_on(near, far);
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
