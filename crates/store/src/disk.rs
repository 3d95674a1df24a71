//! Writing that survives a loss of power, and taking trees away.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::{OnPath, StoreError, if_present};
use crate::store::Durability;

/// Makes the names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path, durability: Durability) -> Result<(), StoreError> {
    match durability {
        Durability::Scratch => Ok(()),
        Durability::Synced => {
            File::open(directory).and_then(|dir| dir.sync_all()).on("sync the directory", directory)
        }
    }
}

/// Puts a finished temporary file under its name, where readers find it whole or not at all.
pub(crate) fn put_in_place(
    file: &File,
    from: &Path,
    to: &Path,
    durability: Durability,
) -> Result<(), StoreError> {
    // Temporary files are private; what the volume holds is for every reader.
    file.set_permissions(Permissions::from_mode(0o644)).on("set the mode of", from)?;
    if durability == Durability::Synced {
        file.sync_all().on("sync", from)?;
    }
    fs::rename(from, to).on("put in place", to)?;
    to.parent().map_or(Ok(()), |directory| sync_directory(directory, durability))
}

/// Replaces the file `to` by one that holds `bytes`, by way of `temporary`, which must be on the same file system.
pub(crate) fn replace(
    to: &Path,
    bytes: &[u8],
    mut temporary: NamedTempFile,
    durability: Durability,
) -> Result<(), StoreError> {
    temporary.write_all(bytes).on("write", temporary.path())?;
    persist(temporary, to, durability)
}

/// Puts a finished temporary file under its name.
pub(crate) fn persist(temporary: NamedTempFile, to: &Path, durability: Durability) -> Result<(), StoreError> {
    let (file, path) = temporary.into_parts();
    put_in_place(&file, &path, to, durability)?;
    // The name is gone; keep the destructor from looking for it.
    let _ = path.keep();
    Ok(())
}

/// Makes the directory `path` with exactly the permissions `mode`, if it is not there. Its parents must be.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), StoreError> {
    match fs::create_dir(path) {
        Ok(()) => {
            let inherited = fs::metadata(path).on("look at", path)?.permissions().mode() & 0o2000;
            fs::set_permissions(path, Permissions::from_mode(mode | inherited)).on("set the mode of", path)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).on("create the directory", path),
    }
}

/// Removes the tree at `path`, also where its directories forbid that to their owner.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            if_present(fs::remove_dir_all(path)).map(|_| ())
        }
        result => if_present(result).map(|_| ()),
    }
}

fn open_up(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}
