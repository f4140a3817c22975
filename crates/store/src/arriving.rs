//! Blobs that are read while they still arrive.

use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
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
///
/// What was read begins its way to the disk: a name waits for that later, and then for all of it at once.
pub struct BlobFollower {
    file: File,
    arriving: Arc<Arriving>,
    position: u64,
    /// Up to here the kernel was told.
    written_back: u64,
}

/// So much is written back at a time.
const WRITE_BACK: u64 = 8 << 20;

impl BlobFollower {
    pub(crate) fn new(file: File, arriving: Arc<Arriving>) -> Self {
        Self { file, arriving, position: 0, written_back: 0 }
    }
}

impl BlobFollower {
    /// Starts the writing of what was read last, without waiting for it, and drops from memory what was written by now.
    fn write_back(&mut self) {
        if self.position - self.written_back >= WRITE_BACK {
            let from = self.written_back.saturating_sub(WRITE_BACK);
            // An advice: nothing depends on it.
            let _ = fadvise(&self.file, from, NonZero::new(self.position - from), Advice::DontNeed);
            self.written_back = self.position;
        }
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
        self.write_back();
        Ok(count)
    }
}
