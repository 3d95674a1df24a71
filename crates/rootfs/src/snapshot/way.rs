//! Makes way for a link of the image where the pod has a directory: `/var/run` with a service account's token below it, where most
//! images have a link to `/run`.
//!
//! A mount can't be moved, but a directory that it lies in can be renamed, and the mount goes along. So what leads to the mount is
//! moved to where the link points, the link is made, and both the old name and the new one lead to the mount. Steps then write
//! through the link as they do on the other rungs. Before the tree is emptied for the next image, all is put back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, RenameFlags, mkdirat, renameat_with, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::delta::disk::{look, names, open_dir, remove_all, set_meta};
use crate::extract::InTheWay;
use crate::root::name_of;
use crate::{DirectoryView, IgnorePaths, Kind, Meta, Root, RootfsError, TreePath, resolve_parent};

/// What was moved: from where, and to where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moved {
    from: TreePath,
    to: TreePath,
}

/// Moves what lies in the directory `entry.path` to where the link `entry` points, and makes the link. `None`, and all is as it
/// was, where that can't be done: what is in the way is a mount itself, or the link points to no directory of the same file
/// system.
pub(crate) fn make_way(root: &Root, entry: &InTheWay) -> Result<Option<Vec<Moved>>, RootfsError> {
    let Some(link) = entry.meta.link.as_deref().filter(|_| entry.meta.kind == Kind::Symlink) else {
        return Ok(None);
    };
    let view = DirectoryView::open(root.path())?;
    let path = resolve_parent(&view, &entry.path)?;
    let mut to = path.parent().unwrap_or_default().as_bytes().to_vec();
    if link.first() == Some(&b'/') {
        to.clear();
    }
    to.push(b'/');
    to.extend_from_slice(link);
    let to = crate::resolve(&view, &TreePath::new(to))?;
    if to.starts_with(&path) || path.starts_with(&to) {
        return Ok(None);
    }
    let (parent, name) = root.parent(&path)?;
    let name = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str());
    let Ok(target) = root.directory(&to) else { return Ok(None) };
    let mut moved = Vec::new();
    let mut work = || -> io::Result<()> {
        let source = open_dir(&parent, name)?;
        move_all(&source, &path, &open_dir(&target, b".")?, &to, &mut moved)?;
        unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
        symlinkat(link, &parent, name)?;
        set_meta(&parent, name, &entry.meta, &entry.xattrs)
    };
    if work().is_ok() {
        return Ok(Some(moved));
    }
    put_back(root, &moved)?;
    Ok(None)
}

/// What of `tree` has no place in `root`, since a directory lies there that leads to something ignored.
pub(crate) fn in_the_way(
    tree: &Root,
    root: &Root,
    ignore: &IgnorePaths,
) -> Result<Vec<InTheWay>, RootfsError> {
    let mut found: Vec<InTheWay> = Vec::new();
    for path in ignore.paths().iter().flat_map(TreePath::ancestors).filter(|path| !path.is_root()) {
        let Some(meta) = tree.stat(&path)?.filter(|meta| !meta.is_dir()) else { continue };
        let stays = root.stat(&path)?.is_some_and(|there| there.is_dir());
        if stays && found.iter().all(|other| !path.starts_with(&other.path)) {
            let xattrs = tree.xattrs(&path)?;
            found.push(InTheWay { path, meta, xattrs });
        }
    }
    Ok(found)
}

/// Moves everything in one directory into another; directories that are there already are entered.
fn move_all(
    from: &OwnedFd,
    from_path: &TreePath,
    to: &OwnedFd,
    to_path: &TreePath,
    moved: &mut Vec<Moved>,
) -> io::Result<()> {
    for name in names(open_dir(from, b".")?)? {
        let pair = Moved { from: from_path.join(&name), to: to_path.join(&name) };
        match renameat_with(from, name.as_slice(), to, name.as_slice(), RenameFlags::NOREPLACE) {
            Ok(()) => moved.push(pair),
            // A mount below it could not be moved by itself: only with a directory.
            Err(Errno::EXIST) if holds_directories_only(&open_dir(to, &name)?)? => {
                remove_all(to, &name)?;
                renameat_with(from, name.as_slice(), to, name.as_slice(), RenameFlags::NOREPLACE)?;
                moved.push(pair);
            }
            Err(Errno::EXIST) => {
                move_all(&open_dir(from, &name)?, &pair.from, &open_dir(to, &name)?, &pair.to, moved)?;
                unlinkat(from, name.as_slice(), AtFlags::REMOVEDIR)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a directory holds nothing but directories, as those that only lead to a mount do.
fn holds_directories_only(dir: &OwnedFd) -> io::Result<bool> {
    for name in names(open_dir(dir, b".")?)? {
        let is_dir = look(dir, &name)?.is_some_and(|meta| meta.is_dir());
        if !is_dir || !holds_directories_only(&open_dir(dir, &name)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Moves back what [`make_way`] moved, the last first, whatever lies in its old places by now.
pub(crate) fn put_back(root: &Root, moved: &[Moved]) -> Result<(), RootfsError> {
    for Moved { from, to } in moved.iter().rev() {
        let fail = |error: io::Error| crate::delta::failed("move back", from.as_bytes(), error);
        let mut dir = root.directory(&TreePath::root())?;
        for name in from.parent().unwrap_or_default().components() {
            dir = own_dir(&dir, name).map_err(fail)?;
        }
        let (source, name) = root.parent(to)?;
        renameat_with(&source, &name, &dir, name_of(from), RenameFlags::NOREPLACE)
            .map_err(|error| fail(error.into()))?;
    }
    Ok(())
}

/// Opens the directory `name` in `dir`, and makes it in the place of anything else.
fn own_dir(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let dir = dir.as_fd();
    match look(dir, name)? {
        Some(Meta { kind: Kind::Directory, .. }) => {}
        there => {
            if there.is_some() {
                remove_all(dir, name)?;
            }
            mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
        }
    }
    open_dir(dir, name)
}

/// What is ignored below a place that was moved is ignored in the new place too.
pub(crate) fn follow(ignore: &mut IgnorePaths, moved: &[Moved]) {
    for Moved { from, to } in moved {
        let new: Vec<TreePath> =
            ignore.paths().iter().filter_map(|path| Some(to.join_path(&path.strip(from)?))).collect();
        for path in new {
            ignore.add(path);
        }
    }
}
