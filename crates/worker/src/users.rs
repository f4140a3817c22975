//! Users and groups of an image: `/etc/passwd` and `/etc/group` as docker reads them.
//!
//! The files are opened inside the image's tree, must be regular (A14) and at most [`LIMIT`] bytes long (A15).
//! A name that is all digits is a number and nothing else, and must fit in 31 bits (A16).

use forge_store::{MergedTree, StoreError};
use std::io::Read;
use std::path::Path;

/// What BuildKit allows; the largest directories in the field have some 100,000 lines.
const LIMIT: u64 = 10 << 20;

/// Why a user cannot be found.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant and field is")]
pub enum UserError {
    #[error("unable to find user {name}: no matching entries in passwd file")]
    NoUser { name: String },
    #[error("unable to find group {name}: no matching entries in group file")]
    NoGroup { name: String },
    #[error("user or group id {text} is out of range 0-2147483647")]
    OutOfRange { text: String },
    #[error("malformed user {text:?}: expected user[:group]")]
    Malformed { text: String },
    #[error("{path} of the image is larger than {LIMIT} bytes")]
    TooLarge { path: &'static str },
    #[error("cannot read {path} of the image")]
    Read { path: &'static str, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user id.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// The home folder.
    pub home: String,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Finds who `user[:group]` is; the empty text is root.
///
/// As docker: a named user has the groups that list it, a bare number takes its group and its name from the
/// passwd file where one line has the number, and an explicit group leaves no others. The group of the process is among
/// the supplementary ones too, so that a set-group-ID program does not lose it.
///
/// # Errors
/// There is no such user or group, an id is out of range, or the image's files are unfit.
pub fn identity(tree: &MergedTree, text: &str) -> Result<Identity, UserError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.contains(char::is_whitespace) || group.is_some_and(|group| group.is_empty() || group.contains(':')) {
        return Err(UserError::Malformed { text: text.to_owned() });
    }
    let user = if user.is_empty() { "0" } else { user };
    let passwd = parse_passwd(&read(tree, "/etc/passwd")?);
    let (uid, entry) = find_user(&passwd, user)?;
    let groups = parse_group(&read(tree, "/etc/group")?);
    let mut identity = Identity {
        uid,
        gid: in_range(entry.map_or(0, |entry| entry.gid))?,
        groups: Vec::new(),
        home: entry.map(|entry| entry.home.clone()).filter(|home| !home.is_empty()).unwrap_or("/".to_owned()),
    };
    match group {
        Some(group) => identity.gid = find_group(&groups, group)?,
        None => identity.groups = entry.map(|entry| listed_in(&groups, &entry.name, entry.gid)).unwrap_or_default(),
    }
    if identity.groups.is_empty() {
        identity.groups.push(identity.gid);
    }
    Ok(identity)
}

/// Adds groups, by name or number, to those of a process.
///
/// # Errors
/// There is no such group, or the image's file is unfit.
pub fn add_groups(identity: &mut Identity, tree: &MergedTree, added: &[String]) -> Result<(), UserError> {
    if added.is_empty() {
        return Ok(());
    }
    let groups = parse_group(&read(tree, "/etc/group")?);
    for group in added {
        let gid = find_group(&groups, group)?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(())
}

/// Finds the owner that `--chown user[:group]` names: a number without a group is its own group.
pub(crate) fn owner(tree: &MergedTree, user: &str, group: Option<&str>) -> Result<(u32, u32), UserError> {
    let needs_passwd = number(user)?.is_none();
    let passwd = if needs_passwd { parse_passwd(&read(tree, "/etc/passwd")?) } else { Vec::new() };
    let (uid, entry) = find_user(&passwd, user)?;
    let gid = match group {
        Some(group) => match number(group)? {
            Some(gid) => gid,
            None => find_group(&parse_group(&read(tree, "/etc/group")?), group)?,
        },
        None => in_range(entry.map_or(uid, |entry| entry.gid))?,
    };
    Ok((uid, gid))
}

fn find_user<'a>(passwd: &'a [Passwd], user: &str) -> Result<(u32, Option<&'a Passwd>), UserError> {
    match number(user)? {
        Some(uid) => Ok((uid, passwd.iter().find(|entry| entry.uid == uid))),
        None => match passwd.iter().find(|entry| entry.name == user) {
            Some(entry) => Ok((in_range(entry.uid)?, Some(entry))),
            None => Err(UserError::NoUser { name: user.to_owned() }),
        },
    }
}

fn find_group(groups: &[Group], group: &str) -> Result<u32, UserError> {
    match number(group)? {
        Some(gid) => Ok(gid),
        None => match groups.iter().find(|entry| entry.name == group) {
            Some(entry) => in_range(entry.gid),
            None => Err(UserError::NoGroup { name: group.to_owned() }),
        },
    }
}

fn listed_in(groups: &[Group], name: &str, primary: u32) -> Vec<u32> {
    let listed = groups.iter().filter(|group| group.members.iter().any(|member| member == name));
    let listed = listed.map(|group| group.gid).filter(|gid| in_range(*gid).is_ok());
    let mut gids: Vec<u32> = std::iter::once(primary).chain(listed).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// 4294967295 means "no change" to the kernel, so that a process would stay what it is: root (A16).
fn in_range(id: u32) -> Result<u32, UserError> {
    match id <= i32::MAX.cast_unsigned() {
        true => Ok(id),
        false => Err(UserError::OutOfRange { text: id.to_string() }),
    }
}

/// `None` for a name; an error for a number that is no id. A sign makes a number of it too (A16).
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if !text.starts_with('+') => in_range(id).map(Some),
        _ => Err(UserError::OutOfRange { text: text.to_owned() }),
    }
}

fn read(tree: &MergedTree, path: &'static str) -> Result<String, UserError> {
    let Some(file) = tree.open_resolved(Path::new(path))? else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    let limited = file.take(LIMIT + 1).read_to_end(&mut bytes);
    limited.map_err(|source| UserError::Read { path, source })?;
    match bytes.len() as u64 > LIMIT {
        true => Err(UserError::TooLarge { path }),
        false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

fn parse_passwd(text: &str) -> Vec<Passwd> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or("/");
        Some(Passwd { name: name.to_owned(), uid, gid, home: home.to_owned() })
    };
    text.lines().map(str::trim).filter_map(line).collect()
}

fn parse_group(text: &str) -> Vec<Group> {
    let line = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or("").split(',').filter(|member| !member.is_empty());
        Some(Group { name: name.to_owned(), gid, members: members.map(str::to_owned).collect() })
    };
    text.lines().map(str::trim).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a16_numbers_are_numbers_and_stay_in_range() {
        assert_eq!(number("1000").unwrap(), Some(1000));
        assert_eq!(number("00").unwrap(), Some(0));
        assert_eq!(number("root").unwrap(), None);
        assert_eq!(number("0x0").unwrap(), None);
        for bad in ["4294967296", "-1", "2147483648", "+0"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a17_supplementary_groups_are_those_that_list_the_user() {
        let groups = parse_group("root:x:0:\nwheel:x:10:app,root\nbroken\napp:x:1000:\nextra:x:7:app\n");
        assert_eq!(listed_in(&groups, "app", 1000), [7, 10, 1000]);
        let passwd = parse_passwd("root:x:0:0:root:/root:/bin/sh\nbad:line\napp:x:1000:1000::/home/app:\n");
        let (uid, entry) = find_user(&passwd, "app").unwrap();
        assert_eq!((uid, entry.unwrap().home.as_str()), (1000, "/home/app"));
        assert!(find_user(&passwd, "nobody").is_err());
        assert!(find_user(&passwd, "55").unwrap().1.is_none());
    }
}
