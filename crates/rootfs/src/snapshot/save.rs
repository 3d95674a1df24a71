//! Puts some paths of a tree aside before the tree goes, with every symlink that leads to them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, mkdirat};

use crate::delta::disk::{look, look_here, open_dir, read_link, set_meta, set_mtime, xattrs};
use crate::delta::merge::{From, Merge, Onto, copy_entry};
use crate::{IgnorePaths, Kind, Meta, TreePath};

/// How many symlinks are followed on the way to one path (the kernel's own limit is 40).
const LINKS: usize = 64;

/// A directory on the way, in the tree and in what is saved of it.
struct Step {
    path: TreePath,
    from: OwnedFd,
    to: OwnedFd,
}

/// Copies `keep` from `source` to the same places in `target`, which exists. A path that isn't there is passed over.
pub(crate) fn save(
    source: &OwnedFd,
    target: &OwnedFd,
    keep: &[TreePath],
    ignore: &IgnorePaths,
) -> io::Result<()> {
    for path in keep {
        save_one(source, target, path, ignore)?;
    }
    Ok(())
}

fn save_one(source: &OwnedFd, target: &OwnedFd, path: &TreePath, ignore: &IgnorePaths) -> io::Result<()> {
    let mut ahead: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    let mut links = 0;
    let (mut way, mut here) = (Vec::new(), start(source, target)?);
    while let Some(name) = ahead.pop_front() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                here = way.pop().unwrap_or(here);
                continue;
            }
            _ => {}
        }
        let at = here.path.join(&name);
        let Some(meta) = look(&here.from, &name)? else { return Ok(()) };
        if ignore.is_ignored(&at) {
            return Ok(());
        }
        match meta.kind {
            Kind::Directory => {
                let step = save_directory(&here, at, &name, &meta)?;
                way.push(std::mem::replace(&mut here, step));
            }
            Kind::Symlink => {
                save_entry(&here, &name, &meta)?;
                links += 1;
                if links > LINKS {
                    return Ok(());
                }
                let link = read_link(&here.from, &name)?;
                if link.first() == Some(&b'/') {
                    way.clear();
                    here = start(source, target)?;
                }
                for part in link.split(|byte| *byte == b'/').rev() {
                    ahead.push_front(part.to_vec());
                }
            }
            _ => return save_entry(&here, &name, &meta),
        }
    }
    let merge = Merge { from: From::Plain, onto: Onto::Plain, take: false, root: true, ignore };
    merge.run_at(here.path, here.from, here.to, &mut |_| Ok(()))
}

fn start(source: &OwnedFd, target: &OwnedFd) -> io::Result<Step> {
    Ok(Step { path: TreePath::root(), from: open_dir(source, b".")?, to: open_dir(target, b".")? })
}

/// Saves a directory without what is in it, and enters it.
fn save_directory(here: &Step, path: TreePath, name: &[u8], meta: &Meta) -> io::Result<Step> {
    let from = open_dir(&here.from, name)?;
    if look(&here.to, name)?.is_none() {
        mkdirat(&here.to, name, Mode::RWXU)?;
        set_meta(&here.to, name, meta, &xattrs(&here.from, name)?)?;
        keep_mtime(here)?;
    }
    let to = open_dir(&here.to, name)?;
    Ok(Step { path, from, to })
}

fn save_entry(here: &Step, name: &[u8], meta: &Meta) -> io::Result<()> {
    if look(&here.to, name)?.is_none() {
        copy_entry(&here.from, &here.to, name, meta)?;
        keep_mtime(here)?;
    }
    Ok(())
}

/// Something was made in a saved directory: its mtime stays that of the original.
fn keep_mtime(here: &Step) -> io::Result<()> {
    set_mtime(&here.to, b"", look_here(&here.from)?.mtime)
}
