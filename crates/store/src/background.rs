//! Work on scratch folders beside that of whoever needs or needed them: one thread for a store, started when there is
//! something to do.

use crate::removal::remove_tree;
use crate::scratch::create_private;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The folders of a layer in the making, within its scratch folder.
pub(crate) const LAYER_FOLDERS: [&str; 3] = ["layer", "layer/tree", "work"];

enum Job {
    Remove(PathBuf),
    /// A folder for the next layer.
    Prepare(PathBuf),
}

/// The thread, and what it has made.
#[derive(Default)]
pub(crate) struct Background {
    thread: Mutex<Option<(Sender<Job>, JoinHandle<()>)>>,
    prepared: Arc<Mutex<Vec<PathBuf>>>,
}

impl Background {
    /// Removes a folder soon. What cannot be removed stays until the owner's folder is.
    pub(crate) fn remove(&self, path: PathBuf) {
        self.send(Job::Remove(path));
    }

    /// Makes the folders of a layer, to be had from [`Self::take_prepared`].
    pub(crate) fn prepare(&self, path: PathBuf) {
        self.send(Job::Prepare(path));
    }

    /// A folder that was made and that nobody has yet.
    pub(crate) fn take_prepared(&self) -> Option<PathBuf> {
        lock(&self.prepared).pop()
    }

    fn send(&self, job: Job) {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let (sender, jobs) = channel();
            let prepared = self.prepared.clone();
            let spawned =
                std::thread::Builder::new().name("forge-scratch".into()).spawn(move || work(&jobs, &prepared));
            // Without a thread folders are made by those who need them, and removed with the owner's.
            *thread = spawned.ok().map(|handle| (sender, handle));
        }
        if let Some((sender, _)) = &*thread {
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
        }
    }
}

fn work(jobs: &Receiver<Job>, prepared: &Mutex<Vec<PathBuf>>) {
    for job in jobs {
        match job {
            Job::Remove(path) => remove(&path),
            Job::Prepare(path) => {
                let made = create_private(&path).is_ok()
                    && LAYER_FOLDERS.iter().all(|folder| create_private(&path.join(folder)).is_ok());
                // What nobody takes goes with the owner's folder.
                lock(prepared).extend(made.then_some(path));
            }
        }
    }
}

fn remove(path: &Path) {
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
        // As promised by those who ask: it is tried again with the owner's folder.
        let _ = remove_tree(folder, name);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
