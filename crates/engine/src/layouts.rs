//! Folders with blobs, for whoever hands them to a builder elsewhere.

use crate::EngineError;
use forge_cache::remote::LayoutRecords;
use forge_image::{Descriptor, Digest, ErrorKind};
use forge_registry::{LayoutName, OciLayout};
use std::path::{Path, PathBuf};

/// The digest of an image in an OCI image layout. Blocks.
///
/// # Errors
/// The folder is no layout, or has no such image.
pub fn layout_digest(folder: &Path, tag: Option<&str>, digest: Option<&Digest>) -> Result<Digest, EngineError> {
    let name = match (digest, tag) {
        (Some(digest), _) => LayoutName::Digest(digest.clone()),
        (None, Some(tag)) => LayoutName::Tag(tag.to_owned()),
        (None, None) => LayoutName::Default,
    };
    Ok(OciLayout::open(folder)?.find(&name)?.digest)
}

/// A shared cache in a folder, of which one document names all (`type=local`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderCache {
    /// The folder, an OCI image layout.
    pub folder: PathBuf,
    /// Tells several caches in it apart.
    pub tag: String,
}

impl FolderCache {
    /// The document; `None` where there is none, or no folder. Blocks.
    pub fn digest(&self) -> Option<Digest> {
        Some(self.records().ok()?.bundle_descriptor()?.digest)
    }

    /// Has the tag name a document that is in the folder. Blocks.
    ///
    /// # Errors
    /// The tag is none, or the folder cannot be written.
    pub fn name(&self, document: &Descriptor) -> Result<(), EngineError> {
        Ok(self.records()?.name_bundle(document)?)
    }

    fn records(&self) -> Result<LayoutRecords, EngineError> {
        let refused = || EngineError::new(ErrorKind::UserInput, format!("the cache's tag {:?} is invalid", self.tag));
        LayoutRecords::new(&self.folder, &self.tag).ok_or_else(refused)
    }
}
