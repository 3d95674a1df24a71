//! Copying, comparing and removing file trees by path, never following a symlink.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags};

/// Writes a new file with these permissions, owner and group. It is never open to more than that.
pub(super) fn write(path: &Path, bytes: &[u8], (mode, uid, gid): (u32, u32, u32)) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    give(path, uid, gid)?;
    file.set_permissions(Permissions::from_mode(mode))
}

/// Changes the owner, if Kiln is root. If not, everything in the tree is its own, and the step knows no other user.
pub(super) fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    match lchown(path, Some(uid), Some(gid)) {
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Sets permissions, whatever the umask.
pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Copies a file or a directory with all in it to a name that is free: contents, owners, permissions, times, extended
/// attributes. A symlink at `from` itself is followed, none below it.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    copy_entry(from, to, &fs::metadata(from)?, &mut Links::new())
}

/// Moves whatever has this name to a free one in the same directory. The container's own overlayfs refuses to rename a
/// directory of a lower layer (EXDEV); then it is copied, and looks the same to every reader.
pub(super) fn shift(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        result => return result,
    }
    let copied = copy_entry(from, to, &fs::symlink_metadata(from)?, &mut Links::new());
    if let Err(error) = copied {
        remove(to)?;
        return Err(error);
    }
    remove(from)
}

/// Where files with several names have been copied to, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn copy_entry(from: &Path, to: &Path, meta: &Metadata, links: &mut Links) -> io::Result<()> {
    let kind = meta.file_type();
    if !kind.is_dir() && meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            return fs::hard_link(first, to);
        }
        links.insert((meta.dev(), meta.ino()), to.to_owned());
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let path = entry.path();
            copy_entry(&path, &to.join(entry.file_name()), &fs::symlink_metadata(&path)?, links)?;
        }
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if kind.is_socket() {
        // A socket is an address, not data: a copy would lead nowhere.
        links.remove(&(meta.dev(), meta.ino()));
        return Ok(());
    } else {
        let node = rustix::fs::FileType::from_raw_mode(meta.mode());
        rustix::fs::mknodat(CWD, to, node, Mode::from_raw_mode(meta.mode() & 0o7777), meta.rdev())?;
    }
    copy_metadata(from, to, meta)
}

/// Owner first, because a change of owner clears set-user-ID bits and file capabilities.
fn copy_metadata(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    give(to, meta.uid(), meta.gid())?;
    if !meta.is_symlink() {
        set_mode(to, meta.mode() & 0o7777)?;
        copy_xattrs(from, to);
    }
    let time = |secs, nanos| Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Extended attributes, as far as both file systems have them.
fn copy_xattrs(from: &Path, to: &Path) {
    let mut names = vec![0_u8; 64 * 1024];
    let Ok(length) = rustix::fs::llistxattr(from, &mut names) else { return };
    let mut value = vec![0_u8; 64 * 1024];
    for name in names[..length].split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name).map(CString::from) else { continue };
        if let Ok(length) = rustix::fs::lgetxattr(from, &name, &mut value) {
            let _ = rustix::fs::lsetxattr(to, &name, &value[..length], XattrFlags::empty());
        }
    }
}

/// Removes whatever has this name, if anything has. A symlink is removed, not followed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes `to` equal to `from`, writing only what differs: by size, time, permissions and owner for files. If the step
/// deleted `from`, a directory becomes empty, and a file stays as it was.
pub(super) fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    let is_directory = fs::metadata(to)?.is_dir();
    match fs::symlink_metadata(from) {
        Ok(meta) if meta.is_dir() == is_directory && !meta.is_symlink() => mirror_entry(from, to, &meta),
        // Deleted, or something else was put in its place, which no mount would have let it do.
        _ if is_directory => empty(to),
        _ => Ok(()),
    }
}

fn mirror_entry(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    if !meta.is_dir() {
        if same(meta, &fs::metadata(to)?) {
            return Ok(());
        }
        // Written in place: a file that was lent may itself be a mount, which can't be replaced.
        let mut source = File::open(from)?;
        let mut target = File::options().write(true).truncate(true).open(to)?;
        io::copy(&mut source, &mut target)?;
        return copy_metadata(from, to, meta);
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if fs::symlink_metadata(from.join(entry.file_name())).is_err() {
            remove(&entry.path())?;
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, there) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::symlink_metadata(&path)?;
        match fs::symlink_metadata(&there) {
            Ok(old) if meta.is_dir() && old.is_dir() => mirror_entry(&path, &there, &meta)?,
            Ok(old) if meta.is_file() && same(&meta, &old) => {}
            _ => {
                remove(&there)?;
                copy_entry(&path, &there, &meta, &mut Links::new())?;
            }
        }
    }
    copy_metadata(from, to, meta)
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    let key =
        |meta: &Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.len(), meta.mtime(), meta.mtime_nsec());
    key(a) == key(b)
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

/// Moves a directory back to where it came from. If the step deleted it, it comes back empty, as a mount would be.
pub(super) fn move_back(from: &Path, to: &Path, mode: u32) -> io::Result<()> {
    match fs::symlink_metadata(from) {
        Ok(meta) if meta.is_dir() => fs::rename(from, to),
        _ => {
            fs::create_dir(to)?;
            set_mode(to, mode)
        }
    }
}
