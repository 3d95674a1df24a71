//! From a failed call to what in the pod spec, or on the node, would allow it.

use std::path::Path;

use rustix::io::Errno;

use crate::error::Refusal;
use crate::plan::{Failure, Place, Plan, RootPlan};
use crate::rung::Users;

/// What statfs calls overlayfs.
const OVERLAYFS: i64 = 0x794c_7630;

/// A failure of `plan` as a refusal. `scratch` is given by probes, which tried it there.
pub(crate) fn refuse(plan: &Plan, failure: Failure, scratch: Option<&Path>) -> Refusal {
    let Failure { place, errno } = failure;
    let advice = match place {
        Place::Fork if plan.namespaces.user && plan.namespaces.net => {
            format!("--network=none needs a network namespace: {}", for_user_namespace(errno))
        }
        Place::Fork if plan.namespaces.user => for_user_namespace(errno),
        Place::Fork if plan.namespaces.net => {
            "--network=none needs a network namespace, which this pod may not make".to_owned()
        }
        Place::Fork => "the node lets this pod have no more processes, or no new namespaces: raise its limits, or \
                        use another rung of --isolation"
            .to_owned(),
        Place::Maps if plan.users == Users::All => {
            "let the container keep the capabilities SETUID, SETGID and SETFCAP, which it has unless the pod spec \
             drops them, and run it as user 0"
                .to_owned()
        }
        Place::Maps => "the node lets this user make no user namespace of its own".to_owned(),
        Place::Root if matches!(plan.root, RootPlan::Overlay(_)) => for_overlay(errno, scratch),
        Place::Root | Place::Propagation | Place::Pivot => for_mount(errno),
        Place::Action(index) => match plan.actions.get(usize::from(index)).map(|action| &action.what) {
            Some(crate::plan::What::Check(_)) => {
                "the file system of the scratch directory can't hold what images need: use an emptyDir there"
                    .to_owned()
            }
            _ => for_mount(errno),
        },
        Place::Chroot => "let the container keep the capability SYS_CHROOT, which it has unless the pod spec drops \
                          it"
            .to_owned(),
        Place::Cwd => "the working directory has to be there, and be open to the step's user".to_owned(),
        Place::User if plan.users == Users::Single => {
            "Kiln runs as a user other than root, so steps can run as root only: run the container as user 0 to \
             have USER in Dockerfiles"
                .to_owned()
        }
        Place::User | Place::Capabilities => {
            "let the container keep the capabilities SETUID, SETGID and SETPCAP, which it has unless the pod spec \
             drops them"
                .to_owned()
        }
        Place::Session | Place::Hostname | Place::Loopback | Place::Program => {
            "this is not expected of any pod: please report it".to_owned()
        }
    };
    Refusal { call: plan.call_at(place), errno: Some(errno.raw_os_error()), advice }
}

fn for_user_namespace(errno: Errno) -> String {
    match errno {
        Errno::NOSPC | Errno::USERS => {
            "the node allows no (or no further) user namespaces: raise its sysctl user.max_user_namespaces"
        }
        Errno::INVAL => "the node's kernel has no user namespaces",
        _ => {
            "set securityContext.seccompProfile.type: Unconfined for the container (or a Localhost profile that \
             allows clone and mount); where it is so already, the node's sysctls kernel.unprivileged_userns_clone or \
             kernel.apparmor_restrict_unprivileged_userns forbid it"
        }
    }
    .to_owned()
}

fn for_mount(errno: Errno) -> String {
    match errno {
        Errno::ACCESS => {
            "set securityContext.appArmorProfile.type: Unconfined for the container (the runtime's default profile \
             refuses mounts)"
        }
        Errno::PERM => {
            "set securityContext.seccompProfile.type: Unconfined for the container (or a Localhost profile that \
             allows mount, umount2 and pivot_root); sandboxes such as gVisor refuse mounts whatever the pod spec says"
        }
        Errno::NOSYS => "the node's kernel (or its sandbox) doesn't know this call",
        Errno::NOENT => "what is to be mounted isn't there",
        Errno::NOTDIR => "one of source and target is a directory and the other isn't",
        Errno::ROFS => "the mount point is missing and can't be made, because that place is read-only",
        _ => "mounts of this kind don't work in this pod",
    }
    .to_owned()
}

fn for_overlay(errno: Errno, scratch: Option<&Path>) -> String {
    let is_overlay = |path: &Path| rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == OVERLAYFS);
    match (errno, scratch) {
        (Errno::INVAL, Some(scratch)) if is_overlay(scratch) => format!(
            "{} lies on overlayfs itself: mount an emptyDir volume at /kaniko/scratch, or name a directory on one by \
             --scratch-dir",
            scratch.display()
        ),
        (Errno::INVAL | Errno::OPNOTSUPP, _) => {
            "the scratch directory's file system can't be overlayfs' upper one, or the kernel is older than 5.11: \
             mount an emptyDir volume there"
                .to_owned()
        }
        (Errno::NODEV, _) => "the node's kernel has no overlayfs: load its module overlay".to_owned(),
        (Errno::TOOBIG, _) => "overlayfs stacks 500 layers at most: use --isolation=directory".to_owned(),
        _ => for_mount(errno),
    }
}
