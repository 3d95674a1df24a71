//! File descriptors by number: which ones a child keeps.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::fork::last_error;

/// Child: puts a copy of `fd` at `number`, to be inherited.
pub(crate) fn put_at(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 touches no memory. The caller names 0, 1 or 2, which no Rust value of this process owns.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 { Err(last_error()) } else { Ok(()) }
}

/// Child: closes every descriptor from 3 on but those in `keep`, which is sorted.
///
/// The child is a copy with owners of its own in it; they never run again, as it leaves by _exit or execve.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    let mut next: libc::c_uint = 3;
    for &fd in keep {
        let Ok(fd) = libc::c_uint::try_from(fd) else { continue };
        if fd > next {
            close_range(next, fd - 1, 0);
        }
        next = next.max(fd + 1);
    }
    close_range(next, libc::c_uint::MAX, 0);
}

/// Child: every descriptor from `first` on is closed by the next execve.
pub(crate) fn close_on_exec_from(first: libc::c_uint) {
    close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) {
    // SAFETY: close_range touches no memory; see above about owners.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    // Before Linux 5.9, and in gVisor: one by one, as /proc lists them.
    let list = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(list) = rustix::fs::open(c"/proc/self/fd", list, Mode::empty()) else { return };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let mut closed = false;
        if rustix::fs::seek(&list, SeekFrom::Start(0)).is_err() {
            return;
        }
        let mut entries = RawDir::new(&list, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let Some(fd) = crate::text::number(entry.file_name().to_bytes()) else { continue };
            let in_range = libc::c_uint::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd));
            if !in_range || fd == list.as_raw_fd() {
                continue;
            }
            // SAFETY: neither call touches memory; see above about owners.
            unsafe {
                if flags == 0 {
                    closed |= libc::close(fd) == 0;
                } else {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
        }
        // Closing while listing may make the list skip some.
        if !closed {
            return;
        }
    }
}
