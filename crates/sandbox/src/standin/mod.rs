//! Stand-ins for mounts, on the rungs that can't mount: made in the tree before a step and undone after it.
//!
//! What was at the target is renamed aside in its own directory and put back; what is lent is moved or copied there, and
//! back if it may be written. The directory above keeps its modification time, so nothing of it is in a layer. All of
//! it is undone however the step ends, and also if the set-up itself fails half-way. Undoing goes through descriptors
//! of the directories above, so a step that swaps one for a symlink doesn't lead Kiln out of the tree.

mod copy;
mod devices;
mod place;
mod relay;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::compile::check_target;
use crate::error::SandboxError;
use crate::request::{Mount, MountSource, RunRequest};
use crate::rung::Rung;
use crate::target::Stubs;
use kiln_rootfs::Tree;
use place::Place;

pub use relay::Relay;

/// Directories above targets that may have to be made, for all mounts of a step.
const MOST_STUBS: usize = 4096;

/// What stands in for mounts in one tree, during one step.
pub(crate) struct StandIns {
    rung: Rung,
    root: File,
    stubs: Stubs,
    made: Vec<StandIn>,
}

struct StandIn {
    /// Where the step sees it, for messages.
    target: PathBuf,
    place: Place,
    back: Back,
}

/// What becomes of a stand-in after the step.
enum Back {
    /// It is removed.
    Removed,
    /// It was the source itself, and is moved back there.
    Moved { source: PathBuf, mode: u32 },
    /// Its contents are copied back to the source.
    Copied { source: PathBuf },
    /// It is a socket, and its connections are cut.
    Relayed(Relay),
}

impl StandIns {
    /// Makes all that `request` lends its step; `None` if its rung mounts. Takes the mounts out of the request.
    pub(crate) fn make(request: &mut RunRequest) -> Result<Option<Self>, SandboxError> {
        let rung = request.enclosure.rung();
        let path = match &request.tree {
            Tree::Directory { path } if rung == Rung::Chroot => path.clone(),
            Tree::Host if rung == Rung::Root => PathBuf::from("/"),
            _ => return Ok(None),
        };
        let root = File::open(&path)
            .map_err(|error| SandboxError::io(format!("opening the tree {}", path.display()), error))?;
        let mut all = Self { rung, root, stubs: Stubs::with_room_for(MOST_STUBS), made: Vec::new() };
        match all.make_all(request) {
            Ok(()) => Ok(Some(all)),
            Err(error) => {
                all.undo()?;
                Err(error)
            }
        }
    }

    fn make_all(&mut self, request: &mut RunRequest) -> Result<(), SandboxError> {
        if self.rung == Rung::Chroot {
            self.play(PathBuf::from("/dev"), &|path| devices::fill(path).map(|()| Back::Removed))?;
            let files = [("/etc/resolv.conf", &request.resolv_conf), ("/etc/hosts", &request.hosts)];
            for (target, bytes) in files {
                let Some(bytes) = bytes else { continue };
                self.play(target.into(), &|path| {
                    copy::write(path, bytes, (0o644, 0, 0)).map(|()| Back::Removed)
                })?;
            }
        }
        for mount in request.mounts.drain(..) {
            check_target(&mount)?;
            self.lend(mount)?;
        }
        Ok(())
    }

    fn lend(&mut self, mount: Mount) -> Result<(), SandboxError> {
        match mount.source {
            MountSource::Bind { path, readonly } => {
                if self.is_there_already(&path, &mount.target) {
                    return Ok(());
                }
                self.play(mount.target, &|to| bind(&path, to, readonly))
            }
            MountSource::Overlay { .. } => Err(SandboxError::Request(format!(
                "layers can't be mounted at {} on rung {}: lend the stage's directory instead",
                mount.target.display(),
                self.rung
            ))),
            MountSource::Tmpfs { mode, .. } => self.play(mount.target, &|to| {
                std::fs::create_dir(to)?;
                copy::set_mode(to, mode)?;
                Ok(Back::Removed)
            }),
            MountSource::File { contents, mode, uid, gid } => self.play(mount.target, &|to| {
                let bytes = crate::compile::read_from_start(&contents)?;
                copy::write(to, &bytes, (mode, uid, gid)).map(|()| Back::Removed)
            }),
            MountSource::Socket(path) => {
                if self.is_there_already(&path, &mount.target) {
                    return Ok(());
                }
                self.play(mount.target, &|to| match std::fs::hard_link(&path, to) {
                    Ok(()) => Ok(Back::Removed),
                    Err(_) => Relay::start(&path, to).map(Back::Relayed),
                })
            }
            MountSource::Device(path) => {
                if self.is_there_already(&path, &mount.target) {
                    return Ok(());
                }
                let rung = self.rung;
                self.play(mount.target, &|to| match devices::copy_node(&path, to) {
                    Err(error) if rung == Rung::Root && error.kind() == io::ErrorKind::PermissionDenied => {
                        std::os::unix::fs::symlink(&path, to).map(|()| Back::Removed)
                    }
                    result => result.map(|()| Back::Removed),
                })
            }
        }
    }

    /// On rung root, whether the very source is what the step sees at the target anyway.
    fn is_there_already(&self, source: &Path, target: &Path) -> bool {
        let same = |a: io::Result<std::fs::Metadata>, b: io::Result<std::fs::Metadata>| match (a, b) {
            (Ok(a), Ok(b)) if a.file_type().is_char_device() || a.file_type().is_block_device() => {
                a.file_type() == b.file_type() && a.rdev() == b.rdev()
            }
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        self.rung == Rung::Root && same(std::fs::metadata(source), std::fs::metadata(target))
    }

    /// Puts at `target` what `make` makes at the path that it is given.
    fn play(
        &mut self,
        target: PathBuf,
        make: &dyn Fn(&Path) -> io::Result<Back>,
    ) -> Result<(), SandboxError> {
        let doing = |target: &Path| format!("standing in for a mount at {}", target.display());
        let place = Place::find(self.root.as_fd(), &target, &mut self.stubs)
            .map_err(|error| SandboxError::io(doing(&target), error))?;
        let before = place.times();
        let made = place.put_aside(self.made.len()).and_then(|place| match make(&place.path()) {
            Ok(back) => Ok((place, back)),
            Err(error) => {
                let _ = copy::remove(&place.path());
                place.put_back()?;
                Err(error)
            }
        });
        let (place, back) = made.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => SandboxError::Request(format!(
                "nothing can be lent at {}: a volume of the pod is mounted there, and rung {} can't mount over it",
                target.display(),
                self.rung
            )),
            _ => SandboxError::io(doing(&target), error),
        })?;
        place.set_times(before);
        self.made.push(StandIn { target, place, back });
        Ok(())
    }

    /// Takes everything away again, last one first, and says what could not be undone.
    pub(crate) fn undo(mut self) -> Result<(), SandboxError> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Result<(), SandboxError> {
        let mut result = Ok(());
        while let Some(stand_in) = self.made.pop() {
            if let Err(error) = stand_in.undo() {
                result = result.and(Err(error));
            }
        }
        self.stubs.remove();
        result
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        let _ = self.undo_all();
    }
}

impl StandIn {
    fn undo(self) -> Result<(), SandboxError> {
        let Self { target, place, back } = self;
        let failed = |doing| {
            let path = target.clone();
            move |source| SandboxError::Restore { path, doing, source }
        };
        let here = place.path();
        let times = place.times();
        let returned = match back {
            Back::Removed => Ok(()),
            Back::Moved { source, mode } => copy::move_back(&here, &source, mode),
            Back::Copied { source } => copy::mirror(&here, &source),
            Back::Relayed(relay) => {
                drop(relay);
                Ok(())
            }
        };
        // Whatever happened to its contents, the tree gets back what is its own.
        copy::remove(&here).map_err(failed("removed"))?;
        place.put_back().map_err(failed("put back"))?;
        place.set_times(times);
        returned.map_err(failed("copied back to its source"))
    }
}

/// Lends a directory or file: what may be written is moved if that can be, else copied.
fn bind(source: &Path, to: &Path, readonly: bool) -> io::Result<Back> {
    if readonly {
        return copy::copy(source, to).map(|()| Back::Removed);
    }
    let meta = std::fs::metadata(source)?;
    let source = source.canonicalize()?;
    if meta.is_dir() && std::fs::rename(&source, to).is_ok() {
        return Ok(Back::Moved { source, mode: meta.mode() & 0o7777 });
    }
    copy::copy(&source, to).map(|()| Back::Copied { source })
}
