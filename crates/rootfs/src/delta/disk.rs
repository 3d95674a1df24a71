//! Single entries on disk, looked at and made by directory handle and name: the few system calls that deltas and scans
//! share. Nothing here follows a symlink.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, RawDir, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat,
    chownat, lgetxattr, llistxattr, lsetxattr, makedev, mknodat, openat, readlinkat, statx, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::dir_stack::DIRECTORY;
use crate::{Kind, Meta, Timestamp};

/// Extended attributes: names and values, sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The xattr by which the `userxattr` flavour of overlayfs marks a directory that hides what lies below it.
pub(crate) const OPAQUE: &str = "user.overlay.opaque";

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Socket => FileType::Socket,
    }
}

/// What `handle` is, without the target of a symlink.
pub(crate) fn look_here(handle: impl AsFd) -> io::Result<Meta> {
    Ok(Meta::from_statx(&statx(handle, "", AtFlags::EMPTY_PATH, Meta::WANTED)?))
}

/// Whether this is how overlayfs writes down that a name is gone.
pub(crate) fn is_whiteout(meta: &Meta) -> bool {
    meta.kind == Kind::CharDevice && meta.rdev == Some((0, 0))
}

/// The entry `name` in `dir`, without the target of a symlink; `None` if there is none.
pub(crate) fn look(dir: impl AsFd, name: &[u8]) -> io::Result<Option<Meta>> {
    match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, Meta::WANTED) {
        Ok(stat) => Ok(Some(Meta::from_statx(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The target of the symlink `name` in `dir`.
pub(crate) fn read_link(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// The names in `dir`, sorted by their bytes. The handle must be freshly opened.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    each_name(dir, |name| names.push(name.to_vec()))?;
    names.sort_unstable();
    Ok(names)
}

/// Gives `take` the names in `dir`, in no order. The handle must be freshly opened.
pub(crate) fn each_name(dir: impl AsFd, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            take(name);
        }
    }
    Ok(())
}

/// Opens the directory `name` in `dir`.
pub(crate) fn open_dir(dir: impl AsFd, name: &[u8]) -> io::Result<std::os::fd::OwnedFd> {
    Ok(openat(dir, name, DIRECTORY, Mode::empty())?)
}

/// Opens the regular file `name` in `dir` for reading, leaving its atime alone where that is allowed.
pub(crate) fn open_file(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(openat(&dir, name, flags, Mode::empty())?.into()),
        other => Ok(other?.into()),
    }
}

/// A path that names `name` in `dir` for the xattr calls, which know no directory handles.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(if name.is_empty() { b"." } else { name });
    path
}

/// Whether an xattr belongs to what a reader of an image sees: overlayfs's own marks and a host's SELinux labels don't.
pub(crate) fn is_visible(name: &[u8]) -> bool {
    !(name.starts_with(b"user.overlay.")
        || name.starts_with(b"trusted.overlay.")
        || name == b"security.selinux")
}

/// The xattrs of `name` in `dir` that belong to an image.
pub(crate) fn xattrs(dir: impl AsFd, name: &[u8]) -> io::Result<Xattrs> {
    xattrs_of(&proc_path(dir.as_fd(), name))
}

/// The xattrs of what is at `path`, not followed, that belong to an image.
pub(crate) fn xattrs_of(path: &[u8]) -> io::Result<Xattrs> {
    let mut list = Vec::with_capacity(1 << 10);
    loop {
        match llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
            Ok(_) => break,
            Err(Errno::RANGE) => list.reserve(list.capacity() * 2),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_visible(name)) {
        if let Some(value) = xattr(path, name)? {
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

fn xattr(path: &[u8], name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = Vec::with_capacity(256);
    loop {
        match lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => return Ok(Some(value)),
            Err(Errno::RANGE) => value.reserve(value.capacity() * 2),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets xattrs on `name` in `dir`.
pub(crate) fn set_xattrs(dir: impl AsFd, name: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    let path = proc_path(dir.as_fd(), name);
    for (key, value) in xattrs.iter().filter(|(key, _)| is_visible(key)) {
        lsetxattr(path.as_slice(), key.as_slice(), value, rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// Removes the xattrs of `name` in `dir` that belong to an image and are not in `wanted`.
pub(crate) fn clear_xattrs(dir: impl AsFd, name: &[u8], wanted: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    let dir = dir.as_fd();
    for (key, _) in xattrs(dir, name)? {
        if !wanted.iter().any(|(other, _)| *other == key) {
            match rustix::fs::lremovexattr(proc_path(dir, name).as_slice(), key.as_slice()) {
                // Gone, or not ours to remove.
                Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Whether the directory `name` in `dir` hides what lies below it.
pub(crate) fn is_opaque(dir: impl AsFd, name: &[u8]) -> io::Result<bool> {
    let path = proc_path(dir.as_fd(), name);
    for mark in [OPAQUE, "trusted.overlay.opaque"] {
        if xattr(&path, mark.as_bytes())?.is_some_and(|value| value == b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Marks the directory `name` in `dir` as one that hides what lies below it.
pub(crate) fn set_opaque(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    let path = proc_path(dir.as_fd(), name);
    Ok(lsetxattr(path.as_slice(), OPAQUE, b"y", rustix::fs::XattrFlags::empty())?)
}

/// Makes the whiteout `name` in `dir`.
pub(crate) fn make_whiteout(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?)
}

/// Makes a fifo, device or socket `name` in `dir`, with no permissions yet.
pub(crate) fn make_special(dir: impl AsFd, name: &[u8], meta: &Meta) -> io::Result<()> {
    let device: Dev = meta.rdev.map_or(0, |(major, minor)| makedev(major, minor));
    Ok(mknodat(dir, name, file_type(meta.kind), Mode::empty(), device)?)
}

/// Gives `name` in `dir` the owner, xattrs, mode and mtime of `meta`, in the order in which none undoes another.
pub(crate) fn set_meta(
    dir: impl AsFd,
    name: &[u8],
    meta: &Meta,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> io::Result<()> {
    let dir = dir.as_fd();
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    let at = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    chownat(dir, name, Some(uid), Some(gid), at)?;
    if meta.kind != Kind::Symlink {
        let own: &[u8] = if name.is_empty() { b"." } else { name };
        chmodat(dir, own, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    set_xattrs(dir, name, xattrs)?;
    set_mtime(dir, name, meta.mtime)
}

/// Sets the mtime of `name` in `dir` and leaves the atime alone.
pub(crate) fn set_mtime(dir: impl AsFd, name: &[u8], mtime: Timestamp) -> io::Result<()> {
    let own: &[u8] = if name.is_empty() { b"." } else { name };
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: timespec(mtime),
    };
    Ok(utimensat(dir, own, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

pub(crate) fn timespec(time: Timestamp) -> Timespec {
    Timespec { tv_sec: time.secs, tv_nsec: i64::from(time.nanos) }
}

/// Removes `name` from `dir`, whatever it is and whatever is in it. Nothing there is no error.
pub(crate) fn remove_all(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    open_up(&dir, name)?;
    let mut stack = super::dir_stack::DirStack::new(open_dir(&dir, name)?, ())?;
    let mut waiting = vec![names(stack.handle()?)?];
    while let Some(level) = waiting.last_mut() {
        let Some(child) = level.pop() else {
            waiting.pop();
            if let Some(name) = waiting.last_mut().and_then(Vec::pop) {
                stack.leave()?;
                unlinkat(stack.handle()?, name.as_slice(), AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        match unlinkat(stack.handle()?, child.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                open_up(stack.handle()?, &child)?;
                stack.enter(&child, ())?;
                let inside = names(stack.handle()?)?;
                level.push(child);
                waiting.push(inside);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Lets us into a directory of ours that shuts out even its owner, such as overlayfs's work directory.
fn open_up(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    if look(&dir, name)?.is_some_and(|meta| meta.mode & 0o700 != 0o700) {
        match chmodat(&dir, name, Mode::RWXU, AtFlags::empty()) {
            // Not ours: whether we get in is another question.
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
