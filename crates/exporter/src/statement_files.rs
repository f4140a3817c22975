//! Statements as files beside the files that they are about.

use crate::ExportError;
use crate::attestation::{Attestation, Placement, WrittenSubject};
use crate::tree::{TreeVisitor, walk};
use forge_image::{Digest, Hasher, Platform};
use forge_store::{MergedTree, TreeEntry, TreeKind};
use std::collections::BTreeSet;
use std::io::Read;

/// A statement as a file of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatementFile {
    /// Its name, at the top of the result.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The files of what is said of a result, whose subjects are its regular files. Those that are meant for an index alone are
/// left out. Where several platforms share a folder, names get `platform` before their extension.
///
/// # Errors
/// A file cannot be read, a predicate is no JSON, or names are no file names or the same.
pub fn statement_files(
    tree: &MergedTree,
    attestations: &[Attestation],
    platform: Option<&Platform>,
) -> Result<Vec<StatementFile>, ExportError> {
    let mut wanted = attestations.iter().filter(|one| one.placement == Placement::Everywhere).peekable();
    if wanted.peek().is_none() {
        return Ok(Vec::new());
    }
    let mut subjects = Subjects::default();
    walk(tree, &mut subjects)?;
    let mut taken = BTreeSet::new();
    let mut files = Vec::new();
    for attestation in wanted {
        let name = name_of(&attestation.file_name, platform);
        if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(ExportError::FileName { name });
        }
        if !taken.insert(name.clone()) {
            return Err(ExportError::StatementName { name });
        }
        files.push(StatementFile { name, bytes: attestation.file(&subjects.0)? });
    }
    files.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(files)
}

fn name_of(file_name: &str, platform: Option<&Platform>) -> String {
    let Some(platform) = platform else { return file_name.to_owned() };
    let folder = crate::tree::platform_folder(platform);
    match file_name.rsplit_once('.') {
        Some((stem, extension)) => format!("{stem}.{folder}.{extension}"),
        None => format!("{file_name}.{folder}"),
    }
}

/// The regular files of a tree with their digests.
#[derive(Default)]
struct Subjects(Vec<WrittenSubject>);

impl TreeVisitor for Subjects {
    fn enter(&mut self, entry: &TreeEntry, tree: &MergedTree) -> Result<(), ExportError> {
        if let TreeKind::File { .. } = entry.kind {
            let path = entry.path.strip_prefix("/").unwrap_or(&entry.path).to_string_lossy().into_owned();
            let digest = digest(entry, tree)?;
            self.0.push(WrittenSubject::new(path, &[digest.to_string()]));
        }
        Ok(())
    }

    fn leave(&mut self, _: &TreeEntry) -> Result<(), ExportError> {
        Ok(())
    }
}

fn digest(entry: &TreeEntry, tree: &MergedTree) -> Result<Digest, ExportError> {
    let mut file = tree.open(&entry.path).map_err(ExportError::store("read the image's files"))?;
    let failed = |source| ExportError::Write { path: entry.path.clone(), source };
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 64 << 10]);
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_platform_before_the_extension() {
        assert_eq!(name_of("p.provenance.json", None), "p.provenance.json");
        let platform = "linux/arm64".parse().unwrap();
        assert_eq!(name_of("sbom.spdx.json", Some(&platform)), "sbom.spdx.linux_arm64.json");
    }
}
