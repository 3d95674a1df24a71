//! Layers into directories: over a plain tree, or into a directory of their own for overlayfs.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, chmod, mkdir, openat};

use super::spool::HashSpool;
use super::{BaseLayer, SnapshotOptions};
use crate::delta::dir_stack::DIRECTORY;
use crate::delta::failed;
use crate::delta::merge::{From, Merge, Onto};
use crate::{
    Compression, ExtractOptions, Kind, Meta, Record, Root, RootfsError, TreePath, Whiteouts, decompress,
    extract,
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

/// Lays `layer` over the plain tree at `tree`.
pub(crate) fn into_plain(
    layer: &BaseLayer,
    tree: &Path,
    options: &SnapshotOptions,
    spool: Option<&mut HashSpool>,
) -> Result<(), RootfsError> {
    match layer {
        BaseLayer::Blob { open, compression, .. } => {
            let mut spooling = spool.map(|spool| Spooling { spool });
            let record = spooling.as_mut().map(|spooling| -> &mut dyn Record { spooling });
            from_blob(open, *compression, tree, Whiteouts::Apply, options, record)
        }
        BaseLayer::Unpacked { path, .. } => {
            let fail =
                |error: io::Error| failed("copy the layer", path.as_os_str().as_encoded_bytes(), error);
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
            merge.run(source, open(tree)?, &mut seen).map_err(fail)
        }
    }
}

/// Extracts a layer into the new directory `dir` in overlayfs's format. Says whether the layer itself says what its
/// root looks like.
pub(crate) fn into_upper(
    open: &super::OpenBlob,
    compression: Compression,
    dir: &Path,
    options: &SnapshotOptions,
) -> Result<bool, RootfsError> {
    let fail = |error: rustix::io::Errno| failed("make", dir.as_os_str().as_encoded_bytes(), error.into());
    mkdir(dir, Mode::RWXU).map_err(fail)?;
    chmod(dir, Mode::from_raw_mode(UNSAID)).map_err(fail)?;
    from_blob(open, compression, dir, Whiteouts::ToOverlay, options, None)?;
    let said = rustix::fs::lstat(dir).map_err(fail)?.st_mode & 0o7777 != UNSAID;
    if !said {
        chmod(dir, Mode::from_raw_mode(ROOT_MODE)).map_err(fail)?;
    }
    Ok(said)
}

/// Whether an unpacked layer says what its root looks like. Who unpacked it didn't note that, so a root that looks as
/// roots look by default counts as nothing said.
pub(crate) fn says_root(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::stat(path)?;
    Ok((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != (ROOT_MODE, 0, 0))
}

fn from_blob(
    open: &super::OpenBlob,
    compression: Compression,
    dir: &Path,
    whiteouts: Whiteouts,
    options: &SnapshotOptions,
    record: Option<&mut dyn Record>,
) -> Result<(), RootfsError> {
    let fail = |error| failed("open the layer for", dir.as_os_str().as_encoded_bytes(), error);
    let bytes = open().map_err(fail)?;
    let into = Root::open(dir)?;
    let mut options = ExtractOptions {
        whiteouts,
        ignore: options.ignore.clone(),
        can_mknod: options.can_mknod,
        can_chown: rustix::process::geteuid().is_root(),
        record,
    };
    let extracted = extract(decompress(bytes, compression), &into, &mut options)?;
    match extracted.dangling.first() {
        None => Ok(()),
        Some((path, target)) => Err(RootfsError::Tree {
            path: path.clone(),
            why: format!(
                "is a hard link to {target}, which its layer doesn't hold; use --isolation=directory"
            ),
        }),
    }
}
