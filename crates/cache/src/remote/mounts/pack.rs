//! From a folder to a snapshot and the packs that it lacks.

use super::snapshot::{Entry, Kind, PackInfo, Place, Snapshot, VERSION};
use forge_store::{Lease, Store, StoreError};
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A pack is closed once it has that many bytes: small enough to be thrown away, large enough for many small files.
const PACK_BYTES: u64 = 8 << 20;
/// Packs of which less than one part in so many is still in use are left behind.
const LEAST_USE: u64 = 2;

/// A file of a folder, read.
struct Seen {
    entry: Entry,
    /// Its size and hash; none for what is no file.
    content: Option<(u64, String)>,
}

/// Lists a folder, and puts what `earlier` does not have into new packs in the store.
pub(super) fn take(tree: &Path, earlier: &Snapshot, store: &Store, lease: &Lease) -> io::Result<Snapshot> {
    let mut seen = Vec::new();
    walk(tree, "", &mut seen)?;
    let kept = kept(earlier, &seen);
    let mut packs: Vec<PackInfo> = Vec::new();
    let mut places: HashMap<(String, u64), Place> = HashMap::new();
    let mut number_of: HashMap<usize, usize> = HashMap::new();
    for ((blake3, size), place) in earlier.places() {
        if !kept[place.pack] || !seen.iter().any(|one| is(one, blake3, size)) {
            continue;
        }
        let pack = *number_of.entry(place.pack).or_insert_with(|| {
            packs.push(earlier.packs[place.pack].clone());
            packs.len() - 1
        });
        places.insert((blake3.to_owned(), size), Place { pack, ..place });
    }
    let mut writer = Writer { store, lease, open: None, packs };
    let mut entries = Vec::with_capacity(seen.len());
    for Seen { mut entry, content } in seen {
        if let Some((size, blake3)) = content {
            let key = (blake3, size);
            if !places.contains_key(&key) {
                match writer.add(&tree.join(&entry.path), &key)? {
                    Some(place) => _ = places.insert(key.clone(), place),
                    // Changed since it was listed: somebody is at work in the folder, and the file is not kept.
                    None => continue,
                }
            }
            let Place { pack, offset } = places[&key];
            entry.kind = Kind::File { size, blake3: key.0, pack, offset };
        }
        entries.push(entry);
    }
    writer.close()?;
    Ok(Snapshot { version: VERSION, packs: writer.packs, entries })
}

fn is(seen: &Seen, blake3: &str, size: u64) -> bool {
    seen.content.as_ref().is_some_and(|(length, hash)| *length == size && hash == blake3)
}

/// Which packs of an earlier snapshot are worth keeping.
fn kept(earlier: &Snapshot, seen: &[Seen]) -> Vec<bool> {
    let places = earlier.places();
    let mut used = vec![0u64; earlier.packs.len()];
    let mut counted = std::collections::HashSet::new();
    for (size, blake3) in seen.iter().filter_map(|one| one.content.as_ref()) {
        if let Some(place) = places.get(&(blake3.as_str(), *size))
            && counted.insert((blake3, size))
        {
            used[place.pack] += size;
        }
    }
    let worth = |(pack, used): (&PackInfo, u64)| used.saturating_mul(LEAST_USE) >= pack.bytes;
    earlier.packs.iter().zip(used).map(worth).collect()
}

/// Lists what lies in a folder: files, folders and links whose names are text. What else is there is not kept.
fn walk(root: &Path, path: &str, seen: &mut Vec<Seen>) -> io::Result<()> {
    let folder = root.join(path);
    let Some(metadata) = there(fs::symlink_metadata(&folder))? else { return Ok(()) };
    seen.push(Seen { entry: entry(path, &metadata, Kind::Folder), content: None });
    let Some(listing) = there(fs::read_dir(&folder))? else { return Ok(()) };
    let mut names = Vec::new();
    for found in listing {
        names.extend(found?.file_name().into_string());
    }
    names.sort_unstable();
    for name in names {
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        let whole = root.join(&path);
        let Some(metadata) = there(fs::symlink_metadata(&whole))? else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() {
            walk(root, &path, seen)?;
        } else if kind.is_symlink() {
            if let Some(Ok(target)) = there(fs::read_link(&whole))?.map(|target| target.into_os_string().into_string())
            {
                seen.push(Seen { entry: entry(&path, &metadata, Kind::Link(target)), content: None });
            }
        } else if kind.is_file() {
            let Some(mut file) = open(&whole)? else { continue };
            let mut hasher = blake3::Hasher::new();
            let size = io::copy(&mut file, &mut hasher)?;
            let content = Some((size, hasher.finalize().to_hex().to_string()));
            seen.push(Seen { entry: entry(&path, &metadata, Kind::Folder), content });
        }
    }
    Ok(())
}

fn entry(path: &str, metadata: &Metadata, kind: Kind) -> Entry {
    Entry {
        path: path.to_owned(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or_default()),
        kind,
    }
}

/// Others may be at work in the folder: what is gone is gone.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a file, and neither follows what took its place nor waits for it.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes packs into the store.
struct Writer<'a> {
    store: &'a Store,
    lease: &'a Lease,
    open: Option<(zstd::Encoder<'static, forge_store::BlobWriter>, u64)>,
    packs: Vec<PackInfo>,
}

impl Writer<'_> {
    /// Adds a file's bytes; `None` where they are not those that were announced.
    fn add(&mut self, path: &Path, (blake3, size): &(String, u64)) -> io::Result<Option<Place>> {
        let Some(mut file) = open(path)? else { return Ok(None) };
        if self.open.is_none() {
            let writer = self.store.blobs().writer(None).map_err(other)?;
            self.open = Some((zstd::Encoder::new(writer, 1)?, 0));
        }
        let (encoder, bytes) = self.open.as_mut().expect("it was opened just now");
        let (pack, offset) = (self.packs.len(), *bytes);
        let mut hashed = Hashed { out: encoder, hasher: blake3::Hasher::new() };
        let copied = io::copy(&mut (&mut file).take(*size), &mut hashed)?;
        let same = copied == *size && hashed.hasher.finalize().to_hex().as_str() == blake3;
        *bytes += copied;
        if *bytes >= PACK_BYTES {
            self.close()?;
        }
        Ok(same.then_some(Place { pack, offset }))
    }

    fn close(&mut self) -> io::Result<()> {
        let Some((encoder, bytes)) = self.open.take() else { return Ok(()) };
        let writer = encoder.finish()?;
        let (digest, size) = writer.finish(self.lease).map_err(other)?;
        self.packs.push(PackInfo { digest, size, bytes });
        Ok(())
    }
}

struct Hashed<'a, W> {
    out: &'a mut W,
    hasher: blake3::Hasher,
}

impl<W: io::Write> io::Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn other(error: StoreError) -> io::Error {
    io::Error::other(error)
}
