//! Everything that a step's processes will do, made ready before the fork.
//!
//! A [`Plan`] is data: C strings, flags, descriptors. The child (`setup`, `init`, `program`) walks through it without
//! allocating and reports failures as a [`Place`], which only the parent turns into words.

use std::ffi::CString;
use std::fs::File;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::rung::Users;
use crate::sys::{Namespaces, Strings};
use crate::target::Missing;

/// One step, or one probe, as its processes will carry it out.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) namespaces: Namespaces,
    pub(crate) users: Users,
    pub(crate) hostname: Option<Vec<u8>>,
    /// How `/` comes about.
    pub(crate) root: RootPlan,
    /// What happens in the new root, in this order.
    pub(crate) actions: Vec<Action>,
    /// What runs there. A probe runs nothing.
    pub(crate) program: Option<Program>,
}

/// How a step's `/` comes about.
#[derive(Debug)]
pub(crate) enum RootPlan {
    /// Layers stacked by overlayfs, mounted over the upper directory.
    Overlay(Layers),
    /// A directory, mounted over itself.
    Directory(CString),
    /// chroot(2) into a directory.
    Chroot(CString),
    /// The pod's own root.
    Host,
}

/// A stack of directories for overlayfs.
#[derive(Debug)]
pub(crate) struct Layers {
    /// Top first.
    pub(crate) lowers: Vec<CString>,
    /// Upper and work directory.
    pub(crate) writable: Option<(CString, CString)>,
}

/// One thing done in the new root.
#[derive(Debug)]
pub(crate) struct Action {
    /// What it is called in a message: `mount(tmpfs, /dev)`.
    pub(crate) call: String,
    /// Where, from the new root.
    pub(crate) target: Vec<u8>,
    /// What to make where the target is missing.
    pub(crate) missing: Missing,
    /// Whether the target lies in a file system that an earlier action mounted, so that what is made there goes away
    /// with it.
    pub(crate) inside: bool,
    /// Whether the step goes on if this fails.
    pub(crate) optional: bool,
    pub(crate) what: What,
}

/// What an [`Action`] does at its target.
#[derive(Debug)]
pub(crate) enum What {
    /// Binds a path of the pod with all that is mounted below it.
    Bind { source: CString, readonly: bool },
    /// Mounts layers and binds a path inside them.
    Stack { layers: Layers, source: Vec<u8> },
    /// Mounts a new file system; a second set of options if the first is refused.
    New { kind: CString, flags: MountFlags, options: CString, instead: Option<CString> },
    /// Puts a file into memory and binds it.
    Memory { contents: Contents, mode: u32, uid: u32, gid: u32 },
    /// Hides a file or directory, if it is there.
    Mask,
    /// Makes a file or directory read-only, if it is there.
    Readonly,
    /// Shuts what is in /proc of the processes that there are: their threads and descriptors.
    ShutProcesses,
    /// Makes a symlink, in a file system that an earlier action mounted.
    Symlink { to: CString },
    /// Probes: does something to the target.
    Check(Check),
}

/// Where a file's bytes come from.
#[derive(Debug)]
pub(crate) enum Contents {
    /// Read from the start to the end.
    File(File),
    /// Known already.
    Bytes(Vec<u8>),
}

/// What a probe tries on the new root: what steps will do all the time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Check {
    /// Gives a file to another user.
    GiveAway,
    /// Deletes a file of a lower layer.
    Unlink,
    /// Replaces a directory of a lower layer by an empty one.
    Replace,
}

/// The step's main process.
#[derive(Debug)]
pub(crate) struct Program {
    /// What to try execve with, in this order.
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: Strings,
    pub(crate) environment: Strings,
    pub(crate) cwd: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Whether capabilities are cut down to those that docker gives.
    pub(crate) confined: bool,
}

/// Where in a plan something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Making the process itself.
    Fork,
    /// Writing the maps of a user namespace.
    Maps,
    /// Becoming a session, waiting for children, and the like.
    Session,
    /// Setting the host name.
    Hostname,
    /// Bringing up loopback.
    Loopback,
    /// Cutting mount propagation.
    Propagation,
    /// Mounting the root.
    Root,
    /// `actions[n]`.
    Action(u16),
    /// pivot_root.
    Pivot,
    /// chroot.
    Chroot,
    /// Changing to the working directory.
    Cwd,
    /// Dropping capabilities.
    Capabilities,
    /// Becoming the user.
    User,
    /// execve.
    Program,
}

impl Place {
    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let (kind, index) = match self {
            Self::Fork => (0_u16, 0),
            Self::Maps => (1, 0),
            Self::Session => (2, 0),
            Self::Hostname => (3, 0),
            Self::Loopback => (4, 0),
            Self::Propagation => (5, 0),
            Self::Root => (6, 0),
            Self::Action(index) => (7, index),
            Self::Pivot => (8, 0),
            Self::Chroot => (9, 0),
            Self::Cwd => (10, 0),
            Self::Capabilities => (11, 0),
            Self::User => (12, 0),
            Self::Program => (13, 0),
        };
        let (kind, index) = (kind.to_ne_bytes(), index.to_ne_bytes());
        [kind[0], kind[1], index[0], index[1]]
    }

    pub(crate) fn from_bytes(bytes: [u8; 4]) -> Self {
        let index = u16::from_ne_bytes([bytes[2], bytes[3]]);
        match u16::from_ne_bytes([bytes[0], bytes[1]]) {
            0 => Self::Fork,
            1 => Self::Maps,
            2 => Self::Session,
            3 => Self::Hostname,
            4 => Self::Loopback,
            5 => Self::Propagation,
            6 => Self::Root,
            7 => Self::Action(index),
            8 => Self::Pivot,
            9 => Self::Chroot,
            10 => Self::Cwd,
            11 => Self::Capabilities,
            12 => Self::User,
            _ => Self::Program,
        }
    }
}

/// A place and what the call there failed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) place: Place,
    pub(crate) errno: Errno,
}

impl Place {
    /// For `map_err`.
    pub(crate) fn failed(self) -> impl FnOnce(Errno) -> Failure {
        move |errno| Failure { place: self, errno }
    }
}

impl Plan {
    /// The failed call in words.
    pub(crate) fn call_at(&self, place: Place) -> String {
        match place {
            Place::Fork => self.namespaces.call(),
            Place::Maps => "writing uid_map and gid_map".to_owned(),
            Place::Session => "setting up the step's supervisor".to_owned(),
            Place::Hostname => "sethostname".to_owned(),
            Place::Loopback => "bringing up the loopback interface".to_owned(),
            Place::Propagation => "mount(/, MS_SLAVE)".to_owned(),
            Place::Root => match &self.root {
                RootPlan::Overlay(_) => "mount(overlay)".to_owned(),
                _ => "mount(MS_BIND)".to_owned(),
            },
            Place::Action(index) => {
                self.actions.get(usize::from(index)).map_or_else(String::new, |action| action.call.clone())
            }
            Place::Pivot => "pivot_root".to_owned(),
            Place::Chroot => "chroot".to_owned(),
            Place::Cwd => {
                let cwd = self.program.as_ref().map(|program| program.cwd.to_string_lossy().into_owned());
                format!("chdir({})", cwd.unwrap_or_default())
            }
            Place::Capabilities => "dropping capabilities".to_owned(),
            Place::User => self
                .program
                .as_ref()
                .map_or_else(String::new, |program| format!("becoming user {}:{}", program.uid, program.gid)),
            Place::Program => "execve".to_owned(),
        }
    }

    /// The files that its actions read.
    pub(crate) fn open_files(&self) -> impl Iterator<Item = &File> {
        self.actions.iter().filter_map(|action| match &action.what {
            What::Memory { contents: Contents::File(file), .. } => Some(file),
            _ => None,
        })
    }

    /// How many stubs its actions may have to make; symlinks in the tree may need more, hence the spare ones.
    pub(crate) fn most_stubs(&self) -> usize {
        self.actions.iter().map(|action| crate::target::depth(&action.target)).sum::<usize>() + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_the_pipe() {
        for place in
            [Place::Fork, Place::Maps, Place::Action(0), Place::Action(517), Place::Pivot, Place::Program]
        {
            assert_eq!(Place::from_bytes(place.to_bytes()), place);
        }
    }
}
