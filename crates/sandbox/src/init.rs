//! Child: the process between Kiln and a step's program, one per step.
//!
//! It makes the surroundings, starts the program, adopts what the program leaves behind, and, once the program has
//! ended or Kiln says so, ends all of it. So Kiln itself waits for one child per step, by its id, and steps side by
//! side can't take each other's children. If Kiln dies, the control pipe closes, and the step is ended all the same.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, set_dumpable_behavior, wait};

use crate::family::{self, Family};
use crate::plan::{Failure, Place, Plan};
use crate::program;
use crate::request::Exit;
use crate::rung::Users;
use crate::setup::Surroundings;
use crate::sys::{self, Namespaces};

/// What Kiln says through the control pipe, one byte each. Its closing means [`KILL`].
pub(crate) const GO: u8 = b'g';
/// End the step gently.
pub(crate) const TERMINATE: u8 = b't';
/// End the step.
pub(crate) const KILL: u8 = b'k';

/// What this process says through the status pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// The user namespace is there; its maps can be written.
    Ready,
    /// The inode of the step's mount namespace, sent before anything can run in it.
    Inside(u32),
    /// Something failed; nothing will run.
    Failed(Failure),
    /// All is over and tidied up; the program ended so (with code 0 if there was none to run).
    Ended(Exit),
}

impl Status {
    pub(crate) const SIZE: usize = 12;

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let (kind, first, second) = match self {
            Self::Ready => (1_u32, [0; 4], 0),
            Self::Inside(inode) => (5, inode.to_ne_bytes(), 0),
            Self::Failed(failure) => (2, failure.place.to_bytes(), failure.errno.raw_os_error()),
            Self::Ended(Exit::Code(code)) => (3, [0; 4], code),
            Self::Ended(Exit::Signal(signal)) => (4, [0; 4], signal),
        };
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second.to_ne_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let [k0, k1, k2, k3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        let number = i32::from_ne_bytes([s0, s1, s2, s3]);
        match u32::from_ne_bytes([k0, k1, k2, k3]) {
            1 => Some(Self::Ready),
            2 => Some(Self::Failed(Failure {
                place: Place::from_bytes([f0, f1, f2, f3]),
                errno: Errno::from_raw_os_error(number),
            })),
            3 => Some(Self::Ended(Exit::Code(number))),
            4 => Some(Self::Ended(Exit::Signal(number))),
            5 => Some(Self::Inside(u32::from_ne_bytes([f0, f1, f2, f3]))),
            _ => None,
        }
    }

    /// Writes are shorter than a pipe's buffer and whole, so messages of two processes don't mix.
    pub(crate) fn send(self, status: BorrowedFd<'_>) {
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(status, &self.to_bytes()));
    }
}

/// The ends of pipes that a step's processes hold.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) control: OwnedFd,
    pub(crate) status: OwnedFd,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What the child needs beside the plan: all that must be allocated or looked up before the fork.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) ends: Ends,
    pub(crate) surroundings: Surroundings,
    family: Family,
    /// Descriptors to keep, sorted.
    keep: Vec<RawFd>,
    groups: Vec<rustix::process::Gid>,
}

impl Child {
    pub(crate) fn prepare(plan: &Plan, ends: Ends) -> std::io::Result<Self> {
        let surroundings = Surroundings::prepare(plan)?;
        let family = Family::prepare();
        let mut keep: Vec<RawFd> = plan.open_files().map(AsRawFd::as_raw_fd).collect();
        keep.extend([ends.control.as_raw_fd(), ends.status.as_raw_fd(), surroundings.root().as_raw_fd()]);
        keep.extend(family.descriptor().map(AsRawFd::as_raw_fd));
        keep.sort_unstable();
        let groups = plan.program.iter().flat_map(|program| &program.groups);
        let groups = groups.map(|&group| rustix::process::Gid::from_raw(group)).collect();
        Ok(Self { ends, surroundings, family, keep, groups })
    }

    /// The whole life of the process. Runs between fork and _exit.
    pub(crate) fn live(&mut self, plan: &Plan) -> u8 {
        match self.start(plan) {
            Ok(main) => {
                let exit = self.attend(main);
                self.surroundings.undo();
                Status::Ended(exit).send(self.ends.status.as_fd());
                0
            }
            Err(failure) => {
                self.surroundings.undo();
                Status::Failed(failure).send(self.ends.status.as_fd());
                1
            }
        }
    }

    fn start(&mut self, plan: &Plan) -> Result<Option<Pid>, Failure> {
        sys::reset_signals(true);
        let ends = &self.ends;
        for (number, fd) in (0..).zip([&ends.stdin, &ends.stdout, &ends.stderr]) {
            sys::put_at(fd.as_fd(), number).map_err(Place::Session.failed())?;
        }
        sys::close_all_but(&self.keep);
        if plan.users != Users::Pod {
            self.await_maps(plan.users)?;
        }
        // From here on: this process is a copy of Kiln, secrets included, and the step may be the same user.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Place::Session.failed())?;
        rustix::thread::set_name(family::NAME).map_err(Place::Session.failed())?;
        sys::become_session().map_err(Place::Session.failed())?;
        self.family.adopt(plan.namespaces.pid).map_err(Place::Session.failed())?;
        rustix::process::umask(Mode::empty());
        if let Some(name) = &plan.hostname {
            match rustix::system::sethostname(name) {
                // The step does without a name of its own.
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(Failure { place: Place::Hostname, errno }),
            }
        }
        if plan.namespaces.net {
            match sys::raise_loopback() {
                // In a pod with CAP_SYS_ADMIN and without CAP_NET_ADMIN, and in gVisor: then there is no network at all.
                Ok(()) | Err(Errno::PERM | Errno::NOTTY) => {}
                Err(errno) => return Err(Failure { place: Place::Loopback, errno }),
            }
        }
        if plan.namespaces.mount
            && let Ok(stat) = rustix::fs::stat(c"/proc/self/ns/mnt")
            && let Ok(inode) = u32::try_from(stat.st_ino)
        {
            Status::Inside(inode).send(self.ends.status.as_fd());
        }
        self.surroundings.make(plan)?;
        let Some(step) = &plan.program else { return Ok(None) };
        let (groups, status) = (&self.groups, self.ends.status.as_fd());
        let main = sys::fork(Namespaces::default(), || {
            let failure = program::become_it(plan, step, groups);
            Status::Failed(failure).send(status);
            127
        });
        main.map(Some).map_err(Place::Program.failed())
    }

    /// Waits until Kiln has written this namespace's maps. With a single id, Kiln isn't root, and a process that can't
    /// be dumped has its files in /proc owned by root; so for that long, it can be.
    fn await_maps(&self, users: Users) -> Result<(), Failure> {
        if users == Users::Single {
            set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(Place::Session.failed())?;
        }
        Status::Ready.send(self.ends.status.as_fd());
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.ends.control, &mut byte)) {
            Ok(1) if byte[0] == GO => Ok(()),
            Ok(_) => Err(Failure { place: Place::Maps, errno: Errno::CANCELED }),
            Err(errno) => Err(Failure { place: Place::Maps, errno }),
        }
    }

    /// Waits for the program's end, ends whatever it left, and says how it ended.
    fn attend(&self, main: Option<Pid>) -> Exit {
        let Some(main) = main else { return Exit::Code(0) };
        let exit = self.wait_for(main);
        self.family.end();
        exit
    }

    fn wait_for(&self, main: Pid) -> Exit {
        let Ok(children) = sys::child_signals() else {
            return reap_until(main, WaitOptions::empty()).unwrap_or(Exit::Code(255));
        };
        let mut controlled = true;
        loop {
            if let Some(exit) = reap_until(main, WaitOptions::NOHANG) {
                return exit;
            }
            let mut fds =
                [PollFd::new(&children, PollFlags::IN), PollFd::new(&self.ends.control, PollFlags::IN)];
            let watched = if controlled { 2 } else { 1 };
            if poll(&mut fds[..watched], None).is_err() {
                continue;
            }
            let (ended, told) = (!fds[0].revents().is_empty(), controlled && !fds[1].revents().is_empty());
            if ended {
                let mut info = [0_u8; 128 * 8];
                let _ = rustix::io::read(&children, &mut info);
            }
            if told {
                let mut byte = [0];
                match rustix::io::read(&self.ends.control, &mut byte) {
                    Ok(1) if byte[0] == TERMINATE => {
                        self.family.signal(main, Signal::TERM);
                        self.family.signal(main, Signal::CONT);
                    }
                    Ok(1) if byte[0] != KILL => {}
                    _ => {
                        self.family.signal(main, Signal::KILL);
                        controlled = false;
                    }
                }
            }
        }
    }
}

/// Takes in ended children until `main` is among them or there is none; says how it ended.
fn reap_until(main: Pid, options: WaitOptions) -> Option<Exit> {
    loop {
        match wait(options) {
            Ok(Some((pid, status))) if pid == main => return Some(exit_of(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

pub(crate) fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(255),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_survive_the_pipe() {
        let failure = Failure { place: Place::Action(3), errno: Errno::PERM };
        for status in [
            Status::Ready,
            Status::Inside(4_026_531_840),
            Status::Failed(failure),
            Status::Ended(Exit::Code(7)),
            Status::Ended(Exit::Signal(9)),
        ] {
            assert_eq!(Status::from_bytes(status.to_bytes()), Some(status));
        }
    }
}
