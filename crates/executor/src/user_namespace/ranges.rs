//! `/etc/subuid` and `/etc/subgid`: which ids an ordinary user may hand out (subuid(5)).

use std::ops::Range;

/// Who asks, as the files name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: Option<String>,
    /// The id that becomes 0 in the namespace: of the user, or of their group.
    pub(super) id: u32,
    /// Lines of both files begin with the user, by name or number.
    pub(super) uid: u32,
}

impl Account {
    fn is_named(&self, owner: &str) -> bool {
        self.name.as_deref() == Some(owner) || owner.parse() == Ok(self.uid)
    }
}

/// The kernel takes so many lines of a map (user_namespaces(7)), one of which is for the user.
const MOST: usize = 339;

/// Ids from the first up to the last are never `(u32)-1`, which means none.
const END: u64 = u32::MAX as u64;

/// The user's ranges in the order of the file, or why they cannot be used (A95): each is the user's alone.
///
/// # Errors
/// Words to follow the name of the file.
pub(super) fn of_account(text: &str, account: &Account) -> Result<Vec<Range<u32>>, String> {
    let mut own: Vec<Range<u32>> = Vec::new();
    let mut others = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let Some((owner, rest)) = line.split_once(':').filter(|_| !line.starts_with('#')) else { continue };
        match (range(rest), account.is_named(owner)) {
            (Ok(range), true) if range.is_empty() => {}
            (Ok(range), true) => own.push(range),
            (Ok(range), false) => others.push((owner, range)),
            (Err(reason), true) => return Err(format!("line {number}: {reason}")),
            // What is wrong with the ids of others is theirs to mend.
            (Err(_), false) => {}
        }
    }
    if own.len() > MOST {
        return Err(format!("has {} ranges for one user, the kernel takes {MOST}", own.len()));
    }
    check_own(&own, account)?;
    let shared = |range: &&Range<u32>| others.iter().find(|(_, other)| overlap(range, other));
    match own.iter().find_map(|range| shared(&range).map(|(owner, _)| (range, owner))) {
        Some((range, owner)) => Err(format!("gives {} to {owner} too", shown(range))),
        None => Ok(own),
    }
}

fn range(text: &str) -> Result<Range<u32>, String> {
    let (start, count) = text.split_once(':').ok_or("it has no count")?;
    let number =
        |text: &str| text.trim().parse::<u64>().map_err(|_| format!("{:?} is not a number of ids", text.trim()));
    let (start, count) = (number(start)?, number(count)?);
    let end = start.checked_add(count).filter(|end| *end <= END).ok_or("the range goes beyond the last id")?;
    Ok(start as u32..end as u32) // both fit, as was just seen
}

fn check_own(own: &[Range<u32>], account: &Account) -> Result<(), String> {
    for (index, range) in own.iter().enumerate() {
        if range.contains(&0) {
            return Err(format!("gives {} away, with root among them", shown(range)));
        }
        if range.contains(&account.id) {
            return Err(format!("gives {} away, with the user's own id {} among them", shown(range), account.id));
        }
        if let Some(other) = own[..index].iter().find(|other| overlap(range, other)) {
            return Err(format!("gives {} and {}, which overlap", shown(other), shown(range)));
        }
    }
    Ok(())
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

fn shown(range: &Range<u32>) -> String {
    format!("ids {} to {}", range.start, range.end - 1)
}

/// What newuidmap(1) and newgidmap(1) take after the process: the user as 0, then all subordinate ids in a row.
pub(super) fn arguments(account: &Account, ranges: &[Range<u32>]) -> Vec<String> {
    let mut all = vec![[0, account.id, 1]];
    let mut next = 1;
    for range in ranges {
        let count = range.end - range.start;
        all.push([next, range.start, count]);
        next += count;
    }
    all.iter().flatten().map(u32::to_string).collect()
}

/// The name that `/etc/passwd` gives to a user.
pub(super) fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    };
    passwd.lines().find_map(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let account = Account { name: Some("ann".into()), id: 1000, uid: 1000 };
        let shown = match of_account(text, &account) {
            Ok(ranges) => arguments(&account, &ranges).join(" "),
            Err(reason) => reason,
        };
        assert_eq!(shown, expect, "{text}");
    }

    #[test]
    fn the_user_is_0_and_the_ranges_follow() {
        check("", "0 1000 1");
        check("bob:100000:65536\n", "0 1000 1");
        check("# ann:1:1\nann:100000:65536\nbob:165536:65536\n", "0 1000 1 1 100000 65536");
        check("1000:300000:10\nann:200000:5\nann:1:0\n", "0 1000 1 1 300000 10 11 200000 5");
    }

    #[test]
    fn a95_ranges_that_are_not_the_user_s_alone_are_refused() {
        check("ann:100000:65536\nann:165535:1\n", "gives ids 100000 to 165535 and ids 165535 to 165535, which overlap");
        check("bob:100000:65536\nann:165000:65536\n", "gives ids 165000 to 230535 to bob too");
        check("ann:0:10\n", "gives ids 0 to 9 away, with root among them");
        check("ann:900:200\n", "gives ids 900 to 1099 away, with the user's own id 1000 among them");
        check("ann:4294967290:6\n", "line 1: the range goes beyond the last id");
        check("ann:1:18446744073709551615\n", "line 1: the range goes beyond the last id");
        check("ann:100000:4294967295\n", "line 1: the range goes beyond the last id");
        check("x:1\nann:-1:5\n", "line 2: \"-1\" is not a number of ids");
        check("ann:5\n", "line 1: it has no count");
        check(&"ann:100000:1\n".repeat(400), "has 400 ranges for one user, the kernel takes 339");
    }

    #[test]
    fn what_is_wrong_with_the_ids_of_others_is_theirs_to_mend() {
        check("bob:0:4294967296\nann:100000:2\nbob\n:::\n", "0 1000 1 1 100000 2");
    }

    #[test]
    fn users_are_found_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\n# x\nann:x:1000:100::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(name_of(passwd, 100), None);
    }
}
