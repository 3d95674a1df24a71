//! Empties a tree, or a part of one, but for what must not be touched.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use crate::delta::dir_stack::DirStack;
use crate::delta::disk::{look, names, open_dir, remove_all};
use crate::{IgnorePaths, Kind, TreePath};

/// Removes `name` from `dir`, which lies at `path` in its tree, but for what is ignored below it. Says whether it is gone:
/// a directory with something ignored in it stays, since that belongs to the pod.
pub(crate) fn remove_unless_kept(
    dir: impl AsFd,
    name: &[u8],
    path: &TreePath,
    ignore: &IgnorePaths,
) -> io::Result<bool> {
    let dir = dir.as_fd();
    let reaches = !ignore.is_empty() && ignore.reaches_below(path);
    if !reaches || look(dir, name)?.is_none_or(|meta| meta.kind != Kind::Directory) {
        remove_all(dir, name)?;
        return Ok(true);
    }
    empty_at(path.clone(), open_dir(dir, name)?, ignore)?;
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes everything in `root` but ignored paths and the directories above them. What is mounted stays as well.
pub(crate) fn empty(root: OwnedFd, ignore: &IgnorePaths) -> io::Result<()> {
    empty_at(TreePath::root(), root, ignore)
}

/// The same for a directory that lies at `base` in its tree.
fn empty_at(base: TreePath, root: OwnedFd, ignore: &IgnorePaths) -> io::Result<()> {
    let mut stack = DirStack::new(root, ())?;
    let mut levels = vec![(base, names(stack.handle()?)?)];
    while let Some((path, waiting)) = levels.last_mut() {
        let Some(name) = waiting.pop() else {
            let done = path.name().to_vec();
            levels.pop();
            if !levels.is_empty() {
                stack.leave()?;
                match unlinkat(stack.handle()?, done.as_slice(), AtFlags::REMOVEDIR) {
                    // Something in it is ignored, or it is mounted.
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            continue;
        };
        let child = path.join(&name);
        if ignore.is_ignored(&child) {
            continue;
        }
        let Some(meta) = look(stack.handle()?, &name)? else { continue };
        if meta.kind == Kind::Directory {
            stack.enter(&name, ())?;
            levels.push((child, names(stack.handle()?)?));
        } else {
            match unlinkat(stack.handle()?, name.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::BUSY | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
