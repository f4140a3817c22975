//! Regular files: made in order, their bytes written in any.

use super::writers::{MOST, NewFile};
use super::{UnpackError, Unpacker};
use crate::StoreError;
use crate::layers::entry::{EntryKind, Metadata};
use rustix::fs::{Advice, Mode, OFlags, fadvise};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

impl Unpacker<'_> {
    /// Small files are read and written by others while this thread reads on; larger ones are written as they are read.
    pub(super) fn file(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        size: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, UnpackError>,
    ) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        let file = self.in_folder("create", path, |folder, name| rustix::fs::openat(folder, name, flags, mode))?;
        let mut file =
            NewFile { file: File::from(file), path: path.to_vec(), metadata: metadata.clone(), bytes: Vec::new() };
        let (size, hash) = match size <= MOST {
            true => {
                file.bytes = vec![0; size as usize];
                let count = fill(&mut file.bytes, &mut read)?;
                file.bytes.truncate(count);
                let hash = blake3::hash(&file.bytes);
                self.writers.write(file)?;
                (count as u64, hash)
            }
            false => self.stream(file, read)?,
        };
        self.placement.insert(path, EntryKind::File { size, blake3: *hash.as_bytes() }, metadata);
        Ok(())
    }

    /// Writes a file as it is read. Says how large it is, and what it holds.
    fn stream(
        &mut self,
        mut file: NewFile,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, UnpackError>,
    ) -> Result<(u64, blake3::Hash), UnpackError> {
        let mut hasher = blake3::Hasher::new();
        loop {
            let count = read(&mut self.buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&self.buffer[..count]);
            let error = StoreError::io("write", self.tree.join(OsStr::from_bytes(&file.path)));
            file.file.write_all(&self.buffer[..count]).map_err(error)?;
        }
        // The disk begins with it now, instead of when somebody waits for it; nothing is dropped that was not written.
        let _ = fadvise(&file.file, 0, None, Advice::DontNeed);
        file.write(self.tree)?;
        Ok((hasher.count(), hasher.finalize()))
    }
}

/// Reads until the buffer is full or nothing is left.
fn fill(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8]) -> Result<usize, UnpackError>,
) -> Result<usize, UnpackError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
