use crate::CacheError;
use std::cmp::Ordering;

/// So many entries are listed one by one.
pub const MOST_LISTED: usize = 200_000;

/// What a step read of an input: one entry for each file, folder or link, in the order in which they were selected.
///
/// It is kept with a step's record to say later what changed, and plays no part in keys: hashes are cut to eight bytes.
///
/// # Encoding
///
/// ```text
/// varint                      number of entries that were read, then number of those that are listed
/// entry …
///   varint, varint, bytes     path: bytes shared with the previous path, bytes that follow, those bytes
///   u8                        kind, as [`ListedKind`] counts
///   varint                    1 + mode, or 0 where it makes no difference
///   varint, varint            1 + uid, 1 + gid, or 0 where they make no difference
///   8 bytes                   of the hash of the file's bytes, the link's target or the device's numbers
///   8 bytes                   of the hash of the rest: extended attributes, times that are content, further names
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    entries: Vec<ListedEntry>,
    total: u64,
}

/// One entry of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    /// The path within the input.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: ListedKind,
    /// Its permission bits; `None` where the step overrides them.
    pub mode: Option<u32>,
    /// Its owner and group; `None` where they make no difference.
    pub owner: Option<(u32, u32)>,
    /// Of its bytes, its target or its numbers.
    pub content: [u8; 8],
    /// Of everything else that makes a difference.
    pub rest: [u8; 8],
}

/// What an entry of a [`Listing`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device or a pipe.
    Node,
}

/// What became of an entry between two listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryChange {
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
    /// It became something else.
    Kind(ListedKind, ListedKind),
    /// The bytes of a file, the target of a link or the numbers of a device.
    Bytes(ListedKind),
    /// The permission bits.
    Mode(u32, u32),
    /// The owner and group.
    Owner((u32, u32), (u32, u32)),
    /// Something else: attributes, a time that a step set, another name for the same file.
    Attributes,
}

impl Listing {
    /// Takes entries in any order.
    pub fn new(mut entries: Vec<ListedEntry>) -> Self {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let total = entries.len() as u64;
        entries.truncate(MOST_LISTED);
        Self { entries, total }
    }

    /// The entries, by path.
    pub fn entries(&self) -> &[ListedEntry] {
        &self.entries
    }

    /// What changed from this listing to a later one, by path. A path that is read more than once stands for its first.
    pub fn changes(&self, later: &Self) -> Vec<(Vec<u8>, EntryChange)> {
        let mut found = Vec::new();
        let (mut old, mut new) = (self.entries.iter().peekable(), later.entries.iter().peekable());
        loop {
            let (before, after) = (old.peek().copied(), new.peek().copied());
            let order = match (before, after) {
                (None, None) => return found,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(before), Some(after)) => before.path.cmp(&after.path),
            };
            match (order, before, after) {
                (Ordering::Less, Some(before), _) => found.push((before.path.clone(), EntryChange::Removed)),
                (Ordering::Greater, _, Some(after)) => found.push((after.path.clone(), EntryChange::Added)),
                (_, Some(before), Some(after)) => {
                    found.extend(difference(before, after).map(|change| (after.path.clone(), change)));
                }
                _ => {}
            }
            _ = order.is_le() && old.next().is_some();
            _ = order.is_ge() && new.next().is_some();
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put(self.total, out);
        put(self.entries.len() as u64, out);
        let mut previous: &[u8] = b"";
        for entry in &self.entries {
            let shared = previous.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
            put(shared as u64, out);
            put((entry.path.len() - shared) as u64, out);
            out.extend_from_slice(&entry.path[shared..]);
            out.push(entry.kind as u8);
            let numbers = [entry.mode, entry.owner.map(|(uid, _)| uid), entry.owner.map(|(_, gid)| gid)];
            numbers.iter().for_each(|number| put(number.map_or(0, |number| u64::from(number) + 1), out));
            out.extend_from_slice(&entry.content);
            out.extend_from_slice(&entry.rest);
            previous = &entry.path;
        }
    }

    /// Reads an encoding from the front of some bytes; `None` where it is damaged.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (total, count) = (take(bytes)?, take(bytes)?);
        let mut entries: Vec<ListedEntry> = Vec::new();
        for _ in 0..count {
            let (shared, length) = (usize::try_from(take(bytes)?).ok()?, usize::try_from(take(bytes)?).ok()?);
            let mut path = entries.last().map_or(&b""[..], |entry| &entry.path).get(..shared)?.to_vec();
            path.extend_from_slice(bytes.split_off(..length)?);
            let kind = match bytes.split_off_first()? {
                0 => ListedKind::File,
                1 => ListedKind::Directory,
                2 => ListedKind::Symlink,
                3 => ListedKind::Node,
                _ => return None,
            };
            let mut number = || Some(u32::try_from(take(bytes)?.wrapping_sub(1)).ok());
            let (mode, uid, gid) = (number()?, number()?, number()?);
            let mut hash = || bytes.split_off(..8)?.try_into().ok();
            let (content, rest) = (hash()?, hash()?);
            entries.push(ListedEntry { path, kind, mode, owner: uid.zip(gid), content, rest });
        }
        Some(Self { entries, total })
    }

    /// The encoding.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, CacheError> {
        let damaged = || CacheError::DamagedInputs;
        let listing = Self::decode(&mut bytes).ok_or_else(damaged)?;
        if bytes.is_empty() { Ok(listing) } else { Err(damaged()) }
    }

    /// The bytes that [`Listing::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 32 + 16);
        self.encode(&mut out);
        out
    }
}

/// The most telling difference of two entries of one path.
fn difference(before: &ListedEntry, after: &ListedEntry) -> Option<EntryChange> {
    if before.kind != after.kind {
        return Some(EntryChange::Kind(before.kind, after.kind));
    }
    if before.content != after.content {
        return Some(EntryChange::Bytes(after.kind));
    }
    match (before.mode, after.mode) {
        (Some(old), Some(new)) if old != new => return Some(EntryChange::Mode(old, new)),
        _ => {}
    }
    match (before.owner, after.owner) {
        (Some(old), Some(new)) if old != new => return Some(EntryChange::Owner(old, new)),
        _ => {}
    }
    (before.rest != after.rest).then_some(EntryChange::Attributes)
}

fn put(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, content: u8) -> ListedEntry {
        let path = path.as_bytes().to_vec();
        let (mode, owner) = (Some(0o644), Some((0, 0)));
        ListedEntry { path, kind: ListedKind::File, mode, owner, content: [content; 8], rest: [0; 8] }
    }

    #[test]
    fn a_listing_survives_its_bytes_and_no_cut_does() {
        let none = ListedEntry { mode: None, owner: None, kind: ListedKind::Symlink, ..entry("src/\u{e4}", 3) };
        let listing = Listing::new(vec![entry("src/main.rs", 1), none, entry("", 2), entry("src", 200)]);
        let bytes = listing.to_bytes();
        assert_eq!(Listing::from_bytes(&bytes).unwrap(), listing);
        for end in 0..bytes.len() {
            assert!(Listing::from_bytes(&bytes[..end]).is_err(), "{end}");
        }
        // Whatever the bytes are, there is an answer.
        for position in 0..bytes.len() {
            let mut other = bytes.clone();
            other[position] ^= 0xff;
            _ = Listing::from_bytes(&other);
        }
    }

    #[test]
    fn changes_are_named_by_what_they_are() {
        let moded = |mode| ListedEntry { mode: Some(mode), ..entry("mode", 1) };
        let owned = |owner| ListedEntry { owner: Some(owner), ..entry("owner", 1) };
        let kind = |kind| ListedEntry { kind, ..entry("kind", 1) };
        let old = vec![entry("a", 1), entry("bytes", 1), moded(0o644), owned((0, 0)), kind(ListedKind::File)];
        let new = vec![entry("bytes", 2), moded(0o664), owned((1, 2)), kind(ListedKind::Symlink), entry("z", 1)];
        let changes = Listing::new(old.clone()).changes(&Listing::new(new));
        let expect = [
            ("a", EntryChange::Removed),
            ("bytes", EntryChange::Bytes(ListedKind::File)),
            ("kind", EntryChange::Kind(ListedKind::File, ListedKind::Symlink)),
            ("mode", EntryChange::Mode(0o644, 0o664)),
            ("owner", EntryChange::Owner((0, 0), (1, 2))),
            ("z", EntryChange::Added),
        ];
        assert_eq!(changes, expect.map(|(path, change)| (path.as_bytes().to_vec(), change)));
        assert!(Listing::new(old.clone()).changes(&Listing::new(old)).is_empty());
    }
}
