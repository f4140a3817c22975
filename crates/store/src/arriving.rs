//! Blobs that are read while they still arrive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How far a blob has come, for those who read it meanwhile.
#[derive(Default)]
pub(crate) struct Arriving {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    written: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Verified, and in the store.
    Whole,
    /// Given up, or begun anew.
    Broken,
}

impl Arriving {
    pub(crate) fn reached(&self, written: u64) {
        self.lock().written = written;
        self.changed.notify_all();
    }

    pub(crate) fn whole(&self) {
        self.end(End::Whole);
    }

    pub(crate) fn broken(&self) {
        self.end(End::Broken);
    }

    /// The first verdict counts.
    fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }

    /// Waits until there is more than `position`, or an end.
    fn beyond(&self, position: u64) -> State {
        let waiting = |state: &mut State| state.written <= position && state.end.is_none();
        *self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner)
    }

    /// The state is whole whenever the lock is free.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a blob while it is being written: waits for bytes that have not come yet.
///
/// The end is reached only once the blob was verified and is in the store, so whoever has read to the end has read what the
/// digest says. When the writer gives up or begins anew, reading fails.
pub struct BlobFollower {
    file: File,
    arriving: Arc<Arriving>,
    position: u64,
}

impl BlobFollower {
    pub(crate) fn new(file: File, arriving: Arc<Arriving>) -> Self {
        Self { file, arriving, position: 0 }
    }
}

impl Read for BlobFollower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let state = self.arriving.beyond(self.position);
        if state.end == Some(End::Broken) {
            return Err(io::Error::other("the blob did not arrive whole"));
        }
        let ready = usize::try_from(state.written - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..ready], self.position)?;
        if count < ready && count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}
