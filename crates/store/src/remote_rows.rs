//! The records of layers that lie in a registry, whether they are here too or not.

use crate::layer_rows::{from_json, parse, to_json};
use crate::opened::Opened;
use crate::removal::remove_tree;
use crate::{LayerId, StoreError};
use forge_image::{Descriptor, DiffId, Reference};
use rusqlite::{Connection, OptionalExtension, params};
use std::io::ErrorKind;
use std::path::PathBuf;

/// A layer that a registry has.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteLayer {
    /// The layer.
    pub layer: LayerId,
    /// The layer below it in the image that it is known from; none for the lowest.
    pub parent: Option<LayerId>,
    /// Its blob, as the image's manifest lists it.
    pub blob: Descriptor,
    /// The digest of its tar, as the image's config lists it.
    pub diff_id: DiffId,
    /// The repository that has the blob.
    pub repository: Reference,
    /// Whether nothing of it is here.
    pub absent: bool,
}

/// `parent` and `repository` say how the layer is had back; `absent` is 1 while it has no tree.
pub(crate) const SCHEMA_REMOTES: &str = "
CREATE TABLE IF NOT EXISTS remotes (
    layer      TEXT PRIMARY KEY REFERENCES layers (id) ON DELETE CASCADE,
    parent     TEXT,
    blob       TEXT NOT NULL,
    diff_id    TEXT NOT NULL,
    repository TEXT NOT NULL,
    absent     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS remotes_absent ON remotes (layer) WHERE absent = 1;
";

/// Records where a layer can be had; the repository that was heard of last is the one to ask.
pub(crate) fn insert(connection: &Connection, remote: &RemoteLayer) -> Result<(), StoreError> {
    let sql = "INSERT INTO remotes VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (layer) DO UPDATE SET parent = ?2, blob = ?3, repository = ?5";
    connection.prepare_cached(sql)?.execute(params![
        remote.layer.as_str(),
        remote.parent.as_ref().map(LayerId::as_str),
        to_json(&remote.blob),
        remote.diff_id.digest().as_str(),
        remote.repository.to_string(),
        remote.absent
    ])?;
    Ok(())
}

pub(crate) fn get(connection: &Connection, id: &LayerId) -> Result<Option<RemoteLayer>, StoreError> {
    let sql = "SELECT parent, blob, diff_id, repository, absent FROM remotes WHERE layer = ?1";
    let row = connection.prepare_cached(sql)?.query_row([id.as_str()], |row| {
        let texts = (row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?);
        Ok((texts, row.get::<_, String>(3)?, row.get(4)?))
    });
    let Some(((parent, blob, diff_id), repository, absent)) = row.optional()? else { return Ok(None) };
    Ok(Some(RemoteLayer {
        layer: *id,
        parent: parent.map(|parent| parse("layer id", &parent)).transpose()?,
        blob: from_json("descriptor", &blob)?,
        diff_id: parse("diff id", &diff_id)?,
        repository: parse("reference", &repository)?,
        absent,
    }))
}

/// Whether any layer at all is absent: nearly never, and then nothing else need be asked.
pub(crate) fn some_absent(connection: &Connection) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached("SELECT 1 FROM remotes WHERE absent = 1 LIMIT 1")?.exists([])?)
}

pub(crate) fn is_absent(connection: &Connection, id: &LayerId) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM remotes WHERE layer = ?1 AND absent = 1";
    Ok(connection.prepare_cached(sql)?.exists([id.as_str()])?)
}

/// Says that a layer is here now.
pub(crate) fn set_present(connection: &Connection, id: &LayerId) -> Result<(), StoreError> {
    connection.prepare_cached("UPDATE remotes SET absent = 0 WHERE layer = ?1")?.execute([id.as_str()])?;
    Ok(())
}

/// Turns a layer whose files are damaged into one that is not here, if a registry has it. `false` where none is known to.
pub(crate) fn drop_files(opened: &Opened, id: &LayerId) -> Result<bool, StoreError> {
    let moved = opened.database().write(|transaction| {
        let sql = "UPDATE remotes SET absent = 1 WHERE layer = ?1";
        if transaction.prepare_cached(sql)?.execute([id.as_str()])? == 0 {
            return Ok(None);
        }
        let sql = "UPDATE layers SET index_checksum = '', bytes = 0, boot_id = NULL WHERE id = ?1";
        transaction.prepare_cached(sql)?.execute([id.as_str()])?;
        move_away(opened, id).map(Some)
    })?;
    if let Some(Some(path)) = &moved
        && let (Some(folder), Some(name)) = (path.parent(), path.file_name())
    {
        remove_tree(folder, name)?;
    }
    Ok(moved.is_some())
}

fn move_away(opened: &Opened, id: &LayerId) -> Result<Option<PathBuf>, StoreError> {
    let (from, to) = (opened.layer_path(id), opened.scratch_path("trash")?);
    match std::fs::rename(&from, &to) {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("move away", &from)(error)),
    }
}
