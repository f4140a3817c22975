//! OCI image layouts in folders (image-spec `image-layout.md`), read as sources of images.

use crate::blob_fetch::blocking;
use crate::resolve_image::describe_document;
use crate::{
    FetchError, ImageSource, MAX_MANIFEST, Pulled, ResolvedImage, TransferContext, fetch_layers, resolve_root,
};
use async_trait::async_trait;
use forge_image::{Annotations, Descriptor, Digest, Index, Platform};
use forge_store::BlobWriter;
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The annotation of an entry of `index.json` that holds its tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation of an entry of `index.json` that holds its whole name, as containerd writes it.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// Which image of a layout is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutName {
    /// The one of that tag, or of that whole name.
    Tag(String),
    /// The manifest or index of that digest, whether `index.json` lists it or not.
    Digest(Digest),
    /// The only one; of several the one tagged `latest`.
    Default,
}

impl fmt::Display for LayoutName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
            Self::Default => f.write_str("\"latest\""),
        }
    }
}

/// A folder that holds an OCI image layout: `oci-layout`, `index.json`, `blobs/<algorithm>/<hex>`.
///
/// Files are opened without waiting for pipes or devices, and nothing in them is believed before it is verified.
#[derive(Clone, Debug)]
pub struct OciLayout {
    directory: PathBuf,
}

impl OciLayout {
    /// Opens a layout and checks its version.
    ///
    /// # Errors
    /// The folder is no layout of version 1.
    pub fn open(directory: &Path) -> Result<Self, FetchError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let layout = Self { directory: directory.to_owned() };
        let marker = layout.read("oci-layout")?;
        match serde_json::from_slice::<Marker>(&marker) {
            Ok(marker) if marker.image_layout_version.starts_with("1.") => Ok(layout),
            Ok(marker) => Err(layout.invalid(format!("version {:?} is not 1", marker.image_layout_version))),
            Err(error) => Err(layout.invalid(format!("malformed oci-layout: {error}"))),
        }
    }

    /// The entries of `index.json`.
    ///
    /// # Errors
    /// The file cannot be read, or is no index.
    pub fn index(&self) -> Result<Index, FetchError> {
        let bytes = self.read("index.json")?;
        Index::from_json(&bytes, None).map_err(|source| FetchError::Document { digest: Digest::sha256(&bytes), source })
    }

    /// Finds a manifest or index by its name in the layout.
    ///
    /// # Errors
    /// The layout has no such image, or is malformed.
    pub fn find(&self, name: &LayoutName) -> Result<Descriptor, FetchError> {
        if let LayoutName::Digest(digest) = name {
            return self.find_digest(digest);
        }
        let entries = self.index()?.manifests;
        let chosen = match (name, entries.as_slice()) {
            (LayoutName::Default, [only]) => Some(only),
            (LayoutName::Tag(tag), all) => all.iter().find(|entry| is_named(&entry.annotations, tag)),
            (_, all) => all.iter().find(|entry| is_named(&entry.annotations, "latest")),
        };
        chosen.cloned().ok_or_else(|| FetchError::LayoutName {
            path: self.directory.clone(),
            wanted: name.to_string(),
            available: entries.iter().filter_map(|entry| annotation(&entry.annotations, REF_NAME)).collect(),
        })
    }

    fn find_digest(&self, digest: &Digest) -> Result<Descriptor, FetchError> {
        if let Some(entry) = self.index()?.manifests.into_iter().find(|entry| entry.digest == *digest) {
            return Ok(entry);
        }
        let bytes = self.read_file(&self.blob_path(digest), MAX_MANIFEST)?;
        let found = describe_document(&bytes);
        Ok(Descriptor { digest: digest.clone(), ..found })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, FetchError> {
        self.read_file(&self.directory.join(name), MAX_MANIFEST)
    }

    fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>, FetchError> {
        let failed = |source| FetchError::LayoutFile { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = open_regular(path).map_err(failed)?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(self.invalid(format!("{} has more than {limit} bytes", path.display())));
        }
        Ok(bytes)
    }

    fn invalid(&self, reason: String) -> FetchError {
        FetchError::LayoutFormat { path: self.directory.clone(), reason }
    }
}

/// Opens a regular file without ever waiting: a pipe in its place must not hang the build (A14).
fn open_regular(path: &Path) -> std::io::Result<File> {
    let file: File = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?.into();
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn annotation(annotations: &Annotations, key: &str) -> Option<String> {
    annotations.get(key).and_then(|value| value.as_str()).map(str::to_owned)
}

fn is_named(annotations: &Annotations, name: &str) -> bool {
    [REF_NAME, IMAGE_NAME].iter().any(|key| annotations.get(*key).is_some_and(|value| value == name))
}

#[async_trait]
impl ImageSource for OciLayout {
    async fn manifest(&self, _: &TransferContext, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError> {
        let (layout, path) = (self.clone(), self.blob_path(&descriptor.digest));
        blocking(move || layout.read_file(&path, MAX_MANIFEST)).await
    }

    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        mut into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let (path, lease, size) = (self.blob_path(&descriptor.digest), context.lease.clone(), descriptor.size);
        blocking(move || {
            let failed = |source| FetchError::LayoutFile { path: path.clone(), source };
            copy_bounded(open_regular(&path).map_err(failed)?, &mut into, size).map_err(failed)?;
            let keep = |source| FetchError::Store { action: "keep a blob", source };
            into.finish(&lease).map(drop).map_err(keep)
        })
        .await?;
        progress(size);
        Ok(())
    }
}

/// Copies at most one byte more than announced, which is enough for the writer to refuse it.
fn copy_bounded(from: impl Read, into: &mut impl Write, size: u64) -> std::io::Result<()> {
    std::io::copy(&mut from.take(size.saturating_add(1)), into).map(drop)
}

/// Finds the image that a layout has under a name for a platform. Copies manifest and config into the store.
///
/// # Errors
/// The layout has no such image, or its documents are refused.
pub async fn resolve_oci_layout(
    context: &TransferContext,
    directory: &Path,
    name: &LayoutName,
    platform: &Platform,
) -> Result<ResolvedImage, FetchError> {
    let (directory, name) = (directory.to_owned(), name.clone());
    let (layout, root) = blocking(move || {
        let layout = OciLayout::open(&directory)?;
        let root = layout.find(&name)?;
        Ok((layout, root))
    })
    .await?;
    resolve_root(context, &layout, root, platform).await
}

/// Has an image of a layout in the store with its layers, held by the lease; gives it no name. For base images.
///
/// # Errors
/// As [`resolve_oci_layout`], or a blob is missing or not what its descriptor says.
pub async fn from_oci_layout(
    context: &TransferContext,
    directory: &Path,
    name: &LayoutName,
    platform: &Platform,
) -> Result<Pulled, FetchError> {
    let resolved = resolve_oci_layout(context, directory, name, platform).await?;
    let source: Arc<dyn ImageSource> = Arc::new(OciLayout { directory: directory.to_owned() });
    let layers = fetch_layers(context, &source, &resolved).await?;
    Ok(Pulled { resolved, layers })
}
