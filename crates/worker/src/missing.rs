//! What a step asked for and a result does not have.

use crate::file::FileError;
use crate::selection::SelectError;
use crate::source_tree::SourceTree;
use forge_cache::{CacheError, ResultRef};
use forge_image::ErrorKind;
use forge_session::ContextPath;

/// Folders with more entries are not listed for what else may have been meant.
const MOST_SIBLINGS: usize = 10_000;

/// A path that is not in a result, with what is there instead: whoever shows the error can tell what was meant.
#[derive(Debug, thiserror::Error)]
#[error("{path:?}: not found")]
pub struct MissingFile {
    /// The path, absolute in the result.
    pub path: String,
    /// How much of it there is, without a slash at either end; empty for the root.
    pub found: String,
    /// The first component that is not there; empty where all are, but may not be read.
    pub name: String,
    /// The names in the folder that was found.
    pub siblings: Vec<String>,
}

impl MissingFile {
    fn new(tree: &SourceTree, path: &str) -> Self {
        let (mut found, mut name) = (ContextPath::default(), String::new());
        for component in ContextPath::clean(path).components() {
            let next = found.join(component);
            if !matches!(tree.follow(&next), Ok(Some(_))) {
                name = String::from_utf8_lossy(component).into_owned();
                break;
            }
            found = next;
        }
        Self { path: path.to_owned(), siblings: siblings(tree, &found), found: found.display().into_owned(), name }
    }
}

/// Another failure must not hide the one that is to be explained: what cannot be listed has no names.
fn siblings(tree: &SourceTree, folder: &ContextPath) -> Vec<String> {
    let Ok(Some(entry)) = tree.follow(folder) else { return Vec::new() };
    let children = tree.children(&entry).unwrap_or_default().into_iter();
    let visible = children.take(MOST_SIBLINGS).filter(|child| tree.hidden(&child.path).is_none());
    let name = |path: &ContextPath| path.components().last().map(|name| String::from_utf8_lossy(name).into_owned());
    visible.filter_map(|child| name(&child.path)).collect()
}

/// The failure to select files of a result. The first words are BuildKit's: clients look for them.
pub(crate) fn unselected(error: FileError, result: &ResultRef, tree: &SourceTree) -> CacheError {
    let kind = error.kind();
    if kind == ErrorKind::Cancelled {
        return CacheError::Cancelled;
    }
    let message = format!("failed to calculate checksum of ref {}: {error}", shown(result));
    let source: Box<dyn std::error::Error + Send + Sync> = match error {
        // Nothing at all has no checksum: BuildKit looks for the file itself then, and says so.
        FileError::Select(SelectError::NotFound { path }) if matches!(result, ResultRef::Layers(none) if none.is_empty()) => {
            Box::new(FileError::Missing { path })
        }
        FileError::Select(SelectError::NotFound { path } | SelectError::Ignored { path }) => {
            Box::new(MissingFile::new(tree, &path))
        }
        error => Box::new(error),
    };
    CacheError::Result { kind, message, source: Some(source) }
}

/// A result as one word.
fn shown(result: &ResultRef) -> String {
    match result {
        ResultRef::Context { name, .. } => format!("context::{name}"),
        ResultRef::Layers(layers) => format!("layers::{}", layers.last().map(ToString::to_string).unwrap_or_default()),
    }
}
