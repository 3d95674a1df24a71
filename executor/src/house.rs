//! Keeping house: what is put away before a build and after it. On rung root that is the file system itself, on every
//! rung the scratch directory.

use std::sync::Arc;

use kiln_plan::Step;
use kiln_rootfs::{Delta, IgnorePaths, TreePath};
use kiln_sandbox::Rung;

use crate::error::BuildError;
use crate::event::Event;
use crate::planning::blocking;
use crate::session::Session;
use crate::stage::StageWork;
use crate::trees::Trees;

/// What becomes of the container's own files, and of what builds keep for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct House {
    /// `--cleanup`: rung root empties the file system after a build that succeeded; every rung removes what Kiln made in
    /// the scratch directory, caches too.
    pub cleanup: bool,
    /// `--pre-cleanup`: the same before the build.
    pub pre_cleanup: bool,
    /// `--preserve-context`: rung root puts the container's own files back when a stage is done and when the build has
    /// ended. Every stage begins with the files of its base alone all the same, as on the other rungs.
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

/// After a stage that is not the last one.
pub(crate) fn between(work: &StageWork) -> Result<(), BuildError> {
    let stages = work.plan.stages.iter().enumerate().filter(|(_, stage)| stage.needed);
    let mut others = stages.filter(|(place, _)| *place != work.place && !work.finished.contains_key(place));
    if !work.session.request.isolation.house.preserve || others.next().is_none() {
        return Ok(());
    }
    work.trees_in_use()?.on_host(kiln_rootfs::HostSnapshotter::restore)
}

/// Whether `path` lies in Kiln's own directory.
pub(crate) fn is_own(session: &Session, path: &TreePath) -> bool {
    own(session).any(|own| path.starts_with(&own))
}

fn own(session: &Session) -> impl Iterator<Item = TreePath> {
    let own = session.request.isolation.own.iter();
    own.map(|path| TreePath::new(path.as_os_str().as_encoded_bytes())).filter(|path| !path.is_root())
}

/// On rung root Kiln's own directory is part of no layer, as with kaniko: what a step put there is added to `ignore`. The
/// result is not for other builds then, which may run on other rungs.
pub(crate) fn leave_out(work: &StageWork, step: &Step, delta: &Delta, ignore: &mut IgnorePaths) {
    let Some(trees) = work.trees.as_deref().filter(|_| work.stage().needs_tree) else { return };
    if trees.enclosure.rung() != Rung::Root {
        return;
    }
    for path in own(&work.session) {
        if std::fs::symlink_metadata(path.below(delta.path())).is_err() {
            continue;
        }
        work.session.tell(Event::Warning(format!(
            "line {}: {path} is Kiln's own on rung root: what is copied there is left out of the image; use another \
             --kaniko-dir, or another rung",
            step.lines.0
        )));
        ignore.add(path);
        let mut unshared = work.session.unshared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        unshared.extend(step.keys.all());
    }
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
