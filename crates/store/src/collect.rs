use crate::layer_rows::parse;
use crate::opened::Opened;
use crate::owner::DeadOwner;
use crate::removal::remove_tree_while;
use crate::{LayerId, StoreError, lock};
use forge_image::Digest;
use rusqlite::{Connection, params};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// What the `trash` table calls the folder of a cache mount.
pub(crate) const CACHE_MOUNT: &str = "cache-mount";

/// Files moved per transaction: a build that wants to write meanwhile waits for one batch, a few milliseconds.
const BATCH: usize = 200;

/// What a collection removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers with the bytes of their files.
    pub layers: Vec<(LayerId, u64)>,
    /// Blobs with their sizes.
    pub blobs: Vec<(Digest, u64)>,
    /// The bytes in all.
    pub bytes: u64,
}

/// Names what nothing needs.
pub(crate) fn plan(opened: &Opened, roots: &HashSet<LayerId>) -> Result<Collected, StoreError> {
    opened.reap()?;
    opened.database().read(|connection| unneeded(connection, roots))
}

/// Removes what nothing needs, as long as `go_on` says so: first records, then files by way of the `trash` table, so that
/// a collection that dies or is stopped in between is completed by the next one.
///
/// What is unneeded is found out beside those who write. Records then go in batches; each is asked once more whether
/// somebody has come to need it.
pub(crate) fn collect(
    opened: &Opened,
    roots: &HashSet<LayerId>,
    go_on: &dyn Fn() -> bool,
) -> Result<Collected, StoreError> {
    opened.reap()?;
    let planned = opened.database().read(|connection| unneeded(connection, roots))?;
    let collected = delete_records(opened, planned, go_on)?;
    if go_on() {
        sweep(opened, go_on)?;
    }
    Ok(collected)
}

/// Removes what no record names: files, and the remains of dead processes.
pub(crate) fn sweep(opened: &Opened, go_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
    trash_files_without_record(opened)?;
    empty_trash_while(opened, go_on)?;
    remove_remains_of_owners(opened)?;
    lock::remove_free(&opened.root().join("locks"))
}

fn unneeded(connection: &Connection, roots: &HashSet<LayerId>) -> Result<Collected, StoreError> {
    let layers = unneeded_layers(connection, roots)?;
    let gone: HashSet<&LayerId> = layers.iter().map(|(id, _)| id).collect();
    let blobs = unneeded_blobs(connection, &gone)?;
    let bytes = layers.iter().map(|(_, bytes)| bytes).chain(blobs.iter().map(|(_, bytes)| bytes)).sum();
    Ok(Collected { layers, blobs, bytes })
}

fn unneeded_layers(connection: &Connection, roots: &HashSet<LayerId>) -> Result<Vec<(LayerId, u64)>, StoreError> {
    let sql = "SELECT id, bytes FROM layers WHERE id NOT IN (SELECT layer FROM image_layers)
               AND id NOT IN (SELECT layer FROM lease_layers) ORDER BY serial";
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query([])?;
    let mut layers = Vec::new();
    while let Some(row) = rows.next()? {
        let id: LayerId = parse("layer id", &row.get::<_, String>(0)?)?;
        if !roots.contains(&id) {
            layers.push((id, row.get::<_, i64>(1)? as u64));
        }
    }
    Ok(layers)
}

fn unneeded_blobs(connection: &Connection, gone: &HashSet<&LayerId>) -> Result<Vec<(Digest, u64)>, StoreError> {
    let mut needed = HashSet::new();
    let mut select = connection.prepare_cached("SELECT layer, blob FROM layer_blobs")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let layer: LayerId = parse("layer id", &row.get::<_, String>(0)?)?;
        if !gone.contains(&layer) {
            needed.insert(row.get::<_, String>(1)?);
        }
    }
    let sql = "SELECT digest, size FROM blobs WHERE digest NOT IN (SELECT blob FROM lease_blobs)
               AND digest NOT IN (SELECT id FROM images)
               AND digest NOT IN (SELECT manifest_digest FROM images WHERE manifest_digest IS NOT NULL)
               AND digest NOT IN (SELECT index_digest FROM names WHERE index_digest IS NOT NULL) ORDER BY serial";
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query([])?;
    let mut blobs = Vec::new();
    while let Some(row) = rows.next()? {
        let digest: String = row.get(0)?;
        if !needed.contains(&digest) {
            blobs.push((parse("digest", &digest)?, row.get::<_, i64>(1)? as u64));
        }
    }
    Ok(blobs)
}

/// Makes the questions below cheap. Stores of any format may have them.
const INDEXES: &str = "CREATE INDEX IF NOT EXISTS layer_blobs_by_blob ON layer_blobs (blob);
                       CREATE INDEX IF NOT EXISTS images_by_manifest ON images (manifest_digest);";

const DELETE_LAYER: &str = "DELETE FROM layers WHERE id = ?1
    AND NOT EXISTS (SELECT 1 FROM image_layers WHERE layer = ?1)
    AND NOT EXISTS (SELECT 1 FROM lease_layers WHERE layer = ?1)";

const DELETE_BLOB: &str = "DELETE FROM blobs WHERE digest = ?1
    AND NOT EXISTS (SELECT 1 FROM lease_blobs WHERE blob = ?1)
    AND NOT EXISTS (SELECT 1 FROM layer_blobs WHERE blob = ?1)
    AND NOT EXISTS (SELECT 1 FROM images WHERE id = ?1)
    AND NOT EXISTS (SELECT 1 FROM images WHERE manifest_digest = ?1)
    AND NOT EXISTS (SELECT 1 FROM names WHERE index_digest = ?1)";

/// Deletes the records that are still of no use to anybody, layers before the blobs that carry them.
fn delete_records(opened: &Opened, planned: Collected, go_on: &dyn Fn() -> bool) -> Result<Collected, StoreError> {
    let Collected { layers, blobs, .. } = planned;
    if !blobs.is_empty() {
        opened.database().write(|transaction| Ok(transaction.execute_batch(INDEXES)?))?;
    }
    let layers = delete_in_batches(opened, layers, ("layer", DELETE_LAYER), LayerId::as_str, go_on)?;
    let blobs = delete_in_batches(opened, blobs, ("blob", DELETE_BLOB), Digest::as_str, go_on)?;
    let bytes = layers.iter().map(|(_, bytes)| bytes).chain(blobs.iter().map(|(_, bytes)| bytes)).sum();
    Ok(Collected { layers, blobs, bytes })
}

fn delete_in_batches<T: Clone>(
    opened: &Opened,
    planned: Vec<(T, u64)>,
    (kind, sql): (&str, &str),
    name: impl Fn(&T) -> &str,
    go_on: &dyn Fn() -> bool,
) -> Result<Vec<(T, u64)>, StoreError> {
    let mut deleted = Vec::with_capacity(planned.len());
    for batch in planned.chunks(BATCH) {
        if !go_on() {
            break;
        }
        let gone = opened.database().write(|transaction| {
            let mut gone = Vec::new();
            let mut delete = transaction.prepare_cached(sql)?;
            for (what, bytes) in batch {
                if delete.execute([name(what)])? > 0 {
                    insert_trash(transaction, kind, name(what))?;
                    gone.push((what.clone(), *bytes));
                }
            }
            Ok(gone)
        })?;
        deleted.extend(gone);
    }
    Ok(deleted)
}

pub(crate) fn insert_trash(connection: &Connection, kind: &str, name: &str) -> Result<(), StoreError> {
    connection.prepare_cached("INSERT OR IGNORE INTO trash VALUES (?1, ?2)")?.execute([kind, name])?;
    Ok(())
}

/// Moves the files of all that is in the `trash` table out of the way and removes them.
///
/// Each batch is moved inside a write transaction that has seen that there is no record, and whoever writes a record
/// moves its file in the same way: what was stored again in the meantime stays.
pub(crate) fn empty_trash(opened: &Opened) -> Result<(), StoreError> {
    empty_trash_while(opened, &|| true)
}

/// The same as long as `go_on` says so. What is left then lies where it lay, so that nobody has to wait for its removal.
fn empty_trash_while(opened: &Opened, go_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
    // Registered before the transaction: it writes too.
    opened.owner_id()?;
    while go_on() {
        let mut moved = Vec::new();
        let taken = opened.database().write(|transaction| {
            let rows = take_trash(transaction)?;
            let taken = rows.len();
            for (kind, name) in rows {
                if !has_record(transaction, &kind, &name)?
                    && let Some(path) = move_away(opened, &kind, &name)?
                {
                    moved.push(Moved { kind, name, path });
                }
            }
            Ok(taken)
        })?;
        remove_moved(opened, moved, go_on)?;
        if taken < BATCH {
            break;
        }
    }
    Ok(())
}

/// Something out of the `trash` table, on its way.
struct Moved {
    kind: String,
    name: String,
    path: PathBuf,
}

fn remove_moved(opened: &Opened, moved: Vec<Moved>, go_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
    let mut left = Vec::new();
    for moved in moved {
        let (Some(folder), Some(name)) = (moved.path.parent(), moved.path.file_name()) else { continue };
        if !go_on() || !remove_tree_while(folder, name, go_on)? {
            left.push(moved);
        }
    }
    match left.is_empty() {
        true => Ok(()),
        false => {
            opened.database().write(|transaction| left.iter().try_for_each(|it| put_back(opened, transaction, it)))
        }
    }
}

/// Brings back what could not be removed in time, unless its place is taken: then it goes with this process.
fn put_back(opened: &Opened, connection: &Connection, moved: &Moved) -> Result<(), StoreError> {
    let place = place_of(opened, &moved.kind, &moved.name)?;
    if has_record(connection, &moved.kind, &moved.name)? || place.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::rename(&moved.path, &place).map_err(StoreError::io("move back", &place))?;
    insert_trash(connection, &moved.kind, &moved.name)
}

fn take_trash(connection: &Connection) -> Result<Vec<(String, String)>, StoreError> {
    let mut select = connection.prepare_cached("SELECT kind, name FROM trash LIMIT ?1")?;
    let rows = select.query_map([BATCH as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let rows = rows.collect::<Result<Vec<(String, String)>, _>>()?;
    let mut delete = connection.prepare_cached("DELETE FROM trash WHERE kind = ?1 AND name = ?2")?;
    for (kind, name) in &rows {
        delete.execute(params![kind, name])?;
    }
    Ok(rows)
}

fn has_record(connection: &Connection, kind: &str, name: &str) -> Result<bool, StoreError> {
    let sql = match kind {
        "layer" => "SELECT 1 FROM layers WHERE id = ?1",
        CACHE_MOUNT => "SELECT 1 FROM cache_mounts WHERE name = ?1",
        _ => "SELECT 1 FROM blobs WHERE digest = ?1",
    };
    Ok(connection.prepare_cached(sql)?.exists([name])?)
}

fn place_of(opened: &Opened, kind: &str, name: &str) -> Result<PathBuf, StoreError> {
    Ok(match kind {
        "layer" => opened.layer_path(&parse("layer id", name)?),
        // Names are our own and have the form of layer ids, which is what keeps a damaged row from being a path.
        CACHE_MOUNT => opened.cache_mount_path(parse::<LayerId>("cache mount", name)?.as_str()),
        _ => opened.blob_path(&parse("digest", name)?),
    })
}

fn move_away(opened: &Opened, kind: &str, name: &str) -> Result<Option<PathBuf>, StoreError> {
    let from = place_of(opened, kind, name)?;
    let to = opened.scratch_path("trash")?;
    match std::fs::rename(&from, &to) {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("move away", &from)(error)),
    }
}

/// Files whose process died between moving them into place and writing the record, or that somebody put there, by kind and
/// name. Those that seem to be so are asked for again within a write transaction: whoever moves a file into place does
/// so in one too.
pub(crate) fn without_record(opened: &Opened) -> Result<Vec<(&'static str, String)>, StoreError> {
    let names = candidates(opened)?;
    let suspects = opened.database().read(|connection| unknown(connection, names))?;
    match suspects.is_empty() {
        true => Ok(suspects),
        false => opened.database().write(|transaction| {
            let mut found = unknown(transaction, suspects)?;
            // Whoever took it away in the meantime has done what is to be done.
            found.retain(|(kind, name)| place_of(opened, kind, name).is_ok_and(|it| it.symlink_metadata().is_ok()));
            Ok(found)
        }),
    }
}

fn unknown(
    connection: &Connection,
    names: Vec<(&'static str, String)>,
) -> Result<Vec<(&'static str, String)>, StoreError> {
    let mut unknown = Vec::new();
    for (kind, name) in names {
        if !has_record(connection, kind, &name)? {
            unknown.push((kind, name));
        }
    }
    Ok(unknown)
}

/// Everything in the store's folders that has a name of forge's form.
fn candidates(opened: &Opened) -> Result<Vec<(&'static str, String)>, StoreError> {
    let mut candidates = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let names = names_in(&opened.root().join("blobs").join(algorithm))?;
        let digests = names.iter().map(|name| format!("{algorithm}:{name}")).filter(|d| d.parse::<Digest>().is_ok());
        candidates.extend(digests.map(|digest| ("blob", digest)));
    }
    for (folder, kind) in [("layers", "layer"), ("cache-mounts", CACHE_MOUNT)] {
        let names = names_in(&opened.root().join(folder))?;
        candidates.extend(names.into_iter().filter(|name| name.parse::<LayerId>().is_ok()).map(|name| (kind, name)));
    }
    Ok(candidates)
}

fn trash_files_without_record(opened: &Opened) -> Result<(), StoreError> {
    let without_record = without_record(opened)?;
    if without_record.is_empty() {
        return Ok(());
    }
    opened
        .database()
        .write(|transaction| without_record.iter().try_for_each(|(kind, name)| insert_trash(transaction, kind, name)))
}

/// Lock files and scratch folders of processes that died before or after they had a record.
fn remove_remains_of_owners(opened: &Opened) -> Result<(), StoreError> {
    let leases = opened.leases_path();
    for id in unknown_owners(opened)? {
        if let Some(dead) = DeadOwner::find(&leases, &id, None, opened.boot_id())? {
            opened.clear_up(&dead)?;
        }
    }
    Ok(())
}

/// Who has a lock file or a scratch folder and no record: just started, about to end, or dead.
pub(crate) fn unknown_owners(opened: &Opened) -> Result<Vec<String>, StoreError> {
    let ids: HashSet<String> =
        names_in(&opened.leases_path())?.into_iter().chain(names_in(&opened.root().join("scratch"))?).collect();
    let own = opened.owner_id()?;
    let known: HashSet<String> = opened
        .database()
        .read(|connection| Ok(crate::owner::others(connection, None)?.into_iter().map(|(id, _)| id).collect()))?;
    Ok(ids.into_iter().filter(|id| *id != own && !known.contains(id)).collect())
}

/// The names in a folder, as far as they are text.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = std::fs::read_dir(folder).map_err(StoreError::io("list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(StoreError::io("list", folder))?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}
