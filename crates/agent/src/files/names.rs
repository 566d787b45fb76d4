//! Users and groups of a container, as its own files name them.

use tranship_archive::confined::Root;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::Owner;

/// More than any table of users is long.
const MOST: u64 = 4 << 20;

/// The owner that `USER[:GROUP]` means: names or numbers. As docker has it, an unknown number of a user has group 0, and `:GROUP`
/// has user 0.
pub(super) fn owner_of(root: &Root, text: &str) -> Result<Owner, Fault> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let users = root.read_beginning(b"/etc/passwd", MOST).unwrap_or_default();
    let groups = root.read_beginning(b"/etc/group", MOST).unwrap_or_default();
    let unknown = |what: &str, name: &str| {
        Fault::new(
            "user.unknown",
            FaultKind::Environment,
            format!("the container has no {what} {name:?}"),
        )
    };
    let (uid, own_group) = match find(&users, user) {
        _ if user.is_empty() => (0, 0),
        Some(fields) => (fields.0, fields.1),
        None => (user.parse().map_err(|_| unknown("user", user))?, 0),
    };
    let gid = match group {
        None | Some("") => own_group,
        Some(group) => match find(&groups, group) {
            Some((gid, _)) => gid,
            None => group.parse().map_err(|_| unknown("group", group))?,
        },
    };
    Ok(Owner { uid, gid })
}

/// The third and, where it is a number, the fourth field of the line that bears the name or number.
fn find(table: &[u8], name: &str) -> Option<(u32, u32)> {
    table.split(|&byte| byte == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split(':');
        let first = fields.next()?;
        let number = fields.nth(1)?;
        if first != name && number != name {
            return None;
        }
        let next = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
        Some((number.parse().ok()?, next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up() {
        let table = b"root:x:0:0:root:/:/bin/sh\nweb:x:33:44::/:\nbad\n";
        assert_eq!(find(table, "web"), Some((33, 44)));
        assert_eq!(find(table, "33"), Some((33, 44)));
        assert_eq!(find(table, "nobody"), None);
    }
}
