//! Device nodes for a step that can't have the pod's /dev mounted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::copy::{self, set_mode};

/// Name, major and minor number of what every program may expect; Linux gives them out for ever.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Makes a /dev at `path`. Where device nodes can't be made or opened (a user namespace, a volume mounted with
/// `nodev`), it has an ordinary file as `null`, which takes what is written, and no others.
pub(super) fn fill(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    set_mode(path, 0o755)?;
    for (name, major, minor) in NODES {
        let node = path.join(name);
        let mode = Mode::from_raw_mode(0o666);
        let made = mknodat(CWD, &node, FileType::CharacterDevice, mode, makedev(major, minor));
        let usable = made.is_ok() && (name == "tty" || File::options().write(true).open(&node).is_ok());
        if !usable {
            copy::remove(&node)?;
            if name != "null" {
                continue;
            }
            File::create(&node)?;
        }
        set_mode(&node, 0o666)?;
    }
    let shm = path.join("shm");
    fs::create_dir(&shm)?;
    set_mode(&shm, 0o1777)
}

/// Makes at `to` a node for the device that `from` is one for.
pub(super) fn copy_node(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    let kind = meta.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no device", from.display())));
    }
    let mode = Mode::from_raw_mode(meta.mode() & 0o7777);
    mknodat(CWD, to, FileType::from_raw_mode(meta.mode()), mode, meta.rdev())?;
    set_mode(to, meta.mode() & 0o7777)?;
    copy::give(to, meta.uid(), meta.gid())
}
