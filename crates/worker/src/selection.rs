//! What a COPY or ADD selects: the matches of its sources and everything below them, less what is left out.
//!
//! Both the cache key and the copy itself are made from the same selection, so they cannot disagree.

use crate::file::glob::{self, BadPattern};
use crate::source_tree::{Hidden, SourceEntry, SourceError, SourceKind, SourceTree};
use forge_cache::SelectedPath;
use forge_session::{ContextPath, PatternError, PatternMatcher};
use rayon::prelude::*;

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

impl From<PatternError> for SelectError {
    fn from(error: PatternError) -> Self {
        Self::Source(error.into())
    }
}

/// What is taken of what lies below a source.
struct PathFilter {
    /// `None` takes everything.
    include: Option<PatternMatcher>,
    exclude: PatternMatcher,
    required: Vec<(String, PatternMatcher)>,
}

impl PathFilter {
    fn new(source: &SelectedPath) -> Result<Self, PatternError> {
        let include = PatternMatcher::new(&source.include)?;
        let matcher = |path: &String| Ok((path.clone(), PatternMatcher::new(std::slice::from_ref(path))?));
        let required = source.required.iter().map(matcher);
        Ok(Self {
            include: (!include.is_empty()).then_some(include),
            exclude: PatternMatcher::new(&source.exclude)?,
            required: required.collect::<Result<_, PatternError>>()?,
        })
    }

    fn takes(&self, relative: &ContextPath) -> bool {
        self.include.as_ref().is_none_or(|include| include.matches(relative)) && !self.exclude.matches(relative)
    }

    /// Whether something below a folder that is not taken may be.
    fn may_take_below(&self, relative: &ContextPath) -> bool {
        self.include.as_ref().is_none_or(|include| include.may_lead_to_match(relative))
            && (!self.exclude.matches(relative) || self.exclude.may_match_below(relative))
    }
}

/// Everything that a source selects, in the order of the names.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub roots: Vec<SelectedRoot>,
}

impl Selection {
    /// All entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &SourceEntry> {
        self.roots
            .iter()
            .flat_map(|root| std::iter::once(&root.entry).chain(root.below.iter().map(|selected| &selected.entry)))
    }

    /// All entries, in order.
    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut SourceEntry> {
        self.roots.iter_mut().flat_map(|root| {
            std::iter::once(&mut root.entry).chain(root.below.iter_mut().map(|selected| &mut selected.entry))
        })
    }
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
    /// Whether it is a folder that is not taken itself: it is here for the sake of what is below it.
    pub on_the_way: bool,
}

/// Selects what a source names. A pattern that matches nothing is fine, a plain path is not.
pub(crate) fn select(tree: &SourceTree, source: &SelectedPath) -> Result<Selection, SelectError> {
    let filter = PathFilter::new(source)?;
    let path = ContextPath::clean(&source.path);
    let matches = if is_pattern(source) { expand(tree, &path)? } else { vec![path] };
    let mut selection = Selection::default();
    for path in matches {
        selection.roots.extend(select_root(tree, path, source, &filter)?);
    }
    for (required, matcher) in &filter.required {
        let matched = |root: &SelectedRoot| root.below.iter().any(|selected| matcher.matches(&selected.relative));
        if !selection.roots.iter().any(matched) {
            return Err(unselected(tree, &ContextPath::clean([&source.path, "/", required].concat())));
        }
    }
    Ok(selection)
}

/// Whether a source may match nothing, or several paths.
pub(crate) fn is_pattern(source: &SelectedPath) -> bool {
    source.wildcard && ContextPath::clean(&source.path).components().any(glob::has_wildcard)
}

/// Says why nothing is there.
fn unselected(tree: &SourceTree, path: &ContextPath) -> SelectError {
    let shown = format!("/{}", path.display());
    match tree.hidden(path) {
        Some(Hidden::Ignored) if tree.stat(path).is_ok_and(|found| found.is_some()) => {
            SelectError::Ignored { path: shown }
        }
        _ => SelectError::NotFound { path: shown },
    }
}

/// The paths that a pattern matches, sorted.
pub(crate) fn expand(tree: &SourceTree, pattern: &ContextPath) -> Result<Vec<ContextPath>, SelectError> {
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
    let Some(entry) = tree.follow(folder)?.filter(|entry| entry.kind == SourceKind::Directory) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for child in tree.children(&entry)? {
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
    source: &SelectedPath,
    filter: &PathFilter,
) -> Result<Option<SelectedRoot>, SelectError> {
    let failed = |error: SelectError| if is_pattern(source) { Ok(None) } else { Err(error) };
    let found = if source.follow { tree.follow(&path)? } else { tree.stat(&path)? };
    let Some(entry) = found else { return failed(unselected(tree, &path)) };
    let name = last_component(&path);
    if entry.kind == SourceKind::Other {
        return failed(SourceError::Special { path: path.display().into_owned() }.into());
    }
    if entry.kind != SourceKind::Directory {
        if let Some(hidden) = [&path, &entry.path].into_iter().find(|path| tree.hidden(path).is_some()) {
            // The path as it was written, with the reason of where it leads.
            return failed(match unselected(tree, hidden) {
                SelectError::Ignored { .. } => SelectError::Ignored { path: format!("/{}", path.display()) },
                _ => SelectError::NotFound { path: format!("/{}", path.display()) },
            });
        }
        let exclude = &filter.exclude;
        let excluded = exclude.matches(&ContextPath::clean(&name)) || exclude.matches(&path);
        return Ok((!excluded).then_some(SelectedRoot { name, entry, below: Vec::new() }));
    }
    let below = walk(tree, &entry, filter)?;
    if below.is_empty() && tree.hidden(&entry.path).is_some() {
        return failed(unselected(tree, &path));
    }
    Ok(Some(SelectedRoot { name, entry, below }))
}

fn last_component(path: &ContextPath) -> Vec<u8> {
    path.components().last().unwrap_or_default().to_vec()
}

/// Something that the walk came by.
struct Candidate {
    selected: SelectedEntry,
    /// Whether it is taken itself, and not only when something below it is.
    shown: bool,
    /// For a folder that is entered: the position of the list of its children.
    below: Option<usize>,
}

/// Everything below a folder. A hidden folder appears only when something below it does.
///
/// Folders of one depth are read at the same time, and no depth overflows the stack (A60).
fn walk(tree: &SourceTree, root: &SourceEntry, filter: &PathFilter) -> Result<Vec<SelectedEntry>, SelectError> {
    let mut lists: Vec<Vec<Candidate>> = Vec::new();
    let mut wave = vec![(ContextPath::default(), root.clone())];
    while !wave.is_empty() {
        let read = |(relative, folder): &(ContextPath, SourceEntry)| read_folder(tree, relative, folder, filter);
        let mut read: Vec<Vec<Candidate>> = wave.par_iter().map(read).collect::<Result<_, SelectError>>()?;
        wave.clear();
        let next = lists.len() + read.len();
        for candidate in read.iter_mut().flatten() {
            if let Some(below) = &mut candidate.below {
                *below = next + wave.len();
                wave.push((candidate.selected.relative.clone(), candidate.selected.entry.clone()));
            }
        }
        lists.append(&mut read);
    }
    Ok(in_order(lists))
}

/// What is in one folder and may be taken, or lead to something that is.
fn read_folder(
    tree: &SourceTree,
    relative: &ContextPath,
    folder: &SourceEntry,
    filter: &PathFilter,
) -> Result<Vec<Candidate>, SelectError> {
    let mut found = Vec::new();
    for entry in tree.children(folder)? {
        // A socket says nothing once its server is gone; docker skips it too.
        if entry.kind == SourceKind::Other {
            continue;
        }
        let relative = relative.join(entry.path.components().last().unwrap_or_default());
        let is_directory = entry.kind == SourceKind::Directory;
        let taken = filter.takes(&relative);
        let shown = tree.hidden(&entry.path).is_none() && taken;
        let entered = is_directory && !tree.prunes(&entry.path) && filter.may_take_below(&relative);
        if shown || entered {
            let below = entered.then_some(0);
            found.push(Candidate { selected: SelectedEntry { relative, entry, on_the_way: !taken }, shown, below });
        }
    }
    Ok(found)
}

/// A folder whose list is being gone through.
struct Level {
    children: std::vec::IntoIter<Candidate>,
    /// How many folders were pending when it was entered, itself included.
    pending: usize,
}

/// Parents before children, and folders that are not shown themselves only where something below them is.
fn in_order(mut lists: Vec<Vec<Candidate>>) -> Vec<SelectedEntry> {
    let mut found = Vec::new();
    let mut pending: Vec<SelectedEntry> = Vec::new();
    let mut enter =
        |list: usize, pending: usize| Level { children: std::mem::take(&mut lists[list]).into_iter(), pending };
    let mut levels = vec![enter(0, 0)];
    while let Some(level) = levels.last_mut() {
        let Some(Candidate { selected, shown, below }) = level.children.next() else {
            let ended = levels.pop().expect("the loop holds a level");
            pending.truncate(ended.pending.saturating_sub(1));
            continue;
        };
        pending.push(selected);
        if shown {
            found.append(&mut pending);
        }
        if let Some(list) = below {
            levels.push(enter(list, pending.len()));
        } else if !shown {
            pending.pop();
        }
    }
    found
}
