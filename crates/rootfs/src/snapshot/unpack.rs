//! Layers into directories: over a plain tree, or into a directory of their own for overlayfs.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmod, linkat, mkdir, openat, symlinkat};

use super::spool::HashSpool;
use super::{BaseLayer, OpenBlob, SnapshotOptions};
use crate::delta::copy::copy_content;
use crate::delta::dir_stack::DIRECTORY;
use crate::delta::disk::{make_special, set_meta};
use crate::delta::merge::{From, Merge, Onto};
use crate::delta::{failed, open_parent};
use crate::extract::InTheWay;
use crate::{
    Compression, ExtractOptions, Extracted, Kind, Meta, Record, Root, RootfsError, TreePath, View, Whiteouts,
    extract_layer,
};

/// The mode of a new layer directory, which no image gives its root: whether it is still there after extraction tells
/// whether the layer says anything of the root.
const UNSAID: u32 = 0o7700;

/// What a layer's root looks like where no layer says anything of it.
pub(crate) const ROOT_MODE: u32 = 0o755;

/// Notes hashes as extraction finds them.
struct Spooling<'a> {
    spool: &'a mut HashSpool,
}

impl Record for Spooling<'_> {
    fn wrote(&mut self, path: &TreePath, meta: &Meta, hash: Option<[u8; 32]>) -> io::Result<()> {
        if meta.kind == Kind::File { self.spool.add(path.as_bytes(), hash) } else { Ok(()) }
    }
}

/// Lays `layer` over the plain tree at `tree`. Gives what it could not make, because something ignored is in the way.
pub(crate) fn into_plain(
    layer: &BaseLayer,
    tree: &Path,
    options: &SnapshotOptions,
    spool: Option<&mut HashSpool>,
) -> Result<Vec<InTheWay>, RootfsError> {
    match layer {
        BaseLayer::Blob { open, compression, .. } => {
            let mut spooling = spool.map(|spool| Spooling { spool });
            let record = spooling.as_mut().map(|spooling| -> &mut dyn Record { spooling });
            let mut how = ExtractOptions {
                whiteouts: Whiteouts::Apply,
                ignore: options.ignore.clone(),
                can_mknod: options.can_mknod,
                can_chown: options.can_chown,
                record,
            };
            from_blob(layer, open, *compression, tree, &mut how).map(|extracted| extracted.in_the_way)
        }
        BaseLayer::Unpacked { path, .. } => {
            let fail = |error: io::Error| failed("copy the layer", bytes(path), error);
            let open =
                |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|error| fail(error.into()));
            let source = openat(CWD, path, DIRECTORY.difference(rustix::fs::OFlags::NOFOLLOW), Mode::empty())
                .map_err(|error| fail(error.into()))?;
            let root = says_root(path).map_err(fail)?;
            let merge =
                Merge { from: From::Delta, onto: Onto::Plain, take: false, root, ignore: &options.ignore };
            let mut spool = spool;
            let mut seen = |path: &TreePath| match &mut spool {
                Some(spool) => spool.add(path.as_bytes(), None),
                None => Ok(()),
            };
            merge.run(source, open(tree)?, &mut seen).map(|()| Vec::new()).map_err(fail)
        }
    }
}

/// What came of a layer that was extracted into a directory of its own.
pub(crate) struct Upper {
    /// Whether the layer itself says what its root looks like.
    pub(crate) says_root: bool,
    /// Hard links to files in layers below: name and target.
    pub(crate) dangling: Vec<(TreePath, TreePath)>,
}

/// Extracts the layer `layer`, which `open` opens, into the new directory `dir` in overlayfs's format.
pub(crate) fn into_upper(
    layer: &BaseLayer,
    open: &OpenBlob,
    compression: Compression,
    dir: &Path,
    options: &SnapshotOptions,
) -> Result<Upper, RootfsError> {
    let fail = |error: rustix::io::Errno| failed("make", bytes(dir), error.into());
    mkdir(dir, Mode::RWXU).map_err(fail)?;
    chmod(dir, Mode::from_raw_mode(UNSAID)).map_err(fail)?;
    let mut how = ExtractOptions {
        whiteouts: Whiteouts::ToOverlay,
        ignore: options.ignore.clone(),
        can_mknod: options.can_mknod,
        can_chown: options.can_chown,
        record: None,
    };
    let extracted = from_blob(layer, open, compression, dir, &mut how)?;
    let says_root = rustix::fs::lstat(dir).map_err(fail)?.st_mode & 0o7777 != UNSAID;
    if !says_root {
        chmod(dir, Mode::from_raw_mode(ROOT_MODE)).map_err(fail)?;
    }
    Ok(Upper { says_root, dangling: extracted.dangling })
}

/// Makes what `dangling` names in the layer at `dir`: other names of files that lie in `below`. A directory of its own
/// can't share a file with one below it, so each gets a copy; several names of one file share theirs.
pub(crate) fn mend(
    dir: &Path,
    dangling: &[(TreePath, TreePath)],
    below: &dyn View,
) -> Result<(), RootfsError> {
    let mut made: HashMap<&TreePath, &TreePath> = HashMap::new();
    for (path, target) in dangling {
        let fail = |error: io::Error| failed("make the hard link", path.as_bytes(), error);
        let root = openat(CWD, dir, DIRECTORY, Mode::empty()).map_err(|error| fail(error.into()))?;
        let to = open_parent(&root, path).map_err(fail)?;
        if let Some(first) = made.get(target) {
            let from = open_parent(&root, first).map_err(fail)?;
            linkat(from, first.name(), to, path.name(), AtFlags::empty())
                .map_err(|error| fail(error.into()))?;
            continue;
        }
        let meta = below.stat(target)?.filter(|meta| meta.kind != Kind::Directory);
        let meta = meta.ok_or_else(|| {
            RootfsError::Archive(format!("{path} is a hard link to {target}, which is in no layer below"))
        })?;
        let xattrs = below.xattrs(target)?;
        let make = || match meta.kind {
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file: File = openat(&to, path.name(), flags, Mode::RUSR | Mode::WUSR)?.into();
                let source = below.open(target).map_err(io::Error::other)?;
                copy_content(&source, &file, meta.size)
            }
            Kind::Symlink => Ok(symlinkat(meta.link.as_deref().unwrap_or_default(), &to, path.name())?),
            _ => make_special(&to, path.name(), &meta),
        };
        make().and_then(|()| set_meta(&to, path.name(), &meta, &xattrs)).map_err(fail)?;
        made.insert(target, path);
    }
    Ok(())
}

/// Whether an unpacked layer says what its root looks like. Who unpacked it didn't note that, so a root that looks as
/// roots look by default counts as nothing said.
pub(crate) fn says_root(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::stat(path)?;
    Ok((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != (ROOT_MODE, 0, 0))
}

fn from_blob(
    layer: &BaseLayer,
    open: &OpenBlob,
    compression: Compression,
    dir: &Path,
    how: &mut ExtractOptions<'_>,
) -> Result<Extracted, RootfsError> {
    let bytes = open().map_err(|error| failed("open the layer for", bytes(dir), error))?;
    let (found, extracted) = extract_layer(bytes, compression, &Root::open(dir)?, how)?;
    let named = layer.diff_id();
    if found != *named {
        return Err(RootfsError::Archive(format!("it is {found}, and the image's config names {named}")));
    }
    Ok(extracted)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}
