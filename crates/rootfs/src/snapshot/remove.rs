//! Empties a tree, but for what must not be touched.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use crate::delta::dir_stack::DirStack;
use crate::delta::disk::{look, names};
use crate::{IgnorePaths, Kind, TreePath};

/// Removes everything in `root` but ignored paths and the directories above them. What is mounted stays as well.
pub(crate) fn empty(root: OwnedFd, ignore: &IgnorePaths) -> io::Result<()> {
    let mut stack = DirStack::new(root, ())?;
    let mut levels = vec![(TreePath::root(), names(stack.handle()?)?)];
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
