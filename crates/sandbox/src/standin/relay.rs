//! A Unix socket in a tree whose connections end at a socket of the pod, where that one itself can't be lent.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// A listening socket and the thread that passes its connections on.
pub(super) struct Relay {
    /// Readable when the thread is to end.
    stop: OwnedFd,
    thread: JoinHandle<()>,
}

impl Relay {
    /// Listens at `at` (a short path, as sockets need) with the permissions of the socket at `source`.
    pub(super) fn start(source: &Path, at: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(source)?;
        // Says now, not at the first connection, if nobody listens there.
        drop(UnixStream::connect(source)?);
        let listener = UnixListener::bind(at)?;
        listener.set_nonblocking(true)?;
        super::copy::set_mode(at, meta.mode() & 0o7777)?;
        super::copy::give(at, meta.uid(), meta.gid())?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let (told, source) = (stop.try_clone()?, source.to_owned());
        let thread = thread::Builder::new().name("socket relay".into());
        let thread = thread.spawn(move || listen(&listener, &told, &source))?;
        Ok(Self { stop, thread })
    }

    /// Stops listening. Connections end by themselves: their other ends were in the step, which is gone.
    pub(super) fn stop(self) {
        if rustix::io::write(&self.stop, &1u64.to_ne_bytes()).is_ok() {
            let _ = self.thread.join();
        }
    }
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
