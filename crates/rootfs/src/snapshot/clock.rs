//! Waits until the file system's clock has moved on.
//!
//! A file that is changed in the very tick in which it was looked at keeps its ctime, and a scan would take it for
//! untouched (what git calls racily clean). So nothing may write to a tree before a new file would get a later ctime
//! than any that was recorded. With the kernel's clock ticks that takes some milliseconds at most, and none where a step
//! took longer than a tick to prepare.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fstat, openat};

use crate::Timestamp;

/// The longest tick of a file system that is in use: FAT counts in steps of two seconds.
const LONGEST: Duration = Duration::from_millis(2_200);
const NAP: Duration = Duration::from_millis(1);

/// Waits until a file made in the file system of `tree` gets a ctime after `latest`. `scratch` is a directory to make
/// files in where the file system has no nameless ones. Gives the time that it is then: no change gets an earlier ctime,
/// so a record with an earlier one can be trusted. Gives up after the longest tick that any file system has; what has a
/// later ctime must then be told by its content.
pub(crate) fn wait_past(latest: Timestamp, tree: impl AsFd, scratch: &Path) -> io::Result<Timestamp> {
    let mut waited = Duration::ZERO;
    loop {
        let now = now(tree.as_fd(), scratch)?;
        if now > latest || waited > LONGEST {
            return Ok(now);
        }
        std::thread::sleep(NAP);
        waited += NAP;
    }
}

/// The ctime that a change gets now.
pub(crate) fn now(tree: impl AsFd, scratch: &Path) -> io::Result<Timestamp> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let probe: File = match openat(&tree, ".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(probe) => probe.into(),
        Err(_) => super::spool::nameless_file(scratch)?,
    };
    let (stat, here) = (fstat(&probe)?, fstat(&tree)?);
    if stat.st_dev != here.st_dev {
        // The scratch directory lies elsewhere. Both clocks are the kernel's, and this is the one that files get.
        let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        return Ok(Timestamp { secs: time.tv_sec, nanos: u32::try_from(time.tv_nsec).unwrap_or(0) });
    }
    Ok(Timestamp { secs: stat.st_ctime, nanos: u32::try_from(stat.st_ctime_nsec).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let handle = File::open(dir.path()).unwrap();
        (dir, handle)
    }

    #[test]
    fn after_the_wait_a_new_file_is_later() {
        let (dir, handle) = tree();
        for _ in 0..20 {
            let latest = now(&handle, dir.path()).unwrap();
            assert!(wait_past(latest, &handle, dir.path()).unwrap() > latest);
        }
    }

    #[test]
    fn a_time_in_the_far_future_is_not_waited_for() {
        let (dir, handle) = tree();
        let future = Timestamp { secs: i64::MAX, nanos: 0 };
        assert!(wait_past(future, &handle, dir.path()).unwrap() < future);
    }
}
