//! A second place for names: one small file for each beside the database, from which they are had back when the database
//! is lost.
//!
//! The database decides. A file is written before its row and removed after it, so after a crash there may be a file too
//! many; it matters only to [`crate::rebuild`].

use crate::database::Database;
use crate::opened::Opened;
use crate::{Image, LayerId, RemoteLayer, StoreError, Target, image_rows, remote_rows};
use forge_image::{Descriptor, DiffId, ImageId, Platform, Reference};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// What a name stood for when it was given.
#[derive(Serialize, Deserialize)]
pub(crate) struct NameFile {
    name: String,
    index: Option<Descriptor>,
    images: Vec<ImageFile>,
}

#[derive(Serialize, Deserialize)]
struct ImageFile {
    id: ImageId,
    platform: Platform,
    layers: Vec<LayerId>,
    manifest: Option<Descriptor>,
    created: Option<String>,
    stored: u64,
    /// Those of its layers that a registry has. Files of earlier forges have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remotes: Vec<RemoteFile>,
}

/// Where a layer can be had that may not be here.
#[derive(Serialize, Deserialize)]
struct RemoteFile {
    layer: LayerId,
    parent: Option<LayerId>,
    blob: Descriptor,
    diff_id: DiffId,
    repository: String,
}

/// A name as its file has it.
pub(crate) struct KeptName {
    pub name: Reference,
    pub target: Target,
    pub images: Vec<Image>,
    /// The layers of the images that a registry has, as if none were here.
    pub remotes: Vec<RemoteLayer>,
}

impl NameFile {
    /// What the records say of a name that is about to stand for something.
    pub(crate) fn of_records(connection: &Connection, name: &Reference, target: &Target) -> Result<Self, StoreError> {
        let mut images = Vec::new();
        for id in &target.images {
            let Some(image) = image_rows::get(connection, id)? else { continue };
            let mut remotes = Vec::new();
            for layer in &image.layers {
                remotes.extend(remote_rows::get(connection, layer)?);
            }
            images.push(ImageFile::new(image, remotes));
        }
        Ok(Self { name: name.to_string(), index: target.index.clone(), images })
    }

    /// `None` where the file is not one of forge's.
    fn read(path: &Path) -> Option<KeptName> {
        let mut file: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let remotes = file.images.iter_mut().flat_map(|image| std::mem::take(&mut image.remotes));
        let remotes = remotes.filter_map(RemoteFile::remote).collect();
        let images: Vec<Image> = file.images.into_iter().map(ImageFile::image).collect();
        let target = Target { index: file.index, images: images.iter().map(|image| image.id.clone()).collect() };
        Some(KeptName { name: file.name.parse().ok()?, target, images, remotes })
    }
}

impl ImageFile {
    fn new(image: Image, remotes: Vec<RemoteLayer>) -> Self {
        let remote = |remote: RemoteLayer| RemoteFile {
            layer: remote.layer,
            parent: remote.parent,
            blob: remote.blob,
            diff_id: remote.diff_id,
            repository: remote.repository.to_string(),
        };
        Self {
            id: image.id,
            platform: image.platform,
            layers: image.layers,
            manifest: image.manifest,
            created: image.created,
            stored: image.stored.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            remotes: remotes.into_iter().map(remote).collect(),
        }
    }

    fn image(self) -> Image {
        let Self { id, platform, layers, manifest, created, stored, remotes: _ } = self;
        let stored = UNIX_EPOCH.checked_add(Duration::from_secs(stored)).unwrap_or(UNIX_EPOCH);
        Image { id, platform, layers, manifest, created, stored }
    }
}

impl RemoteFile {
    fn remote(self) -> Option<RemoteLayer> {
        let Self { layer, parent, blob, diff_id, repository } = self;
        Some(RemoteLayer { layer, parent, blob, diff_id, repository: repository.parse().ok()?, absent: true })
    }
}

/// Writes a name's file, whole or not at all.
pub(crate) fn write(opened: &Opened, file: &NameFile) -> Result<(), StoreError> {
    write_by_way_of(&opened.scratch_path("name")?, opened.root(), file)
}

/// Writes the files that a store of an earlier format lacks. Nobody else has the store open.
pub(crate) fn write_all(root: &Path, database: &Database) -> Result<(), StoreError> {
    let files = database.read(|connection| {
        let mut files = Vec::new();
        for (name, target) in image_rows::list_names(connection)? {
            files.push(NameFile::of_records(connection, &name, &target)?);
        }
        Ok(files)
    })?;
    files.iter().try_for_each(|file| write_by_way_of(&root.join("names/new"), root, file))
}

fn write_by_way_of(staged: &Path, root: &Path, file: &NameFile) -> Result<(), StoreError> {
    let path = path_of(root, &file.name);
    let text = serde_json::to_vec(file).expect("these types hold only JSON values");
    // The umask may be as loose as 0.
    let options = File::options().write(true).create(true).truncate(true).mode(0o600).open(staged);
    options.and_then(|mut file| file.write_all(&text)).map_err(StoreError::io("write", staged))?;
    std::fs::rename(staged, &path).map_err(StoreError::io("move into place", &path))
}

/// Removes the file of a name that is gone.
pub(crate) fn remove(opened: &Opened, name: &Reference) -> Result<(), StoreError> {
    let path = path_of(opened.root(), &name.to_string());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// All names that can be read, in the order of their text.
pub(crate) fn read_all(root: &Path) -> Result<Vec<KeptName>, StoreError> {
    let folder = root.join("names");
    let entries = std::fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut names: Vec<_> = paths.filter_map(|path| NameFile::read(&path)).collect();
    names.sort_by_key(|kept| kept.name.to_string());
    Ok(names)
}

/// A name may hold slashes, so its hash becomes the file name.
fn path_of(root: &Path, name: &str) -> PathBuf {
    root.join("names").join(blake3::hash(name.as_bytes()).to_hex().as_str())
}
