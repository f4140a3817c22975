//! The bytes of copied files: read, hashed and written in one pass.

use super::FileError;
use super::editor::{EditError, EntryMetadata, finish_file};
use crate::source_tree::{SourceEntry, SourceError, SourceTree};
use blake3::Hasher;
use forge_store::KnownFile;
use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::PathBuf;

/// A file that was made and is to be filled.
pub(super) struct Filling {
    pub entry: SourceEntry,
    pub to: File,
    pub path: PathBuf,
    pub metadata: EntryMetadata,
}

/// How much is copied before the next look whether the build is to stop.
const COPY_CHUNK: u64 = 64 << 20;

/// Larger files are copied in the kernel, which may share their blocks, and are then read once for their hash.
const LARGE: u64 = 1 << 20;

const BUFFER: usize = 64 << 10;

thread_local! {
    /// Making a buffer for each of many small files would take longer than to copy them.
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

impl Filling {
    /// Copies the bytes, and sets the metadata. Bytes that are others than when the step's key was made are an error:
    /// the result would be found again under the key of what is there no more (A40).
    pub(super) fn fill(&mut self, tree: &SourceTree) -> Result<KnownFile, FileError> {
        let mut from = tree.open(&self.entry)?;
        let is_large = self.entry.size() > LARGE;
        if is_large {
            self.copy_in_kernel(&mut from, tree)?;
        }
        let file = SPACE.with_borrow_mut(|space| match is_large {
            true => self.hash_copy(space, tree),
            false => self.copy(&mut from, space, tree),
        })?;
        if self.entry.bytes.is_some_and(|expected| *expected.as_bytes() != file.blake3) {
            return Err(FileError::Changed { path: self.entry.path.display().into_owned() });
        }
        finish_file(&self.to, &self.path, &self.metadata)?;
        Ok(file)
    }

    fn copy(&mut self, from: &mut File, space: &mut [u8], tree: &SourceTree) -> Result<KnownFile, FileError> {
        let mut hasher = Hasher::new();
        loop {
            let read = read(from, space).map_err(|source| self.read_error(source))?;
            if read == 0 {
                return Ok(KnownFile { size: hasher.count(), blake3: *hasher.finalize().as_bytes() });
            }
            hasher.update(&space[..read]);
            self.to.write_all(&space[..read]).map_err(|source| self.write_error(source))?;
            tree.stop().check()?;
        }
    }

    fn copy_in_kernel(&mut self, from: &mut File, tree: &SourceTree) -> Result<(), FileError> {
        loop {
            let copied = std::io::copy(&mut Read::by_ref(from).take(COPY_CHUNK), &mut self.to);
            if copied.map_err(|source| self.write_error(source))? < COPY_CHUNK {
                return Ok(());
            }
            tree.stop().check()?;
        }
    }

    fn hash_copy(&mut self, space: &mut [u8], tree: &SourceTree) -> Result<KnownFile, FileError> {
        self.to.rewind().map_err(|source| self.write_error(source))?;
        let mut hasher = Hasher::new();
        loop {
            let read = read(&mut self.to, space).map_err(|source| self.write_error(source))?;
            if read == 0 {
                return Ok(KnownFile { size: hasher.count(), blake3: *hasher.finalize().as_bytes() });
            }
            hasher.update(&space[..read]);
            tree.stop().check()?;
        }
    }

    fn read_error(&self, source: std::io::Error) -> FileError {
        SourceError::Read { path: self.entry.path.display().into_owned(), source }.into()
    }

    fn write_error(&self, source: std::io::Error) -> FileError {
        EditError::Write { path: self.path.display().to_string(), source }.into()
    }
}

fn read(file: &mut File, space: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match file.read(space) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
