//! What a COPY or ADD selects: the matches of its sources and everything below them, less what is left out.
//!
//! Both the cache key and the copy itself are made from the same selection, so they cannot disagree.

use crate::file::glob::{self, BadPattern};
use crate::source_tree::{Hidden, SourceEntry, SourceError, SourceKind, SourceTree};
use forge_cache::SelectedPath;
use forge_session::{ContextPath, PatternError, PatternMatcher};
use rayon::prelude::*;
use std::collections::HashMap;
use std::num::NonZero;

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

/// So few entries are looked at by whoever wants them: threads that wait for work have to be made first.
const FEW: usize = 32;

const FEW_FOLDERS: usize = 4;
const FEW_BYTES: u64 = 4 << 20;

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

    /// Files of which one name is selected are like any others.
    fn forget_lone_links(&mut self) {
        let mut names: HashMap<(u64, u64), usize> = HashMap::new();
        for group in self.entries().filter_map(SourceEntry::link_group) {
            *names.entry(group).or_default() += 1;
        }
        if names.is_empty() {
            return;
        }
        let forget = |entry: &mut SourceEntry| {
            if entry.link_group().is_some_and(|group| names.get(&group).is_none_or(|names| *names == 1)) {
                entry.forget_links();
            }
        };
        for root in &mut self.roots {
            forget(&mut root.entry);
            root.below.folders.iter_mut().flatten().for_each(|selected| forget(&mut selected.entry));
        }
    }

    /// Does something with each entry, in whatever order, on several threads where that is worth starting them.
    pub(crate) fn for_each<E: Send>(
        &mut self,
        work: impl Fn(&mut SourceEntry) -> Result<(), E> + Sync + Send,
    ) -> Result<(), E> {
        let count: usize = self.roots.iter().map(|root| 1 + root.below.order.len()).sum();
        if count <= FEW && self.entries().map(SourceEntry::size).sum::<u64>() <= FEW_BYTES {
            return self.roots.iter_mut().try_for_each(|root| {
                work(&mut root.entry)?;
                let mut below = root.below.folders.iter_mut().flatten();
                below.try_for_each(|selected| work(&mut selected.entry))
            });
        }
        self.roots.par_iter_mut().try_for_each(|root| {
            work(&mut root.entry)?;
            let below = root.below.folders.par_iter_mut().flatten();
            below.try_for_each(|selected| work(&mut selected.entry))
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
    pub below: Below,
}

impl SelectedRoot {
    /// The path of something below, from here on.
    pub(crate) fn relative<'a>(&self, below: &'a SelectedEntry) -> &'a [u8] {
        &below.entry.path.as_bytes()[skipped(&self.entry.path)..]
    }
}

/// So many bytes of the paths below a folder are its own path.
fn skipped(folder: &ContextPath) -> usize {
    folder.as_bytes().len() + usize::from(!folder.is_root())
}

/// What is below a folder, in order. There may be a million entries: they stay where the walk put them.
#[derive(Debug, Default)]
pub(crate) struct Below {
    /// What is in each folder that the walk came by.
    folders: Vec<Vec<SelectedEntry>>,
    /// The entries that are selected, by folder and place in it.
    order: Vec<(u32, u32)>,
}

impl Below {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &SelectedEntry> {
        self.order.iter().map(|(folder, place)| &self.folders[*folder as usize][*place as usize])
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// Something below a selected folder.
#[derive(Debug)]
pub(crate) struct SelectedEntry {
    pub entry: SourceEntry,
    /// Whether it is a folder that is not taken itself: it is here for the sake of what is below it.
    pub on_the_way: bool,
    /// Whether it is taken itself, and not only when something below it is.
    shown: bool,
    /// For a folder that is entered: the position of what is in it.
    inside: Option<NonZero<u32>>,
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
        let matched = |root: &SelectedRoot| {
            root.below.iter().any(|selected| matcher.matches(&ContextPath::clean(root.relative(selected))))
        };
        if !selection.roots.iter().any(matched) {
            return Err(unselected(tree, &ContextPath::clean([&source.path, "/", required].concat())));
        }
    }
    // Where else a user's file has names is nothing of the image's.
    if !tree.keeps_owners() {
        selection.forget_lone_links();
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
        return Ok((!excluded).then_some(SelectedRoot { name, entry, below: Below::default() }));
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

/// Everything below a folder. A hidden folder appears only when something below it does.
///
/// Folders of one depth are read at the same time, and no depth overflows the stack (A60).
fn walk(tree: &SourceTree, root: &SourceEntry, filter: &PathFilter) -> Result<Below, SelectError> {
    let skipped = skipped(&root.path);
    let mut folders: Vec<Vec<SelectedEntry>> = Vec::new();
    let mut wave = vec![root.clone()];
    while !wave.is_empty() {
        let read = |folder: &SourceEntry| read_folder(tree, skipped, folder, filter);
        let mut read: Vec<Vec<SelectedEntry>> = match wave.len() <= FEW_FOLDERS {
            true => wave.iter().map(read).collect::<Result<_, SelectError>>()?,
            false => wave.par_iter().map(read).collect::<Result<_, SelectError>>()?,
        };
        wave.clear();
        let next = folders.len() + read.len();
        for selected in read.iter_mut().flatten() {
            if let Some(inside) = &mut selected.inside {
                let position = u32::try_from(next + wave.len()).ok().and_then(NonZero::new);
                *inside = position.expect("no context has so many folders");
                wave.push(selected.entry.clone());
            }
        }
        folders.append(&mut read);
    }
    let order = in_order(&folders);
    Ok(Below { folders, order })
}

/// What is in one folder and may be taken, or lead to something that is. A folder that is entered gets its number later.
fn read_folder(
    tree: &SourceTree,
    skipped: usize,
    folder: &SourceEntry,
    filter: &PathFilter,
) -> Result<Vec<SelectedEntry>, SelectError> {
    let children = tree.children(folder)?;
    let above = ContextPath::clean(folder.path.as_bytes().get(skipped..).unwrap_or_default());
    let mut found = Vec::with_capacity(children.len());
    for entry in children {
        // A socket says nothing once its server is gone; docker skips it too.
        if entry.kind == SourceKind::Other {
            continue;
        }
        let relative = above.join(entry.path.components().last().unwrap_or_default());
        let is_directory = entry.kind == SourceKind::Directory;
        let taken = filter.takes(&relative);
        let shown = tree.hidden(&entry.path).is_none() && taken;
        let entered = is_directory && !tree.prunes(&entry.path) && filter.may_take_below(&relative);
        if shown || entered {
            found.push(SelectedEntry {
                entry,
                on_the_way: !taken,
                shown,
                inside: entered.then_some(NonZero::<u32>::MAX),
            });
        }
    }
    Ok(found)
}

/// A folder that is being gone through.
struct Level {
    folder: u32,
    next: u32,
    /// How many folders were pending when it was entered, itself included.
    pending: usize,
}

/// Parents before children, and folders that are not shown themselves only where something below them is.
fn in_order(folders: &[Vec<SelectedEntry>]) -> Vec<(u32, u32)> {
    let mut found = Vec::with_capacity(folders.iter().map(Vec::len).sum());
    let mut pending: Vec<(u32, u32)> = Vec::new();
    let mut levels = vec![Level { folder: 0, next: 0, pending: 0 }];
    while let Some(Level { folder, next, .. }) = levels.last_mut() {
        let place = (*folder, *next);
        let Some(selected) = folders[place.0 as usize].get(place.1 as usize) else {
            let ended = levels.pop().expect("the loop holds a level");
            pending.truncate(ended.pending.saturating_sub(1));
            continue;
        };
        *next += 1;
        pending.push(place);
        if selected.shown {
            found.append(&mut pending);
        }
        if let Some(inside) = selected.inside {
            levels.push(Level { folder: inside.get(), next: 0, pending: pending.len() });
        } else if !selected.shown {
            pending.pop();
        }
    }
    found
}
