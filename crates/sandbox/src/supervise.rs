//! The parent's side of a step: starts its init process, passes lines on, and sees to it that it ends.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, waitid, waitpid,
};

use crate::cancel::Cancel;
use crate::error::SandboxError;
use crate::family;
use crate::init::{Child, Ends, GO, KILL, Status, TERMINATE, exit_of};
use crate::lines::Lines;
use crate::plan::{Failure, Place, Plan};
use crate::request::{Exit, Stream};
use crate::rung::Users;
use crate::sys;

/// How long a cancelled step may take to end by itself.
const GENTLE: Duration = Duration::from_secs(2);
/// How long its init process may then take to kill and tidy up.
const FIRM: Duration = Duration::from_millis(1500);

/// How carrying out a plan ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Everything was done; how the program ended.
    Ended(Exit),
    /// Something failed before the program ran.
    Failed(Failure),
    /// Cancelled, and nothing of it is left.
    Cancelled,
    /// The init process ended without a word.
    Died(Exit),
}

/// What a step prints goes here.
pub(crate) type Output<'a> = &'a (dyn Fn(Stream, &[u8]) + Sync);

/// Carries out `plan`. Returns when every process of it is gone.
pub(crate) fn carry_out(
    plan: &Plan,
    stdin: Option<File>,
    output: Output<'_>,
    cancel: Option<&Cancel>,
) -> Result<Outcome, SandboxError> {
    let io = |error: Errno| SandboxError::io("making the step's pipes", error);
    let stdin = match stdin {
        Some(file) => OwnedFd::from(file),
        None => File::open("/dev/null").map_err(|error| SandboxError::io("opening /dev/null", error))?.into(),
    };
    let (control_end, control) = pipe_with(PipeFlags::CLOEXEC).map_err(io)?;
    let (status, status_end) = pipe_with(PipeFlags::CLOEXEC).map_err(io)?;
    let (stdout, stdout_end) = pipe_with(PipeFlags::CLOEXEC).map_err(io)?;
    let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC).map_err(io)?;
    for end in [&stdout, &stderr] {
        fcntl_setfl(end, fcntl_getfl(end).map_err(io)? | OFlags::NONBLOCK).map_err(io)?;
    }
    let ends =
        Ends { control: control_end, status: status_end, stdin, stdout: stdout_end, stderr: stderr_end };
    let mut child = Child::prepare(plan, ends)
        .map_err(|error| SandboxError::io("preparing the step's supervisor", error))?;
    let blocked = sys::BlockedSignals::new();
    let forked = sys::fork(plan.namespaces, || child.live(plan));
    drop(blocked);
    drop(child);
    let pid = match forked {
        Ok(pid) => pid,
        Err(errno) => return Ok(Outcome::Failed(Failure { place: Place::Fork, errno })),
    };
    let mut watch = Watch {
        plan,
        namespace: None,
        init: Init { pid, reaped: false },
        control: File::from(control),
        status,
        pipes: [
            Pipe { end: Some(stdout), stream: Stream::Stdout, lines: Lines::default() },
            Pipe { end: Some(stderr), stream: Stream::Stderr, lines: Lines::default() },
        ],
        output,
        cancel,
        stopping: None,
    };
    watch.follow()
}

/// The init process, which is killed and reaped in whatever way its step is left.
struct Init {
    pid: Pid,
    reaped: bool,
}

impl Init {
    /// Waits until it has ended, and lets its id be nobody else's yet.
    fn ended(&self) -> Result<(), SandboxError> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let waited = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(self.pid), options));
        waited.map(drop).map_err(|error| SandboxError::io("waiting for the step's supervisor", error))
    }

    fn wait(&mut self) -> Result<WaitStatus, SandboxError> {
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
        self.reaped = true;
        match waited {
            Ok(Some((_, status))) => Ok(status),
            Ok(None) => Err(SandboxError::io("waiting for the step's supervisor", Errno::CHILD)),
            Err(error) => Err(SandboxError::io("waiting for the step's supervisor", error)),
        }
    }

    fn kill(&self) {
        if !self.reaped {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.wait();
        }
    }
}

struct Pipe {
    end: Option<OwnedFd>,
    stream: Stream,
    lines: Lines,
}

impl Pipe {
    /// Passes on what is there now. With `all`, until nothing more is.
    fn drain(&mut self, output: Output<'_>, buffer: &mut [u8], all: bool) {
        while let Some(end) = &self.end {
            match rustix::io::read(end, &mut *buffer) {
                Ok(0) => self.end = None,
                Ok(count) => {
                    let stream = self.stream;
                    self.lines.feed(&buffer[..count], &mut |line| output(stream, line));
                    if !all {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn finish(&mut self, output: Output<'_>) {
        let stream = self.stream;
        self.lines.finish(&mut |line| output(stream, line));
    }
}

/// How far cancelling has come, and until when it waits for the next stage.
#[derive(Clone, Copy)]
enum Stopping {
    Gently(Instant),
    Firmly(Instant),
    Killed,
}

struct Watch<'a> {
    plan: &'a Plan,
    init: Init,
    /// The step's mount namespace, if it has one of its own. As long as it is open, its number is no other's.
    namespace: Option<OwnedFd>,
    control: File,
    status: OwnedFd,
    pipes: [Pipe; 2],
    output: Output<'a>,
    cancel: Option<&'a Cancel>,
    stopping: Option<Stopping>,
}

impl Watch<'_> {
    fn follow(&mut self) -> Result<Outcome, SandboxError> {
        let mut buffer = vec![0; 64 * 1024];
        let result = loop {
            let (status, readable) = self.wait_for_news()?;
            for (pipe, readable) in self.pipes.iter_mut().zip(readable) {
                if readable {
                    pipe.drain(self.output, &mut buffer, false);
                }
            }
            self.stop_if_told();
            if !status {
                continue;
            }
            match self.read_status() {
                Some(Status::Ready) => {
                    if let Err(errno) = self.write_maps() {
                        self.init.kill();
                        break Some(Status::Failed(Failure { place: Place::Maps, errno }));
                    }
                    let _ = self.control.write_all(&[GO]);
                }
                Some(Status::Inside(inode)) => self.namespace = family::namespace_of(self.init.pid, inode),
                other => break other,
            }
        };
        if !matches!(result, Some(Status::Ended(_))) {
            self.init.ended()?;
            family::end_orphans(self.init.pid, self.namespace.as_ref());
        }
        let died = self.init.wait()?;
        family::reap_strays();
        // All processes of the step are gone, so what they wrote is in the pipes. Their ends may still be open in a
        // child that was just forked for another step: no use in waiting for the end of file.
        for pipe in &mut self.pipes {
            pipe.drain(self.output, &mut buffer, true);
            pipe.finish(self.output);
        }
        Ok(match result {
            _ if self.stopping.is_some() => Outcome::Cancelled,
            Some(Status::Ended(exit)) => Outcome::Ended(exit),
            Some(Status::Failed(failure)) => Outcome::Failed(failure),
            Some(Status::Ready | Status::Inside(_)) | None => Outcome::Died(exit_of(died)),
        })
    }

    /// Waits for something to read: from the status pipe, and from which output.
    fn wait_for_news(&self) -> Result<(bool, [bool; 2]), SandboxError> {
        let mut fds = vec![PollFd::new(&self.status, PollFlags::IN)];
        for pipe in &self.pipes {
            fds.extend(pipe.end.as_ref().map(|end| PollFd::new(end, PollFlags::IN)));
        }
        let wake = self.cancel.filter(|_| self.stopping.is_none()).map(Cancel::wake);
        fds.extend(wake.as_ref().map(|wake| PollFd::new(wake, PollFlags::IN)));
        let left = match self.stopping {
            Some(Stopping::Gently(until) | Stopping::Firmly(until)) => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            _ => None,
        };
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(SandboxError::io("waiting for the step's output", error)),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let status = ready.next().unwrap_or_default();
        let readable = [0, 1].map(|index: usize| {
            let open = self.pipes[index].end.is_some();
            open && ready.next().unwrap_or_default()
        });
        Ok((status, readable))
    }

    /// The next stage of stopping the step, if it is time for one.
    fn stop_if_told(&mut self) {
        let now = Instant::now();
        match self.stopping {
            None if self.cancel.is_some_and(Cancel::is_cancelled) => {
                let _ = self.control.write_all(&[TERMINATE]);
                self.stopping = Some(Stopping::Gently(now + GENTLE));
            }
            Some(Stopping::Gently(until)) if now >= until => {
                let _ = self.control.write_all(&[KILL]);
                self.stopping = Some(Stopping::Firmly(now + FIRM));
            }
            Some(Stopping::Firmly(until)) if now >= until => {
                self.init.kill();
                self.stopping = Some(Stopping::Killed);
            }
            _ => {}
        }
    }

    fn read_status(&self) -> Option<Status> {
        let mut bytes = [0; Status::SIZE];
        match rustix::io::retry_on_intr(|| rustix::io::read(self.status.as_fd(), &mut bytes)) {
            Ok(Status::SIZE) => Status::from_bytes(bytes),
            _ => None,
        }
    }

    /// Says which ids the new user namespace has.
    fn write_maps(&self) -> Result<(), Errno> {
        let pid = self.init.pid.as_raw_nonzero();
        let write = |name: &str, text: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::write(path, text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        if self.plan.users == Users::Single {
            write("setgroups", "deny")?;
            write("gid_map", &format!("0 {} 1", rustix::process::getegid().as_raw()))?;
            return write("uid_map", &format!("0 {} 1", rustix::process::geteuid().as_raw()));
        }
        for name in ["gid_map", "uid_map"] {
            let own = std::fs::read_to_string(format!("/proc/self/{name}"));
            let own = own.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            write(name, &identity_map(&own))?;
        }
        Ok(())
    }
}

/// Every id that this process's own namespace has, standing for itself.
fn identity_map(own: &str) -> String {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (first, _, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some(format!("{first} {first} {count}\n"))
    };
    own.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_of_the_pod_stands_for_itself() {
        let own = "         0          0 4294967295\n";
        assert_eq!(identity_map(own), "0 0 4294967295\n");
        assert_eq!(identity_map("0 100000 65536\n70000 5 1\n"), "0 0 65536\n70000 70000 1\n");
    }
}
