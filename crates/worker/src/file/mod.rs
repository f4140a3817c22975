//! File operations: what COPY, ADD, WORKDIR and heredocs come to.

mod actions;
pub(crate) mod archive;
mod copy;
pub(crate) mod difference;
mod editor;
pub(crate) mod glob;
mod mode;
mod plan;

use crate::keys;
use crate::selection::{self, SelectError, Selection};
use crate::source_tree::{SourceError, SourceTree, Stop};
use crate::users::UserError;
use actions::Moment;
use copy::{Copier, Links};
use editor::{EditError, Editor, OnConflict};
use forge_image::ErrorKind;
use forge_llb::{CopyAction, FileInput, FileKind, FileOp};
use forge_store::{ActiveLayer, LayerId, Lease, Store};
use plan::{Begin, Step};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Mode(#[from] mode::BadMode),
    #[error(transparent)]
    Store(#[from] forge_store::StoreError),
    #[error("cannot unpack {path}")]
    Archive { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The words are BuildKit's.
    #[error("{path} not found")]
    NothingMatched { path: String },
    #[error("the root folder cannot be removed")]
    RootRemoved,
}

impl FileError {
    /// Who is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Select(SelectError::Source(error)) | Self::Source(error) => error.kind(),
            Self::Edit(EditError::Store(error)) | Self::Store(error) => error.kind(),
            Self::Edit(EditError::Write { .. }) => ErrorKind::Environment,
            Self::Select(_) | Self::Edit(_) | Self::User(_) | Self::Mode(_) => ErrorKind::UserInput,
            Self::Archive { .. } | Self::NothingMatched { .. } | Self::RootRemoved => ErrorKind::UserInput,
        }
    }
}

/// What an operation reads from, by the index of the vertex's input.
pub(crate) struct Inputs {
    /// The layers of each; `None` for a context.
    pub layers: Vec<Option<Vec<LayerId>>>,
    /// The files of each.
    pub trees: Vec<SourceTree>,
    /// Says when to stop.
    pub stop: Stop,
}

/// Carries out an operation; what it comes to is a layer in the making.
pub(crate) fn execute(
    op: &FileOp,
    store: &Store,
    lease: &Lease,
    inputs: &Inputs,
    now: SystemTime,
) -> Result<ActiveLayer, FileError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = (i64::try_from(now.as_secs()).unwrap_or_default(), now.subsec_nanos());
    let mut work = Work { store, lease, inputs, now, trees: Vec::new(), of_action: Vec::new() };
    for (action, step) in op.actions.iter().zip(plan::plan(op)) {
        work.action(&action.kind, step)?;
    }
    work.finish()
}

/// An operation at work.
struct Work<'a> {
    store: &'a Store,
    lease: &'a Lease,
    inputs: &'a Inputs,
    now: Moment,
    trees: Vec<Tree>,
    /// The tree that each action so far changed.
    of_action: Vec<usize>,
}

/// A tree that the operation makes.
struct Tree {
    /// The layers of the input that it comes from.
    origin: Vec<LayerId>,
    state: TreeState,
}

enum TreeState {
    /// It is being changed.
    Active(ActiveLayer),
    /// It stays as it is: the layers on its origin.
    Frozen(Vec<LayerId>),
}

impl Work<'_> {
    fn action(&mut self, kind: &FileKind, step: Step) -> Result<(), FileError> {
        let tree = match step.begin {
            Begin::Continue(before) => self.of_action[before],
            begin => self.begin(begin)?,
        };
        self.change(tree, kind)?;
        self.of_action.push(tree);
        if step.freeze { self.freeze(tree) } else { Ok(()) }
    }

    fn begin(&mut self, begin: Begin) -> Result<usize, FileError> {
        let origin = match begin {
            Begin::Input(index) => self.inputs.layers[index].clone().unwrap_or_default(),
            Begin::Continue(before) | Begin::Frozen(before) => self.trees[self.of_action[before]].origin.clone(),
            Begin::Scratch => Vec::new(),
        };
        let frozen = match begin {
            Begin::Frozen(before) => self.frozen_layers(self.of_action[before]),
            _ => Vec::new(),
        };
        let active = self.store.layers().prepare(&[&origin[..], &frozen].concat())?;
        if let Begin::Input(index) = begin
            && self.inputs.layers[index].is_none()
        {
            copy_everything(&active, self.store, &self.inputs.trees[index], self.now)?;
        }
        self.trees.push(Tree { origin, state: TreeState::Active(active) });
        Ok(self.trees.len() - 1)
    }

    fn frozen_layers(&self, tree: usize) -> Vec<LayerId> {
        match &self.trees[tree].state {
            TreeState::Frozen(layers) => layers.clone(),
            TreeState::Active(_) => Vec::new(),
        }
    }

    fn change(&mut self, tree: usize, kind: &FileKind) -> Result<(), FileError> {
        let TreeState::Active(active) = &self.trees[tree].state else {
            unreachable!("the plan lets nothing continue what is frozen");
        };
        let on_conflict = match kind {
            FileKind::Copy(copy) if copy.replace => OnConflict::Replace,
            _ => OnConflict::Refuse,
        };
        let mut editor = Editor::new(active, on_conflict)?;
        match kind {
            FileKind::Copy(copy) => self.copy(&mut editor, copy)?,
            FileKind::Mkdir(mkdir) => actions::mkdir(&mut editor, mkdir, self.now)?,
            FileKind::Mkfile(mkfile) => actions::mkfile(&mut editor, mkfile, self.now)?,
            FileKind::Symlink(link) => actions::symlink(&mut editor, link, self.now)?,
            FileKind::Rm(rm) => actions::rm(&mut editor, rm, &self.inputs.stop)?,
        }
        Ok(editor.finish()?)
    }

    fn copy(&self, editor: &mut Editor<'_>, action: &CopyAction) -> Result<(), FileError> {
        let made;
        let tree = match action.from {
            FileInput::Input(index) => &self.inputs.trees[index],
            FileInput::Action(index) => {
                made = self.tree_of(index)?;
                &made
            }
            FileInput::Scratch => {
                made = SourceTree::of_layers(self.store.layers().tree(&[])?, self.inputs.stop.clone());
                &made
            }
        };
        copy_action(editor, self.store, action, tree, self.now)
    }

    /// What an action left, for reading.
    fn tree_of(&self, action: usize) -> Result<SourceTree, FileError> {
        let tree = &self.trees[self.of_action[action]];
        let merged = match &tree.state {
            TreeState::Active(active) => active.merged(),
            TreeState::Frozen(layers) => self.store.layers().tree(&[&tree.origin[..], layers].concat())?,
        };
        Ok(SourceTree::of_layers(merged, self.inputs.stop.clone()))
    }

    fn freeze(&mut self, tree: usize) -> Result<(), FileError> {
        let state = std::mem::replace(&mut self.trees[tree].state, TreeState::Frozen(Vec::new()));
        let TreeState::Active(active) = state else { return Ok(()) };
        let below = active.parents()[self.trees[tree].origin.len()..].to_vec();
        let layer = self.store.layers().commit(active, self.lease)?.id;
        self.trees[tree].state = TreeState::Frozen([below, vec![layer]].concat());
        Ok(())
    }

    /// The last action's tree. An operation makes one layer: what came of several is put together.
    fn finish(mut self) -> Result<ActiveLayer, FileError> {
        let Some(last) = self.of_action.last().copied() else { return Ok(self.store.layers().prepare(&[])?) };
        let Tree { origin, state } = self.trees.swap_remove(last);
        let upper = match state {
            TreeState::Active(active) if active.parents().len() == origin.len() => return Ok(active),
            TreeState::Active(active) => {
                let parents = active.parents().to_vec();
                [parents, vec![self.store.layers().commit(active, self.lease)?.id]].concat()
            }
            TreeState::Frozen(layers) => [&origin[..], &layers].concat(),
        };
        difference::between(self.store, &origin, &upper, &self.inputs.stop)
    }
}

/// Makes a layer of a whole tree, as it is.
pub(crate) fn materialise(store: &Store, tree: &SourceTree) -> Result<ActiveLayer, FileError> {
    let active = store.layers().prepare(&[])?;
    copy_everything(&active, store, tree, (0, 0))?;
    Ok(active)
}

fn copy_everything(active: &ActiveLayer, store: &Store, tree: &SourceTree, now: Moment) -> Result<(), FileError> {
    let everything = CopyAction::new(FileInput::Scratch, vec!["/".to_owned()], "/");
    let mut editor = Editor::new(active, OnConflict::Refuse)?;
    copy_action(&mut editor, store, &everything, tree, now)?;
    Ok(editor.finish()?)
}

fn copy_action(
    editor: &mut Editor<'_>,
    store: &Store,
    action: &CopyAction,
    tree: &SourceTree,
    now: Moment,
) -> Result<(), FileError> {
    let selection = select(tree, action)?;
    if !action.make_parents {
        let destination = editor.tree().resolve(Path::new(&action.destination))?;
        actions::require(editor, destination.parent().unwrap_or(Path::new("/")))?;
    }
    let owner = actions::find_owner(editor, action.owner.as_ref())?;
    Copier { action, tree, editor, store, owner, now, links: Links::default(), shared: None }.copy(&selection)
}

/// What all the sources of a copy select.
fn select(tree: &SourceTree, action: &CopyAction) -> Result<Selection, FileError> {
    let mut all = Selection::default();
    for source in keys::selected_paths(action) {
        let selected = selection::select(tree, &source)?;
        if selected.roots.is_empty() && selection::is_pattern(&source) && !action.allow_empty_wildcard {
            return Err(FileError::NothingMatched { path: source.path });
        }
        all.roots.extend(selected.roots);
    }
    Ok(all)
}
