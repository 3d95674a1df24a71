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

/// The lines with something in them. A line that lacks fields has empty ones, and a number that is none is 0.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
        let mut fields: Vec<&str> = line.split(':').collect();
        fields.resize(fields.len().max(7), "");
        fields
    })
}

/// A number as the kernel takes it: of one that is negative or too large, the low 32 bits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "that is what becomes of it")]
fn number(field: &str) -> u32 {
    field.parse::<i64>().unwrap_or(0) as u32
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).map(|fields| Account {
        name: fields[0],
        uid: number(fields[2]),
        gid: number(fields[3]),
        home: fields[5],
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
    lines(group).map(|fields| (fields[0], number(fields[2]), fields[3].split(',').collect()))
}

/// The ids of the user `name` in passwd.
pub(crate) fn user_ids(name: &str, passwd: &str) -> Option<(u32, u32)> {
    accounts(passwd).find(|account| account.name == name).map(|account| (account.uid, account.gid))
}

/// The id of the group `name` in group.
pub(crate) fn group_id(name: &str, group: &str) -> Option<u32> {
    groups(group).find(|(other, ..)| *other == name).map(|(_, gid, _)| gid)
}

/// Looks up `user[:group]`; empty means root.
///
/// A number is always an id, never a name. One that passwd lacks is fine and has group 0; a name that it lacks is an
/// error, given as a sentence.
pub fn identity(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let mut found = lookup(user, passwd, group)?;
    // The first line of that id has it: not always the line of that name.
    found.home =
        accounts(passwd).find(|account| account.uid == found.uid).map(|account| account.home.to_owned());
    Ok(found)
}

fn lookup(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let mut parts = user.split(':');
    let name = parts.next().filter(|name| !name.is_empty()).unwrap_or("0");
    // What follows a second colon means nothing.
    let group_name = parts.next().filter(|group| !group.is_empty());
    let number = name.parse::<u32>().ok();
    let group_number = group_name.and_then(|group| group.parse::<u32>().ok());
    if [number, group_number].into_iter().flatten().any(|id| i32::try_from(id).is_err()) {
        return Err(format!("USER {user}: ids go from 0 to {}", i32::MAX));
    }
    // Two ids are looked up nowhere; root is 0 there, whatever passwd says.
    let id = |name: &str, number: Option<u32>| if name == "root" { Some(0) } else { number };
    if let (Some(uid), Some(gid)) = (id(name, number), group_name.and_then(|group| id(group, group_number))) {
        return Ok(Identity { uid, gid, ..Identity::default() });
    }
    let account = match number {
        Some(uid) => accounts(passwd).find(|account| account.uid == uid),
        None => accounts(passwd).find(|account| account.name == name),
    };
    let mut identity = match (account, number) {
        (Some(account), _) => Identity {
            uid: account.uid,
            gid: account.gid,
            groups: member_of(account.name, group),
            home: None,
        },
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        (None, None) => {
            return Err(format!(
                "USER {user}: the image's /etc/passwd has no user {name:?}; add one with RUN, or give a number"
            ));
        }
    };
    if let Some(wanted) = group_name {
        identity.gid = group_number.or_else(|| group_id(wanted, group)).ok_or_else(|| {
            format!("USER {user}: the image's /etc/group has no group {wanted:?}; add one with RUN, or give a number")
        })?;
        // With a group given, docker leaves the supplementary ones out.
        identity.groups = Vec::new();
    }
    Ok(identity)
}

/// The groups that the user `name` is a member of, in the order of the file.
fn member_of(name: &str, group: &str) -> Vec<u32> {
    groups(group).filter(|(_, _, members)| members.contains(&name)).map(|(_, gid, _)| gid).collect()
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
    fn a_number_is_an_id_even_where_a_user_has_that_name() {
        let passwd = "5:x:100:100::/a:\nfive:x:5:50::/five:\n";
        assert_eq!(identity("5", passwd, "").unwrap().home.as_deref(), Some("/five"));
        assert_eq!(identity("6", passwd, "5:x:9:\n").unwrap().gid, 0);
        assert_eq!(identity("6:5", passwd, "5:x:9:\n").unwrap().gid, 5);
    }

    #[test]
    fn two_ids_are_looked_up_nowhere_and_root_is_one() {
        let passwd = "root:x:7:8::/r:\n";
        assert_eq!(identity("root", passwd, "").unwrap().uid, 7);
        for user in ["root:root", "root:0", "0:root"] {
            let found = identity(user, passwd, "root:x:9:\n").unwrap();
            assert_eq!((found.uid, found.gid, found.groups), (0, 0, vec![]), "{user}");
        }
        assert_eq!(identity("root:0", "", "").unwrap().gid, 0);
        assert!(identity("ana:4000000000", PASSWD, GROUP).is_err());
    }

    #[test]
    fn home_is_that_of_the_first_line_with_the_id() {
        let passwd = "one:x:7:8::/one:\ntwo:x:7:9::/two:\n";
        let found = identity("two", passwd, "g:x:5:two\n").unwrap();
        assert_eq!((found.gid, found.groups, found.home.as_deref()), (9, vec![5], Some("/one")));
    }

    #[test]
    fn what_follows_a_second_colon_means_nothing() {
        assert_eq!(who("ana:web:x"), Ok((1000, 33, vec![])));
    }

    #[test]
    fn fields_that_a_line_lacks_are_empty() {
        let found = identity("cut", "cut:x:7:8\n", "g:x:9:cut\n").unwrap();
        assert_eq!((found.uid, found.gid, found.groups, found.home.as_deref()), (7, 8, vec![9], Some("")));
        assert_eq!(identity("odd", "odd:y:z\n", "").unwrap().uid, 0);
        assert_eq!(identity("low", "low:x:-5:7\n", "").unwrap().uid, 4_294_967_291);
        assert!(identity("4294967294", "", "").is_err());
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_that_names_it() {
        assert!(who("bob").unwrap_err().contains("bob"));
        assert!(who("ana:staff").unwrap_err().contains("staff"));
        assert_eq!(identity("5", "", "").unwrap().uid, 5);
    }
}
