//! From a snapshot and its packs to a folder.

use super::snapshot::{Entry, Kind, Snapshot};
use forge_store::Store;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Bits of a mode that come in: nobody becomes somebody else by what another machine kept.
const MODE: u32 = 0o1777;

/// Fills a folder that is there and empty. The packs are in the store.
///
/// # Errors
/// The bytes are not what the index says, or the file system failed. The folder is of no use then.
pub(super) fn restore(snapshot: &Snapshot, store: &Store, into: &Path) -> io::Result<()> {
    // Files of one pack in the order in which they lie there: each pack is read once, from its beginning on.
    let mut files: BTreeMap<usize, Vec<(u64, &Entry)>> = BTreeMap::new();
    for entry in &snapshot.entries[1..] {
        let path = into.join(&entry.path);
        match &entry.kind {
            Kind::Folder => fs::create_dir(&path)?,
            Kind::Link(target) => {
                symlink(target, &path)?;
                own(entry, &path)?;
                set_time(entry, &path)?;
            }
            Kind::File { pack, offset, .. } => files.entry(*pack).or_default().push((*offset, entry)),
        }
    }
    for (pack, mut files) in files {
        files.sort_by_key(|(offset, _)| *offset);
        let blob = store.blobs().open(&snapshot.packs[pack].digest).map_err(io::Error::other)?;
        let mut bytes = Bytes { decoder: zstd::Decoder::new(blob)?, at: 0, last: None };
        for (offset, entry) in files {
            bytes.write(offset, entry, into)?;
        }
    }
    // What is in a folder changes its time: the innermost first.
    for entry in snapshot.entries.iter().rev().filter(|entry| entry.kind == Kind::Folder) {
        let path = into.join(&entry.path);
        own(entry, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode & MODE))?;
        set_time(entry, &path)?;
    }
    Ok(())
}

/// The bytes of a pack.
struct Bytes<'a, R: Read> {
    decoder: R,
    at: u64,
    /// Where the last file came from, and where it is: others may have the same bytes.
    last: Option<(u64, &'a Entry)>,
}

impl<'a, R: Read> Bytes<'a, R> {
    fn write(&mut self, offset: u64, entry: &'a Entry, into: &Path) -> io::Result<()> {
        let Kind::File { size, blake3, .. } = &entry.kind else { return Ok(()) };
        let path = into.join(&entry.path);
        let mut file = create(&path)?;
        let mut hasher = blake3::Hasher::new();
        let mut hashed = Both { file: &mut file, hasher: &mut hasher };
        match self.last {
            Some((at, last)) if at == offset && offset < self.at => {
                let mut same = File::open(into.join(&last.path))?.take(*size);
                io::copy(&mut same, &mut hashed)?;
            }
            _ => {
                let gap = offset.checked_sub(self.at).ok_or_else(|| wrong("files overlap in a pack"))?;
                io::copy(&mut (&mut self.decoder).take(gap), &mut io::sink())?;
                let count = io::copy(&mut (&mut self.decoder).take(*size), &mut hashed)?;
                self.at = offset + count;
                self.last = Some((offset, entry));
            }
        }
        if hasher.finalize().to_hex().as_str() != blake3 {
            return Err(wrong("a file is not what the index says"));
        }
        own(entry, &path)?;
        file.set_permissions(fs::Permissions::from_mode(entry.mode & MODE))?;
        set_time(entry, &path)
    }
}

fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?.into())
}

fn own(entry: &Entry, path: &Path) -> io::Result<()> {
    // -1 would leave an owner as it is; nobody has it.
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(wrong("an owner is none"));
    }
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    match rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // Who is not root has no other owners to give; EINVAL are those that a user namespace does not know.
        Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_time(entry: &Entry, path: &Path) -> io::Result<()> {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: i64::from(entry.mtime.1.min(999_999_999)) };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

struct Both<'a> {
    file: &'a mut File,
    hasher: &'a mut blake3::Hasher,
}

impl io::Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::take;
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn listing(folder: &Path) -> Vec<(String, u32, i64, Vec<u8>)> {
        let mut found = Vec::new();
        let mut todo = vec![folder.to_owned()];
        while let Some(path) = todo.pop() {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let bytes = match metadata.file_type() {
                kind if kind.is_dir() => {
                    todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                    Vec::new()
                }
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                _ => fs::read(&path).unwrap(),
            };
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.push((name, metadata.mode(), metadata.mtime(), bytes));
        }
        found.sort();
        found
    }

    // Seen to fail with packs that are all written anew.
    #[test]
    fn a_folder_comes_back_and_only_what_changed_is_packed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = store.lease("test").unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        for number in 0..40 {
            fs::write(tree.join(format!("a/{number}")), format!("file {number}").repeat(1000)).unwrap();
        }
        fs::write(tree.join("a/b/same"), "file 7".repeat(1000)).unwrap();
        fs::write(tree.join("empty"), "").unwrap();
        fs::set_permissions(tree.join("a/3"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("../nowhere", tree.join("a/link")).unwrap();
        let first = take(&tree, &Snapshot::default(), &store, &lease).unwrap();
        assert_eq!(first.packs.len(), 1);
        let copy = folder.path().join("copy");
        fs::create_dir(&copy).unwrap();
        restore(&first, &store, &copy).unwrap();
        fs::set_permissions(tree.join("a/3"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(listing(&copy), listing(&tree));

        fs::write(copy.join("a/new"), "new").unwrap();
        fs::remove_file(copy.join("a/1")).unwrap();
        let second = take(&copy, &first, &store, &lease).unwrap();
        assert_eq!((second.packs.len(), &second.packs[0], second.packs[1].bytes), (2, &first.packs[0], 3));
        // What is left of the first pack is less than half of it: it is not dragged along.
        for number in 2..40 {
            _ = fs::remove_file(copy.join(format!("a/{number}")));
        }
        let third = take(&copy, &second, &store, &lease).unwrap();
        assert!(!third.packs.contains(&first.packs[0]));
        Snapshot::read(&serde_json::to_vec(&third).unwrap()).unwrap();

        let mut lie = second.clone();
        for entry in &mut lie.entries {
            if let Kind::File { blake3, .. } = &mut entry.kind {
                *blake3 = "0".repeat(64);
            }
        }
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        assert_eq!(restore(&lie, &store, &other).unwrap_err().to_string(), "a file is not what the index says");
    }
}
