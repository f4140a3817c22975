//! The records of layers, and how a layer comes into the store.

use crate::lease::now;
use crate::opened::Opened;
use crate::remote_rows::{self, RemoteLayer};
use crate::{
    ContentDigest, FileTimes, LayerBlob, LayerId, LayerOutline, LayerRecord, Lease, StoreError, TarOptions, collect,
};
use forge_image::{ChainId, DiffId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What became of a layer that was offered to the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is in the store under its own id.
    Stored,
    /// The stack was already there: that layer is held instead, and the staged folder is where it was.
    Existing(LayerId),
}

/// Records a layer of a registry and holds it: the one that stands for the stack already, or a new one without files.
pub(crate) fn know(
    opened: &Opened,
    remote: RemoteLayer,
    record_of: &dyn Fn(&RemoteLayer) -> LayerRecord,
    chain: &ChainId,
    lease: &Lease,
) -> Result<LayerId, StoreError> {
    opened.database().write(|transaction| {
        if let Some(known) = chain_row(transaction, chain)? {
            remote_rows::insert(transaction, &RemoteLayer { layer: known, absent: false, ..remote })?;
            lease.insert_layer(transaction, &known)?;
            return Ok(known);
        }
        // Nothing of it can be lost in a power cut.
        insert_all(transaction, &record_of(&remote), "", Some(chain), None)?;
        remote_rows::insert(transaction, &remote)?;
        lease.insert_layer(transaction, &remote.layer)?;
        Ok(remote.layer)
    })
}

/// Moves a staged folder into the place of a layer that is known and not here, and holds it. The layer is as young as its
/// files then: what made earlier ones durable says nothing of them.
pub(crate) fn fill(
    opened: &Opened,
    staged: &Path,
    record: &LayerRecord,
    lease: &Lease,
) -> Result<Published, StoreError> {
    let checksum = index_checksum(&staged.join("index"))?.unwrap_or_default();
    let path = opened.layer_path(&record.id);
    opened.database().write(|transaction| {
        require(transaction, &record.id)?;
        lease.insert_layer(transaction, &record.id)?;
        if !remote_rows::is_absent(transaction, &record.id)? {
            return Ok(Published::Existing(record.id));
        }
        let sql = "UPDATE layers SET bytes = ?2, entries = ?3, index_checksum = ?4, boot_id = ?5,
                   serial = (SELECT max(serial) + 1 FROM layers) WHERE id = ?1";
        let (bytes, entries) = (record.bytes as i64, record.entries as i64);
        let row = params![record.id.as_str(), bytes, entries, checksum, opened.boot_id()];
        transaction.prepare_cached(sql)?.execute(row)?;
        let sql = "DELETE FROM layer_blobs WHERE layer = ?1 AND is_foreign = 1";
        transaction.prepare_cached(sql)?.execute([record.id.as_str()])?;
        record.blobs.iter().try_for_each(|blob| insert_blob(transaction, &record.id, blob))?;
        remote_rows::set_present(transaction, &record.id)?;
        std::fs::rename(staged, &path).map_err(StoreError::io("move into place", &path))?;
        Ok(Published::Stored)
    })
}

/// Moves a staged folder (`tree/` and `index`) into place, writes its record and holds it, all or nothing.
///
/// With `chain`, the layer is found by [`find_by_chain`] afterwards, unless another one is already. The rename happens
/// inside the write transaction: between the two no collection can run, which removes folders without a record.
pub(crate) fn publish(
    opened: &Opened,
    staged: &Path,
    record: &LayerRecord,
    chain: Option<&ChainId>,
    lease: &Lease,
) -> Result<Published, StoreError> {
    let checksum = index_checksum(&staged.join("index"))?.unwrap_or_default();
    let path = opened.layer_path(&record.id);
    opened.database().write(|transaction| {
        if let Some(existing) = chain.map(|chain| chain_row(transaction, chain)).transpose()?.flatten() {
            lease.insert_layer(transaction, &existing)?;
            return Ok(Published::Existing(existing));
        }
        insert_all(transaction, record, &checksum, chain, Some(opened.boot_id()))?;
        lease.insert_layer(transaction, &record.id)?;
        std::fs::rename(staged, &path).map_err(StoreError::io("move into place", &path))?;
        Ok(Published::Stored)
    })
}

/// Records a layer that was read from the disk and found whole.
pub(crate) fn insert_durable(
    connection: &Connection,
    record: &LayerRecord,
    checksum: &str,
    chain: Option<&ChainId>,
) -> Result<(), StoreError> {
    insert_all(connection, record, checksum, chain, None)
}

/// The rows of a layer. Of two layers for one stack the first is found by it.
fn insert_all(
    connection: &Connection,
    record: &LayerRecord,
    checksum: &str,
    chain: Option<&ChainId>,
    boot_id: Option<&str>,
) -> Result<(), StoreError> {
    insert(connection, record, checksum, boot_id)?;
    if let Some(chain) = chain {
        let sql = "INSERT OR IGNORE INTO chains VALUES (?1, ?2)";
        connection.prepare_cached(sql)?.execute(params![chain.digest().as_str(), record.id.as_str()])?;
    }
    record.blobs.iter().try_for_each(|blob| insert_blob(connection, &record.id, blob))
}

fn insert(
    connection: &Connection,
    record: &LayerRecord,
    checksum: &str,
    boot_id: Option<&str>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO layers (id, content, bytes, entries, diff_id, is_foreign, index_checksum, stored, boot_id,
                                   times_from, times_until)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let times = record.times.to_columns();
    connection.prepare_cached(sql)?.execute(params![
        record.id.as_str(),
        record.content.to_string(),
        record.bytes as i64,
        record.entries as i64,
        record.diff_id.as_ref().map(|diff_id| diff_id.digest().as_str()),
        record.foreign,
        checksum,
        now(),
        boot_id,
        times.map(|(from, _)| from),
        times.map(|(_, until)| until)
    ])?;
    Ok(())
}

fn insert_blob(connection: &Connection, id: &LayerId, blob: &LayerBlob) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO layer_blobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    connection.prepare_cached(sql)?.execute(params![
        id.as_str(),
        blob.descriptor.digest.as_str(),
        to_json(&blob.descriptor),
        blob.diff_id.digest().as_str(),
        to_json(&blob.compression),
        blob.clamp,
        blob.foreign
    ])?;
    Ok(())
}

pub(crate) fn exists(connection: &Connection, id: &LayerId) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached("SELECT 1 FROM layers WHERE id = ?1")?.exists([id.as_str()])?)
}

/// The record of a layer with its blobs.
pub(crate) fn get(opened: &Opened, id: &LayerId) -> Result<Option<LayerRecord>, StoreError> {
    opened.database().read(|connection| {
        let sql = "SELECT content, bytes, entries, diff_id, is_foreign, times_from, times_until FROM layers
                   WHERE id = ?1";
        let columns = |row: &Row<'_>| {
            let numbers = (row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64);
            let times = row.get::<_, Option<i64>>(5)?.zip(row.get::<_, Option<i64>>(6)?);
            let times = FileTimes::from_columns(times);
            Ok((row.get::<_, String>(0)?, times, numbers, row.get::<_, Option<String>>(3)?, row.get(4)?))
        };
        let row = connection.prepare_cached(sql)?.query_row([id.as_str()], columns).optional()?;
        let Some((content, times, (bytes, entries), diff_id, foreign)) = row else { return Ok(None) };
        let content: ContentDigest = parse("content digest", &content)?;
        let diff_id = diff_id.map(|text| parse("diff id", &text)).transpose()?;
        let blobs = blobs_of(connection, id)?;
        Ok(Some(LayerRecord { id: *id, content, times, bytes, entries, diff_id, foreign, blobs }))
    })
}

/// What some layers amount to, of their records alone.
pub(crate) fn contents(opened: &Opened, ids: &[LayerId]) -> Result<Vec<Option<ContentDigest>>, StoreError> {
    opened.database().read(|connection| {
        let mut select = connection.prepare_cached("SELECT content FROM layers WHERE id = ?1")?;
        let mut content = |id: &LayerId| -> Result<Option<ContentDigest>, StoreError> {
            let text: Option<String> = select.query_row([id.as_str()], |row| row.get(0)).optional()?;
            text.map(|text| parse("content digest", &text)).transpose()
        };
        ids.iter().map(&mut content).collect()
    })
}

/// Says when a layer was made. Nothing is made after it came.
pub(crate) fn date(opened: &Opened, id: &LayerId, made: SystemTime) -> Result<(), StoreError> {
    let seconds = made.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    opened.database().write(|transaction| {
        let sql = "UPDATE layers SET stored = MIN(stored, ?2) WHERE id = ?1";
        transaction.prepare_cached(sql)?.execute(params![id.as_str(), seconds.cast_signed()])?;
        Ok(())
    })
}

/// What images say of some layers; the time is known to the second.
pub(crate) fn outlines(opened: &Opened, ids: &[LayerId]) -> Result<Vec<Option<LayerOutline>>, StoreError> {
    opened.database().read(|connection| {
        let mut select = connection.prepare_cached("SELECT diff_id, is_foreign, stored FROM layers WHERE id = ?1")?;
        let mut outline = |id: &LayerId| -> Result<Option<LayerOutline>, StoreError> {
            let columns = |row: &Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get(1)?, row.get::<_, i64>(2)?));
            let Some((diff_id, foreign, seconds)) = select.query_row([id.as_str()], columns).optional()? else {
                return Ok(None);
            };
            let diff_id = diff_id.map(|text| parse("diff id", &text)).transpose()?;
            let stored = UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned());
            Ok(Some(LayerOutline { diff_id, foreign, stored }))
        };
        ids.iter().map(&mut outline).collect()
    })
}

/// How many bytes the files of some layers have; a layer that is gone has none.
pub(crate) fn bytes(opened: &Opened, ids: &[LayerId]) -> Result<Vec<u64>, StoreError> {
    opened.database().read(|connection| {
        let mut select = connection.prepare_cached("SELECT bytes FROM layers WHERE id = ?1")?;
        let mut bytes = |id: &LayerId| -> Result<u64, StoreError> {
            let found: Option<i64> = select.query_row([id.as_str()], |row| row.get(0)).optional()?;
            Ok(found.map_or(0, i64::cast_unsigned))
        };
        ids.iter().map(&mut bytes).collect()
    })
}

fn blobs_of(connection: &Connection, id: &LayerId) -> Result<Vec<LayerBlob>, StoreError> {
    let sql = "SELECT descriptor, diff_id, compression, clamp, is_foreign FROM layer_blobs WHERE layer = ?1
               ORDER BY is_foreign DESC, blob";
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query([id.as_str()])?;
    let mut blobs = Vec::new();
    while let Some(row) = rows.next()? {
        blobs.push(LayerBlob {
            descriptor: from_json("descriptor", &row.get::<_, String>(0)?)?,
            diff_id: parse("diff id", &row.get::<_, String>(1)?)?,
            compression: from_json("compression", &row.get::<_, String>(2)?)?,
            clamp: row.get(3)?,
            foreign: row.get(4)?,
        });
    }
    Ok(blobs)
}

/// The layer that was unpacked for exactly this stack.
pub(crate) fn find_by_chain(opened: &Opened, chain: &ChainId) -> Result<Option<LayerId>, StoreError> {
    opened.database().read(|connection| chain_row(connection, chain))
}

fn chain_row(connection: &Connection, chain: &ChainId) -> Result<Option<LayerId>, StoreError> {
    let mut select = connection.prepare_cached("SELECT layer FROM chains WHERE chain = ?1")?;
    let layer: Option<String> = select.query_row([chain.digest().as_str()], |row| row.get(0)).optional()?;
    layer.map(|layer| parse("layer id", &layer)).transpose()
}

/// Records that a blob carries a layer. The blob must be in the store; the lease holds it.
pub(crate) fn add_blob(opened: &Opened, id: &LayerId, blob: &LayerBlob, lease: &Lease) -> Result<(), StoreError> {
    opened.database().write(|transaction| {
        require(transaction, id)?;
        if crate::blobs::row(transaction, &blob.descriptor.digest)?.is_none() {
            return Err(StoreError::BlobNotFound { digest: blob.descriptor.digest.clone() });
        }
        insert_blob(transaction, id, blob)?;
        lease.insert_blob(transaction, &blob.descriptor.digest)
    })
}

/// Records the digests of layers' tars in forge's own dialect.
pub(crate) fn set_diff_ids(opened: &Opened, tar: &TarOptions, made: &[(&LayerId, &DiffId)]) -> Result<(), StoreError> {
    if made.is_empty() {
        return Ok(());
    }
    opened.database().write(|transaction| {
        for (id, diff_id) in made {
            require(transaction, id)?;
            let (layer, text) = (id.as_str(), diff_id.digest().as_str());
            match tar.clamp_mtime {
                None => transaction
                    .prepare_cached("UPDATE layers SET diff_id = ?2 WHERE id = ?1")?
                    .execute(params![layer, text])?,
                Some(clamp) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO layer_diff_ids VALUES (?1, ?2, ?3)")?
                    .execute(params![layer, clamp, text])?,
            };
        }
        Ok(())
    })
}

/// The recorded digest of a layer's tar.
pub(crate) fn diff_id(opened: &Opened, id: &LayerId, tar: &TarOptions) -> Result<Option<DiffId>, StoreError> {
    Ok(diff_ids(opened, std::slice::from_ref(id), tar)?.pop().flatten())
}

/// The same of several layers.
pub(crate) fn diff_ids(opened: &Opened, ids: &[LayerId], tar: &TarOptions) -> Result<Vec<Option<DiffId>>, StoreError> {
    opened.database().read(|connection| {
        let one = |id: &LayerId| -> Result<Option<DiffId>, StoreError> {
            let found = match tar.clamp_mtime {
                None => connection
                    .prepare_cached("SELECT diff_id FROM layers WHERE id = ?1")?
                    .query_row([id.as_str()], |row| row.get(0)),
                Some(clamp) => connection
                    .prepare_cached("SELECT diff_id FROM layer_diff_ids WHERE layer = ?1 AND clamp = ?2")?
                    .query_row(params![id.as_str(), clamp], |row| row.get(0)),
            };
            let text: Option<String> = found.optional()?.flatten();
            text.map(|text| parse("diff id", &text)).transpose()
        };
        ids.iter().map(one).collect()
    })
}

fn require(connection: &Connection, id: &LayerId) -> Result<(), StoreError> {
    match exists(connection, id)? {
        true => Ok(()),
        false => Err(StoreError::LayerNotFound { layer: *id }),
    }
}

/// Whether a layer may be used: it has a record and files, and no power cut can have taken its bytes.
///
/// A layer written in an earlier boot and never synced is dropped: its index may have survived while files of its tree
/// did not. It is a cache miss then.
pub(crate) fn settle(opened: &Opened, id: &LayerId) -> Result<bool, StoreError> {
    settle_all(opened, &[id])
}

/// The same for several layers; `false` as soon as it is that for one.
pub(crate) fn settle_all(opened: &Opened, ids: &[&LayerId]) -> Result<bool, StoreError> {
    let boot_ids: Vec<Option<Option<String>>> = opened.database().read(|connection| {
        let mut select = connection.prepare_cached("SELECT boot_id FROM layers WHERE id = ?1")?;
        let mut boot_id = |id: &&LayerId| select.query_row([id.as_str()], |row| row.get(0)).optional();
        Ok(ids.iter().map(&mut boot_id).collect::<Result<_, _>>()?)
    })?;
    for (id, boot_id) in ids.iter().zip(boot_ids) {
        let Some(boot_id) = boot_id else { return Ok(false) };
        let survived = boot_id.is_none_or(|boot| boot == opened.boot_id());
        if (!survived || !crate::layers::has_contents(&opened.layer_path(id))) && !lose(opened, id)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What becomes of a layer without good files: where a registry has it, it is only absent, and still of use.
fn lose(opened: &Opened, id: &LayerId) -> Result<bool, StoreError> {
    if opened.database().read(|connection| remote_rows::is_absent(connection, id))?
        || remote_rows::drop_files(opened, id)?
    {
        return Ok(true);
    }
    forget(opened, id)?;
    Ok(false)
}

/// As [`settle`], and the index is the one that was written.
pub(crate) fn verify(opened: &Opened, id: &LayerId) -> Result<bool, StoreError> {
    if !settle(opened, id)? {
        return Ok(false);
    }
    let recorded: Option<String> = opened.database().read(|connection| {
        let mut select = connection.prepare_cached("SELECT index_checksum FROM layers WHERE id = ?1")?;
        Ok(select.query_row([id.as_str()], |row| row.get(0)).optional()?)
    })?;
    let Some(recorded) = recorded else { return Ok(false) };
    let good = index_checksum(&opened.layer_path(id).join("index"))?.is_some_and(|found| found == recorded);
    match good {
        true => Ok(true),
        false => lose(opened, id),
    }
}

/// The checksum of an index file as records have it; `None` where there is no file.
pub(crate) fn index_checksum(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(blake3::hash(&bytes).to_hex().to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// Drops a layer whose files are not what its record says, and with it images that nobody named. One that a named
/// image needs keeps its record, so that the image can be mended by pulling it again.
fn forget(opened: &Opened, id: &LayerId) -> Result<(), StoreError> {
    opened.database().write(|transaction| {
        let unnamed = "DELETE FROM images WHERE id IN (SELECT image FROM image_layers WHERE layer = ?1)
                       AND id NOT IN (SELECT image FROM name_images)";
        transaction.prepare_cached(unnamed)?.execute([id.as_str()])?;
        let layer = "DELETE FROM layers WHERE id = ?1 AND id NOT IN (SELECT layer FROM image_layers)";
        if transaction.prepare_cached(layer)?.execute([id.as_str()])? > 0 {
            collect::insert_trash(transaction, "layer", id.as_str())?;
        }
        Ok(())
    })?;
    collect::empty_trash(opened)
}

/// Drops the record of a layer that only this lease holds, and says whether it did; the files are trash then.
pub(crate) fn discard(opened: &Opened, id: &LayerId, lease: &Lease) -> Result<bool, StoreError> {
    lease.forget_layer(id);
    opened.database().write(|transaction| {
        lease.delete_layer(transaction, id)?;
        let sql = "DELETE FROM layers WHERE id = ?1 AND id NOT IN (SELECT layer FROM image_layers)
                   AND id NOT IN (SELECT layer FROM lease_layers) AND id NOT IN (SELECT layer FROM selections)";
        let is_gone = transaction.prepare_cached(sql)?.execute([id.as_str()])? > 0;
        if is_gone {
            collect::insert_trash(transaction, "layer", id.as_str())?;
        }
        Ok(is_gone)
    })
}

/// Makes all that has a record now survive a power cut, and then what `act` writes.
pub(crate) fn make_durable<T>(
    opened: &Opened,
    act: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let last = |connection: &Connection, table: &str| -> Result<Option<i64>, StoreError> {
        let sql = format!("SELECT max(serial) FROM {table} WHERE boot_id = ?1");
        Ok(connection.prepare_cached(&sql)?.query_row([opened.boot_id()], |row| row.get(0))?)
    };
    let written = opened.database().read(|connection| Ok((last(connection, "layers")?, last(connection, "blobs")?)))?;
    if written != (None, None) {
        opened.sync_files()?;
    }
    opened.database().write_durably(|transaction| {
        for (table, last) in [("layers", written.0), ("blobs", written.1)] {
            let sql = format!("UPDATE {table} SET boot_id = NULL WHERE boot_id = ?1 AND serial <= ?2");
            transaction.prepare_cached(&sql)?.execute(params![opened.boot_id(), last])?;
        }
        // Without a change there would be no commit record to sync, and earlier ones could still be lost.
        transaction.prepare_cached("UPDATE syncs SET count = count + 1")?.execute([])?;
        act(transaction)
    })
}

pub(crate) fn parse<T: FromStr>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::invalid_row(what, text))
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("these types hold only JSON values")
}

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::invalid_row(what, text))
}
