//! Child: whom a step has left, and ending them.
//!
//! Three ways, by what the system offers. In its own PID namespace, everybody but this process belongs to the step.
//! Else orphans become this process's children, if it may be a subreaper. gVisor (2022-12) knows no subreapers: there
//! orphans go to process 1, and are told by when they started and by their session, which is never Kiln's.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, wait};
use rustix::thread::nanosleep;

use crate::sys;
use crate::text::{Text, number};

/// What a supervisor is called in /proc, instead of its thread's name. Supervisors of steps side by side spare each
/// other by it.
pub(crate) const NAME: &CStr = c"kiln-init";

/// How often, and at what distance, processes that can't be waited for are looked for until they are gone.
const ROUNDS: u32 = 400;
const PAUSE: rustix::fs::Timespec = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// How a step's processes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// All others of the PID namespace.
    Everybody,
    /// This process's children, orphans included.
    Adopted,
    /// By session and time of start.
    Strays { kiln: i32, session: i32, since: u64 },
}

/// The processes of one step.
#[derive(Debug)]
pub(crate) struct Family {
    /// The pod's /proc; it stays at hand after pivot_root.
    proc: Option<OwnedFd>,
    kiln: i32,
    session: i32,
    found: Found,
}

impl Family {
    /// Called before the fork, by Kiln.
    pub(crate) fn prepare() -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty()).ok();
        let kiln = rustix::process::getpid().as_raw_nonzero().get();
        let session =
            proc.as_ref().and_then(|proc| Stat::read(proc.as_fd(), kiln)).map_or(0, |stat| stat.session);
        Self { proc, kiln, session, found: Found::Adopted }
    }

    pub(crate) fn descriptor(&self) -> Option<&OwnedFd> {
        self.proc.as_ref()
    }

    /// Called by the process that will look after the step. `alone`: it is process 1 of its own PID namespace.
    pub(crate) fn adopt(&mut self, alone: bool) -> Result<(), Errno> {
        let me = rustix::process::getpid();
        self.found = if alone {
            Found::Everybody
        } else if rustix::process::set_child_subreaper(Some(me)).is_ok() {
            Found::Adopted
        } else {
            let proc = self.proc.as_ref().ok_or(Errno::NOENT)?;
            let own = Stat::read(proc.as_fd(), me.as_raw_nonzero().get()).ok_or(Errno::SRCH)?;
            Found::Strays { kiln: self.kiln, session: self.session, since: own.started }
        };
        Ok(())
    }

    /// Signals all of the step that can be found now. While `main` is unreaped its id can't be another's.
    pub(crate) fn signal(&self, main: Pid, signal: Signal) {
        if self.found == Found::Everybody {
            return sys::signal_everybody(signal);
        }
        let _ = rustix::process::kill_process_group(main, signal);
        let _ = self.signal_found(signal);
    }

    /// Ends whoever is left when the program has been reaped, and waits until they are gone.
    pub(crate) fn end(&self) {
        let mut rounds = ROUNDS;
        loop {
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            let found = match self.found {
                Found::Everybody => {
                    sys::signal_everybody(Signal::KILL);
                    Ok(0)
                }
                _ => self.signal_found(Signal::KILL),
            };
            match (found, self.found) {
                // Without /proc, who is left can't be found, let alone waited for.
                (Err(_), _) | (Ok(0), Found::Strays { .. }) => return,
                (Ok(_), Found::Strays { .. }) => {
                    rounds -= 1;
                    if rounds == 0 {
                        return;
                    }
                    let _ = nanosleep(&PAUSE);
                }
                // Each one signalled ends and wakes this up; by then, its own children are this process's.
                _ => {
                    if let Err(Errno::CHILD) = wait(WaitOptions::empty()) {
                        return;
                    }
                }
            }
        }
    }

    /// Signals those who are found by a walk through /proc, and gives their number. Children of theirs get their turn
    /// when they are orphans.
    fn signal_found(&self, signal: Signal) -> Result<usize, Errno> {
        let proc = self.proc.as_ref().ok_or(Errno::NOENT)?;
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut count = 0;
        each_process(proc.as_fd(), |pid| {
            let belongs = |stat: &Stat| match self.found {
                _ if stat.parent == me => true,
                Found::Strays { kiln, session, since } => {
                    let orphan = stat.parent == 1 || stat.parent == kiln;
                    let ours = stat.session == me || (orphan && stat.session != session);
                    ours && !stat.ended && !stat.supervisor && stat.started >= since
                }
                _ => false,
            };
            if pid != me && Stat::read(proc.as_fd(), pid).as_ref().is_some_and(belongs) {
                count += 1;
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        })?;
        Ok(count)
    }
}

/// Kiln, after a step, where there are no subreapers: if it is process 1, the step's orphans were given to it, and it
/// takes in those that have ended. Its own children are in its own session, and left alone.
pub(crate) fn reap_strays() {
    let me = rustix::process::getpid();
    if !me.is_init() || rustix::process::child_subreaper().is_ok() {
        return;
    }
    let Some(proc) = Family::prepare().proc else { return };
    let me = me.as_raw_nonzero().get();
    let Some(own) = Stat::read(proc.as_fd(), me) else { return };
    let _ = each_process(proc.as_fd(), |pid| {
        let stray =
            |stat: Stat| stat.parent == me && stat.ended && !stat.supervisor && stat.session != own.session;
        if Stat::read(proc.as_fd(), pid).is_some_and(stray) {
            let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
        }
    });
}

/// The mount namespace of a process, if it has the number that the process said and Kiln may look.
///
/// Numbers are given again at once: only while a namespace is open does its number mean this one.
pub(crate) fn namespace_of(pid: Pid, said: u32) -> Option<OwnedFd> {
    let path = format!("/proc/{}/ns/mnt", pid.as_raw_nonzero());
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&namespace).ok()?;
    (stat.st_ino == u64::from(said)).then_some(namespace)
}

/// Whether a process is in the mount namespace with this number, as far as Kiln may know.
fn is_inside(pid: Pid, namespace: u64) -> bool {
    let path = format!("/proc/{}/ns/mnt", pid.as_raw_nonzero());
    rustix::fs::stat(path).is_ok_and(|stat| stat.st_ino == namespace)
}

/// Kiln, after a step whose supervisor was killed: ends whoever is left in the step's session or mount namespace. The
/// supervisor has ended, and isn't reaped yet: its id is the session's.
pub(crate) fn end_orphans(supervisor: Pid, namespace: Option<&OwnedFd>) {
    let Some(proc) = Family::prepare().proc else { return };
    let session = supervisor.as_raw_nonzero().get();
    let namespace = namespace.and_then(|namespace| rustix::fs::fstat(namespace).ok()).map(|stat| stat.st_ino);
    for _ in 0..ROUNDS {
        let mut left = false;
        let _ = each_process(proc.as_fd(), |pid| {
            let Some((stat, pid)) = Stat::read(proc.as_fd(), pid).zip(Pid::from_raw(pid)) else { return };
            let inside = namespace.is_some_and(|namespace| is_inside(pid, namespace));
            if !stat.ended && (stat.session == session || inside) {
                left = true;
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        });
        if !left {
            return;
        }
        let _ = nanosleep(&PAUSE);
    }
}

fn each_process(proc: BorrowedFd<'_>, mut each: impl FnMut(i32)) -> Result<(), Errno> {
    rustix::fs::seek(proc, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(proc, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(pid) = number(entry?.file_name().to_bytes()).filter(|&pid| pid > 0) {
            each(pid);
        }
    }
    Ok(())
}

/// What /proc/PID/stat says about a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ended: bool,
    /// It looks after a step, as this process does.
    supervisor: bool,
    parent: i32,
    session: i32,
    /// In clock ticks since the system's start.
    started: u64,
}

impl Stat {
    fn read(proc: BorrowedFd<'_>, pid: i32) -> Option<Self> {
        let mut path = Text::new();
        path.append_number(u32::try_from(pid).ok()?).ok()?;
        path.push(b"stat").ok()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(proc, path.as_c_str(), flags, Mode::empty()).ok()?;
        let mut buffer = [0_u8; 1024];
        let count = rustix::io::read(&file, &mut buffer).ok()?;
        Self::parse(buffer.get(..count)?)
    }

    /// The second field, the program's name, may hold anything, parentheses too.
    fn parse(stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let supervisor = stat[..name_end].ends_with(NAME.to_bytes());
        let mut fields =
            stat.get(name_end + 1..)?.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
        let ended = matches!(fields.next()?, b"Z" | b"X");
        let parent = number(fields.next()?)?;
        let session = number(fields.nth(1)?)?;
        let started = std::str::from_utf8(fields.nth(15)?).ok()?.parse().ok()?;
        Some(Self { ended, supervisor, parent, session, started })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_program_is_called() {
        let rest = " S 34 5 6 0 0 0 0 0 0 0 1 0 0 1 20 0 1 0 789 10555392";
        let expected = Stat { ended: false, supervisor: false, parent: 34, session: 6, started: 789 };
        for name in ["(a)", "(x) R 9 (y))", "()"] {
            assert_eq!(Stat::parse(format!("12 {name}{rest}").as_bytes()).as_ref(), Some(&expected));
        }
        assert_eq!(Stat::parse(b"12 (a"), None);
        assert_eq!(Stat::parse(b"12 (a) S 34"), None);
    }

    #[test]
    fn the_number_of_a_namespace_that_is_open_is_given_to_no_other() {
        let begin = || {
            let mut child = std::process::Command::new("unshare");
            child.args(["--mount", "cat"]).stdin(std::process::Stdio::piped());
            child.spawn().unwrap()
        };
        let number = |pid: u32| {
            let path = format!("/proc/{pid}/ns/mnt");
            rustix::fs::stat(path).map_or(0, |stat| u32::try_from(stat.st_ino).unwrap_or(0))
        };
        let own = number(std::process::id());
        // Until `unshare` has done its work, it is in this process's namespace.
        let settled = |child: &std::process::Child| {
            (0..2_000)
                .map(|_| {
                    let _ = nanosleep(&PAUSE);
                    number(child.id())
                })
                .find(|&found| found != 0 && found != own)
        };
        let end = |mut child: std::process::Child| {
            child.kill().unwrap();
            child.wait().unwrap();
        };
        let first = begin();
        // Where no namespace can be made, there is nothing to be mistaken for.
        let Some(said) = settled(&first) else { return end(first) };
        let pid = Pid::from_raw(i32::try_from(first.id()).unwrap()).unwrap();
        assert!(namespace_of(pid, said + 1).is_none());
        let held = namespace_of(pid, said).unwrap();
        end(first);
        for _ in 0..20 {
            let other = begin();
            let found = settled(&other).unwrap();
            end(other);
            assert_ne!(found, said);
        }
        drop(held);
    }

    #[test]
    fn this_process_finds_itself() {
        let family = Family::prepare();
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let proc = family.proc.as_ref().unwrap();
        let stat = Stat::read(proc.as_fd(), me).unwrap();
        assert_eq!(stat.parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        let mut seen = false;
        each_process(proc.as_fd(), |pid| seen |= pid == me).unwrap();
        assert!(seen);
    }
}
