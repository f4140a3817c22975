//! When the files of an archive were made.

use crate::file::archive::decompress;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An archive may be far larger than its file; nobody waits for more than this.
const MOST_BYTES: u64 = 64 << 30;

/// The time of the newest regular file of an archive; `None` for what is none, or holds no file.
pub(super) fn newest_in_archive(path: &Path) -> Option<SystemTime> {
    let stream = decompress(File::open(path).ok()?).ok()?;
    let mut archive = tar::Archive::new(stream.take(MOST_BYTES));
    let mut newest = None;
    for entry in archive.entries().ok()? {
        // What is damaged further on is no archive for docker either.
        let header = entry.ok()?.header().clone();
        if header.entry_type().is_file() {
            newest = newest.max(Some(header.mtime().ok()?));
        }
    }
    newest.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
}
