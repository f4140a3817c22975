//! What a COPY or ADD selects: the matches of its sources and everything below them, less what is excluded.
//!
//! Both the cache key and the copy itself are made from the same selection, so they cannot disagree.

use crate::file::glob::{self, BadPattern};
use crate::source_tree::{SourceEntry, SourceError, SourceKind, SourceTree};
use forge_session::{ContextPath, PatternMatcher};

/// Why sources select nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectError {
    /// The first words are BuildKit's: clients look for them.
    #[error("{path:?}: not found")]
    NotFound { path: String },
    /// The source is there, but the ignore file hides it.
    #[error("{path:?}: not found: it is excluded by the ignore file")]
    Ignored { path: String },
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Everything that sources select, in the order of the sources, then of the names.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub roots: Vec<SelectedRoot>,
}

/// One match of a source.
#[derive(Debug)]
pub(crate) struct SelectedRoot {
    /// The last component of the path that matched, before links were followed; empty for the tree's root.
    pub name: Vec<u8>,
    /// What is there, links followed.
    pub entry: SourceEntry,
    /// For a folder: what is below it, parents before children.
    pub below: Vec<SelectedEntry>,
}

/// Something below a selected folder.
#[derive(Debug)]
pub(crate) struct SelectedEntry {
    /// Relative to the folder.
    pub relative: ContextPath,
    pub entry: SourceEntry,
}

/// Selects what the sources name. A pattern that matches nothing is fine, a plain path is not.
pub(crate) fn select(
    tree: &SourceTree,
    sources: &[String],
    wildcards: bool,
    exclude: &PatternMatcher,
) -> Result<Selection, SelectError> {
    let mut selection = Selection::default();
    for source in sources {
        let path = ContextPath::clean(source);
        let is_pattern = wildcards && path.components().any(glob::has_wildcard);
        let matches = if is_pattern { expand(tree, &path)? } else { vec![path] };
        for path in matches {
            if let Some(root) = select_root(tree, path, is_pattern, exclude)? {
                selection.roots.push(root);
            }
        }
    }
    Ok(selection)
}

/// The paths that a pattern matches, sorted.
fn expand(tree: &SourceTree, pattern: &ContextPath) -> Result<Vec<ContextPath>, SelectError> {
    let mut found = vec![ContextPath::default()];
    for component in pattern.components() {
        let mut next = Vec::new();
        for folder in found {
            if glob::has_wildcard(component) {
                next.extend(matching_children(tree, &folder, component)?);
            } else {
                next.push(folder.join(component));
            }
        }
        found = next;
    }
    Ok(found)
}

fn matching_children(tree: &SourceTree, folder: &ContextPath, pattern: &[u8]) -> Result<Vec<ContextPath>, SelectError> {
    // A malformed pattern is an error even in an empty folder.
    glob::matches(pattern, b"")?;
    let Some(SourceEntry { kind: SourceKind::Directory, path, .. }) = tree.follow(folder)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for child in tree.children(&path)? {
        let name = last_component(&child.path);
        if glob::matches(pattern, &name)? {
            found.push(folder.join(&name));
        }
    }
    Ok(found)
}

fn select_root(
    tree: &SourceTree,
    path: ContextPath,
    optional: bool,
    exclude: &PatternMatcher,
) -> Result<Option<SelectedRoot>, SelectError> {
    let shown = || format!("/{}", path.display());
    let Some(entry) = tree.follow(&path)? else {
        return if optional { Ok(None) } else { Err(SelectError::NotFound { path: shown() }) };
    };
    let name = last_component(&path);
    let hidden = |path: &ContextPath| tree.ignored(path);
    if entry.kind == SourceKind::Other {
        let path = path.display().into_owned();
        return if optional { Ok(None) } else { Err(SourceError::Special { path }.into()) };
    }
    if entry.kind != SourceKind::Directory {
        if hidden(&path) || hidden(&entry.path) {
            return if optional { Ok(None) } else { Err(SelectError::Ignored { path: shown() }) };
        }
        let excluded = exclude.matches(&ContextPath::clean(&name)) || exclude.matches(&path);
        return Ok((!excluded).then_some(SelectedRoot { name, entry, below: Vec::new() }));
    }
    let below = walk(tree, &entry.path, exclude)?;
    if below.is_empty() && hidden(&entry.path) {
        return if optional { Ok(None) } else { Err(SelectError::Ignored { path: shown() }) };
    }
    Ok(Some(SelectedRoot { name, entry, below }))
}

fn last_component(path: &ContextPath) -> Vec<u8> {
    path.components().last().unwrap_or_default().to_vec()
}

/// A folder that is being walked.
struct Level {
    children: std::vec::IntoIter<SourceEntry>,
    relative: ContextPath,
    /// How many of `pending` folders stand above the children of this one.
    pending: usize,
}

/// Everything below a folder. Iterative, so that no depth overflows the stack (A60). A hidden folder appears
/// only when something below it does.
fn walk(tree: &SourceTree, root: &ContextPath, exclude: &PatternMatcher) -> Result<Vec<SelectedEntry>, SelectError> {
    let mut found = Vec::new();
    let mut pending: Vec<SelectedEntry> = Vec::new();
    let mut levels =
        vec![Level { children: tree.children(root)?.into_iter(), relative: ContextPath::default(), pending: 0 }];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.children.next() else {
            let ended = levels.pop().expect("the loop holds a level");
            pending.truncate(ended.pending.saturating_sub(1));
            continue;
        };
        // A socket says nothing once its server is gone; docker skips it too.
        if entry.kind == SourceKind::Other {
            continue;
        }
        let relative = level.relative.join(&last_component(&entry.path));
        let path = entry.path.clone();
        let is_directory = entry.kind == SourceKind::Directory;
        let (ignored, excluded) = (tree.ignored(&path), exclude.matches(&relative));
        let pruned = ignored && tree.prunes(&path) || excluded && !exclude.may_match_below(&relative);
        let selected = SelectedEntry { relative: relative.clone(), entry };
        if !ignored && !excluded {
            found.append(&mut pending);
            found.push(selected);
        } else if is_directory && !pruned {
            pending.push(selected);
        } else {
            continue;
        }
        if is_directory {
            let above = pending.len();
            levels.push(Level { children: tree.children(&path)?.into_iter(), relative, pending: above });
        }
    }
    Ok(found)
}
