//! Archives that are unpacked for their files, not as layers.

use super::entry::EntryKind;
use super::error::{LayerError, shown};
use super::limits::UnpackLimits;
use super::root::Root;
use super::tar_reader::TarReader;
use super::tree::MergedTree;
use super::unpack::{self, UnpackError};
use super::{LayerIndex, Layers};
use crate::{ScratchDir, StoreError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of an archive, in a private folder that goes when this is dropped.
pub struct Extracted {
    tree: MergedTree,
    files: PathBuf,
    /// A device that could not be made: the tree has it, the folder has not.
    missing: Option<String>,
    // Dropped last: the tree reads from it.
    _folder: ScratchDir,
}

impl Extracted {
    /// The files, with owners, modes, times and attributes as the archive has them.
    pub fn tree(&self) -> &MergedTree {
        &self.tree
    }

    /// The folder that holds the files, and nothing else.
    ///
    /// # Errors
    /// There are devices among them that could not be made: whoever reads the folder would not see that they are missing.
    pub fn folder(&self) -> Result<&Path, StoreError> {
        let what = "a device node, which nobody can make without being root of the machine";
        match &self.missing {
            Some(path) => Err(LayerError::UnsupportedEntry { path: path.clone(), what }.into()),
            None => Ok(&self.files),
        }
    }
}

/// The first device that is not in the folder.
fn missing(index: &LayerIndex, files: &Path) -> Result<Option<String>, StoreError> {
    let is_device = |kind: &EntryKind| matches!(kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. });
    let Some(device) = index.entries().iter().find(|entry| is_device(&entry.kind)) else { return Ok(None) };
    match std::fs::symlink_metadata(files.join(device.path())) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(shown(&device.path))),
        other => other.map(|_| None).map_err(StoreError::io("inspect", files)),
    }
}

impl Layers {
    /// Unpacks an uncompressed tar into a private folder, by the rules for strangers' layers: nothing is written
    /// outside of it, whatever the tar says (A38). Names that mean a deletion in a layer are left out, since no layer
    /// could hold them as files. `packed` says how many bytes the archive has while it is compressed, or how many of them
    /// were read so far.
    ///
    /// # Errors
    /// The tar is malformed, hostile or beyond the limits; it cannot be read, or the folder not be written.
    pub fn extract(&self, tar: &mut dyn Read, packed: &dyn Fn() -> u64) -> Result<Extracted, StoreError> {
        let tar = Bounded { tar, unpacked: 0, packed, limits: self.limits };
        let folder = self.opened.scratch("extract")?;
        let below = folder.path().join("below");
        let files = folder.path().join("files");
        crate::scratch::create_private(&below)?;
        crate::scratch::create_private(&files)?;
        let index = self.extract_into(tar, &MergedTree::new(vec![below])?, &files)?;
        let missing = missing(&index, &files)?;
        let tree = match missing {
            Some(_) => MergedTree::of(vec![Arc::new(Root::of_unpacked(files.clone(), index))]),
            None => MergedTree::new(vec![files.clone()])?,
        };
        Ok(Extracted { tree, files, missing, _folder: folder })
    }

    fn extract_into(&self, tar: Bounded<'_>, below: &MergedTree, files: &Path) -> Result<LayerIndex, StoreError> {
        let mut reader = TarReader::new(tar, self.limits);
        unpack::unpack(&mut reader, below, files).map_err(|error| match error {
            UnpackError::Store(error) => error,
            UnpackError::Source(source) => match source.downcast::<LayerError>() {
                Ok(limit) => limit.into(),
                Err(source) => LayerError::Unreadable { source }.into(),
            },
        })
    }
}

/// A tar that ends with an error, a [`LayerError`], once it is beyond the limits.
struct Bounded<'a> {
    tar: &'a mut dyn Read,
    unpacked: u64,
    packed: &'a dyn Fn() -> u64,
    limits: UnpackLimits,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.tar.read(buffer)?;
        self.unpacked += count as u64;
        self.limits.check_bytes(self.unpacked, (self.packed)()).map_err(io::Error::other)?;
        Ok(count)
    }
}
