//! COPY and ADD of what is at hand: a selection is written into the layer.

use super::FileError;
use super::editor::{EditError, Editor, EntryMetadata, Folder, OnExisting};
use super::fill::Filling;
use super::placing::{Place, Placing};
use crate::selection::{SelectedEntry, SelectedRoot, select};
use crate::source_tree::{SourceEntry, SourceKind, SourceTree};
use forge_cache::SelectedPath;
use forge_llb::CopyAction;
use forge_store::Store;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One COPY at work.
pub(crate) struct Copier<'a, 'e> {
    placing: Placing<'a>,
    pub tree: &'a SourceTree,
    pub editor: &'a mut Editor<'e>,
    store: &'a Store,
    /// The first copy of each file with several names.
    links: Links,
    /// The folder that all files go to, when there are several.
    shared: Option<Folder>,
    /// Files that were made and have no bytes yet.
    unfilled: Vec<Filling>,
    links_to_folders: LinksToFolders,
}

/// What becomes of a link to a folder where the copy has a folder of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinksToFolders {
    /// It is in the way.
    Conflict,
    /// What the copied folder holds goes to where it leads, within the tree, as docker unpacks archives.
    Entered,
}

/// Where the first names of linked files went.
#[derive(Default)]
pub(crate) struct Links {
    first: HashMap<(u64, u64), PathBuf>,
    /// What [`Editor::replaced`] said when the paths were known to be good.
    replaced: u64,
}

/// So many files are made before they are filled, all at the same time. Each has a descriptor, of which there may be
/// a thousand for all steps of a build.
const FILLED_AT_ONCE: usize = 64;

/// So many of the folders between the destination and where the copy is are kept open.
const OPEN_FOLDERS: usize = 64;

impl<'a, 'e> Copier<'a, 'e> {
    /// Copies from a tree; `owner` is what the action's came to.
    pub(crate) fn new(
        action: &'a CopyAction,
        tree: &'a SourceTree,
        editor: &'a mut Editor<'e>,
        store: &'a Store,
        owner: Option<(u32, u32)>,
        now: (i64, u32),
    ) -> Self {
        let links = Links::default();
        let placing = Placing { action, owner, now };
        let links_to_folders = LinksToFolders::Conflict;
        Self { placing, tree, editor, store, links, shared: None, unfilled: Vec::new(), links_to_folders }
    }

    /// Writes everything that was selected.
    pub(crate) fn copy(mut self, roots: &[&SelectedRoot]) -> Result<(), FileError> {
        for root in roots {
            match root.entry.kind {
                SourceKind::Directory => self.copy_folder(root, &self.placing.destination_metadata(root)?)?,
                _ if self.unpacks(root)? => self.unpack(root)?,
                _ => self.copy_single(root, roots.len() > 1)?,
            }
        }
        self.flush()
    }

    /// Fills the files that were made. Until then nothing may take their names.
    pub(crate) fn flush(&mut self) -> Result<(), FileError> {
        let tree = self.tree;
        let fill = |filling: &mut Filling| filling.fill(tree);
        let filled = self.unfilled.par_iter_mut().map(fill).collect::<Result<Vec<_>, _>>();
        let unfilled = std::mem::take(&mut self.unfilled);
        for (filling, file) in unfilled.iter().zip(filled?) {
            self.editor.written(&filling.path, file);
        }
        Ok(())
    }

    /// Copies what is in a folder. The destination takes `made` only where it is made now.
    fn copy_folder(&mut self, root: &SelectedRoot, made: &EntryMetadata) -> Result<(), FileError> {
        // What it knows of itself may be outdated afterwards.
        self.shared = None;
        self.flush()?;
        let destination = self.placing.folder_destination(&self.editor.tree(), root)?;
        let top = self.destination_folder(&destination, made)?;
        let mut trail: Vec<Folder> = vec![top];
        for selected in root.below.iter() {
            let relative = root.relative(selected);
            trail.truncate(relative.iter().filter(|byte| **byte == b'/').count() + 1);
            let name = last_name(relative);
            let metadata = self.metadata(&selected.entry)?;
            let parent = trail.last_mut().expect("the destination stays on the trail");
            self.editor.reopen(parent)?;
            if selected.entry.kind == SourceKind::Directory {
                let child = self.child_folder(parent, name, selected, metadata)?;
                trail.push(child);
                if let Some(resting) = trail.len().checked_sub(OPEN_FOLDERS + 1) {
                    trail[resting].close();
                }
            } else {
                self.write_entry(parent, name, &selected.entry, &metadata)?;
            }
        }
        // What comes next may have the same names.
        self.flush()
    }

    /// A folder that is here for the sake of what is in it gives an existing one its permission bits, as it was
    /// selected, and nothing else.
    fn child_folder(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        selected: &SelectedEntry,
        metadata: EntryMetadata,
    ) -> Result<Folder, FileError> {
        if self.links_to_folders == LinksToFolders::Entered
            && let Some(folder) = self.editor.linked_folder(parent, name)?
        {
            return Ok(self.editor.folder(&folder, &metadata)?);
        }
        if !selected.on_the_way {
            return Ok(self.editor.child_folder(parent, name, &metadata, OnExisting::Overwrite)?);
        }
        let exists = self.editor.has(parent, name)?;
        let mode = if exists { selected.entry.mode } else { metadata.mode };
        let metadata = EntryMetadata { mode, ..metadata };
        Ok(self.editor.child_folder(parent, name, &metadata, OnExisting::TakeMode)?)
    }

    /// The folder itself takes the metadata only where it is made now.
    fn destination_folder(&mut self, path: &Path, metadata: &EntryMetadata) -> Result<Folder, FileError> {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return Ok(self.editor.folder(path, metadata)?);
        };
        let mut parent = self.editor.folder(parent, &self.placing.made_on_the_way())?;
        Ok(self.editor.child_folder(&mut parent, name, metadata, OnExisting::Keep)?)
    }

    fn copy_single(&mut self, root: &SelectedRoot, several: bool) -> Result<(), FileError> {
        let metadata = self.metadata(&root.entry)?;
        // Files from different folders may have the same name, and the last one stays.
        if self.unfilled.iter().any(|filling| filling.path.file_name() == Some(OsStr::from_bytes(&root.name))) {
            self.flush()?;
        }
        if let Some(mut folder) = self.shared.take() {
            self.write_entry(&mut folder, OsStr::from_bytes(&root.name), &root.entry, &metadata)?;
            self.shared = Some(folder);
            return Ok(());
        }
        let on_the_way = self.placing.made_on_the_way();
        match self.placing.single_destination(&self.editor.tree())? {
            Place::Within(folder) => {
                let mut folder = self.editor.folder(&folder, &on_the_way)?;
                self.write_entry(&mut folder, OsStr::from_bytes(&root.name), &root.entry, &metadata)?;
                self.shared = several.then_some(folder);
            }
            Place::Named(folder, name) => {
                let mut folder = self.editor.folder(&folder, &on_the_way)?;
                self.write_entry(&mut folder, &name, &root.entry, &metadata)?;
                // A pattern may match several, of which the last one keeps the name.
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes something that is not a folder.
    pub(crate) fn write_entry(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        entry: &SourceEntry,
        metadata: &EntryMetadata,
    ) -> Result<(), FileError> {
        match &entry.kind {
            SourceKind::File { .. } => self.write_file(parent, name, entry, metadata),
            SourceKind::Symlink { target } => Ok(self.editor.symlink(parent, name, target, metadata)?),
            SourceKind::Node { file_type, major, minor } => {
                Ok(self.editor.node(parent, name, *file_type, (*major, *minor), metadata)?)
            }
            SourceKind::Directory => Err(EditError::IsADirectory { path: name.display().to_string() }.into()),
            // Never selected.
            SourceKind::Other => Ok(()),
        }
    }

    fn write_file(
        &mut self,
        parent: &mut Folder,
        name: &OsStr,
        entry: &SourceEntry,
        metadata: &EntryMetadata,
    ) -> Result<(), FileError> {
        if let Some(first) = self.links.first(entry.link_group(), self.editor).cloned() {
            // What the first name has is known then.
            self.flush()?;
            return Ok(self.editor.hard_link(parent, name, &first)?);
        }
        let to = self.editor.create_file(parent, name)?;
        let path = parent.path().join(name);
        self.unfilled.push(Filling { entry: entry.clone(), to, path, metadata: metadata.clone() });
        if let Some(group) = entry.link_group() {
            self.links.first.insert(group, parent.path().join(name));
        }
        match self.unfilled.len() < FILLED_AT_ONCE {
            true => Ok(()),
            false => self.flush(),
        }
    }

    /// What a copied entry is given.
    pub(crate) fn metadata(&self, entry: &SourceEntry) -> Result<EntryMetadata, FileError> {
        self.placing.metadata(entry)
    }

    /// Whether a file is an archive that ADD unpacks.
    fn unpacks(&self, root: &SelectedRoot) -> Result<bool, FileError> {
        let is_file = matches!(root.entry.kind, SourceKind::File { .. });
        Ok(self.placing.action.unpack_archives && is_file && super::archive::is_archive(self.tree.open(&root.entry)?))
    }

    /// An archive is unpacked aside first: its links then lead nowhere but into itself. What is in it has modes of its
    /// own, whatever `--chmod` says.
    fn unpack(&mut self, root: &SelectedRoot) -> Result<(), FileError> {
        let name = root.entry.path.display().into_owned();
        let extracted = super::archive::extract(self.tree.open(&root.entry)?, self.store, &name, self.tree.stop())?;
        let tree = SourceTree::of_layers(extracted.tree().clone(), self.tree.stop().clone());
        let everything = select(&tree, &SelectedPath::new("/"))?;
        let action = CopyAction { mode: None, ..self.placing.action.clone() };
        self.shared = None;
        self.flush()?;
        let mut inner = Copier::new(&action, &tree, self.editor, self.store, self.placing.owner, self.placing.now);
        inner.links_to_folders = LinksToFolders::Entered;
        let made = inner.placing.made_on_the_way();
        everything.roots.iter().try_for_each(|root| inner.copy_folder(root, &made))
    }
}

impl Links {
    /// Where the first name of a file went, unless that may be something else by now.
    fn first(&mut self, group: Option<(u64, u64)>, editor: &Editor<'_>) -> Option<&PathBuf> {
        if self.replaced != editor.replaced() {
            self.first.clear();
            self.replaced = editor.replaced();
        }
        self.first.get(&group?)
    }
}

fn last_name(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default())
}
