//! What files of a context hashed to when they were last read, by what tells cheaply whether they changed.

use crate::source_tree::SourceEntry;
use blake3::Hash;
use forge_session::{ContextPath, FileStamp};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The index of one context, read once and written when something new was hashed.
///
/// # File format, version 1
///
/// ```text
/// "forge-stats" 0x01, 4 zero bytes
/// record …                       ascending by path
///   16 bytes                     the first of the BLAKE3 of the path
///   u64 device, inode, size
///   i64 mtime, ctime             nanoseconds since the epoch
///   32 bytes                     BLAKE3 of the file's bytes
/// 32 bytes                       BLAKE3 of everything before
/// ```
///
/// Integers are little endian. An index that is missing, damaged or of another version is an empty one: everything is
/// read again then.
///
/// A record is believed where everything but the hash is as it was. That a file could have been written to without a
/// change of its times is ruled out as git does it (`racy-git.txt`), only when the record is made instead of when it is
/// used: a file whose times lie so close to the moment it was looked at that a later write could have the same ones gets
/// no record.
pub(crate) struct StatIndex {
    path: PathBuf,
    /// The records of the file, one after the other.
    known: Vec<u8>,
    /// Which of them were asked for.
    used: Box<[AtomicBool]>,
    /// The records that are new, in no order: whoever opens the index again finds them.
    fresh: Mutex<Vec<[u8; RECORD]>>,
    /// When the files that are asked about were looked at, at the earliest.
    opened_ns: i128,
}

const MAGIC: &[u8; 16] = b"forge-stats\x01\0\0\0\0";
const NAME: usize = 16;
const STAMP: usize = 40;
const RECORD: usize = NAME + STAMP + 32;
const CHECKSUM: usize = 32;

/// The kernel takes the times of files from a clock that ticks at least every 10 ms (`CONFIG_HZ=100`).
const TICK_NS: i128 = 100_000_000;

/// File systems that keep whole seconds keep every second one at worst (FAT).
const COARSE_TICK_NS: i128 = 2_000_000_000;

/// So many indexes are kept, the last ones that were written: contexts come and go.
const INDEXES: usize = 100;

/// An index of more records (9 MB) is not kept in memory for the steps that may follow.
const LARGE: usize = 100_000;

/// So many records that nobody asked for may be carried along.
const SPARE: usize = 4096;

impl StatIndex {
    /// Reads the index of a context from the folder where all of them are.
    pub(crate) fn open(folder: &Path, identity: &str) -> Self {
        let path = folder.join(blake3::hash(identity.as_bytes()).to_hex().as_str());
        let known = std::fs::read(&path).ok().and_then(checked).unwrap_or_default();
        let used = (0..known.len() / RECORD).map(|_| AtomicBool::new(false)).collect();
        Self { path, known, used, fresh: Mutex::default(), opened_ns: nanoseconds(SystemTime::now()) }
    }

    /// What a file hashed to, if it is as it was then.
    pub(crate) fn find(&self, entry: &SourceEntry, size: u64) -> Option<Hash> {
        let name = name(&entry.path);
        let stamp = stamp_bytes(&entry.stamp()?, size)?;
        let position = self.position(&name).ok()?;
        let record = self.record(position);
        if record[NAME..NAME + STAMP] != stamp {
            return None;
        }
        self.used[position].store(true, Ordering::Relaxed);
        let hash: [u8; 32] = record[NAME + STAMP..].try_into().expect("a record ends with a hash");
        Some(Hash::from_bytes(hash))
    }

    /// Whether it is worth more than being read again by whoever comes next in the same build.
    pub(crate) fn is_large(&self) -> bool {
        self.used.len() > LARGE
    }

    /// Notes what a file hashed to that had this stamp before and after it was read.
    pub(crate) fn add(&self, entry: &SourceEntry, size: u64, hash: &Hash) {
        let Some(stamp) = entry.stamp().filter(|stamp| self.is_settled(stamp)) else { return };
        let Some(stamp) = stamp_bytes(&stamp, size) else { return };
        let name = name(&entry.path);
        let mut record = [0; RECORD];
        record[..NAME].copy_from_slice(&name);
        record[NAME..NAME + STAMP].copy_from_slice(&stamp);
        record[NAME + STAMP..].copy_from_slice(hash.as_bytes());
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    /// Whether a write after the file was looked at would have changed its times.
    fn is_settled(&self, stamp: &FileStamp) -> bool {
        let tick = if stamp.ctime_ns % 1_000_000_000 == 0 { COARSE_TICK_NS } else { TICK_NS };
        stamp.mtime_ns.max(stamp.ctime_ns) + tick < self.opened_ns
    }

    /// Writes what is new, atomically; `false` where nothing is. Whoever writes at the same time wins or loses: both
    /// indexes are true.
    ///
    /// # Errors
    /// The file system failed; nothing but time is lost then.
    pub(crate) fn save(&self) -> std::io::Result<bool> {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.is_empty() {
            return Ok(false);
        }
        fresh.sort_unstable();
        // Two steps may have read one file.
        fresh.dedup_by(|a, b| a[..NAME] == b[..NAME]);
        let used = self.used.iter().filter(|used| used.load(Ordering::Relaxed)).count();
        let forgets = self.used.len() > 2 * (used + fresh.len()) + SPARE;
        let kept = (0..self.used.len()).filter(|position| !forgets || self.used[*position].load(Ordering::Relaxed));
        write(&self.path, merged(kept.map(|position| self.record(position)), &fresh))?;
        *fresh = Vec::new();
        Ok(true)
    }

    fn record(&self, position: usize) -> &[u8] {
        &self.known[position * RECORD..(position + 1) * RECORD]
    }

    fn position(&self, name: &[u8; NAME]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.used.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.record(middle)[..NAME].cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }
}

fn checked(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let end = bytes.len().checked_sub(CHECKSUM)?;
    let is_whole = bytes.starts_with(MAGIC) && blake3::hash(&bytes[..end]).as_bytes()[..] == bytes[end..];
    if !is_whole || !(end - MAGIC.len()).is_multiple_of(RECORD) {
        return None;
    }
    bytes.truncate(end);
    bytes.drain(..MAGIC.len());
    Some(bytes)
}

/// Both lists as one, by name; where both have a name, the fresh record counts.
fn merged<'a>(known: impl Iterator<Item = &'a [u8]>, fresh: &'a [[u8; RECORD]]) -> impl Iterator<Item = &'a [u8]> {
    let (mut known, mut fresh) = (known.peekable(), fresh.iter().map(|record| &record[..]).peekable());
    std::iter::from_fn(move || {
        let order = match (known.peek(), fresh.peek()) {
            (Some(known), Some(fresh)) => known[..NAME].cmp(&fresh[..NAME]),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, _) => std::cmp::Ordering::Greater,
        };
        let old = if order.is_le() { known.next() } else { None };
        if order.is_ge() { fresh.next() } else { old }
    })
}

fn write<'a>(path: &Path, records: impl Iterator<Item = &'a [u8]>) -> std::io::Result<()> {
    let folder = path.parent().expect("an index lies in a folder");
    std::fs::create_dir_all(folder)?;
    // Several builds of one process may write at the same time, and several processes.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = path.with_extension(format!("new-{}-{number}", std::process::id()));
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&new)?);
    let mut hasher = blake3::Hasher::new();
    for bytes in std::iter::once(&MAGIC[..]).chain(records) {
        hasher.update(bytes);
        file.write_all(bytes)?;
    }
    file.write_all(hasher.finalize().as_bytes())?;
    file.flush()?;
    std::fs::rename(&new, path)?;
    forget_oldest(folder)
}

/// Removes what was not written for the longest time, temporary files of processes that died among it.
fn forget_oldest(folder: &Path) -> std::io::Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Another process may have removed it just now.
        if let Ok(metadata) = entry.metadata() {
            found.push((metadata.modified()?, entry.path()));
        }
    }
    found.sort_unstable();
    let excess = found.len().saturating_sub(INDEXES);
    found[..excess].iter().for_each(|(_, path)| _ = std::fs::remove_file(path));
    Ok(())
}

fn name(path: &ContextPath) -> [u8; NAME] {
    let hash = blake3::hash(path.as_bytes());
    hash.as_bytes()[..NAME].try_into().expect("a hash is longer")
}

/// `None` for times that no file of today has.
fn stamp_bytes(stamp: &FileStamp, size: u64) -> Option<[u8; STAMP]> {
    let (mtime, ctime) = (i64::try_from(stamp.mtime_ns).ok()?, i64::try_from(stamp.ctime_ns).ok()?);
    let numbers = [stamp.device, stamp.inode, size, mtime.cast_unsigned(), ctime.cast_unsigned()];
    let mut bytes = [0; STAMP];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    Some(bytes)
}

fn nanoseconds(time: SystemTime) -> i128 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}
