//! File operations: what COPY, ADD, WORKDIR and heredocs come to.

pub(crate) mod archive;
mod copy;
mod editor;
pub(crate) mod glob;
mod mode;

use crate::selection::{self, SelectError};
use crate::source_tree::{SourceError, SourceTree, Stop};
use crate::users::{self, UserError};
use copy::{Copier, Links};
use editor::{EditError, Editor, EntryMetadata, OnExisting};
use forge_image::ErrorKind;
use forge_llb::{CopyAction, FileAction, FileInput, FileKind, FileOp, MkdirAction, MkfileAction, Owner};
use forge_session::PatternMatcher;
use forge_store::{ActiveLayer, LayerId, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    #[error("{what} is not supported by this version of forge")]
    NotBuilt { what: &'static str },
}

impl FileError {
    /// Who is to blame.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Select(SelectError::Source(error)) | Self::Source(error) => error.kind(),
            Self::Edit(EditError::Store(error)) | Self::Store(error) => error.kind(),
            Self::Edit(EditError::Write { .. }) => ErrorKind::Environment,
            Self::NotBuilt { .. } => ErrorKind::Unsupported,
            Self::Select(_) | Self::Edit(_) | Self::User(_) | Self::Mode(_) | Self::Archive { .. } => {
                ErrorKind::UserInput
            }
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

/// The trees that an operation makes: which one each action changes, and which input each starts from.
struct Plan {
    tree_of: Vec<usize>,
    starts: Vec<Option<usize>>,
}

/// Sorts actions by the trees that they change. An action goes on where another ended, or starts a new tree.
fn plan(op: &FileOp) -> Result<Plan, FileError> {
    let mut plan = Plan { tree_of: Vec::new(), starts: Vec::new() };
    for action in &op.actions {
        let tree = match action.base {
            FileInput::Action(before) => {
                let tree = plan.tree_of[before];
                if plan.tree_of.iter().rposition(|other| *other == tree) != Some(before) {
                    return Err(FileError::NotBuilt { what: "a file operation with two continuations of one tree" });
                }
                tree
            }
            FileInput::Input(index) => plan.start(Some(index)),
            FileInput::Scratch => plan.start(None),
        };
        plan.tree_of.push(tree);
    }
    Ok(plan)
}

impl Plan {
    fn start(&mut self, input: Option<usize>) -> usize {
        self.starts.push(input);
        self.starts.len() - 1
    }
}

/// Carries out an operation; what it comes to is a layer in the making.
pub(crate) fn execute(op: &FileOp, store: &Store, inputs: &Inputs, now: SystemTime) -> Result<ActiveLayer, FileError> {
    let plan = plan(op)?;
    let mut made = plan.starts.iter().map(|start| prepare(store, inputs, *start)).collect::<Result<Vec<_>, _>>()?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = (i64::try_from(now.as_secs()).unwrap_or_default(), now.subsec_nanos());
    for (FileAction { kind, .. }, tree) in op.actions.iter().zip(&plan.tree_of) {
        let mut editor = Editor::new(&made[*tree])?;
        match kind {
            FileKind::Copy(copy) => match copy.from {
                FileInput::Input(index) => copy_action(&mut editor, store, copy, &inputs.trees[index], now)?,
                FileInput::Action(index) => {
                    let from = SourceTree::of_layers(made[plan.tree_of[index]].merged(), inputs.stop.clone());
                    copy_action(&mut editor, store, copy, &from, now)?;
                }
                FileInput::Scratch => return Err(FileError::NotBuilt { what: "copying from an empty tree" }),
            },
            FileKind::Mkdir(mkdir) => mkdir_action(&mut editor, mkdir, now)?,
            FileKind::Mkfile(mkfile) => mkfile_action(&mut editor, mkfile, now)?,
            FileKind::Symlink(_) => return Err(FileError::NotBuilt { what: "making links without a process" }),
            FileKind::Rm(_) => return Err(FileError::NotBuilt { what: "removing files without a process" }),
        }
        editor.finish()?;
    }
    let last = plan.tree_of.last().copied().unwrap_or_default();
    Ok(made.swap_remove(last))
}

fn prepare(store: &Store, inputs: &Inputs, start: Option<usize>) -> Result<ActiveLayer, FileError> {
    let parents = match start.map(|index| &inputs.layers[index]) {
        None => &[][..],
        Some(Some(layers)) => layers,
        Some(None) => return Err(FileError::NotBuilt { what: "changing the files of a build context" }),
    };
    Ok(store.layers().prepare(parents)?)
}

fn copy_action(
    editor: &mut Editor<'_>,
    store: &Store,
    action: &CopyAction,
    tree: &SourceTree,
    now: (i64, u32),
) -> Result<(), FileError> {
    let exclude = PatternMatcher::new(&action.exclude).map_err(SourceError::from)?;
    let selection = selection::select(tree, &action.sources, action.allow_wildcard, &exclude)?;
    let owner = find_owner(editor, action.owner.as_ref())?;
    Copier { action, tree, editor, store, owner, now, links: Links::default(), shared: None }.copy(&selection)
}

fn mkdir_action(editor: &mut Editor<'_>, action: &MkdirAction, now: (i64, u32)) -> Result<(), FileError> {
    let path = editor.tree().resolve(Path::new(&action.path))?;
    let metadata = made(editor, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
    let parents =
        if action.make_parents { metadata.clone() } else { EntryMetadata { mode: 0o755, ..metadata.clone() } };
    let mut parent = editor.folder(parent, &parents)?;
    editor.child_folder(&mut parent, name, &metadata, OnExisting::Keep)?;
    Ok(())
}

fn mkfile_action(editor: &mut Editor<'_>, action: &MkfileAction, now: (i64, u32)) -> Result<(), FileError> {
    let path: PathBuf = editor.tree().resolve(Path::new(&action.path))?;
    let metadata = made(editor, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Err(EditError::IsADirectory { path: action.path.clone() }.into());
    };
    let mut parent = editor.folder(parent, &EntryMetadata { mode: 0o755, ..metadata.clone() })?;
    Ok(editor.bytes(&mut parent, name, &action.data, &metadata)?)
}

fn made(
    editor: &Editor<'_>,
    owner: Option<&Owner>,
    mode: u32,
    timestamp: Option<i64>,
    now: (i64, u32),
) -> Result<EntryMetadata, FileError> {
    let (uid, gid) = find_owner(editor, owner)?.unwrap_or((0, 0));
    let mtime = timestamp.map_or(now, |seconds| (seconds, 0));
    Ok(EntryMetadata { mode, uid, gid, mtime, xattrs: BTreeMap::new() })
}

fn find_owner(editor: &Editor<'_>, owner: Option<&Owner>) -> Result<Option<(u32, u32)>, FileError> {
    owner.map(|owner| Ok(users::owner(&editor.tree(), &owner.user, owner.group.as_deref())?)).transpose()
}
