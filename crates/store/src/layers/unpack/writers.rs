//! Files of an archive that are written while it is read on.

use crate::StoreError;
use crate::layers::apply;
use crate::layers::entry::Metadata;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Files up to this size are written by others: their bytes are held until then.
pub(super) const MOST: u64 = 1 << 20;

/// So many files wait to be written. With [`MOST`] it bounds the memory.
const WAITING: usize = 16;

/// More threads than these wait for each other in the file system.
const MOST_THREADS: usize = 4;

/// A file that was made just now, and what it is to hold.
pub(super) struct NewFile {
    pub(super) file: File,
    /// In the tree, for messages.
    pub(super) path: Vec<u8>,
    pub(super) metadata: Metadata,
    /// What is still to be written.
    pub(super) bytes: Vec<u8>,
}

impl NewFile {
    /// Writes what is to be written, then the metadata: writing would change the time.
    pub(super) fn write(mut self, tree: &Path) -> Result<(), StoreError> {
        let path = || tree.join(OsStr::from_bytes(&self.path));
        self.file.write_all(&self.bytes).map_err(|error| StoreError::io("write", path())(error))?;
        apply::finish_new_file(&self.file, &self.metadata)
            .map_err(|error| StoreError::os("set metadata of", path())(error))
    }
}

type Written = Result<(), StoreError>;

/// Threads that write files, as many as there is work for. When it is dropped, they have ended.
pub(super) struct Writers {
    tree: Arc<Path>,
    queue: Option<SyncSender<NewFile>>,
    waiting: Arc<Mutex<Receiver<NewFile>>>,
    threads: Vec<JoinHandle<Written>>,
    most_threads: usize,
}

impl Writers {
    pub(super) fn new(tree: &Path) -> Self {
        let (queue, waiting) = sync_channel(WAITING);
        let most_threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
        Self {
            tree: tree.into(),
            queue: Some(queue),
            waiting: Arc::new(Mutex::new(waiting)),
            threads: Vec::new(),
            most_threads,
        }
    }

    /// Has the file written some time before [`Writers::finish`] returns.
    ///
    /// # Errors
    /// An earlier file could not be written, or this one.
    pub(super) fn write(&mut self, file: NewFile) -> Written {
        // They end while files can come only when they fail.
        if self.threads.iter().any(JoinHandle::is_finished) {
            return self.finish();
        }
        if self.threads.is_empty() && !self.begin_thread() {
            return file.write(&self.tree);
        }
        let queue = self.queue.as_ref().expect("it is closed at the end");
        let Err(TrySendError::Full(file)) = queue.try_send(file) else { return Ok(()) };
        if self.threads.len() < self.most_threads {
            self.begin_thread();
        }
        let queue = self.queue.as_ref().expect("it is closed at the end");
        match queue.send(file) {
            Ok(()) => Ok(()),
            Err(_) => self.finish(),
        }
    }

    /// Whether there is one more thread now.
    fn begin_thread(&mut self) -> bool {
        let (tree, waiting) = (self.tree.clone(), self.waiting.clone());
        let begun = thread::Builder::new().name("unpack".to_owned()).spawn(move || write_all(&tree, &waiting));
        begun.map(|thread| self.threads.push(thread)).is_ok()
    }

    /// Waits until all files are written.
    ///
    /// # Errors
    /// One could not be written; the first that is known.
    pub(super) fn finish(&mut self) -> Written {
        self.queue = None;
        let join = |thread: JoinHandle<Written>| thread.join().expect("writing does not panic");
        self.threads.drain(..).map(join).fold(Ok(()), Result::and)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        // What failed first was told already, or nobody asks.
        let _ = self.finish();
    }
}

fn write_all(tree: &Path, waiting: &Mutex<Receiver<NewFile>>) -> Written {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(file) = next else { return Ok(()) };
        file.write(tree)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn new_file(file: File, name: &str, bytes: &[u8]) -> NewFile {
        let metadata = Metadata { mode: 0o640, ..Metadata::default() };
        NewFile { file, path: name.into(), metadata, bytes: bytes.to_vec() }
    }

    #[test]
    fn all_files_are_written_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut writers = Writers::new(folder.path());
        let name = |number: usize| folder.path().join(number.to_string());
        let owner = std::fs::metadata(folder.path()).unwrap();
        for number in 0..200 {
            let mut file =
                new_file(File::create(name(number)).unwrap(), "", number.to_string().repeat(1000).as_bytes());
            (file.metadata.uid, file.metadata.gid) = (owner.uid(), owner.gid());
            writers.write(file).unwrap();
        }
        writers.finish().unwrap();
        for number in 0..200 {
            assert_eq!(std::fs::read_to_string(name(number)).unwrap(), number.to_string().repeat(1000));
            assert_eq!(std::fs::metadata(name(number)).unwrap().permissions().mode() & 0o7777, 0o640);
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_at_the_end_at_the_latest() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("file");
        File::create(&place).unwrap();
        let mut writers = Writers::new(folder.path());
        let early = writers.write(new_file(File::open(&place).unwrap(), "dir/name", b"bytes"));
        let error = early.and_then(|()| writers.finish()).unwrap_err().to_string();
        assert!(error.contains("dir/name") && error.contains("write"), "{error}");
    }

    #[test]
    fn after_a_failure_no_more_files_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("file");
        File::create(&place).unwrap();
        let mut writers = Writers::new(folder.path());
        let taken = (0..100_000)
            .take_while(|_| writers.write(new_file(File::open(&place).unwrap(), "x", b"y")).is_ok())
            .count();
        assert!(taken < 100_000, "a disk that is full is noticed");
    }
}
