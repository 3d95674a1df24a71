//! Which rungs work here: each is really tried, in a child process that makes a step's surroundings and goes away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;

use crate::advice::refuse;
use crate::compile;
use crate::error::{Refusal, SandboxError};
use crate::plan::{Action, Check, Failure, Place, What};
use crate::request::Exit;
use crate::rung::{Enclosure, Rung, Users};
use crate::supervise::{Outcome, carry_out};
use crate::sys;
use crate::target::Missing;
use kiln_rootfs::Tree;

/// For each rung, whether it works here, and why not.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    overlay: Result<Enclosure, Refusal>,
    directory: Result<Enclosure, Refusal>,
    root: Result<Enclosure, Refusal>,
    chroot: Result<Enclosure, Refusal>,
}

impl ProbeReport {
    /// The way into a rung, or why there is none.
    pub fn enclosure(&self, rung: Rung) -> Result<Enclosure, &Refusal> {
        match rung {
            Rung::Overlay => self.overlay.as_ref(),
            Rung::Directory => self.directory.as_ref(),
            Rung::Root => self.root.as_ref(),
            Rung::Chroot => self.chroot.as_ref(),
        }
        .copied()
    }

    #[cfg(test)]
    pub(crate) fn made_of(answers: [Result<Enclosure, Refusal>; 4]) -> Self {
        let [overlay, directory, root, chroot] = answers;
        Self { overlay, directory, root, chroot }
    }
}

/// Tries every rung, with trees in `scratch`, and leaves nothing there. Takes some milliseconds.
pub fn probe(scratch: &Path) -> ProbeReport {
    let _ = sys::hide_memory();
    ProbeReport {
        overlay: probe_rung(scratch, Rung::Overlay),
        directory: probe_rung(scratch, Rung::Directory),
        root: probe_root(),
        chroot: probe_rung(scratch, Rung::Chroot),
    }
}

/// Rung root needs no call that could be tried without harm; it needs a root that can be written to.
fn probe_root() -> Result<Enclosure, Refusal> {
    let refusal =
        |call: &str, errno, advice: &str| Refusal { call: call.into(), errno, advice: advice.into() };
    if !rustix::process::geteuid().is_root() {
        let advice = "run the container as user 0 (securityContext.runAsUser: 0)";
        return Err(refusal("unpacking an image over / as a user other than root", None, advice));
    }
    rustix::fs::access("/", Access::WRITE_OK).map_err(|errno| {
        let advice = match errno {
            Errno::ROFS => "set securityContext.readOnlyRootFilesystem: false",
            _ => "let the container keep the capability DAC_OVERRIDE, which it has unless the pod spec drops it",
        };
        refusal("access(/, W_OK)", Some(errno.raw_os_error()), advice)
    })?;
    Ok(Enclosure { rung: Rung::Root, users: Users::Pod, pids: false })
}

/// Tries the ways into a rung, the plainest first, and gives the first that works or the most telling refusal.
fn probe_rung(scratch: &Path, rung: Rung) -> Result<Enclosure, Refusal> {
    let namespaced = if rustix::process::geteuid().is_root() { Users::All } else { Users::Single };
    let ways: &[(Users, bool)] = match rung {
        Rung::Chroot => &[(Users::Pod, false), (namespaced, false)],
        _ => &[(Users::Pod, true), (Users::Pod, false), (namespaced, true), (namespaced, false)],
    };
    let mut refusal = None;
    for &(users, pids) in ways {
        match try_way(scratch, Enclosure { rung, users, pids }) {
            Ok(enclosure) => return Ok(enclosure),
            // Without a user namespace, only a privileged pod can mount: that refusal tells little. A chroot needs but one
            // capability, which pods have by default.
            Err(new) if refusal.is_none() || (rung.mounts() && (users, pids) == (namespaced, false)) => {
                refusal = Some(new);
            }
            Err(_) => {}
        }
    }
    Err(refusal.unwrap_or_else(|| Refusal {
        call: rung.to_string(),
        errno: None,
        advice: "use another rung of --isolation".to_owned(),
    }))
}

fn try_way(scratch: &Path, enclosure: Enclosure) -> Result<Enclosure, Refusal> {
    let trial = Trial::new(scratch, enclosure).map_err(|error| Refusal {
        call: format!("making a tree in {}", scratch.display()),
        errno: error.raw_os_error(),
        advice: "name a directory that can be written to by --scratch-dir".to_owned(),
    })?;
    let unexpected = |what: String| Refusal {
        call: format!("trying rung {}", enclosure.rung()),
        errno: None,
        advice: format!("this was not expected: {what}"),
    };
    let plan = compile::trial(enclosure, &trial.tree, trial.checks())
        .map_err(|error| unexpected(error.to_string()))?;
    match carry_out(&plan, None, &|_, _| {}, None) {
        Ok(Outcome::Ended(Exit::Code(0))) => Ok(enclosure),
        Ok(Outcome::Failed(failure)) => Err(refuse(&plan, failure, Some(scratch))),
        Ok(outcome) => Err(unexpected(format!("{outcome:?}"))),
        Err(SandboxError::Io { doing, source }) => {
            let errno = Errno::from_io_error(&source).unwrap_or(Errno::IO);
            let advice = refuse(&plan, Failure { place: Place::Session, errno }, None).advice;
            Err(Refusal { call: doing, errno: Some(errno.raw_os_error()), advice })
        }
        Err(error) => Err(unexpected(error.to_string())),
    }
}

/// A tree to try a rung on; removed when dropped.
struct Trial {
    folder: PathBuf,
    tree: Tree,
    enclosure: Enclosure,
}

impl Trial {
    fn new(scratch: &Path, enclosure: Enclosure) -> io::Result<Self> {
        fs::create_dir_all(scratch)?;
        let folder = scratch.join(format!(".kiln-probe-{}", rustix::process::getpid().as_raw_nonzero()));
        remove(&folder);
        let tree = if enclosure.rung() == Rung::Overlay {
            Tree::Overlay {
                lowers: vec![folder.join("lower")],
                upper: folder.join("upper"),
                work: folder.join("work"),
            }
        } else {
            Tree::Directory { path: folder.join("lower") }
        };
        let trial = Self { folder, tree, enclosure };
        for name in ["lower/gone", "upper", "work"] {
            fs::create_dir_all(trial.folder.join(name))?;
        }
        for name in ["lower/given", "lower/deleted"] {
            fs::write(trial.folder.join(name), "")?;
        }
        Ok(trial)
    }

    /// What steps do all the time, and what some file systems can't hold: owners, whiteouts, opaque directories.
    fn checks(&self) -> Vec<Action> {
        if self.enclosure.rung() == Rung::Chroot {
            return Vec::new();
        }
        let mut checks = vec![
            ("/deleted", "unlink in the tree", Check::Unlink),
            ("/gone", "rmdir and mkdir in the tree", Check::Replace),
        ];
        if self.enclosure.users() != Users::Single {
            checks.push(("/given", "chown in the tree", Check::GiveAway));
        }
        let action = |(target, call, check): (&str, &str, Check)| Action {
            call: call.to_owned(),
            target: target.into(),
            missing: Missing::Nothing,
            inside: false,
            optional: false,
            what: What::Check(check),
        };
        checks.into_iter().map(action).collect()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    compile::forget_volatile(&folder.join("work"));
    let _ = fs::remove_dir_all(folder);
}
