//! Which owners files of this process can have: in a user namespace not all (user_namespaces(7)).

use std::ops::Range;
use std::sync::OnceLock;

/// The owners that exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// Those of the maps, first for users, then for groups.
    Mapped([Vec<Range<u64>>; 2]),
    /// Whoever runs this, as root of a namespace without anybody else. Trees then hold everything as theirs, and the index
    /// alone says whose it is: there is no other user in such a namespace, before whom it would have to be kept.
    Single,
}

impl Owners {
    /// Those of this process, whose maps cannot change once they are written.
    pub(super) fn of_this_process() -> &'static Self {
        static OWNERS: OnceLock<Owners> = OnceLock::new();
        OWNERS.get_or_init(|| {
            let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
            Self::parse(&read("/proc/self/uid_map"), &read("/proc/self/gid_map"))
        })
    }

    fn parse(uids: &str, gids: &str) -> Self {
        let maps = [uids, gids].map(|text| text.lines().filter_map(range).collect::<Vec<_>>());
        let ids: u64 = maps[0].iter().map(|range| range.end - range.start).sum();
        if ids == 1 { Self::Single } else { Self::Mapped(maps) }
    }

    /// Whether all owners exist, as they do outside every user namespace.
    pub(super) fn are_all(&self) -> bool {
        let all = |ranges: &Vec<Range<u64>>| ranges.iter().any(|range| *range == (0..u64::from(u32::MAX)));
        matches!(self, Self::Mapped(maps) if maps.iter().all(all))
    }

    /// The owner to give something to that belongs to these, or the id that does not exist.
    pub(super) fn settle(&self, uid: u32, gid: u32) -> Result<(u32, u32), u32> {
        let Self::Mapped([uids, gids]) = self else { return Ok((0, 0)) };
        let has = |ranges: &[Range<u64>], id: u32| ranges.iter().any(|range| range.contains(&u64::from(id)));
        match (has(uids, uid), has(gids, gid)) {
            (true, true) => Ok((uid, gid)),
            (false, _) => Err(uid),
            (_, false) => Err(gid),
        }
    }
}

/// A line of `/proc/self/uid_map`: first id within, first id outside, count.
fn range(line: &str) -> Option<Range<u64>> {
    let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
    let (first, _, count) = (fields.next()??, fields.next()??, fields.next()??);
    Some(first..first + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_kept_squashed_or_refused() {
        let some = Owners::parse("0 1000 1\n1 100000 65536\n", "0 100 1\n1 100000 10\n");
        assert_eq!(some.settle(65536, 10), Ok((65536, 10)));
        assert_eq!((some.settle(65537, 0), some.settle(0, 11)), (Err(65537), Err(11)));
        assert_eq!(Owners::parse("0 1000 1\n", "0 100 1\n").settle(42, 7), Ok((0, 0)));
        let all = "         0          0 4294967295\n";
        assert_eq!(Owners::parse(all, all).settle(u32::MAX - 1, 0), Ok((u32::MAX - 1, 0)));
        assert!(Owners::parse(all, all).are_all() && !some.are_all());
    }
}
