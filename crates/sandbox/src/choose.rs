//! Which rung a build takes, and the reason in one line.

use crate::error::Refusal;
use crate::probe::ProbeReport;
use crate::rung::{Enclosure, Rung};

/// What is known about the container that Kiln runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Situation {
    /// The image is Kiln's own: it holds /etc/kiln-image.
    pub kiln_image: bool,
    /// Some sign of a container was found.
    pub container: bool,
    /// The user said `--force`.
    pub force: bool,
}

impl Situation {
    /// Whether `/` may be overwritten: only in a container that exists for just that, or if the user says so.
    fn may_overwrite_root(self) -> bool {
        self.force || (self.kiln_image && self.container)
    }
}

/// No rung can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// The rung that was asked for doesn't work here.
    #[error("--isolation={0} can't be used here: {1}")]
    Refused(Rung, Refusal),
    /// Rung root would overwrite what may be somebody's own files.
    #[error(
        "{0} would overwrite this system's own files: give --force if that is meant, or use a container of Kiln's own image"
    )]
    Overwrites(&'static str),
    /// `auto` found nothing.
    #[error("no rung of --isolation works here.{}", each(&[
        ("overlay", overlay.to_string()), ("directory", directory.to_string()), ("chroot", chroot.to_string()),
        ("root", root.clone()),
    ]))]
    Nothing {
        /// Why not overlay.
        overlay: Box<Refusal>,
        /// Why not directory.
        directory: Box<Refusal>,
        /// Why not chroot.
        chroot: Box<Refusal>,
        /// Why not root.
        root: String,
    },
}

/// A line for each reason, with the rungs that it is true of.
fn each(reasons: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (place, (_, why)) in reasons.iter().enumerate() {
        if reasons[..place].iter().all(|(_, other)| other != why) {
            let rungs: Vec<&str> =
                reasons.iter().filter(|(_, other)| other == why).map(|(rung, _)| *rung).collect();
            text.push_str("\n  ");
            text.push_str(&rungs.join(", "));
            text.push_str(": ");
            text.push_str(why);
        }
    }
    text
}

/// Takes the rung that was asked for, or the best one if none was, and says why in one line.
///
/// Without mounts, `auto` means `root` in Kiln's own image, because many builds need /proc, and `chroot` in any other,
/// because that image's files must not be touched.
pub fn choose(
    report: &ProbeReport,
    asked: Option<Rung>,
    situation: Situation,
) -> Result<(Enclosure, String), ChooseError> {
    if let Some(rung) = asked {
        if rung == Rung::Root && !situation.may_overwrite_root() {
            return Err(ChooseError::Overwrites("--isolation=root"));
        }
        let enclosure =
            report.enclosure(rung).map_err(|refusal| ChooseError::Refused(rung, refusal.clone()))?;
        return Ok((enclosure, "asked for".to_owned()));
    }
    let overlay = match report.enclosure(Rung::Overlay) {
        Ok(enclosure) => return Ok((enclosure, "the best one, and it works here".to_owned())),
        Err(refusal) => refusal,
    };
    let directory = match report.enclosure(Rung::Directory) {
        Ok(enclosure) => return Ok((enclosure, format!("overlay: {overlay}"))),
        Err(refusal) => refusal,
    };
    without_mounts(report, situation, overlay, directory)
}

fn without_mounts(
    report: &ProbeReport,
    situation: Situation,
    overlay: &Refusal,
    directory: &Refusal,
) -> Result<(Enclosure, String), ChooseError> {
    let may = situation.may_overwrite_root();
    let order =
        if may && situation.kiln_image { [Rung::Root, Rung::Chroot] } else { [Rung::Chroot, Rung::Root] };
    for rung in order {
        let Ok(enclosure) = report.enclosure(rung) else { continue };
        let why = match (rung, report.enclosure(Rung::Root)) {
            (Rung::Root, _) if !may => continue,
            (Rung::Root, _) if situation.kiln_image => "this is Kiln's own image".to_owned(),
            (Rung::Root, _) => "--force was given".to_owned(),
            (_, Err(refusal)) if may => format!("steps have no /proc, since rung root is refused: {refusal}"),
            _ => "this image's own files must not be touched; steps have no /proc".to_owned(),
        };
        return Ok((enclosure, format!("no mounts here, and {why}. directory: {directory}")));
    }
    let root = match report.enclosure(Rung::Root) {
        Err(refusal) => refusal.to_string(),
        Ok(_) => "would overwrite this system's own files; --force allows that".to_owned(),
    };
    let chroot = report.enclosure(Rung::Chroot).err().cloned().unwrap_or_else(|| directory.clone());
    Err(ChooseError::Nothing {
        overlay: Box::new(overlay.clone()),
        directory: Box::new(directory.clone()),
        chroot: Box::new(chroot),
        root,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rung::Users;

    fn way(rung: Rung) -> Enclosure {
        Enclosure { rung, users: Users::All, pids: false }
    }

    fn refusal(call: &str) -> Refusal {
        Refusal { call: call.into(), errno: Some(1), advice: "do something".into() }
    }

    fn no_mounts() -> ProbeReport {
        let refused = Err(refusal("clone(CLONE_NEWUSER)"));
        ProbeReport::made_of([refused.clone(), refused, Ok(way(Rung::Root)), Ok(way(Rung::Chroot))])
    }

    fn chosen(report: &ProbeReport, situation: Situation) -> Rung {
        choose(report, None, situation).unwrap().0.rung()
    }

    #[test]
    fn auto_takes_the_first_rung_that_works() {
        let all = Rung::ALL.map(|rung| Ok(way(rung)));
        let report = ProbeReport::made_of(all.clone());
        assert_eq!(chosen(&report, Situation::default()), Rung::Overlay);
        let [_, directory, root, chroot] = all;
        let report = ProbeReport::made_of([Err(refusal("mount(overlay)")), directory, root, chroot]);
        let (enclosure, reason) = choose(&report, None, Situation::default()).unwrap();
        assert_eq!(enclosure.rung(), Rung::Directory);
        assert!(reason.contains("mount(overlay)"), "{reason}");
    }

    #[test]
    fn without_mounts_only_kilns_own_image_in_a_container_is_overwritten() {
        let own = Situation { kiln_image: true, container: true, force: false };
        assert_eq!(chosen(&no_mounts(), own), Rung::Root);
        assert_eq!(chosen(&no_mounts(), Situation { kiln_image: false, ..own }), Rung::Chroot);
        assert_eq!(chosen(&no_mounts(), Situation { container: false, ..own }), Rung::Chroot);
        assert_eq!(chosen(&no_mounts(), Situation { container: false, force: true, ..own }), Rung::Root);
    }

    #[test]
    fn a_read_only_root_is_the_reason_for_chroot_in_kilns_own_image() {
        let refused = Err(refusal("clone(CLONE_NEWUSER)"));
        let report = ProbeReport::made_of([
            refused.clone(),
            refused,
            Err(refusal("access(/, W_OK)")),
            Ok(way(Rung::Chroot)),
        ]);
        let own = Situation { kiln_image: true, container: true, force: false };
        let (enclosure, reason) = choose(&report, None, own).unwrap();
        assert_eq!(enclosure.rung(), Rung::Chroot);
        assert!(reason.contains("access(/, W_OK)") && !reason.contains("must not be touched"), "{reason}");
    }

    #[test]
    fn where_nothing_works_each_reason_is_said_once() {
        let same = refusal("clone(CLONE_NEWUSER)");
        let refused = || Err(same.clone());
        let report = ProbeReport::made_of([refused(), refused(), Err(refusal("access(/)")), refused()]);
        let error = choose(&report, None, Situation::default()).unwrap_err().to_string();
        assert_eq!(error.matches("clone(CLONE_NEWUSER)").count(), 1, "{error}");
        assert!(
            error.contains("\n  overlay, directory, chroot: ") && error.contains("\n  root: "),
            "{error}"
        );
    }

    #[test]
    fn root_by_name_asks_for_force_outside_kilns_own_image() {
        let error = choose(&no_mounts(), Some(Rung::Root), Situation::default()).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        let force = Situation { force: true, ..Situation::default() };
        assert_eq!(choose(&no_mounts(), Some(Rung::Root), force).unwrap().0.rung(), Rung::Root);
    }

    #[test]
    fn a_rung_that_was_asked_for_is_never_swapped_for_another() {
        let error = choose(&no_mounts(), Some(Rung::Overlay), Situation::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--isolation=overlay can't be used here: clone(CLONE_NEWUSER) failed: EPERM (Operation not permitted); \
             do something"
        );
    }
}
