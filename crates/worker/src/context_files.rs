//! What a build sees of its contexts: looked at once, for the key and for the copy.

use crate::content::hash_files;
use crate::file::FileError;
use crate::selection::{Selection, select};
use crate::source_tree::SourceTree;
use crate::stat_index::StatIndex;
use forge_cache::{ResultRef, SelectedPath};
use forge_session::ContextPath;
use forge_store::Store;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The files of contexts that one build selected, with what their bytes hashed to.
///
/// Whoever asks again gets the same answer, whatever happened to the files: what a step copies is what its key was made
/// of, and a file whose bytes are others by then is an error of the copy (A40).
pub struct ContextFiles {
    folder: PathBuf,
    selections: Mutex<HashMap<(ResultRef, SelectedPath), Arc<Selected>>>,
    indexes: Mutex<HashMap<String, Arc<StatIndex>>>,
}

/// A selection that is made by the first who wants it; the others wait.
type Selected = Mutex<Option<Arc<Selection>>>;

impl ContextFiles {
    /// For one build; what files hashed to is remembered in the store.
    pub fn new(store: &Store) -> Self {
        let folder = store.root().join("contexts");
        Self { folder, selections: Mutex::default(), indexes: Mutex::default() }
    }

    /// What a path of a result selects, every file hashed. `tree` is that of `result`.
    ///
    /// Layers do not change, and those below them are shared: what they show is not remembered.
    pub(crate) fn select(
        &self,
        result: &ResultRef,
        tree: &SourceTree,
        path: &SelectedPath,
    ) -> Result<Arc<Selection>, FileError> {
        let ResultRef::Context { .. } = result else {
            let mut selection = select(tree, path)?;
            hash_files(tree, &mut selection, None)?;
            return Ok(Arc::new(selection));
        };
        let selected = lock(&self.selections).entry((result.clone(), path.clone())).or_default().clone();
        let mut selected = lock(&selected);
        if let Some(known) = &*selected {
            return Ok(known.clone());
        }
        let identity = tree.identity();
        let index = identity.clone().map(|identity| self.index(identity));
        let mut selection = select(tree, path)?;
        hash_files(tree, &mut selection, index.as_deref())?;
        if let (Some(identity), Some(index)) = (identity, index) {
            // Nothing is lost by a failure but time: the files are hashed again by the next build.
            let is_written = index.save().unwrap_or(false);
            if is_written || index.is_large() {
                lock(&self.indexes).remove(&identity);
            }
        }
        Ok(selected.insert(Arc::new(selection)).clone())
    }

    /// Forgets what was selected, once no step is to come: there may be a million files.
    pub fn forget(&self) {
        lock(&self.selections).clear();
    }

    /// The paths of a context that were selected so far: what steps read of it, folders and links among it.
    pub fn read_of(&self, name: &str) -> HashSet<ContextPath> {
        let selections = lock(&self.selections);
        let of = selections
            .iter()
            .filter(|((result, _), _)| matches!(result, ResultRef::Context { name: of, .. } if of == name));
        let selected = of.filter_map(|(_, selected)| lock(selected).clone());
        selected.flat_map(|selection| selection.entries().map(|entry| entry.path.clone()).collect::<Vec<_>>()).collect()
    }

    /// The index is opened before the files are looked at, see [`StatIndex`].
    fn index(&self, identity: String) -> Arc<StatIndex> {
        let mut indexes = lock(&self.indexes);
        let open = |identity: &String| Arc::new(StatIndex::open(&self.folder, identity));
        indexes.entry(identity).or_insert_with_key(open).clone()
    }
}

/// What is behind the locks is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
