//! `--chown`: names looked up in the tree that is copied into.

use std::io::Read as _;

use kiln_rootfs::{TreePath, View, resolve};

use crate::users::{group_id, user_ids};

/// What `user[:group]` means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    /// User and group id.
    pub(crate) ids: (u32, u32),
    /// The names that the tree doesn't know, as sentences. A user that isn't known is 0:0, a group that isn't is the user's.
    pub(crate) unknown: Vec<String>,
}

/// Looks up `user[:group]`. A number without a group is its own group; nothing before or after the colon is 0.
pub(crate) fn lookup(view: &dyn View, chown: &str) -> Owner {
    let (user, group) = match chown.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (chown, None),
    };
    let mut owner = Owner::default();
    match number(user) {
        Some(uid) => owner.ids = (uid, uid),
        None => match user_ids(user, &text(view, "etc/passwd")) {
            Some(ids) => owner.ids = ids,
            None => owner.unknown.push(format!(
                "--chown={chown}: the image's /etc/passwd has no user {user:?}; 0 is taken for it"
            )),
        },
    }
    let Some(group) = group else { return owner };
    match number(group).or_else(|| group_id(group, &text(view, "etc/group"))) {
        Some(gid) => owner.ids.1 = gid,
        None => owner.unknown.push(format!(
            "--chown={chown}: the image's /etc/group has no group {group:?}; {} is taken for it",
            owner.ids.1
        )),
    }
    owner
}

/// The names that need no looking up. Ids are signed, as BuildKit reads them: -1 leaves an owner as it is, which is 0 here,
/// and what is larger than any of them is a name that nobody has.
fn number(text: &str) -> Option<u32> {
    if matches!(text, "" | "root") {
        return Some(0);
    }
    text.parse::<i32>().ok().map(|id| if id == -1 { 0 } else { id.cast_unsigned() })
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
