//! File operations: what COPY, ADD, WORKDIR and heredocs come to.

mod actions;
pub(crate) mod archive;
mod copy;
pub(crate) mod difference;
mod editor;
mod fill;
pub(crate) mod glob;
mod mode;
pub(crate) mod packed;
mod packed_fill;
pub(crate) mod packed_folder;
mod packed_plan;
mod placing;
mod plan;

use crate::context_files::ContextFiles;
use crate::keys;
use crate::selection::{self, SelectError, SelectedRoot, Selection};
use crate::source_tree::{SourceError, SourceTree, Stop};
use crate::users::UserError;
use actions::Moment;
use copy::Copier;
use editor::{EditError, Editor, OnConflict};
use forge_cache::{ResultRef, SelectedPath};
use forge_image::ErrorKind;
use forge_llb::{CopyAction, FileInput, FileKind, FileOp};
use forge_store::{ActiveLayer, KnownFiles, LayerId, LayerRecord, Lease, Store, StoreError};
use plan::{Begin, Step};
use std::path::Path;
use std::sync::Arc;
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
    /// What a step copies must be what its key was made of (A40).
    #[error("{path:?} in the build context changed while the build read it")]
    Changed { path: String },
    #[error("cannot unpack {path}")]
    Archive { path: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// A copy finds out only now that it has no source: its key was made of the whole tree. The words are BuildKit's.
    #[error("lstat {path}: no such file or directory")]
    Missing { path: String },
    /// The words are BuildKit's.
    #[error("{path} not found")]
    NothingMatched { path: String },
    #[error("the root folder cannot be removed")]
    RootRemoved,
}

impl FileError {
    /// The store's part of it, if that failed.
    pub(crate) fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error)
            | Self::Edit(EditError::Store(error))
            | Self::User(UserError::Store(error))
            | Self::Source(SourceError::Store(error))
            | Self::Select(SelectError::Source(SourceError::Store(error))) => Some(error),
            _ => None,
        }
    }

    /// Who is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Select(SelectError::Source(error)) | Self::Source(error) => error.kind(),
            Self::Edit(EditError::Store(error)) | Self::Store(error) => error.kind(),
            Self::Edit(EditError::Write { .. }) | Self::Changed { .. } => ErrorKind::Environment,
            Self::Select(_) | Self::Edit(_) | Self::User(_) | Self::Mode(_) => ErrorKind::UserInput,
            Self::Archive { .. } | Self::Missing { .. } | Self::NothingMatched { .. } | Self::RootRemoved => {
                ErrorKind::UserInput
            }
        }
    }
}

/// What an operation reads from.
pub(crate) struct Inputs<'a> {
    /// By the index of the vertex's input.
    pub results: Vec<ResultRef>,
    /// The files of each.
    pub trees: Vec<SourceTree>,
    /// What the build saw of contexts.
    pub contexts: &'a ContextFiles,
    /// Says when to stop.
    pub stop: Stop,
}

impl Inputs<'_> {
    fn source(&self, index: usize) -> Source<'_> {
        let tree = &self.trees[index];
        match &self.results[index] {
            context @ ResultRef::Context { .. } => Source::Context { files: self.contexts, context, tree },
            ResultRef::Layers(_) => Source::Tree(tree),
        }
    }
}

/// What a copy reads.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Files that may change at any time: they are looked at once in a build.
    Context { files: &'a ContextFiles, context: &'a ResultRef, tree: &'a SourceTree },
    /// Files that nobody changes.
    Tree(&'a SourceTree),
}

impl<'a> Source<'a> {
    fn tree(self) -> &'a SourceTree {
        match self {
            Self::Context { tree, .. } | Self::Tree(tree) => tree,
        }
    }

    fn select(self, path: &SelectedPath) -> Result<Arc<Selection>, FileError> {
        match self {
            Self::Context { files, context, tree } => files.select(context, tree, path),
            Self::Tree(tree) => Ok(Arc::new(selection::select(tree, path)?)),
        }
    }
}

/// A layer in the making, and what was written into it.
pub(crate) struct Made {
    pub active: ActiveLayer,
    pub known: KnownFiles,
}

impl Made {
    fn new(active: ActiveLayer) -> Self {
        Self { active, known: KnownFiles::default() }
    }

    /// Changes it, and goes on with what is known then.
    fn edit(
        &mut self,
        on_conflict: OnConflict,
        change: impl FnOnce(&mut Editor<'_>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let mut editor = Editor::new(&self.active, on_conflict, std::mem::take(&mut self.known))?;
        change(&mut editor)?;
        self.known = editor.finish()?;
        Ok(())
    }

    /// Makes it a layer of the store.
    pub(crate) fn commit(self, store: &Store, lease: &Lease) -> Result<LayerRecord, StoreError> {
        store.layers().commit_known(self.active, &self.known, lease)
    }
}

/// Carries out an operation; what it comes to is a layer in the making.
pub(crate) fn execute(
    op: &FileOp,
    store: &Store,
    lease: &Lease,
    inputs: &Inputs<'_>,
    now: SystemTime,
) -> Result<Made, FileError> {
    let mut work = Work::new(store, lease, inputs, now);
    for (action, step) in op.actions.iter().zip(plan::plan(op)) {
        work.action(&action.kind, step)?;
    }
    work.finish()
}

/// What there is of an operation that failed.
pub(crate) struct Left {
    /// The action that failed.
    pub action: usize,
    /// The tree of each action.
    pub trees: Vec<Option<ResultRef>>,
}

/// Carries out an operation that failed once more, action by action: the one that fails, and the tree that each leaves. Of the one
/// that fails that is what it was to change, and later ones have none. `None` where it does not fail now.
pub(crate) fn left(
    op: &FileOp,
    store: &Store,
    lease: &Lease,
    inputs: &Inputs<'_>,
    now: SystemTime,
) -> Result<Option<Left>, FileError> {
    let mut work = Work::new(store, lease, inputs, now);
    let mut left: Vec<Option<ResultRef>> = Vec::new();
    for (place, (action, step)) in op.actions.iter().zip(plan::apart(op)).enumerate() {
        inputs.stop.check()?;
        if work.action(&action.kind, step).is_ok() {
            left.push(Some(work.left_by(place)));
            continue;
        }
        left.push(match action.base {
            FileInput::Scratch => None,
            FileInput::Input(index) => Some(inputs.results[index].clone()),
            FileInput::Action(before) => left[before].clone(),
        });
        left.resize(op.actions.len(), None);
        return Ok(Some(Left { action: place, trees: left }));
    }
    Ok(None)
}

/// An operation at work.
struct Work<'a> {
    store: &'a Store,
    lease: &'a Lease,
    inputs: &'a Inputs<'a>,
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
    Active(Box<Made>),
    /// It stays as it is: the layers on its origin.
    Frozen(Vec<LayerId>),
}

impl<'a> Work<'a> {
    fn new(store: &'a Store, lease: &'a Lease, inputs: &'a Inputs<'a>, now: SystemTime) -> Self {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = (i64::try_from(now.as_secs()).unwrap_or_default(), now.subsec_nanos());
        Self { store, lease, inputs, now, trees: Vec::new(), of_action: Vec::new() }
    }

    /// The tree of an action that stays as it is.
    fn left_by(&self, action: usize) -> ResultRef {
        let tree = self.of_action[action];
        ResultRef::Layers([&self.trees[tree].origin[..], &self.frozen_layers(tree)].concat())
    }

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
            Begin::Input(index) => self.inputs.results[index].layers().to_vec(),
            Begin::Continue(before) | Begin::Frozen(before) => self.trees[self.of_action[before]].origin.clone(),
            Begin::Scratch => Vec::new(),
        };
        let frozen = match begin {
            Begin::Frozen(before) => self.frozen_layers(self.of_action[before]),
            _ => Vec::new(),
        };
        let mut made = Made::new(self.store.layers().prepare(&[&origin[..], &frozen].concat())?);
        if let Begin::Input(index) = begin
            && let ResultRef::Context { .. } = self.inputs.results[index]
        {
            copy_everything(&mut made, self.store, self.inputs.source(index), self.now)?;
        }
        self.trees.push(Tree { origin, state: TreeState::Active(Box::new(made)) });
        Ok(self.trees.len() - 1)
    }

    fn frozen_layers(&self, tree: usize) -> Vec<LayerId> {
        match &self.trees[tree].state {
            TreeState::Frozen(layers) => layers.clone(),
            TreeState::Active(_) => Vec::new(),
        }
    }

    fn change(&mut self, tree: usize, kind: &FileKind) -> Result<(), FileError> {
        let state = std::mem::replace(&mut self.trees[tree].state, TreeState::Frozen(Vec::new()));
        let TreeState::Active(mut made) = state else {
            unreachable!("the plan lets nothing continue what is frozen");
        };
        let on_conflict = match kind {
            FileKind::Copy(copy) if copy.replace => OnConflict::Replace,
            _ => OnConflict::Refuse,
        };
        made.edit(on_conflict, |editor| match kind {
            FileKind::Copy(copy) => self.copy(editor, copy),
            FileKind::Mkdir(mkdir) => actions::mkdir(editor, mkdir, self.now),
            FileKind::Mkfile(mkfile) => actions::mkfile(editor, mkfile, self.now),
            FileKind::Symlink(link) => actions::symlink(editor, link, self.now),
            FileKind::Rm(rm) => actions::rm(editor, rm, &self.inputs.stop),
        })?;
        self.trees[tree].state = TreeState::Active(made);
        Ok(())
    }

    fn copy(&self, editor: &mut Editor<'_>, action: &CopyAction) -> Result<(), FileError> {
        let made = match action.from {
            FileInput::Input(index) => {
                let copied = copy_action(editor, self.store, action, self.inputs.source(index), self.now);
                return copied.map_err(|error| if self.is_base(index) { missing(error) } else { error });
            }
            FileInput::Action(index) => self.tree_of(index)?,
            FileInput::Scratch => SourceTree::of_layers(self.store.layers().tree(&[])?, self.inputs.stop.clone()),
        };
        let copied = copy_action(editor, self.store, action, Source::Tree(&made), self.now);
        copied.map_err(|error| if action.from == FileInput::Scratch { missing(error) } else { error })
    }

    /// Whether an input is what is changed here, or nothing as that is: then the step's key was made of all of it.
    fn is_base(&self, index: usize) -> bool {
        match &self.inputs.results[index] {
            ResultRef::Layers(layers) => self.trees.iter().any(|tree| tree.origin == *layers),
            ResultRef::Context { .. } => false,
        }
    }

    /// What an action left, for reading.
    fn tree_of(&self, action: usize) -> Result<SourceTree, FileError> {
        let tree = &self.trees[self.of_action[action]];
        let merged = match &tree.state {
            TreeState::Active(made) => made.active.merged(),
            TreeState::Frozen(layers) => self.store.layers().tree(&[&tree.origin[..], layers].concat())?,
        };
        Ok(SourceTree::of_layers(merged, self.inputs.stop.clone()))
    }

    fn freeze(&mut self, tree: usize) -> Result<(), FileError> {
        let state = std::mem::replace(&mut self.trees[tree].state, TreeState::Frozen(Vec::new()));
        let TreeState::Active(made) = state else { return Ok(()) };
        let below = made.active.parents()[self.trees[tree].origin.len()..].to_vec();
        let layer = made.commit(self.store, self.lease)?.id;
        self.trees[tree].state = TreeState::Frozen([below, vec![layer]].concat());
        Ok(())
    }

    /// The last action's tree. An operation makes one layer: what came of several is put together.
    fn finish(mut self) -> Result<Made, FileError> {
        let Some(last) = self.of_action.last().copied() else {
            return Ok(Made::new(self.store.layers().prepare(&[])?));
        };
        let Tree { origin, state } = self.trees.swap_remove(last);
        let upper = match state {
            TreeState::Active(made) if made.active.parents().len() == origin.len() => return Ok(*made),
            TreeState::Active(made) => {
                let parents = made.active.parents().to_vec();
                [parents, vec![made.commit(self.store, self.lease)?.id]].concat()
            }
            TreeState::Frozen(layers) => [&origin[..], &layers].concat(),
        };
        difference::between(self.store, &origin, &upper, &self.inputs.stop)
    }
}

/// What is not there was not looked for before.
fn missing(error: FileError) -> FileError {
    match error {
        FileError::Select(SelectError::NotFound { path }) => FileError::Missing { path },
        error => error,
    }
}

/// Makes a layer of a whole tree, as it is.
pub(crate) fn materialise(store: &Store, source: Source<'_>) -> Result<Made, FileError> {
    let mut made = Made::new(store.layers().prepare(&[])?);
    copy_everything(&mut made, store, source, (0, 0))?;
    Ok(made)
}

fn copy_everything(made: &mut Made, store: &Store, source: Source<'_>, now: Moment) -> Result<(), FileError> {
    let everything = CopyAction::new(FileInput::Scratch, vec!["/".to_owned()], "/");
    made.edit(OnConflict::Refuse, |editor| copy_action(editor, store, &everything, source, now))
}

fn copy_action(
    editor: &mut Editor<'_>,
    store: &Store,
    action: &CopyAction,
    source: Source<'_>,
    now: Moment,
) -> Result<(), FileError> {
    let selections = select(source, action)?;
    if !action.make_parents {
        let destination = editor.tree().resolve(Path::new(&action.destination))?;
        actions::require(editor, destination.parent().unwrap_or(Path::new("/")))?;
    }
    let owner = actions::find_owner(editor, action.owner.as_ref())?;
    let roots: Vec<&SelectedRoot> = selections.iter().flat_map(|selection| &selection.roots).collect();
    let tree = source.tree();
    Copier::new(action, tree, editor, store, owner, now).copy(&roots)
}

/// What the sources of a copy select, one after the other.
fn select(source: Source<'_>, action: &CopyAction) -> Result<Vec<Arc<Selection>>, FileError> {
    let select = |path: SelectedPath| {
        let selected = source.select(&path)?;
        if selected.roots.is_empty() && selection::is_pattern(&path) && !action.allow_empty_wildcard {
            return Err(FileError::NothingMatched { path: path.path });
        }
        Ok(selected)
    };
    keys::selected_paths(action).into_iter().map(select).collect()
}
