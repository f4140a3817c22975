//! The files of an image archive or folder, and the two ways to write them.

use crate::package::{Bundle, Document, GZIP};
use crate::tar_stream::TarStream;
use crate::timestamp::Timestamp;
use crate::{ExportError, ExportSettings};
use forge_image::{Descriptor, Digest, Index, MediaType, Reference};
use forge_registry::{IMAGE_NAME, REF_NAME, TransferContext};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where an archive is written to.
pub enum LayoutDestination {
    /// A folder; made if missing. Images that an OCI layout there already has stay in it.
    Folder(PathBuf),
    /// A tar archive, written into the stream.
    Archive(Box<dyn Write + Send>),
}

impl std::fmt::Debug for LayoutDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => f.debug_tuple("Folder").field(path).finish(),
            Self::Archive(_) => f.write_str("Archive"),
        }
    }
}

/// When an image was made, among the annotations of the specification.
const CREATED: &str = "org.opencontainers.image.created";

pub(crate) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// What a file of a layout holds.
enum Content {
    Bytes(Vec<u8>),
    Blob { digest: Digest, size: u64 },
}

/// The files by path, in the order in which they are written.
#[derive(Default)]
pub(crate) struct Layout {
    files: BTreeMap<String, Content>,
    index: Vec<Descriptor>,
}

impl Layout {
    pub(crate) fn add_bytes(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), Content::Bytes(bytes));
    }

    fn add_document(&mut self, document: &Document) {
        self.add_bytes(&blob_path(&document.descriptor.digest), document.bytes.clone());
    }

    /// Adds the blobs and documents of images, and one entry of `index.json` for each of their names.
    pub(crate) fn add_bundle(&mut self, bundle: &Bundle, names: &[Reference]) {
        for document in bundle.documents() {
            self.add_document(document);
        }
        for package in &bundle.packages {
            for layer in &package.layers {
                let content = Content::Blob { digest: layer.digest.clone(), size: layer.size };
                self.files.insert(blob_path(&layer.digest), content);
            }
        }
        if let Some(index) = &bundle.index {
            self.add_document(index);
        }
        match names {
            [] => self.index.push(bundle.root.clone()),
            names => self.index.extend(names.iter().map(|name| named(&bundle.root, name))),
        }
    }

    /// Leaves blobs out that the reader has.
    pub(crate) fn leave_out(&mut self, blobs: &BTreeSet<Digest>) {
        for blob in blobs {
            self.files.remove(&blob_path(blob));
        }
    }

    pub(crate) fn write(
        mut self,
        context: &TransferContext,
        destination: LayoutDestination,
    ) -> Result<(), ExportError> {
        self.add_bytes("oci-layout", OCI_LAYOUT.to_vec());
        match destination {
            LayoutDestination::Folder(folder) => self.write_folder(context, &folder),
            LayoutDestination::Archive(stream) => self.write_archive(context, stream),
        }
    }

    fn write_archive(mut self, context: &TransferContext, stream: Box<dyn Write + Send>) -> Result<(), ExportError> {
        let index = index_json(std::mem::take(&mut self.index));
        self.add_bytes("index.json", index);
        let mut tar = TarStream::new(std::io::BufWriter::with_capacity(1 << 20, stream));
        let mut folders = BTreeSet::new();
        for (path, content) in &self.files {
            for folder in parents(path) {
                if folders.insert(folder.to_owned()) {
                    tar.plain_folder(folder).map_err(ExportError::WriteStream)?;
                }
            }
            let (size, mut data) = open(context, content)?;
            tar.plain_file(path, size, &mut data).map_err(ExportError::WriteStream)?;
        }
        tar.finish().map_err(ExportError::WriteStream)
    }

    /// `index.json` comes last, so that whoever reads the folder meanwhile finds all that it names (F04).
    fn write_folder(self, context: &TransferContext, folder: &Path) -> Result<(), ExportError> {
        for (path, content) in &self.files {
            let path = folder.join(path);
            replace_file(&path, |file| match content {
                Content::Bytes(bytes) => file.write_all(bytes).map_err(write_failed(&path)),
                // From file to file the kernel copies, or shares the blocks.
                Content::Blob { digest, .. } => {
                    std::io::copy(&mut open_blob(context, digest)?, file).map(drop).map_err(write_failed(&path))
                }
            })?;
        }
        add_to_index(folder, self.index)
    }
}

/// Lists images in the index of a folder; those that it has stay.
pub(crate) fn add_to_index(folder: &Path, images: Vec<Descriptor>) -> Result<(), ExportError> {
    let kept = existing_entries(folder)?.into_iter().filter(|old| !replaces(&images, old));
    let index = index_json(kept.chain(images.clone()).collect());
    let path = folder.join("index.json");
    replace_file(&path, |file| file.write_all(&index).map_err(write_failed(&path)))
}

/// A name points at one image; an image without a name is listed once.
fn replaces(images: &[Descriptor], old: &Descriptor) -> bool {
    let name = |entry: &Descriptor| {
        let annotation = entry.annotations.get(IMAGE_NAME).or(entry.annotations.get(REF_NAME));
        annotation.and_then(|name| name.as_str()).map(str::to_owned)
    };
    images.iter().any(|new| match (name(old), name(new)) {
        (Some(old), Some(new)) => old == new,
        (None, None) => old.digest == new.digest,
        _ => false,
    })
}

pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn named(root: &Descriptor, name: &Reference) -> Descriptor {
    let mut entry = root.clone();
    entry.annotations.insert(IMAGE_NAME.to_owned(), name.to_string().into());
    if let Some(tag) = name.tag() {
        entry.annotations.insert(REF_NAME.to_owned(), tag.into());
    }
    entry
}

fn index_json(manifests: Vec<Descriptor>) -> Vec<u8> {
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests,
        annotations: Default::default(),
        unknown: Default::default(),
    };
    index.to_json()
}

fn existing_entries(folder: &Path) -> Result<Vec<Descriptor>, ExportError> {
    let path = folder.join("index.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ExportError::Write { path, source }),
    };
    let index = Index::from_json(&bytes, None)
        .map_err(|source| ExportError::Document { what: path.display().to_string(), source })?;
    Ok(index.manifests)
}

fn open<'a>(context: &TransferContext, content: &'a Content) -> Result<(u64, Box<dyn Read + 'a>), ExportError> {
    match content {
        Content::Bytes(bytes) => Ok((bytes.len() as u64, Box::new(bytes.as_slice()))),
        Content::Blob { digest, size } => Ok((*size, Box::new(open_blob(context, digest)?))),
    }
}

fn open_blob(context: &TransferContext, digest: &Digest) -> Result<File, ExportError> {
    context.store.blobs().open(digest).map_err(ExportError::store("open a blob"))
}

pub(crate) fn write_failed(path: &Path) -> impl Fn(std::io::Error) -> ExportError {
    move |source| ExportError::Write { path: path.to_owned(), source }
}

/// Writes beside and renames, so that no reader meets half a file.
pub(crate) fn replace_file(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let failed = write_failed(path);
    let folder = path.parent().expect("a file of a layout lies in its folder");
    std::fs::create_dir_all(folder).map_err(&failed)?;
    let partial = partial_path(path);
    let mut file = File::create(&partial).map_err(&failed)?;
    let placed = fill(&mut file).and_then(|()| std::fs::rename(&partial, path).map_err(&failed));
    if placed.is_err() {
        // The first failure is the one to be told.
        let _ = std::fs::remove_file(&partial);
    }
    placed
}

/// A name that no other writer has, in this process or another.
fn partial_path(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().expect("a file of a layout has a name").to_owned();
    name.push(format!(".{}-{}.partial", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Writes images as an OCI layout (image-spec `image-layout.md`), in a folder or as tar. Names become
/// annotations as containerd writes them. Several platforms become an index.
///
/// # Errors
/// A layer is gone, or the destination cannot be written; an archive may then be half written.
pub async fn to_oci(
    context: &TransferContext,
    images: &crate::ImageSet,
    settings: &ExportSettings,
    destination: LayoutDestination,
) -> Result<crate::Exported, ExportError> {
    let mut bundle = Bundle::of(context, images, settings, GZIP).await?;
    if let Some(epoch) = settings.source_date_epoch {
        // As BuildKit notes it; without an epoch it would be the time of the export, which no second one repeats.
        let created = Timestamp::of_epoch(epoch)?.to_string();
        bundle.root.annotations.entry(CREATED.to_owned()).or_insert_with(|| created.into());
    }
    let exported = crate::Exported::of(&bundle, &settings.names);
    let (context, names) = (context.clone(), settings.names.clone());
    crate::work::blocking(move || {
        let mut layout = Layout::default();
        layout.add_bundle(&bundle, &names);
        layout.write(&context, destination)
    })
    .await?;
    Ok(exported)
}
