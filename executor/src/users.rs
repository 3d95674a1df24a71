//! Who a step runs as: USER looked up in the image's passwd and group. Broken lines are skipped, as BuildKit does.

/// A user with everything that a process of theirs needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user id.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// The home directory from passwd.
    pub home: Option<String>,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
        Some(Account {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: rest.get(1).copied().unwrap_or_default(),
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
        let members = fields.next().unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
        Some((name, gid, members))
    })
}

/// Looks up `user[:group]`; empty means root.
///
/// A number that passwd lacks is fine and has group 0; a name that it lacks is an error, given as a sentence.
pub fn identity(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let account = accounts(passwd)
        .find(|account| account.name == name)
        .or_else(|| accounts(passwd).find(|account| Some(account.uid) == number));
    let mut identity = match (account, number) {
        (Some(account), _) => Identity {
            uid: account.uid,
            gid: account.gid,
            groups: member_of(account.name, group),
            home: Some(account.home.to_owned()).filter(|home| !home.is_empty()),
        },
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        (None, None) => {
            return Err(format!(
                "USER {user}: the image's /etc/passwd has no user {name:?}; add one with RUN, or give a number"
            ));
        }
    };
    if let Some(wanted) = group_name {
        let found = groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
        identity.gid = found.or_else(|| wanted.parse().ok()).ok_or_else(|| {
            format!("USER {user}: the image's /etc/group has no group {wanted:?}; add one with RUN, or give a number")
        })?;
        // With a group given, docker leaves the supplementary ones out.
        identity.groups = Vec::new();
    }
    Ok(identity)
}

fn member_of(name: &str, group: &str) -> Vec<u32> {
    let mut gids: Vec<u32> =
        groups(group).filter(|(_, _, members)| members.contains(&name)).map(|(_, gid, _)| gid).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken line\nana:x:1000:1001:Ana:/home/ana:/bin/sh\nx:y\n";
    const GROUP: &str = "root:x:0:\nana:x:1001:\nwheel:x:10:root,ana\nnonsense\nweb:x:33:ana\n";

    fn who(user: &str) -> Result<(u32, u32, Vec<u32>), String> {
        identity(user, PASSWD, GROUP).map(|found| (found.uid, found.gid, found.groups))
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(who("ana"), Ok((1000, 1001, vec![10, 33])));
        assert_eq!(who("1000"), Ok((1000, 1001, vec![10, 33])));
        assert_eq!(who(""), Ok((0, 0, vec![10])));
        assert_eq!(who("ana:web"), Ok((1000, 33, vec![])));
        assert_eq!(who("ana:77"), Ok((1000, 77, vec![])));
    }

    #[test]
    fn an_id_that_passwd_lacks_has_group_0() {
        assert_eq!(who("4242"), Ok((4242, 0, vec![])));
        assert_eq!(who("4242:7"), Ok((4242, 7, vec![])));
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_that_names_it() {
        assert!(who("bob").unwrap_err().contains("bob"));
        assert!(who("ana:staff").unwrap_err().contains("staff"));
        assert_eq!(identity("5", "", "").unwrap().uid, 5);
    }
}
