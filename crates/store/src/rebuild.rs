//! A new database from what is on disk, where the old one is lost (F19).
//!
//! Everything but the database describes itself: blobs by their names, layers by their indexes and, where they are
//! foreign, by the file `origin`; the files in `names` say what names stood for. Nothing is taken on trust: every blob is hashed
//! and every tree compared with its index.

use crate::blobs::hash_of;
use crate::collect::names_in;
use crate::database::Database;
use crate::layer_rows::{self, index_checksum};
use crate::layers::{LayerIndex, Origin, check_layer, record_of};
use crate::name_files::KeptName;
use crate::{
    ContentDigest, FileTimes, Image, LayerId, LayerRecord, RemoteLayer, StoreError, blobs, image_rows, name_files,
    remote_rows,
};
use forge_image::{ChainId, Digest, Reference};
use rusqlite::Transaction;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a new database could be made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Where the old database lies now, if there was one.
    pub set_aside: Option<PathBuf>,
    /// How many blobs were found whole.
    pub blobs: u64,
    /// How many layers were found whole.
    pub layers: u64,
    /// The names that stand for what they stood for.
    pub names: Vec<Reference>,
    /// The names whose images are not whole: to be pulled or built again.
    pub lost: Vec<Reference>,
}

/// Sets a database that cannot be used aside, and makes a new one; `still_damaged` is asked once nobody else can be doing
/// the same.
///
/// # Errors
/// Another process has the store open, or the file system failed; the damaged database is then where it was.
pub(crate) fn rebuild(root: &Path, still_damaged: impl FnOnce() -> bool) -> Result<Option<Rebuilt>, StoreError> {
    let folder = File::open(root).map_err(StoreError::io("open", root))?;
    flock(&folder, FlockOperation::LockExclusive).map_err(StoreError::os("lock", root))?;
    if !still_damaged() {
        return Ok(None);
    }
    require_alone(root, None)?;
    let new = root.join("forge.db.new");
    remove_database(&new)?;
    let mut rebuilt = fill(root, &new)?;
    rustix::fs::syncfs(&folder).map_err(StoreError::os("sync the file system of", root))?;
    rebuilt.set_aside = set_aside(root)?;
    let path = root.join("forge.db");
    std::fs::rename(&new, &path).map_err(StoreError::io("move into place", &path))?;
    folder.sync_all().map_err(StoreError::io("sync", root))?;
    Ok(Some(rebuilt))
}

/// Sets the database aside, so that whoever opens the store next makes a new one. `own` is how the caller, who is to use the
/// store no more, is known in it.
pub(crate) fn discard(root: &Path, own: &str) -> Result<Option<PathBuf>, StoreError> {
    let folder = File::open(root).map_err(StoreError::io("open", root))?;
    flock(&folder, FlockOperation::LockExclusive).map_err(StoreError::os("lock", root))?;
    require_alone(root, Some(own))?;
    set_aside(root)
}

/// A running process would go on writing into the database that is set aside.
fn require_alone(root: &Path, own: Option<&str>) -> Result<(), StoreError> {
    let leases = root.join("leases");
    for entry in std::fs::read_dir(&leases).map_err(StoreError::io("list", &leases))? {
        let path = entry.map_err(StoreError::io("list", &leases))?.path();
        let Ok(file) = File::open(&path) else { continue };
        let is_own = own.is_some_and(|own| path.file_name().is_some_and(|name| name == own));
        if !is_own && flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(StoreError::DatabaseInUse { path: root.join("forge.db") });
        }
    }
    Ok(())
}

fn fill(root: &Path, new: &Path) -> Result<Rebuilt, StoreError> {
    crate::format::create_database(new)?;
    let database = Database::open(new)?;
    let mut rebuilt = Rebuilt::default();
    database.write_durably(|transaction| {
        rebuilt.blobs = add_blobs(transaction, root)?;
        rebuilt.layers = add_layers(transaction, root)?;
        for kept in name_files::read_all(root)? {
            match add_name(transaction, &kept) {
                Ok(()) => rebuilt.names.push(kept.name),
                Err(StoreError::LayerNotFound { .. } | StoreError::BlobNotFound { .. }) => rebuilt.lost.push(kept.name),
                Err(StoreError::ImageNotFound { .. }) => rebuilt.lost.push(kept.name),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    })?;
    database.close_into_one_file()?;
    Ok(rebuilt)
}

fn add_blobs(transaction: &Transaction<'_>, root: &Path) -> Result<u64, StoreError> {
    let mut count = 0;
    for algorithm in ["sha256", "sha512"] {
        for name in names_in(&root.join("blobs").join(algorithm))? {
            let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>() else { continue };
            let path = root.join("blobs").join(algorithm).join(&name);
            let Some(size) = size_if_whole(&path, &digest) else { continue };
            blobs::insert_durable(transaction, &digest, size)?;
            count += 1;
        }
    }
    Ok(count)
}

fn size_if_whole(path: &Path, digest: &Digest) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    (hash_of(&mut file, digest).ok()? == *digest).then_some(metadata.len())
}

fn add_layers(transaction: &Transaction<'_>, root: &Path) -> Result<u64, StoreError> {
    let mut count = 0;
    for name in names_in(&root.join("layers"))? {
        let Ok(id) = name.parse::<LayerId>() else { continue };
        let folder = root.join("layers").join(id.as_str());
        let Some((record, checksum)) = record_if_whole(id, &folder) else { continue };
        let origin = Origin::read(&folder);
        if let Some(origin) = &origin
            && blobs::row(transaction, &origin.descriptor.digest)?.is_none()
        {
            // Without the blob the layer could not be sent as it came.
            continue;
        }
        let chain = origin.as_ref().and_then(|origin| origin.chain.as_ref());
        layer_rows::insert_durable(transaction, &record, &checksum, chain)?;
        count += 1;
    }
    Ok(count)
}

fn record_if_whole(id: LayerId, folder: &Path) -> Option<(LayerRecord, String)> {
    let path = folder.join("index");
    let index = LayerIndex::decode(&std::fs::read(&path).ok()?).ok()?;
    let check = check_layer(folder, &index).ok()?;
    if !check.faults.is_empty() {
        return None;
    }
    let origin = Origin::read(folder);
    let record = LayerRecord {
        id,
        content: origin
            .as_ref()
            .map_or_else(|| index.content_digest(&FileTimes::Content), |it| ContentDigest::of_tar(&it.diff_id)),
        // When a step ran is not on disk: that nothing is found by this digest any more is safe.
        times: FileTimes::Content,
        bytes: index.bytes(),
        entries: index.changes(),
        diff_id: origin.as_ref().map(|origin| origin.diff_id.clone()),
        foreign: origin.is_some(),
        blobs: origin.iter().map(Origin::blob).collect(),
    };
    Some((record, index_checksum(&path).ok()??))
}

fn add_name(transaction: &Transaction<'_>, kept: &KeptName) -> Result<(), StoreError> {
    for image in &kept.images {
        add_remotes(transaction, image, &kept.remotes)?;
        image_rows::insert_new(transaction, image)?;
    }
    image_rows::set_name(transaction, &kept.name, &kept.target).map(|_| ())
}

/// The layers of an image that a registry has: those that are not here are absent, as they may have been before.
fn add_remotes(transaction: &Transaction<'_>, image: &Image, remotes: &[RemoteLayer]) -> Result<(), StoreError> {
    // A stack is known by its DiffIds as long as all of them are known.
    let (mut diff_ids, mut is_known) = (Vec::new(), true);
    for layer in &image.layers {
        let Some(remote) = remotes.iter().find(|remote| remote.layer == *layer) else {
            is_known = false;
            continue;
        };
        diff_ids.push(remote.diff_id.clone());
        let absent = !layer_rows::exists(transaction, layer)?;
        if absent {
            let chain = ChainId::of(&diff_ids).filter(|_| is_known);
            layer_rows::insert_durable(transaction, &record_of(remote), "", chain.as_ref())?;
        }
        remote_rows::insert(transaction, &RemoteLayer { absent, ..remote.clone() })?;
    }
    Ok(())
}

fn set_aside(root: &Path) -> Result<Option<PathBuf>, StoreError> {
    let (old, aside) = (root.join("forge.db"), root.join("forge.db.damaged"));
    remove_database(&aside)?;
    let mut moved = None;
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(&old, suffix), with_suffix(&aside, suffix));
        match std::fs::rename(&from, &to) {
            Ok(()) => moved = Some(aside.clone()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("set aside", &from)(error)),
        }
    }
    Ok(moved)
}

fn remove_database(path: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-shm"] {
        let path = with_suffix(path, suffix);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
