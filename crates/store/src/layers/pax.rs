//! Extended headers: `"<length> <key>=<value>\n"` records (POSIX, `pax`, "pax Extended Header").

use std::collections::BTreeMap;

/// What an extended header says of the entry that follows. A later record for the same key is an error rather than an
/// override: writers make none, and readers differ in what they do with it (A57).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether a key of GNU's sparse formats is among them.
    pub(super) sparse: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl PaxRecords {
    /// Reads all records.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut records = BTreeMap::new();
        while !bytes.is_empty() {
            let (key, value, rest) = split_record(bytes)?;
            if records.insert(key, value).is_some() {
                return Err("an extended header has a key twice");
            }
            bytes = rest;
        }
        let mut parsed = Self::default();
        for (key, value) in records {
            parsed.take(key, value)?;
        }
        Ok(parsed)
    }

    /// Whether readers that ignore global headers (Go's, hence docker's) and those that apply them (GNU tar) would see
    /// different entries.
    pub(super) fn changes_entries(&self) -> bool {
        *self != Self { mtime: self.mtime, uid: self.uid, gid: self.gid, ..Self::default() }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(XATTR) {
            if name.is_empty() || name.contains(&0) || name.contains(&b'=') {
                return Err("an extended attribute has no valid name");
            }
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        self.sparse |= key.starts_with(b"GNU.sparse.");
        // An empty value means: as in the header.
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(text(value)?),
            b"linkpath" => self.linkpath = Some(text(value)?),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {}
        }
        Ok(())
    }
}

/// Key, value and what follows.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn split_record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    const MALFORMED: &str = "an extended header has a malformed record";
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or(MALFORMED)?;
    let length = usize::try_from(number(&bytes[..space])?).map_err(|_| MALFORMED)?;
    let record = bytes.get(space + 1..length).ok_or(MALFORMED)?;
    let (last, content) = record.split_last().ok_or(MALFORMED)?;
    let equals = content.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or(MALFORMED)?;
    if *last != b'\n' {
        return Err(MALFORMED);
    }
    Ok((&content[..equals], &content[equals + 1..], &bytes[length..]))
}

fn text(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) { Err("an extended header has a zero byte in a path") } else { Ok(value.to_vec()) }
}

/// Digits alone: no sign, no space, nothing that one reader takes and another does not.
fn number(value: &[u8]) -> Result<u64, &'static str> {
    const MALFORMED: &str = "an extended header has a malformed number";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(MALFORMED);
    }
    value
        .iter()
        .try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or(MALFORMED)
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are cut.
fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    const MALFORMED: &str = "an extended header has a malformed time";
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let dot = digits.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = dot.map_or((digits, &b""[..]), |dot| (&digits[..dot], &digits[dot + 1..]));
    let seconds = i64::try_from(number(whole).map_err(|_| MALFORMED)?).map_err(|_| MALFORMED)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(MALFORMED);
    }
    let nanoseconds =
        (0..9).fold(0, |sum, place| sum * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0')));
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        // Times count forward from the whole second before.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_lengths() {
        let parsed = PaxRecords::parse(b"12 path=a\nb\n17 comment=x=y z\n20 mtime=1.500000000\n12 size=1234\n");
        assert!(parsed.is_err(), "a length that lies is not repaired");
        let parsed = PaxRecords::parse(b"12 path=a\nb\n17 comment=x=y z\n15 mtime=-1.25\n13 size=1234\n").unwrap();
        assert_eq!(parsed.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!((parsed.mtime, parsed.size), (Some((-2, 750_000_000)), Some(1234)));
        let binary = PaxRecords::parse(b"23 SCHILY.xattr.u.x=\x00\n\n").unwrap();
        assert_eq!(binary.xattrs[&b"u.x"[..]], b"\x00\n");
    }

    #[test]
    fn a57_malformed_or_doubled_records_are_errors() {
        let malformed: [&[u8]; 13] = [
            b"x",
            b"3 \n",
            b"6 a=b",
            b"99 a=b\n",
            b"-6 a=b\n",
            b"+6 a=b\n",
            b"5 =b\n",
            b"5 ab\n",
            b"99999999999999999999 a=b\n",
            b"10 size=1\n10 size=2\n",
            b"11 size=-1\n",
            b"11 size=1k\n",
            b"12 path=a\0b\n",
        ];
        for bytes in malformed {
            assert!(PaxRecords::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a61_times_that_are_no_times_are_errors() {
        for bad in ["NaN", "inf", "1e9", "9223372036854775808", "--1", "1.-5", ".", "1:2"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(time(b"-9223372036854775807.5"), Ok((i64::MIN, 500_000_000)));
        assert_eq!(time(b"1.1234567899"), Ok((1, 123_456_789)));
        assert_eq!(time(b"7."), Ok((7, 0)));
    }
}
