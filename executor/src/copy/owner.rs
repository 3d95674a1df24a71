//! `--chown`: names looked up in the tree that is copied into.

use std::io::Read as _;

use kiln_rootfs::{TreePath, View, resolve};

use crate::users::identity;

/// The user and group ids that `user[:group]` means. A number without a group is its own group.
pub(crate) fn lookup(view: &dyn View, chown: &str) -> Result<(u32, u32), String> {
    let (user, group) = chown.split_once(':').unwrap_or((chown, ""));
    let number = |text: &str| text.parse::<u32>().ok();
    if let (Some(uid), true) = (number(user), group.is_empty()) {
        return Ok((uid, uid));
    }
    if let (Some(uid), Some(gid)) = (number(user), number(group)) {
        return Ok((uid, gid));
    }
    let found = identity(chown, &text(view, "etc/passwd"), &text(view, "etc/group"));
    let found = found.map_err(|why| why.replacen("USER ", "--chown=", 1))?;
    Ok((number(user).unwrap_or(found.uid), found.gid))
}

/// A file's text; nothing where it isn't there or can't be read, which is no reason to fail.
pub(crate) fn text(view: &dyn View, path: &str) -> String {
    let read = || -> Option<String> {
        let path = resolve(view, &TreePath::new(path)).ok()?;
        view.stat(&path).ok()??;
        let mut bytes = Vec::new();
        view.open(&path).ok()?.take(16 << 20).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
