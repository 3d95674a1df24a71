//! Child: makes the surroundings of a step, from the first mount to pivot_root, as its plan says.
//!
//! Mounts are made with mount(2) at `/proc/self/fd/N`, where N was found inside the tree: so no symlink of the image can
//! redirect one, and every kernel and seccomp profile that knows mount(2) will do.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::plan::{Action, Check, Contents, Failure, Layers, Place, Plan, RootPlan, What};
use crate::sys;
use crate::target::{self, Missing, Stubs};
use crate::text::{Text, number, path_of};

/// More processes than this are no pod's: a step sees the rest as they are.
const MOST_PROCESSES: u32 = 256;

/// Most lower directories that overlayfs takes.
const MOST_LAYERS: usize = 500;

/// A tree that was mounted, and what has to be undone in it.
#[derive(Debug)]
pub(crate) struct Surroundings {
    root: OwnedFd,
    stubs: Stubs,
    /// Mount points inside file systems that were mounted for this step: nobody has to remove them.
    passing: Stubs,
    /// Where something was mounted in the tree itself, relative to the root, in this order. Preallocated.
    mounted: Vec<Text>,
}

impl Surroundings {
    /// Allocates what the child will fill; called before the fork.
    pub(crate) fn prepare(plan: &Plan) -> std::io::Result<Self> {
        Ok(Self {
            root: rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?,
            stubs: Stubs::with_room_for(plan.most_stubs()),
            passing: Stubs::with_room_for(plan.most_stubs()),
            mounted: Vec::with_capacity(plan.actions.len()),
        })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Mounts the root and all else, and makes it this process's `/`.
    pub(crate) fn make(&mut self, plan: &Plan) -> Result<(), Failure> {
        match &plan.root {
            RootPlan::Host => return Ok(()),
            RootPlan::Chroot(path) => {
                // A step's program does that itself; its supervisor stays outside. A probe has no program.
                if plan.program.is_none() {
                    rustix::process::chroot(path.as_c_str()).map_err(Place::Chroot.failed())?;
                }
                return Ok(());
            }
            RootPlan::Overlay(_) | RootPlan::Directory(_) => {}
        }
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", slave).map_err(Place::Propagation.failed())?;
        let at = mount_root(&plan.root).map_err(Place::Root.failed())?;
        self.root = open_topmost(at).map_err(Place::Root.failed())?;
        for (index, action) in (0..).zip(&plan.actions) {
            match self.act(action, at) {
                Err(errno) if !action.optional => {
                    return Err(Failure { place: Place::Action(index), errno });
                }
                _ => {}
            }
        }
        self.pivot().map_err(Place::Pivot.failed())
    }

    /// Unmounts all that may hide a stub and removes the stubs. Only after everything in the tree has been killed.
    pub(crate) fn undo(&mut self) {
        if self.stubs.is_empty() || rustix::process::fchdir(&self.root).is_err() {
            return;
        }
        while let Some(path) = self.mounted.pop() {
            let _ = rustix::mount::unmount(path.as_c_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        self.stubs.remove();
    }

    /// Does one action. `stage` is the path that the root is mounted at: something mounted there for a moment covers
    /// the root for those who come by path, and not for those who come through `self.root`.
    fn act(&mut self, action: &Action, stage: &CStr) -> Result<(), Errno> {
        let stubs = if action.inside { &mut self.passing } else { &mut self.stubs };
        let before = stubs.len();
        let place = target::locate(self.root.as_fd(), &action.target, action.missing, stubs)?;
        // A directory that is made in something that was lent is not the tree's: in a cache it stays.
        if action.missing == Missing::Directory && self.mounted.iter().any(|above| is_below(&place, above)) {
            stubs.forget_from(before);
        }
        match &action.what {
            What::Symlink { to } => {
                return rustix::fs::symlinkat(to.as_c_str(), self.root.as_fd(), place.as_c_str());
            }
            What::Check(check) => return try_out(self.root.as_fd(), &place, *check),
            What::ShutProcesses => return self.shut_processes(&place),
            _ => {}
        }
        let target = target::open_path(self.root.as_fd(), &place)?;
        let here = path_of(target.as_fd())?;
        match &action.what {
            What::Bind { source, readonly } => {
                rustix::mount::mount_bind_recursive(source.as_c_str(), here.as_c_str())?;
                if *readonly {
                    self.make_readonly(&place)?;
                }
            }
            What::Stack { layers, source } => self.bind_from_layers(layers, source, &here, &place, stage)?,
            What::New { kind, flags, options, instead } => {
                let mount = |options| rustix::mount::mount(c"none", here.as_c_str(), kind, *flags, options);
                match (mount(options.as_c_str()), instead) {
                    (Err(Errno::INVAL | Errno::PERM), Some(instead)) => mount(instead.as_c_str())?,
                    (result, _) => result?,
                }
            }
            What::Memory { contents, mode, uid, gid } => {
                bind_from_memory(contents, (*mode, *uid, *gid), &here, stage)?;
            }
            What::Mask => {
                let stat = rustix::fs::fstat(&target)?;
                if FileType::from_raw_mode(stat.st_mode).is_dir() {
                    mount_nothing(&here)?;
                } else {
                    rustix::mount::mount_bind(c"/dev/null", here.as_c_str())?;
                }
            }
            What::Readonly => {
                rustix::mount::mount_bind_recursive(here.as_c_str(), here.as_c_str())?;
                self.make_readonly(&place)?;
            }
            What::Symlink { .. } | What::Check(_) | What::ShutProcesses => {}
        }
        if !action.inside {
            self.mounted.push(place);
        }
        Ok(())
    }

    /// Puts empty directories over the threads and the descriptors of the processes in `proc`. One that ends meanwhile, or that
    /// can't be shut, is left as it is.
    fn shut_processes(&self, proc: &Text) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.root(), proc.as_c_str(), flags, Mode::empty())?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
        let mut left = MOST_PROCESSES;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if number(name).is_none() || left == 0 {
                continue;
            }
            left -= 1;
            for inner in [b"task".as_slice(), b"fdinfo"] {
                let mut path = proc.clone();
                path.push(name)?;
                path.push(inner)?;
                let shut = || mount_nothing(&path_of(target::open_path(self.root(), &path)?.as_fd())?);
                let _ = shut();
            }
        }
        Ok(())
    }

    /// Makes the mount that was just made at `place` read-only.
    fn make_readonly(&self, place: &Text) -> Result<(), Errno> {
        let mount = target::open_path(self.root.as_fd(), place)?;
        match sys::set_readonly_recursive(mount.as_fd()) {
            Err(Errno::NOSYS | Errno::PERM) => {}
            result => return result,
        }
        // Before Linux 5.12 (or where seccomp doesn't know the call): the top mount only. What is locked there must be
        // named again.
        let stat = rustix::fs::fstatvfs(&mount)?;
        let mut flags = MountFlags::BIND | MountFlags::RDONLY;
        for (locked, flag) in [
            (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
            (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
            (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
            (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
            (rustix::fs::StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
            (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
        ] {
            if stat.f_flag.contains(locked) {
                flags |= flag;
            }
        }
        rustix::mount::mount_remount(path_of(mount.as_fd())?.as_c_str(), flags, c"")
    }

    /// Binds a path inside a stack of layers, which is mounted over the new root for just that long.
    fn bind_from_layers(
        &self,
        layers: &Layers,
        source: &[u8],
        here: &Text,
        place: &Text,
        stage: &CStr,
    ) -> Result<(), Errno> {
        mount_layers(layers, stage)?;
        let result = open_topmost(stage).and_then(|stacked| {
            let mut none = Stubs::with_room_for(0);
            let found = target::locate(stacked.as_fd(), source, Missing::Nothing, &mut none)?;
            let from = target::open_path(stacked.as_fd(), &found)?;
            rustix::mount::mount_bind(path_of(from.as_fd())?.as_c_str(), here.as_c_str())
        });
        rustix::mount::unmount(stage, UnmountFlags::DETACH)?;
        result?;
        if layers.writable.is_none() { self.make_readonly(place) } else { Ok(()) }
    }

    /// Makes the new root this process's `/` and lets go of the pod's.
    fn pivot(&self) -> Result<(), Errno> {
        rustix::process::fchdir(&self.root)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    }
}

/// Mounts an empty directory that stays empty.
fn mount_nothing(here: &Text) -> Result<(), Errno> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(c"none", here.as_c_str(), c"tmpfs", flags, c"size=0k,nr_inodes=2")
}

/// Whether a path lies below another; both are relative to the root, without links.
fn is_below(path: &Text, above: &Text) -> bool {
    let rest = path.as_bytes().strip_prefix(above.as_bytes());
    !above.is_empty() && rest.is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Mounts the root, and gives the path that it is mounted at.
fn mount_root(root: &RootPlan) -> Result<&CStr, Errno> {
    match root {
        RootPlan::Overlay(layers) => {
            let (upper, _) = layers.writable.as_ref().ok_or(Errno::INVAL)?;
            mount_layers(layers, upper)?;
            Ok(upper)
        }
        RootPlan::Directory(path) => {
            rustix::mount::mount_bind_recursive(path.as_c_str(), path.as_c_str())?;
            Ok(path)
        }
        RootPlan::Chroot(_) | RootPlan::Host => Err(Errno::INVAL),
    }
}

/// Opens what a path leads to now, on top of all that is mounted there.
fn open_topmost(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Mounts an overlay at `at`. Layers are named by the numbers of open descriptors, relative to /proc/self/fd: five
/// hundred of them, overlayfs' limit, fit the page that mount(2) takes, however long their paths are.
fn mount_layers(layers: &Layers, at: &CStr) -> Result<(), Errno> {
    if let ([only], None) = (layers.lowers.as_slice(), &layers.writable) {
        return rustix::mount::mount_bind(only.as_c_str(), at);
    }
    if layers.lowers.len() > MOST_LAYERS {
        return Err(Errno::TOOBIG);
    }
    let numbered = |options: &mut Text, path: &CStr| -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        options.append_number(u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF)?)?;
        Ok(fd)
    };
    let mut options = Text::from(b"userxattr,index=off,lowerdir=")?;
    let mut open = [const { None::<OwnedFd> }; MOST_LAYERS];
    for (index, (lower, slot)) in layers.lowers.iter().zip(&mut open).enumerate() {
        if index > 0 {
            options.append(b":")?;
        }
        *slot = Some(numbered(&mut options, lower)?);
    }
    let mut writable = (None, None);
    if let Some((upper, work)) = &layers.writable {
        // Steps may fsync as they like: nothing here has to survive a crash.
        options.append(b",volatile,upperdir=")?;
        writable.0 = Some(numbered(&mut options, upper)?);
        options.append(b",workdir=")?;
        writable.1 = Some(numbered(&mut options, work)?);
    }
    let target = open_topmost(at)?;
    let target = path_of(target.as_fd())?;
    rustix::process::chdir(c"/proc/self/fd")?;
    let flags = if layers.writable.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
    let result = rustix::mount::mount(c"overlay", target.as_c_str(), c"overlay", flags, options.as_c_str());
    rustix::process::chdir(c"/")?;
    drop((open, writable));
    result
}

/// Binds a new file in a file system in memory, which is mounted over the new root for just that long.
fn bind_from_memory(
    contents: &Contents,
    meta: (u32, u32, u32),
    here: &Text,
    stage: &CStr,
) -> Result<(), Errno> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    // A script that is lent is run; a secret never is.
    if meta.0 & 0o111 == 0 {
        flags |= MountFlags::NOEXEC;
    }
    rustix::mount::mount(c"none", stage, c"tmpfs", flags, c"mode=0700,nr_inodes=4")?;
    let result = open_topmost(stage).and_then(|memory| {
        write_file(memory.as_fd(), contents, meta)?;
        let file = target::open_path(memory.as_fd(), &Text::from(b"f")?)?;
        rustix::mount::mount_bind(path_of(file.as_fd())?.as_c_str(), here.as_c_str())
    });
    rustix::mount::unmount(stage, UnmountFlags::DETACH)?;
    result
}

fn write_file(directory: BorrowedFd<'_>, contents: &Contents, meta: (u32, u32, u32)) -> Result<(), Errno> {
    let (mode, uid, gid) = meta;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, c"f", flags, Mode::from_raw_mode(0o600))?;
    match contents {
        Contents::Bytes(bytes) => write_all(file.as_fd(), bytes)?,
        Contents::File(from) => {
            let mut buffer = [0_u8; 16_384];
            let mut offset = 0;
            loop {
                let count = rustix::io::pread(from, &mut buffer, offset)?;
                if count == 0 {
                    break;
                }
                write_all(file.as_fd(), &buffer[..count])?;
                offset += count as u64;
            }
        }
    }
    rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let count = rustix::io::write(file, bytes)?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// What a probe tries.
fn try_out(root: BorrowedFd<'_>, place: &Text, check: Check) -> Result<(), Errno> {
    let path = place.as_c_str();
    match check {
        Check::GiveAway => {
            let (uid, gid) = (Uid::from_raw(1234), Gid::from_raw(2345));
            rustix::fs::chownat(root, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        }
        Check::Unlink => rustix::fs::unlinkat(root, path, AtFlags::empty()),
        Check::Replace => {
            rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR)?;
            rustix::fs::mkdirat(root, path, Mode::from_raw_mode(0o755))
        }
    }
}
