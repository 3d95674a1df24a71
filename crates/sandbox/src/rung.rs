//! The rungs of the isolation ladder, and how one of them is to be entered.
//!
//! A [`Rung`] is what a user asks for by name. An [`Enclosure`] is a rung that was seen to work, with what the probe
//! learnt about the way in; only [`probe`](crate::probe) makes one, so a step can't be run where it was never tried.

use std::fmt;
use std::str::FromStr;

/// How much a step is kept apart from the pod that it runs in, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rung {
    /// Own mount namespace, the tree stacked by overlayfs.
    Overlay,
    /// Own mount namespace, the tree in one plain directory.
    Directory,
    /// No enclosure: the pod's own `/` is the image's tree, as with kaniko.
    Root,
    /// `chroot(2)` into one plain directory; nothing can be mounted there.
    Chroot,
}

impl Rung {
    /// Every rung, in the order of the ladder.
    pub const ALL: [Self; 4] = [Self::Overlay, Self::Directory, Self::Root, Self::Chroot];

    /// The name that `--isolation` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Directory => "directory",
            Self::Root => "root",
            Self::Chroot => "chroot",
        }
    }

    /// Whether steps have their own mount namespace, so that mounts are real and leave no trace.
    pub fn mounts(self) -> bool {
        matches!(self, Self::Overlay | Self::Directory)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no rung.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("isolation \"{0}\" is unknown: use auto, overlay, directory, root or chroot")]
pub struct UnknownRung(pub String);

impl FromStr for Rung {
    type Err = UnknownRung;

    fn from_str(name: &str) -> Result<Self, UnknownRung> {
        Self::ALL.into_iter().find(|rung| rung.name() == name).ok_or_else(|| UnknownRung(name.to_owned()))
    }
}

/// Whose user and group ids a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Users {
    /// The pod's: no user namespace is made.
    Pod,
    /// A user namespace in which every id of the pod stands for itself, so every owner survives.
    All,
    /// A user namespace with Kiln's own id, as 0, and no other: files can't be given to anybody else.
    Single,
}

/// A rung that was seen to work here, and how it is entered. Comes from [`ProbeReport::enclosure`](crate::ProbeReport).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Enclosure {
    pub(crate) rung: Rung,
    pub(crate) users: Users,
    /// Steps get their own PID namespace and a fresh /proc.
    pub(crate) pids: bool,
}

impl Enclosure {
    /// Which rung it is.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Whose ids steps have.
    pub fn users(&self) -> Users {
        self.users
    }

    /// Whether steps see only their own processes.
    pub fn own_pids(&self) -> bool {
        self.pids
    }

    /// The same with the pod's processes in sight, as where no process namespace can be had.
    #[must_use]
    pub fn with_the_pods_processes(self) -> Self {
        Self { pids: false, ..self }
    }
}

impl fmt::Display for Enclosure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = match self.users {
            Users::Pod => "the pod's own user ids",
            Users::All => "a user namespace with the pod's ids",
            Users::Single => "a user namespace with one id",
        };
        let pids = if self.pids { ", its own processes" } else { "" };
        match self.rung {
            Rung::Root => f.write_str("root"),
            rung => write!(f, "{rung} ({users}{pids})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rung_is_read_back_from_its_name() {
        for rung in Rung::ALL {
            assert_eq!(rung.to_string().parse(), Ok(rung));
        }
    }

    #[test]
    fn an_unknown_rung_is_told_the_known_ones() {
        let error = "kata".parse::<Rung>().unwrap_err();
        assert!(error.to_string().contains("overlay, directory, root or chroot"), "{error}");
    }
}
