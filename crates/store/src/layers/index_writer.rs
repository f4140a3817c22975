use super::entry::{LayerEntry, path_order, split_path};
use super::error::LayerError;
use super::index::{CONTENT, is_clean};
use super::index_format;
use crate::{ContentDigest, FileTimes, StoreError};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes the file of a [`LayerIndex`](super::LayerIndex) entry by entry, for layers whose entries are too many to be held.
pub(super) struct IndexWriter {
    path: PathBuf,
    file: BufWriter<File>,
    checksum: blake3::Hasher,
    content: blake3::Hasher,
    times: FileTimes,
    previous: Vec<u8>,
    /// The lengths of the paths of the folders that the last entry is in, itself among them: each is a beginning of
    /// `previous`.
    folders: Vec<usize>,
    space: Vec<u8>,
    expected: usize,
    sums: IndexSums,
}

/// What the entries of an index amount to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IndexSums {
    /// How many there are.
    pub entries: usize,
    /// How many of them say something.
    pub changes: u64,
    /// The bytes of all regular files, each link group once.
    pub bytes: u64,
}

impl IndexWriter {
    /// Begins an index of so many entries.
    pub(super) fn new(path: &Path, entries: usize, times: FileTimes) -> Result<Self, StoreError> {
        let file = File::create(path).map_err(StoreError::io("create", path))?;
        let mut writer = Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 18, file),
            checksum: blake3::Hasher::new(),
            content: blake3::Hasher::new_derive_key(CONTENT),
            times,
            previous: Vec::new(),
            folders: Vec::new(),
            space: Vec::new(),
            expected: entries,
            sums: IndexSums::default(),
        };
        index_format::put_head(entries, &mut writer.space);
        writer.write()?;
        Ok(writer)
    }

    /// Adds an entry; `first` is the path of the first name, where it is a further name of a file.
    pub(super) fn push(&mut self, entry: &LayerEntry, first: Option<&[u8]>) -> Result<(), StoreError> {
        self.check(entry, first)?;
        index_format::put_entry(&self.previous, entry, &mut self.space);
        self.write()?;
        if entry.is_change() {
            index_format::content_record(first, entry, &self.times, &mut self.space);
            self.content.update(&self.space);
            self.space.clear();
            self.sums.changes += 1;
        }
        self.previous.clear();
        self.previous.extend_from_slice(&entry.path);
        self.sums.entries += 1;
        self.sums.bytes += entry.size();
        Ok(())
    }

    /// Ends the file; what the layer amounts to.
    pub(super) fn finish(mut self) -> Result<(ContentDigest, IndexSums), StoreError> {
        if self.sums.entries != self.expected || self.sums.entries == 0 {
            return Err(broken("entries are missing").into());
        }
        self.space.extend_from_slice(self.checksum.finalize().as_bytes());
        self.write()?;
        self.file.flush().map_err(StoreError::io("write", &self.path))?;
        Ok((self.content.finalize().into(), self.sums))
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.checksum.update(&self.space);
        self.file.write_all(&self.space).map_err(StoreError::io("write", &self.path))?;
        self.space.clear();
        Ok(())
    }

    /// The rules of [`LayerIndex::new`](super::LayerIndex::new).
    fn check(&mut self, entry: &LayerEntry, first: Option<&[u8]>) -> Result<(), LayerError> {
        if !is_clean(&entry.path) {
            return Err(broken("a path is not in its normal form"));
        }
        if self.sums.entries > 0 && path_order(&self.previous, &entry.path).is_ge() {
            return Err(broken("entries are out of order"));
        }
        let is_link = entry.link.is_some_and(|first| (first as usize) < self.sums.entries);
        if entry.link.is_some() != first.is_some() || (first.is_some() && !is_link) {
            return Err(broken("a hard link has no first name"));
        }
        match split_path(&entry.path) {
            Some((parent, _)) => {
                while self.folders.last().is_some_and(|length| self.previous[..*length] != *parent) {
                    self.folders.pop();
                }
                if self.folders.is_empty() {
                    return Err(broken("an entry has no parent folder"));
                }
            }
            None if entry.is_directory() => {}
            None => return Err(broken("the root is not a folder")),
        }
        self.folders.extend(entry.is_directory().then_some(entry.path.len()));
        Ok(())
    }
}

fn broken(reason: &'static str) -> LayerError {
    LayerError::BrokenIndex { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EntryKind, LayerIndex, Metadata};

    fn entry(path: &str, kind: EntryKind) -> LayerEntry {
        let metadata = Metadata { mode: 0o644, mtime: (-5, 6), ..Metadata::default() };
        LayerEntry { path: path.into(), kind, metadata, link: None }
    }

    fn folder(path: &str, implied: bool) -> LayerEntry {
        entry(path, EntryKind::Directory { opaque: false, implied })
    }

    fn file(path: &str) -> LayerEntry {
        entry(path, EntryKind::File { size: 7, blake3: [3; 32] })
    }

    fn written(entries: &[LayerEntry]) -> Result<(Vec<u8>, ContentDigest, IndexSums), StoreError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let mut writer = IndexWriter::new(&path, entries.len(), FileTimes::Content)?;
        for entry in entries {
            let first = entry.link.and_then(|first| Some(entries.get(first as usize)?.path.clone()));
            writer.push(entry, first.as_deref())?;
        }
        let (content, sums) = writer.finish()?;
        Ok((std::fs::read(path).unwrap(), content, sums))
    }

    #[test]
    fn what_is_written_piece_by_piece_is_what_is_written_at_once() {
        let link = LayerEntry { link: Some(3), ..file("d/e/g") };
        let entries = vec![
            folder("", true),
            folder("d", false),
            folder("d/e", true),
            file("d/e/f"),
            link,
            file("d/h"),
            file("x"),
        ];
        let index = LayerIndex::new(entries.clone()).unwrap();
        let (bytes, content, sums) = written(&entries).unwrap();
        assert_eq!(bytes, index.encode());
        assert_eq!(content, index.content_digest(&FileTimes::Content));
        assert_eq!((sums.entries, sums.changes, sums.bytes), (7, index.changes(), index.bytes()));
        let files = index_format::files(&bytes).unwrap();
        let mut seen = Vec::new();
        let encoded = index_format::EncodedIndex::new(bytes.clone()).unwrap();
        let visit = &mut |_: usize, entry: &LayerEntry, first: Option<&[u8]>| {
            assert_eq!(first, entry.link.map(|first| &entries[first as usize].path[..]));
            seen.push(entry.clone());
            Ok(())
        };
        encoded.each(visit).unwrap();
        assert_eq!(seen, entries);
        assert!(encoded.sizes().eq(entries.iter().map(LayerEntry::size)));
        let sizes: Vec<u64> = files.iter().map(|file| file.map_or(0, |(size, _)| size)).collect();
        assert_eq!(sizes, index.entries().iter().map(LayerEntry::size).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_index_is_refused_in_both_ways() {
        let cases: [&[LayerEntry]; 6] = [
            &[],
            &[file("")],
            &[folder("", true), file("b"), file("a")],
            &[folder("", true), file("d/a")],
            &[folder("", true), folder("d", true), file("e"), file("d/a")],
            &[folder("", true), LayerEntry { link: Some(1), ..file("a") }],
        ];
        for entries in cases {
            assert!(LayerIndex::new(entries.to_vec()).is_err(), "{entries:?}");
            assert!(written(entries).is_err(), "{entries:?}");
        }
    }
}
