//! Child: the step's main process, from its fork to its execve.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, Timespec, Uid};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::plan::{Failure, Place, Plan, Program, RootPlan};
use crate::rung::Users;
use crate::sys;

/// What docker gives a container by default.
const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Becomes the step's program; returns only if that failed.
pub(crate) fn become_it(plan: &Plan, program: &Program, groups: &[Gid]) -> Failure {
    match prepare(plan, program, groups) {
        Ok(()) => Failure { place: Place::Program, errno: execute(program) },
        Err(failure) => failure,
    }
}

fn prepare(plan: &Plan, program: &Program, groups: &[Gid]) -> Result<(), Failure> {
    // A group, not a session: a group whose leader's parent is in another session counts as orphaned, and gVisor ends
    // such a group with SIGHUP when one of its members is stopped.
    rustix::process::setpgid(None, None).map_err(Place::Session.failed())?;
    if let RootPlan::Chroot(path) = &plan.root {
        rustix::process::chroot(path.as_c_str()).map_err(Place::Chroot.failed())?;
        rustix::process::chdir(c"/").map_err(Place::Chroot.failed())?;
    }
    let (uid, gid) = (Uid::from_raw(program.uid), Gid::from_raw(program.gid));
    // So that a step that isn't root can open /dev/stdout. For 1 and 2: Kiln's pipes, which are this step's alone.
    for fd in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let _ = rustix::fs::fchown(fd.as_fd(), Some(uid), Some(gid));
    }
    let entered = rustix::process::chdir(program.cwd.as_c_str());
    if program.confined {
        confine().map_err(Place::Capabilities.failed())?;
    }
    become_user(plan.users, uid, gid, groups).map_err(Place::User.failed())?;
    if program.confined {
        keep_capabilities().map_err(Place::Capabilities.failed())?;
    }
    // A directory may be closed to root too (on network file systems), and open to the user.
    if entered.is_err() {
        rustix::process::chdir(program.cwd.as_c_str()).map_err(Place::Cwd.failed())?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Place::Session.failed())?;
    sys::close_on_exec_from(3);
    sys::reset_signals(false);
    Ok(())
}

/// Takes every other capability out of reach, also for set-user-ID programs.
fn confine() -> Result<(), Errno> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if DEFAULT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows; or a pod without CAP_SETPCAP, whose own bound holds.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(error),
        }
    }
    // Kernels before 4.3 and gVisor have no ambient set.
    let _ = rustix::thread::clear_ambient_capability_set();
    Ok(())
}

fn keep_capabilities() -> Result<(), Errno> {
    let now = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & DEFAULT,
        permitted: now.permitted & DEFAULT,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
}

fn become_user(users: Users, uid: Uid, gid: Gid, groups: &[Gid]) -> Result<(), Errno> {
    // Where only one id is mapped, setgroups is forbidden, and there is no other group to belong to.
    if users != Users::Single {
        match rustix::thread::set_thread_groups(groups) {
            // A pod without CAP_SETGID: root keeps the groups that it has.
            Err(Errno::PERM) if groups.is_empty() && uid.is_root() => {}
            result => result?,
        }
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// How often, and at what distance, a program is tried that somebody has open for writing.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// execve, tried again while the file is open for writing: another thread of Kiln may just have written it, and a
/// child that was forked meanwhile for another step has it open for an instant more.
fn execute_one(candidate: &CStr, program: &Program) -> Errno {
    let mut tries = 0;
    loop {
        match sys::execve(candidate, &program.arguments, &program.environment) {
            Errno::TXTBSY if tries < BUSY_TRIES => {
                tries += 1;
                let _ = rustix::thread::nanosleep(&BUSY_PAUSE);
            }
            error => return error,
        }
    }
}

/// Tries the candidates in turn, as execvp does; gives the most telling error.
fn execute(program: &Program) -> Errno {
    let mut result = Errno::NOENT;
    for candidate in &program.candidates {
        match execute_one(candidate, program) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => result = Errno::ACCESS,
            error => return error,
        }
    }
    result
}
