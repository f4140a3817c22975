//! File trees as text, one line a path, in both directions.
//!
//! ```text
//! a/        0700 1:2          a folder
//! a/f       =hello            a file; "\n" and "\xff" are escapes, in names too
//! a/g       == a/f            another name of a file
//! a/l       -> f              a symbolic link
//! a/p       fifo              a pipe; `socket`, `char 1:3` and `block 8:0` likewise
//! a/x       =x user.k=v @5    an extended attribute, the time in seconds
//! ```
//!
//! Left out are what most tests do not care about: 0755 and 0644, owner 0:0, the time [`TIME`].

use forge_store::{EntryKind, LayerIndex, Metadata};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time of everything written that says no other.
pub const TIME: i64 = 1_000_000_000;

/// Makes the tree in a folder.
pub fn write(folder: &Path, text: &str) {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for words in lines.iter().filter(|words| !words.is_empty()) {
        make(folder, words);
    }
    // Making something changes its parent's time.
    for words in lines.iter().filter(|words| !words.is_empty()) {
        let time = words.iter().find_map(|word| word.strip_prefix('@')).map_or(TIME, |time| time.parse().unwrap());
        set_time(&folder.join(unescape(words[0].trim_end_matches('/'))), time);
    }
}

pub fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn make(folder: &Path, words: &[&str]) {
    let path = folder.join(unescape(words[0].trim_end_matches('/')));
    let (rest, is_folder) = (&words[1..], words[0].ends_with('/'));
    let after = |mark: &str| rest.iter().position(|word| *word == mark).map(|at| rest[at + 1]);
    let node = |file_type, numbers: &str| {
        let (major, minor) = numbers.split_once(':').unwrap();
        let device = fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
        fs::mknodat(CWD, &path, file_type, Mode::from_raw_mode(0o644), device).unwrap();
    };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if is_folder {
        std::fs::create_dir_all(&path).unwrap();
    } else if let Some(target) = after("->") {
        std::os::unix::fs::symlink(unescape(target), &path).unwrap();
    } else if let Some(first) = after("==") {
        return std::fs::hard_link(folder.join(unescape(first)), &path).unwrap();
    } else if let Some(device) = after("char") {
        node(FileType::CharacterDevice, device);
    } else if let Some(device) = after("block") {
        node(FileType::BlockDevice, device);
    } else if rest.contains(&"fifo") {
        node(FileType::Fifo, "0:0");
    } else if rest.contains(&"socket") {
        node(FileType::Socket, "0:0");
    } else {
        let content = rest.iter().find_map(|word| word.strip_prefix('=')).unwrap_or("");
        std::fs::write(&path, unescape(content).as_bytes()).unwrap();
    }
    give(&path, rest, is_folder);
}

fn give(path: &Path, words: &[&str], is_folder: bool) {
    let number = |text: &str| text.parse::<u32>().ok();
    let owner =
        words.iter().find_map(|word| word.split_once(':').filter(|(a, b)| (number(a), number(b)) != (None, None)));
    if let Some((user, group)) = owner.filter(|_| !words.contains(&"char") && !words.contains(&"block")) {
        std::os::unix::fs::lchown(path, number(user), number(group)).unwrap();
    }
    if words.contains(&"->") {
        return;
    }
    let mode = words.iter().find(|word| word.len() == 4 && word.bytes().all(|byte| byte.is_ascii_digit()));
    let default = if is_folder { 0o755 } else { 0o644 };
    let mode = mode.map_or(default, |text| u32::from_str_radix(text, 8).unwrap());
    fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
    for (name, value) in words.iter().filter_map(|word| word.split_once('=')).filter(|(name, _)| name.contains('.')) {
        fs::lsetxattr(path, name, unescape(value).as_bytes(), XattrFlags::empty()).unwrap();
    }
}

pub fn unescape(text: &str) -> OsString {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, ..] = rest {
        let (byte, length) = match rest {
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', b's', ..] => (b' ', 2),
            [b'\\', b'x', high, low, ..] => (hex::decode([*high, *low]).unwrap()[0], 4),
            _ => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    OsString::from_vec(bytes)
}

/// A layer as text, its root left out. `content` reads a file of it.
pub fn print(index: &LayerIndex, content: impl Fn(&Path) -> Vec<u8>) -> String {
    let mut text = String::new();
    for entry in &index.entries()[1..] {
        let path = entry.path.escape_ascii();
        let (line, usual) = match &entry.kind {
            _ if entry.link.is_some() => {
                let first = &index.entries()[entry.link.unwrap() as usize].path;
                writeln!(text, "{path} == {}", first.escape_ascii()).unwrap();
                continue;
            }
            EntryKind::File { size, .. } => {
                let bytes = content(entry.path());
                assert_eq!(bytes.len() as u64, *size);
                (format!("{path} ={}", bytes[..bytes.len().min(40)].escape_ascii()), 0o644)
            }
            EntryKind::Directory { implied: true, .. } => (format!("({path}/)"), 0o755),
            EntryKind::Directory { opaque: true, .. } => (format!("{path}/ opaque"), 0o755),
            EntryKind::Directory { .. } => (format!("{path}/"), 0o755),
            EntryKind::Symlink { target } => (format!("{path} -> {}", target.as_bytes().escape_ascii()), 0o777),
            EntryKind::CharDevice { major, minor } => (format!("{path} char {major}:{minor}"), 0o644),
            EntryKind::BlockDevice { major, minor } => (format!("{path} block {major}:{minor}"), 0o644),
            EntryKind::Fifo => (format!("{path} fifo"), 0o644),
            EntryKind::Whiteout => {
                writeln!(text, "{path} deleted").unwrap();
                continue;
            }
        };
        writeln!(text, "{line}{}", rest(&entry.metadata, usual)).unwrap();
    }
    text
}

fn rest(metadata: &Metadata, usual: u32) -> String {
    let mut text = String::new();
    if metadata.mode != usual {
        write!(text, " {:04o}", metadata.mode).unwrap();
    }
    if (metadata.uid, metadata.gid) != (0, 0) {
        write!(text, " {}:{}", metadata.uid, metadata.gid).unwrap();
    }
    for (name, value) in &metadata.xattrs {
        write!(text, " {}={}", OsStr::as_bytes(name).escape_ascii(), value.escape_ascii()).unwrap();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    match metadata.mtime.0 {
        TIME => {}
        time if (now - 600..=now).contains(&time) => text.push_str(" @now"),
        time => write!(text, " @{time}").unwrap(),
    }
    text
}

/// The lines without indentation and blank ones, so that expectations can stand anywhere.
pub fn trimmed(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}
