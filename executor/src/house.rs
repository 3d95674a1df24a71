//! Keeping house: what is put away before a build and after it. On rung root that is the file system itself, on every
//! rung the scratch directory.

use std::sync::Arc;

use crate::error::BuildError;
use crate::planning::blocking;
use crate::session::Session;
use crate::trees::Trees;

/// What becomes of the container's own files, and of what builds keep for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct House {
    /// `--cleanup`: rung root empties the file system after a build that succeeded; every rung removes what Kiln made in
    /// the scratch directory, caches too.
    pub cleanup: bool,
    /// `--pre-cleanup`: the same before the build.
    pub pre_cleanup: bool,
    /// `--preserve-context`: rung root puts the container's own files back when the build has ended. In between every
    /// stage begins with the files of its base alone, as on the other rungs.
    pub preserve: bool,
    /// `--materialize`: rung root leaves the last stage's files in `/` even if every step was cached.
    pub materialize: bool,
}

impl House {
    /// Whether something is to be done on rung root even if no step needs a tree.
    pub(crate) fn wants_rung(self) -> bool {
        self.cleanup || self.pre_cleanup || self.materialize
    }
}

/// Before the first stage.
pub(crate) async fn open(session: &Arc<Session>, trees: &Arc<Trees>) -> Result<(), BuildError> {
    let (house, trees) = (session.request.isolation.house, Arc::clone(trees));
    blocking(move || {
        trees.on_host(|host| {
            if house.preserve {
                host.preserve()?;
            }
            if house.pre_cleanup { host.empty() } else { Ok(()) }
        })
    })
    .await
}

/// How building the stages ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Built,
    Failed,
    /// The pod is being stopped: there is little time, and its files have none.
    Cancelled,
}

/// After the last stage, or after one that failed.
pub(crate) async fn close(
    session: &Arc<Session>,
    trees: &Arc<Trees>,
    ended: Ended,
) -> Result<(), BuildError> {
    let (house, trees) = (session.request.isolation.house, Arc::clone(trees));
    blocking(move || {
        trees.on_host(|host| match ended {
            Ended::Built | Ended::Failed if house.preserve => host.restore(),
            Ended::Built if house.cleanup => host.empty(),
            _ => Ok(()),
        })
    })
    .await
}
