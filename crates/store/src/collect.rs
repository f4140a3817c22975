use crate::layer_rows::parse;
use crate::opened::Opened;
use crate::owner::DeadOwner;
use crate::removal::remove_tree_while;
use crate::{LayerId, StoreError, lock};
use forge_image::Digest;
use rayon::prelude::*;
use rusqlite::{Connection, params};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// What the `trash` table calls the folder of a cache mount.
pub(crate) const CACHE_MOUNT: &str = "cache-mount";

/// Records and files that go in one transaction: a build that wants to write meanwhile waits for one batch, a few milliseconds.
const BATCH: usize = 200;

/// Files up to this size are removed while the database is locked, which takes no longer than giving them another name.
const SMALL: u64 = 1 << 20;

/// So many trees are worth the start of threads.
const MANY: usize = 16;

/// How a collection goes about its work.
#[derive(Clone, Copy)]
pub(crate) enum Pace<'a> {
    /// As fast as the machine can.
    Swift,
    /// By one thread, in small pieces, as long as this says so.
    Gentle(&'a dyn Fn() -> bool),
}

impl Pace<'_> {
    fn goes_on(self) -> bool {
        match self {
            Self::Swift => true,
            Self::Gentle(go_on) => go_on(),
        }
    }
}

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

/// Removes what nothing needs, a batch of records and then their files at a time, so that a full disk has room again soon. A
/// collection that dies or is stopped in between leaves files without a record, which the next one finds.
///
/// What is unneeded is found out beside those who write. Of each record it is asked once more whether somebody has come to
/// need it.
pub(crate) fn collect(opened: &Opened, roots: &HashSet<LayerId>, pace: Pace<'_>) -> Result<Collected, StoreError> {
    opened.reap()?;
    let planned = opened.database().read(|connection| unneeded(connection, roots))?;
    let collected = remove_planned(opened, planned, pace)?;
    if pace.goes_on() {
        sweep(opened, pace)?;
    }
    Ok(collected)
}

/// Removes what no record names: files, and the remains of dead processes.
pub(crate) fn sweep(opened: &Opened, pace: Pace<'_>) -> Result<(), StoreError> {
    remove_files_without_record(opened, pace)?;
    empty_trash_at(opened, pace)?;
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

/// What of one kind goes, and how it is asked whether it still may.
struct Kind {
    name: &'static str,
    /// What somebody may have come to need, where no index leads to it: read once for a batch, not for each of it.
    needed: &'static str,
    delete: &'static str,
}

const LAYERS: Kind = Kind {
    name: "layer",
    needed: "SELECT layer FROM lease_layers",
    delete: "DELETE FROM layers WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM image_layers WHERE layer = ?1)",
};

const BLOBS: Kind = Kind {
    name: "blob",
    needed: "SELECT blob FROM lease_blobs
        UNION ALL SELECT index_digest FROM names WHERE index_digest IS NOT NULL",
    delete: "DELETE FROM blobs WHERE digest = ?1
        AND NOT EXISTS (SELECT 1 FROM layer_blobs WHERE blob = ?1)
        AND NOT EXISTS (SELECT 1 FROM images WHERE id = ?1)
        AND NOT EXISTS (SELECT 1 FROM images WHERE manifest_digest = ?1)",
};

/// Removes what is still of no use to anybody, layers before the blobs that carry them.
fn remove_planned(opened: &Opened, planned: Collected, pace: Pace<'_>) -> Result<Collected, StoreError> {
    let Collected { layers, blobs, .. } = planned;
    if !blobs.is_empty() {
        opened.database().write(|transaction| Ok(transaction.execute_batch(INDEXES)?))?;
    }
    let layers = remove_in_batches(opened, &layers, &LAYERS, LayerId::as_str, pace)?;
    let blobs = remove_in_batches(opened, &blobs, &BLOBS, Digest::as_str, pace)?;
    let bytes = layers.iter().map(|(_, bytes)| bytes).chain(blobs.iter().map(|(_, bytes)| bytes)).sum();
    Ok(Collected { layers, blobs, bytes })
}

fn remove_in_batches<T: Clone>(
    opened: &Opened,
    planned: &[(T, u64)],
    kind: &Kind,
    name: impl Fn(&T) -> &str,
    pace: Pace<'_>,
) -> Result<Vec<(T, u64)>, StoreError> {
    let mut removed = Vec::with_capacity(planned.len());
    for batch in planned.chunks(BATCH) {
        if !pace.goes_on() {
            break;
        }
        let gone = opened.database().write(|transaction| delete_batch(transaction, batch, kind, &name))?;
        let files = gone.iter().map(|(what, _)| (kind.name.to_owned(), name(what).to_owned())).collect();
        if pace.goes_on() {
            discard(opened, files, pace)?;
        }
        removed.extend(gone);
    }
    Ok(removed)
}

fn delete_batch<T: Clone>(
    connection: &Connection,
    batch: &[(T, u64)],
    kind: &Kind,
    name: impl Fn(&T) -> &str,
) -> Result<Vec<(T, u64)>, StoreError> {
    let mut select = connection.prepare_cached(kind.needed)?;
    let needed: HashSet<String> = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut delete = connection.prepare_cached(kind.delete)?;
    let mut gone = Vec::with_capacity(batch.len());
    for (what, bytes) in batch.iter().filter(|(what, _)| !needed.contains(name(what))) {
        if delete.execute([name(what)])? > 0 {
            gone.push((what.clone(), *bytes));
        }
    }
    Ok(gone)
}

pub(crate) fn insert_trash(connection: &Connection, kind: &str, name: &str) -> Result<(), StoreError> {
    connection.prepare_cached("INSERT OR IGNORE INTO trash VALUES (?1, ?2)")?.execute([kind, name])?;
    Ok(())
}

/// Moves the files of all that is in the `trash` table out of the way and removes them.
pub(crate) fn empty_trash(opened: &Opened) -> Result<(), StoreError> {
    empty_trash_at(opened, Pace::Swift)
}

/// The same at some pace. What is left then lies where it lay, so that nobody has to wait for its removal.
fn empty_trash_at(opened: &Opened, pace: Pace<'_>) -> Result<(), StoreError> {
    // Registered before the transaction: it writes too.
    opened.owner_id()?;
    while pace.goes_on() {
        let (taken, moved) = opened.database().write(|transaction| {
            let rows = take_trash(transaction)?;
            Ok((rows.len(), take_away(opened, transaction, rows)?))
        })?;
        remove_moved(opened, moved, pace)?;
        if taken < BATCH {
            break;
        }
    }
    Ok(())
}

/// Removes one batch of files that have no record, unless they have one again.
fn discard(opened: &Opened, names: Vec<(String, String)>, pace: Pace<'_>) -> Result<(), StoreError> {
    opened.owner_id()?;
    let moved = opened.database().write(|transaction| take_away(opened, transaction, names))?;
    remove_moved(opened, moved, pace)
}

/// Something without a record, on its way.
struct Moved {
    kind: String,
    name: String,
    path: PathBuf,
}

/// Takes files from where they are found by their names; what is still to be removed is given back.
///
/// The caller's write transaction sees that there is no record, and whoever writes a record moves its file in such a
/// transaction too: what was stored again in the meantime stays.
fn take_away(opened: &Opened, connection: &Connection, names: Vec<(String, String)>) -> Result<Vec<Moved>, StoreError> {
    let mut moved = Vec::new();
    for (kind, name) in names {
        if has_record(connection, &kind, &name)? {
            continue;
        }
        let place = place_of(opened, &kind, &name)?;
        if !is_removed_at_once(&place)
            && let Some(path) = move_away(opened, &place)?
        {
            moved.push(Moved { kind, name, path });
        }
    }
    Ok(moved)
}

/// Removes a small file.
fn is_removed_at_once(place: &Path) -> bool {
    let is_small = place.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() <= SMALL);
    // Where it fails, there is another way.
    is_small && std::fs::remove_file(place).is_ok()
}

fn remove_moved(opened: &Opened, moved: Vec<Moved>, pace: Pace<'_>) -> Result<(), StoreError> {
    match pace {
        Pace::Swift if moved.len() >= MANY => moved.par_iter().try_for_each(|moved| moved.remove(&|| true).map(drop)),
        Pace::Swift => moved.iter().try_for_each(|moved| moved.remove(&|| true).map(drop)),
        Pace::Gentle(go_on) => remove_while(opened, moved, go_on),
    }
}

fn remove_while(opened: &Opened, moved: Vec<Moved>, go_on: &dyn Fn() -> bool) -> Result<(), StoreError> {
    let mut left = Vec::new();
    for moved in moved {
        if !go_on() || !moved.remove(go_on)? {
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

impl Moved {
    /// `false` where something is left.
    fn remove(&self, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(true) };
        remove_tree_while(folder, name, go_on)
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

fn move_away(opened: &Opened, from: &Path) -> Result<Option<PathBuf>, StoreError> {
    let to = opened.scratch_path("trash")?;
    match std::fs::rename(from, &to) {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("move away", from)(error)),
    }
}

/// Files whose process died between moving them into place and writing the record, or that somebody put there, by kind and
/// name. Those that seem to be so are asked for again within a write transaction: whoever moves a file into place does
/// so in one too.
pub(crate) fn without_record(opened: &Opened) -> Result<Vec<(&'static str, String)>, StoreError> {
    let names = candidates(opened)?;
    let suspects = opened.database().read(|connection| unknown(connection, &names))?;
    let mut found = Vec::new();
    for batch in suspects.chunks(BATCH) {
        found.extend(opened.database().write(|transaction| unknown(transaction, batch))?);
    }
    // Whoever took it away in the meantime has done what is to be done.
    found.retain(|(kind, name)| place_of(opened, kind, name).is_ok_and(|it| it.symlink_metadata().is_ok()));
    Ok(found)
}

fn unknown(
    connection: &Connection,
    names: &[(&'static str, String)],
) -> Result<Vec<(&'static str, String)>, StoreError> {
    let mut unknown = Vec::new();
    for (kind, name) in names {
        if !has_record(connection, kind, name)? {
            unknown.push((*kind, name.clone()));
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

fn remove_files_without_record(opened: &Opened, pace: Pace<'_>) -> Result<(), StoreError> {
    for batch in without_record(opened)?.chunks(BATCH) {
        if !pace.goes_on() {
            break;
        }
        discard(opened, batch.iter().map(|(kind, name)| ((*kind).to_owned(), name.clone())).collect(), pace)?;
    }
    Ok(())
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
