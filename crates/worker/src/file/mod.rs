//! File operations: what COPY, ADD, WORKDIR and heredocs come to.

pub(crate) mod archive;
mod copy;
mod editor;
pub(crate) mod glob;
mod mode;

use crate::selection::{self, SelectError};
use crate::source_tree::{SourceError, SourceTree};
use crate::users::{self, UserError};
use copy::Copier;
use editor::{EditError, Editor, EntryMetadata, OnExisting};
use forge_image::ErrorKind;
use forge_llb::{CopyAction, FileAction, FileInput, FileKind, FileOp, MkdirAction, MkfileAction, Owner};
use forge_session::PatternMatcher;
use forge_store::{ActiveLayer, Store};
use std::collections::{BTreeMap, HashMap};
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

/// The trees that an operation reads from, by the index of the vertex's input.
pub(crate) type Inputs = Vec<SourceTree>;

/// The index of the input that an operation starts from; `None` is an empty tree.
///
/// # Errors
/// The actions do not follow on one another: such graphs come from no Dockerfile.
pub(crate) fn base_input(op: &FileOp) -> Result<Option<usize>, FileError> {
    let base = match op.actions.first().map(|action| action.base) {
        Some(FileInput::Input(index)) => Some(index),
        _ => None,
    };
    let chained = op.actions.iter().enumerate().skip(1).all(|(at, action)| action.base == FileInput::Action(at - 1));
    match chained {
        true => Ok(base),
        false => Err(FileError::NotBuilt { what: "a file operation whose actions do not follow on one another" }),
    }
}

/// Carries out an operation in an active layer.
pub(crate) fn execute(
    op: &FileOp,
    store: &Store,
    active: &ActiveLayer,
    inputs: &Inputs,
    now: SystemTime,
) -> Result<(), FileError> {
    let mut editor = Editor::new(active)?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = (i64::try_from(now.as_secs()).unwrap_or_default(), now.subsec_nanos());
    for FileAction { kind, .. } in &op.actions {
        match kind {
            FileKind::Copy(copy) => copy_action(&mut editor, store, copy, inputs, now)?,
            FileKind::Mkdir(mkdir) => mkdir_action(&mut editor, mkdir, now)?,
            FileKind::Mkfile(mkfile) => mkfile_action(&mut editor, mkfile, now)?,
            FileKind::Rm(_) => return Err(FileError::NotBuilt { what: "removing files without a process" }),
        }
    }
    Ok(editor.finish()?)
}

fn copy_action(
    editor: &mut Editor<'_>,
    store: &Store,
    action: &CopyAction,
    inputs: &Inputs,
    now: (i64, u32),
) -> Result<(), FileError> {
    let FileInput::Input(index) = action.from else {
        return Err(FileError::NotBuilt { what: "copying from a tree that the same operation made" });
    };
    let tree = &inputs[index];
    let exclude = PatternMatcher::new(&action.exclude).map_err(SourceError::from)?;
    let selection = selection::select(tree, &action.sources, action.allow_wildcard, &exclude)?;
    let owner = find_owner(editor, action.owner.as_ref())?;
    Copier { action, tree, editor, store, owner, now, links: HashMap::new() }.copy(&selection)
}

fn mkdir_action(editor: &mut Editor<'_>, action: &MkdirAction, now: (i64, u32)) -> Result<(), FileError> {
    let path = editor.tree().resolve(Path::new(&action.path))?;
    let metadata = made(editor, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
    let parents =
        if action.make_parents { metadata.clone() } else { EntryMetadata { mode: 0o755, ..metadata.clone() } };
    let parent = editor.folder(parent, &parents)?;
    editor.child_folder(&parent, name, &metadata, OnExisting::Keep)?;
    Ok(())
}

fn mkfile_action(editor: &mut Editor<'_>, action: &MkfileAction, now: (i64, u32)) -> Result<(), FileError> {
    let path: PathBuf = editor.tree().resolve(Path::new(&action.path))?;
    let metadata = made(editor, action.owner.as_ref(), action.mode, action.timestamp, now)?;
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Err(EditError::IsADirectory { path: action.path.clone() }.into());
    };
    let parent = editor.folder(parent, &EntryMetadata { mode: 0o755, ..metadata.clone() })?;
    Ok(editor.bytes(&parent, name, &action.data, &metadata)?)
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
