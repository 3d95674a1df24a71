//! From a commit to files: the working tree, its modes and times, and pointers of Git LFS that somebody will miss.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use gix::bstr::BStr;
use gix::index::entry::Mode;
use gix::progress::Discard;

use super::Revision;
use super::repository::{Repository, words};

/// Writes the commit's files and the index.
pub(super) fn work_tree(repository: &Repository<'_>, revision: &Revision) -> Result<(), String> {
    let repo = &repository.inner;
    let directory = repo.workdir().ok_or("it has no working tree")?.to_owned();
    let id =
        repository.object(&revision.commit).ok_or_else(|| format!("it has no commit {}", revision.commit))?;
    let commit = repo.find_object(id).map_err(|error| words(&error))?;
    let commit = commit.peel_to_commit().map_err(|error| words(&error))?;
    let tree = commit.tree_id().map_err(|error| words(&error))?;
    let mut index = repo.index_from_tree(&tree).map_err(|error| words(&error))?;
    let source = gix::worktree::stack::state::attributes::Source::IdMapping;
    let mut options = repo.checkout_options(source).map_err(|error| words(&error))?;
    options.destination_is_initially_empty = true;
    let objects = repo.objects.clone().into_arc().map_err(|error| error.to_string())?;
    let outcome = gix::worktree::state::checkout(
        &mut index,
        &directory,
        objects,
        &Discard,
        &Discard,
        &AtomicBool::new(false),
        options,
    )
    .map_err(|error| words(&error))?;
    if let Some(failed) = outcome.errors.first() {
        return Err(format!("could not write {}: {}", failed.path, failed.error));
    }
    if let Some(collision) = outcome.collisions.first() {
        return Err(format!("could not write {}: something else has its name", collision.path));
    }
    let time = if repository.request.address.commit_times {
        let time = commit.time().map_err(|error| words(&error))?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(time.seconds.try_into().unwrap_or(0)))
    } else {
        None
    };
    settle(&directory, &index, time).map_err(|error| format!("could not set the mode of a file: {error}"))?;
    index.write(gix::index::write::Options::default()).map_err(|error| words(&error))
}

/// Gives files and directories the modes that git means, whatever the umask is, and the commit's time if asked for.
fn settle(directory: &Path, index: &gix::index::File, time: Option<SystemTime>) -> std::io::Result<()> {
    let mut directories = std::collections::BTreeSet::new();
    for entry in index.entries() {
        let relative = path_of(entry.path(index));
        let mut parent = relative.parent();
        while let Some(path) = parent.filter(|path| !path.as_os_str().is_empty()) {
            directories.insert(path.to_owned());
            parent = path.parent();
        }
        let path = directory.join(relative);
        let mode = match entry.mode {
            Mode::FILE => 0o644,
            Mode::FILE_EXECUTABLE => 0o755,
            Mode::COMMIT => {
                directories.insert(relative.to_owned());
                continue;
            }
            _ => {
                if let Some(time) = time {
                    touch(&path, time)?;
                }
                continue;
            }
        };
        set_mode(&path, mode)?;
        if let Some(time) = time {
            touch(&path, time)?;
        }
    }
    for relative in directories.into_iter().rev() {
        let path = directory.join(relative);
        set_mode(&path, 0o755)?;
        if let Some(time) = time {
            touch(&path, time)?;
        }
    }
    Ok(())
}

/// A path of the index; its bytes are a path's.
pub(super) fn path_of(path: &BStr) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_symlink() && meta.permissions().mode() & 0o7777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn touch(path: &Path, time: SystemTime) -> std::io::Result<()> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let stamp = rustix::fs::Timespec { tv_sec: seconds.try_into().unwrap_or(0), tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags)?)
}

/// How a pointer of Git LFS begins, and how long one may be.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
const LONGEST_POINTER: u64 = 1024;

/// Warns of files that are pointers to Git LFS objects: those are not fetched.
pub(super) fn report_pointers(repository: &Repository<'_>, directory: &Path) -> Result<(), String> {
    let index = repository.inner.open_index().map_err(|error| words(&error))?;
    let mut uses_lfs = false;
    let mut small: Vec<PathBuf> = Vec::new();
    for entry in index.entries() {
        let relative = path_of(entry.path(&index));
        let path = directory.join(relative);
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_file() && relative.file_name().is_some_and(|name| name == ".gitattributes") {
            uses_lfs |= fs::read_to_string(&path).is_ok_and(|text| text.contains("filter=lfs"));
        } else if meta.is_file() && (POINTER.len() as u64..LONGEST_POINTER).contains(&meta.len()) {
            small.push(relative.to_owned());
        }
    }
    if !uses_lfs {
        return Ok(());
    }
    let is_pointer = |path: &PathBuf| {
        let mut begin = vec![0; POINTER.len()];
        let file = fs::File::open(directory.join(path));
        file.and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == POINTER
    };
    let pointers: Vec<String> =
        small.iter().filter(|path| is_pointer(path)).map(|path| path.display().to_string()).collect();
    if let Some(first) = pointers.first() {
        let more = match pointers.len() {
            1 => String::new(),
            count => format!(" and {} more files", count - 1),
        };
        repository.warn(format!(
            "{}: {first}{more} are pointers to Git LFS objects, which are not fetched: the image gets the pointers",
            repository.request.address
        ));
    }
    Ok(())
}
