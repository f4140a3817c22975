//! Work on scratch folders beside that of whoever needs or needed them: one thread for a store, started when there is
//! something to do.

use crate::StoreError;
use crate::removal::{remove_folder, remove_tree};
use crate::scratch::create_private;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The folders of a layer in the making, within its scratch folder.
pub(crate) const LAYER_FOLDERS: [&str; 3] = ["layer", "layer/tree", "work"];

/// How long a folder that was used waits: until then the next step, to which the result matters, is being set up.
const PAUSE: Duration = Duration::from_millis(2);

enum Job {
    /// A folder for the next layer.
    Prepare(PathBuf),
    /// A folder whose layer has been taken away, for the next one.
    Renew(PathBuf),
    /// A folder that nobody needs.
    Remove(PathBuf),
}

/// The thread, and what it has made.
#[derive(Default)]
pub(crate) struct Background {
    thread: Mutex<Option<(Sender<Job>, JoinHandle<()>)>>,
    folders: Arc<Mutex<Folders>>,
}

/// Folders of layers in the making that nobody has yet.
#[derive(Default)]
struct Folders {
    ready: Vec<PathBuf>,
    /// How many are being made or will be.
    coming: usize,
}

impl Background {
    /// Makes the folders of a layer, to be had from [`Self::take_prepared`], unless some are there or coming.
    pub(crate) fn prepare(&self, path: impl FnOnce() -> Result<PathBuf, StoreError>) -> Result<(), StoreError> {
        let wanted = {
            let folders = lock(&self.folders);
            folders.ready.is_empty() && folders.coming == 0
        };
        if wanted {
            self.send(Job::Prepare(path()?));
        }
        Ok(())
    }

    /// Makes a folder whose layer has been taken away ready for the next layer. Where that fails, and when nobody takes it, it
    /// goes with the owner's folder.
    pub(crate) fn renew(&self, path: PathBuf) {
        self.send(Job::Renew(path));
    }

    /// Removes a folder. Where that fails, it goes with the owner's.
    pub(crate) fn remove(&self, path: PathBuf) {
        self.send(Job::Remove(path));
    }

    /// A folder that was made and that nobody has yet.
    pub(crate) fn take_prepared(&self) -> Option<PathBuf> {
        lock(&self.folders).ready.pop()
    }

    fn send(&self, job: Job) {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (sender, jobs) = channel();
            let folders = self.folders.clone();
            let spawned = std::thread::Builder::new().name("forge-scratch".into()).spawn(move || work(&jobs, &folders));
            // Without a thread folders are made by those who need them, and removed with the owner's.
            *thread = spawned.ok().map(|handle| (sender, handle));
        }
        if let Some((sender, _)) = &*thread {
            lock(&self.folders).coming += usize::from(!matches!(job, Job::Remove(_)));
            // It ends only when this sender does.
            let _ = sender.send(job);
        }
    }

    /// Waits until everything is done. Nothing may be asked for afterwards.
    pub(crate) fn finish(&self) {
        let thread = lock(&self.thread).take();
        if let Some((sender, handle)) = thread {
            drop(sender);
            // A panic of the thread leaves folders behind, as a failure does.
            let _ = handle.join();
            lock(&self.folders).coming = 0;
        }
    }
}

fn work(jobs: &Receiver<Job>, folders: &Mutex<Folders>) {
    let mut used: VecDeque<(Instant, PathBuf)> = VecDeque::new();
    loop {
        let next = match used.front() {
            None => jobs.recv().map_err(RecvTimeoutError::from),
            Some((since, _)) => jobs.recv_timeout(PAUSE.saturating_sub(since.elapsed())),
        };
        match next {
            Ok(Job::Prepare(path)) => {
                let made = create_private(&path).is_ok() && make(&path);
                done(folders, made.then_some(path));
            }
            Ok(Job::Renew(path)) => used.push_back((Instant::now(), path)),
            Ok(Job::Remove(path)) => _ = remove_folder(&path),
            Err(RecvTimeoutError::Timeout) => {
                let renewed = used.pop_front().map(|(_, path)| path).filter(|path| renew(path));
                done(folders, renewed);
            }
            // Nobody will take what is left: it goes with the owner's folder.
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn done(folders: &Mutex<Folders>, made: Option<PathBuf>) {
    let mut folders = lock(folders);
    folders.coming -= 1;
    folders.ready.extend(made);
}

fn make(path: &Path) -> bool {
    LAYER_FOLDERS.iter().all(|folder| create_private(&path.join(folder)).is_ok())
}

/// Removes what the overlay left, and makes new folders in the place of those that are gone.
fn renew(path: &Path) -> bool {
    let work = path.join("work");
    let Ok(mut entries) = std::fs::read_dir(&work) else { return false };
    let emptied = entries.all(|entry| entry.is_ok_and(|entry| remove_tree(&work, entry.file_name()).is_ok()));
    // Nothing of the last layer may be in the next one.
    emptied && !path.join("layer").exists() && make(path)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
