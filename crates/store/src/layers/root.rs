//! The tree of one layer as a stack sees it, and what the process remembers of such trees.

use super::folder;
use crate::{ContentDigest, LayerId, StoreError};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Root folders with more names are asked anew each time.
const MOST_NAMES: usize = 4096;

/// The tree of one layer.
pub(super) struct Root {
    path: PathBuf,
    /// Opened when something in it is read: of a long stack most trees say nothing of most paths.
    folder: OnceLock<OwnedFd>,
    /// What is in its root folder, whiteouts too, sorted; `None` where it may change or is long.
    names: Option<Arc<[Vec<u8>]>>,
}

impl Root {
    /// A tree that may change.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let folder = folder::open_root(&path).map_err(StoreError::os("open", &path))?;
        Ok(Self { path, folder: OnceLock::from(folder), names: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn folder(&self) -> Result<BorrowedFd<'_>, StoreError> {
        if self.folder.get().is_none() {
            let opened = folder::open_root(&self.path).map_err(StoreError::os("open", &self.path))?;
            // Another thread may have been faster; its folder is as good.
            drop(self.folder.set(opened));
        }
        Ok(self.folder.get().expect("set above, and never taken").as_fd())
    }

    /// Whether it is certain that the root folder has nothing of that name.
    pub(super) fn lacks(&self, name: &[u8]) -> bool {
        self.names.as_ref().is_some_and(|names| names.binary_search_by(|known| known[..].cmp(name)).is_err())
    }
}

/// What this process knows of layers. None of it ever changes: ids are random, and a layer that is made anew has another.
#[derive(Default)]
pub(crate) struct Remembered {
    names: Mutex<HashMap<LayerId, Option<Arc<[Vec<u8>]>>>>,
    contents: Mutex<HashMap<LayerId, ContentDigest>>,
}

impl Remembered {
    /// The tree at a path, which must be that layer's; `None` where it has none.
    pub(super) fn root(&self, id: &LayerId, path: PathBuf) -> Result<Option<Root>, StoreError> {
        if let Some(names) = lock(&self.names).get(id) {
            return Ok(Some(Root { path, folder: OnceLock::new(), names: names.clone() }));
        }
        let folder = match folder::open_root(&path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(StoreError::os("open", &path)(errno)),
        };
        let names = folder::names(&folder).map_err(StoreError::os("read", &path))?;
        let names = (names.len() <= MOST_NAMES).then(|| Arc::from(names));
        lock(&self.names).insert(id.clone(), names.clone());
        // Not kept open: a stack may be higher than a process may have descriptors.
        Ok(Some(Root { path, folder: OnceLock::new(), names }))
    }

    pub(crate) fn content(&self, id: &LayerId) -> Option<ContentDigest> {
        lock(&self.contents).get(id).copied()
    }

    pub(crate) fn remember_content(&self, id: &LayerId, content: ContentDigest) {
        lock(&self.contents).insert(id.clone(), content);
    }
}

/// A panic elsewhere leaves these maps whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
