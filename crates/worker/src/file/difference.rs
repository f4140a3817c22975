//! What turns one stack of layers into another, as the changes of one layer.

use super::copy::Copier;
use super::editor::{Folder, OnConflict, OnExisting};
use super::{FileError, Made};
use crate::source_tree::{SourceEntry, SourceTree, Stop};
use forge_llb::{CopyAction, FileInput};
use forge_store::{LayerId, MergedTree, Store, TreeEntry, TreeFolder, TreeKind};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

/// Fills a layer on `lower` so that together they show what `upper` shows. What is the same node in the same layer is
/// passed over; what has equal metadata is copied, and dropped by the commit where the bytes are equal too.
pub(crate) fn between(store: &Store, lower: &[LayerId], upper: &[LayerId], stop: &Stop) -> Result<Made, FileError> {
    let mut made = Made::new(store.layers().prepare(lower)?);
    let trees = (store.layers().tree(lower)?, store.layers().tree(upper)?);
    let from = SourceTree::of_layers(trees.1.clone(), stop.clone());
    let action = CopyAction::new(FileInput::Scratch, Vec::new(), "/");
    made.edit(OnConflict::Replace, |editor| {
        let copier = Copier::new(&action, &from, editor, store, None, (0, 0));
        Comparison { copier, lower: &trees.0, upper: &trees.1 }.run()
    })?;
    Ok(made)
}

struct Comparison<'a, 'e> {
    copier: Copier<'a, 'e>,
    lower: &'a MergedTree,
    upper: &'a MergedTree,
}

/// A folder that both have, or only the upper tree.
struct Pending {
    path: PathBuf,
    lower: Option<TreeFolder>,
    upper: Option<TreeFolder>,
}

impl Comparison<'_, '_> {
    /// Folders wait in a list, not on the call stack: depth is the container's choice (A60).
    fn run(mut self) -> Result<(), FileError> {
        let root = Path::new("/");
        let (below, above) = (self.lower.lookup(root)?, self.upper.lookup(root)?);
        if let Some(entry) = &above {
            let metadata = self.copier.metadata(&SourceEntry::of_layer(entry.clone()))?;
            self.copier.editor.set_root(&metadata)?;
        }
        let folder = |entry: Option<TreeEntry>| entry.and_then(|entry| entry.folder());
        let mut todo = vec![Pending { path: root.to_owned(), lower: folder(below), upper: folder(above) }];
        while let Some(pending) = todo.pop() {
            self.copier.tree.stop().check()?;
            self.compare(&pending, &mut todo)?;
        }
        self.copier.flush()
    }

    fn compare(&mut self, pending: &Pending, todo: &mut Vec<Pending>) -> Result<(), FileError> {
        let list = |tree: &MergedTree, folder: &Option<TreeFolder>| match folder {
            Some(folder) => tree.children_of(folder),
            None => Ok(Vec::new()),
        };
        let mut before = list(self.lower, &pending.lower)?.into_iter().peekable();
        let mut after = list(self.upper, &pending.upper)?.into_iter().peekable();
        let mut parent = self.copier.editor.folder(&pending.path, &Default::default())?;
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(before), Some(after)) => before.name.cmp(&after.name),
            };
            let gone = if order.is_le() { before.next() } else { None };
            let new = if order.is_ge() { after.next() } else { None };
            self.entry(&mut parent, gone, new, todo)?;
        }
    }

    /// Compares what has one name.
    fn entry(
        &mut self,
        parent: &mut Folder,
        before: Option<TreeEntry>,
        after: Option<TreeEntry>,
        todo: &mut Vec<Pending>,
    ) -> Result<(), FileError> {
        let Some(after) = after else {
            let gone = before.expect("one of both has the name");
            return Ok(self.copier.editor.remove(parent, &gone.name)?);
        };
        let same_metadata = before.as_ref().is_some_and(|before| before.metadata() == after.metadata());
        let entry = SourceEntry::of_layer(after.clone());
        let metadata = self.copier.metadata(&entry)?;
        if after.kind == TreeKind::Directory {
            let keep = if same_metadata { OnExisting::Keep } else { OnExisting::Overwrite };
            self.copier.editor.child_folder(parent, &after.name, &metadata, keep)?;
            let lower = before.and_then(|before| before.folder());
            todo.push(Pending { path: after.path.clone(), lower, upper: after.folder() });
            return Ok(());
        }
        match before.is_some_and(|before| same_metadata && before.inode == after.inode && before.kind == after.kind) {
            true => Ok(()),
            false => self.copier.write_entry(parent, &after.name, &entry, &metadata),
        }
    }
}
