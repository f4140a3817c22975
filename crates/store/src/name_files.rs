//! A second place for names: one small file for each beside the database, from which they are had back when the database
//! is lost.
//!
//! The database decides. A file is written before its row and removed after it, so after a crash there may be a file too
//! many; it matters only to [`crate::rebuild`].

use crate::database::Database;
use crate::opened::Opened;
use crate::{Image, LayerId, StoreError, Target, image_rows};
use forge_image::{Descriptor, ImageId, Platform, Reference};
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
}

impl NameFile {
    pub(crate) fn new(name: &Reference, target: &Target, images: &[Image]) -> Self {
        let image = |image: &Image| ImageFile {
            id: image.id.clone(),
            platform: image.platform.clone(),
            layers: image.layers.clone(),
            manifest: image.manifest.clone(),
            created: image.created.clone(),
            stored: image.stored.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        Self { name: name.to_string(), index: target.index.clone(), images: images.iter().map(image).collect() }
    }

    /// The name and what it stands for; `None` where the file is not one of forge's.
    fn read(path: &Path) -> Option<(Reference, Target, Vec<Image>)> {
        let file: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let images: Vec<Image> = file.images.into_iter().map(ImageFile::image).collect();
        let target = Target { index: file.index, images: images.iter().map(|image| image.id.clone()).collect() };
        Some((file.name.parse().ok()?, target, images))
    }
}

impl ImageFile {
    fn image(self) -> Image {
        let Self { id, platform, layers, manifest, created, stored } = self;
        let stored = UNIX_EPOCH.checked_add(Duration::from_secs(stored)).unwrap_or(UNIX_EPOCH);
        Image { id, platform, layers, manifest, created, stored }
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
            let images =
                target.images.iter().map(|id| image_rows::get(connection, id)).collect::<Result<Vec<_>, _>>()?;
            files.push(NameFile::new(&name, &target, &images.into_iter().flatten().collect::<Vec<_>>()));
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
pub(crate) fn read_all(root: &Path) -> Result<Vec<(Reference, Target, Vec<Image>)>, StoreError> {
    let folder = root.join("names");
    let entries = std::fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut names: Vec<_> = paths.filter_map(|path| NameFile::read(&path)).collect();
    names.sort_by_key(|(name, _, _)| name.to_string());
    Ok(names)
}

/// A name may hold slashes, so its hash becomes the file name.
fn path_of(root: &Path, name: &str) -> PathBuf {
    root.join("names").join(blake3::hash(name.as_bytes()).to_hex().as_str())
}
