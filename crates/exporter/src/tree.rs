//! Walks the merged tree of a stack of layers, for the exporters that write plain files.

use crate::{Attestation, ExportError, StatementFile, statement_files};
use forge_image::Platform;
use forge_registry::TransferContext;
use forge_store::{LayerId, MergedTree, TreeEntry, TreeKind};
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The file tree of one platform.
#[derive(Clone, Debug)]
pub struct BuiltTree {
    /// What it is for.
    pub platform: Platform,
    /// Its layers, lowest first.
    pub layers: Vec<LayerId>,
    /// What is said of it.
    pub attestations: Vec<Attestation>,
}

/// Takes a tree, entry by entry. A folder is entered before and left after what is in it.
pub(crate) trait TreeVisitor {
    fn enter(&mut self, entry: &TreeEntry, tree: &MergedTree) -> Result<(), ExportError>;
    fn leave(&mut self, folder: &TreeEntry) -> Result<(), ExportError>;
}

enum Step {
    Enter(TreeEntry),
    Leave(TreeEntry),
}

/// Visits everything below the root in the order of names. Not recursive: a tree may be deeper than a stack (A60).
pub(crate) fn walk(tree: &MergedTree, visitor: &mut dyn TreeVisitor) -> Result<(), ExportError> {
    let mut steps = Vec::new();
    let root = Path::new("/");
    // An image without layers has not even a root.
    if tree.lookup(root).map_err(ExportError::store("read the image's files"))?.is_some() {
        push_children(tree, root, &mut steps)?;
    }
    while let Some(step) = steps.pop() {
        match step {
            Step::Leave(folder) => visitor.leave(&folder)?,
            Step::Enter(entry) => {
                check_name(&entry)?;
                visitor.enter(&entry, tree)?;
                if matches!(entry.kind, TreeKind::Directory) {
                    let path = entry.path.clone();
                    steps.push(Step::Leave(entry));
                    push_children(tree, &path, &mut steps)?;
                }
            }
        }
    }
    Ok(())
}

fn push_children(tree: &MergedTree, folder: &Path, steps: &mut Vec<Step>) -> Result<(), ExportError> {
    let children = tree.children(folder).map_err(ExportError::store("read the image's files"))?;
    steps.extend(children.into_iter().rev().map(Step::Enter));
    Ok(())
}

/// The store only hands out names that are file names; that nothing else is written is checked where it is written.
fn check_name(entry: &TreeEntry) -> Result<(), ExportError> {
    let name = entry.name.as_bytes();
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(ExportError::FileName { name: name.escape_ascii().to_string() });
    }
    Ok(())
}

/// What an entry shares with the other names of the same node.
pub(crate) fn link_group(entry: &TreeEntry) -> Option<(u64, u64)> {
    (entry.links > 1 && !entry.is_directory()).then_some(entry.inode)
}

/// Opens a tree, its layers held.
pub(crate) fn open(context: &TransferContext, layers: &[LayerId]) -> Result<MergedTree, ExportError> {
    for layer in layers {
        crate::assemble::held_record(context, layer)?;
    }
    context.store.layers().tree(layers).map_err(ExportError::store("read the image's files"))
}

/// Opens several trees; where they are written into one another, they must not have the same files.
pub(crate) fn open_all(
    context: &TransferContext,
    trees: &[BuiltTree],
    folders: PlatformFolders,
) -> Result<Vec<MergedTree>, ExportError> {
    let merged = trees.iter().map(|tree| open(context, &tree.layers)).collect::<Result<Vec<_>, _>>()?;
    if folders == PlatformFolders::Never {
        check_apart(&merged)?;
    }
    Ok(merged)
}

/// Whether each platform gets a folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformFolders {
    /// Also a single one.
    Always,
    /// All are written into one another; a path that two of them have must be a folder in both.
    Never,
}

impl PlatformFolders {
    /// What is done where nobody says: several platforms get folders.
    pub fn for_platforms(count: usize) -> Self {
        if count > 1 { Self::Always } else { Self::Never }
    }
}

/// The folder of each tree: none, or `os_architecture[_variant]`.
pub(crate) fn folders(trees: &[BuiltTree], folders: PlatformFolders) -> Result<Vec<Option<String>>, ExportError> {
    if folders == PlatformFolders::Never {
        return Ok(vec![None; trees.len()]);
    }
    let mut seen = HashSet::new();
    let unique = |tree: &BuiltTree| {
        let folder = platform_folder(&tree.platform);
        match seen.insert(folder.clone()) {
            true => Ok(Some(folder)),
            false => Err(ExportError::PlatformFolder { folder }),
        }
    };
    trees.iter().map(unique).collect()
}

/// The files of what is said of each tree.
pub(crate) fn statements(
    trees: &[BuiltTree],
    merged: &[MergedTree],
    folders: PlatformFolders,
) -> Result<Vec<Vec<StatementFile>>, ExportError> {
    let share = trees.len() > 1 && folders == PlatformFolders::Never;
    let of = |(tree, merged): (&BuiltTree, &MergedTree)| {
        statement_files(merged, &tree.attestations, share.then_some(&tree.platform))
    };
    trees.iter().zip(merged).map(of).collect()
}

/// Refuses trees that are written into one another and have a file of the same path.
fn check_apart(trees: &[MergedTree]) -> Result<(), ExportError> {
    if let [_] = trees {
        return Ok(());
    }
    let mut seen = HashSet::new();
    trees.iter().try_for_each(|tree| walk(tree, &mut Apart { seen: &mut seen }))
}

struct Apart<'a> {
    seen: &'a mut HashSet<PathBuf>,
}

impl TreeVisitor for Apart<'_> {
    fn enter(&mut self, entry: &TreeEntry, _: &MergedTree) -> Result<(), ExportError> {
        match entry.is_directory() || self.seen.insert(entry.path.clone()) {
            true => Ok(()),
            false => Err(ExportError::SamePath { path: entry.path.clone() }),
        }
    }

    fn leave(&mut self, _: &TreeEntry) -> Result<(), ExportError> {
        Ok(())
    }
}

/// A platform's words come from foreign documents: only letters, digits and `_ - .` get into a file name, and never
/// a leading dot (A30).
pub(crate) fn platform_folder(platform: &Platform) -> String {
    let safe = |char: char| if char.is_ascii_alphanumeric() || matches!(char, '-' | '.') { char } else { '_' };
    let name: String = platform.to_string().chars().map(safe).collect();
    match name.starts_with('.') {
        true => format!("_{name}"),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
            ..Platform::host()
        }
    }

    // Seen to fail with the platform's text used as it is, only `/` replaced.
    #[test]
    fn a30_platforms_become_plain_folder_names() {
        let check = |platform: Platform, expect: &str| assert_eq!(platform_folder(&platform), expect);
        check(platform("linux", "amd64", None), "linux_amd64");
        check(platform("linux", "arm", Some("v7")), "linux_arm_v7");
        check(platform("linux", "../../../x", None), "linux_.._.._.._x");
        check(platform("..", "..", Some("\\:\0\n")), "_.._.._____");
        check(platform("", "", None), "_");
        check(platform("é", "x y", None), "__x_y");
    }

    #[test]
    fn a30_platforms_do_not_share_a_folder() {
        let tree = |platform| BuiltTree { platform, layers: Vec::new(), attestations: Vec::new() };
        let trees = [tree(platform("a", "b", None)), tree(platform("a", "b/", None)), tree(platform("a", "b_", None))];
        let always = PlatformFolders::Always;
        assert!(matches!(folders(&trees, always), Err(ExportError::PlatformFolder { .. })));
        assert_eq!(folders(&trees[..2], always).unwrap(), [Some("a_b".into()), Some("a_b_".into())]);
        assert_eq!(folders(&trees, PlatformFolders::Never).unwrap(), [None, None, None]);
        assert_eq!(PlatformFolders::for_platforms(1), PlatformFolders::Never);
    }
}
