use crate::opened::Opened;
use crate::{LayerId, StoreError, blobs, layer_rows};
use forge_image::Digest;
use rusqlite::{Connection, params};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a running operation holds: no collection in any process removes it.
///
/// A lease ends when it is dropped. When its process dies, the next one to open the store ends it, having seen that
/// the process is dead; age plays no part.
pub struct Lease {
    opened: Arc<Opened>,
    id: i64,
    /// What is held for certain, so that holding it again costs nothing.
    held: Mutex<HashSet<Held>>,
}

#[derive(PartialEq, Eq, Hash)]
enum Held {
    Layer(LayerId),
    Blob(Digest),
}

impl Lease {
    pub(crate) fn create(opened: Arc<Opened>, purpose: &str) -> Result<Self, StoreError> {
        let id = opened.write_as_owner(|transaction, owner| {
            let sql = "INSERT INTO leases (owner, purpose, created) VALUES (?1, ?2, ?3)";
            transaction.prepare_cached(sql)?.execute(params![owner, purpose, now()])?;
            Ok(transaction.last_insert_rowid())
        })?;
        Ok(Self { opened, id, held: Mutex::default() })
    }

    /// Keeps a layer; `false` means that it is gone (or that its bytes did not survive the last power cut).
    ///
    /// # Errors
    /// The database failed.
    pub fn hold_layer(&self, id: &LayerId) -> Result<bool, StoreError> {
        self.hold_layers(std::slice::from_ref(id))
    }

    /// Keeps all of some layers; `false` means that one is gone, and that none is held on account of this call.
    ///
    /// # Errors
    /// The database failed.
    pub fn hold_layers(&self, ids: &[LayerId]) -> Result<bool, StoreError> {
        let held = self.held();
        let new: Vec<&LayerId> = ids.iter().filter(|id| !held.contains(&Held::Layer(**id))).collect();
        drop(held);
        if new.is_empty() {
            return Ok(true);
        }
        if !layer_rows::settle_all(&self.opened, &new)? {
            return Ok(false);
        }
        let held = self.opened.database().write(|transaction| {
            for id in &new {
                if !layer_rows::exists(transaction, id)? {
                    return Ok(false);
                }
            }
            new.iter().try_for_each(|id| self.insert_layer(transaction, id))?;
            Ok(true)
        })?;
        if held {
            self.held().extend(new.into_iter().map(|id| Held::Layer(*id)));
        }
        Ok(held)
    }

    /// Keeps a blob; `false` means that it is gone.
    ///
    /// # Errors
    /// The database failed.
    pub fn hold_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        if self.held().contains(&Held::Blob(digest.clone())) {
            return Ok(true);
        }
        if blobs::settle(&self.opened, digest)?.is_none() {
            return Ok(false);
        }
        let held = self.opened.database().write(|transaction| {
            let exists = blobs::row(transaction, digest)?.is_some();
            if exists {
                self.insert_blob(transaction, digest)?;
            }
            Ok(exists)
        })?;
        if held {
            self.held().insert(Held::Blob(digest.clone()));
        }
        Ok(held)
    }

    /// Within a transaction that has seen the layer.
    pub(crate) fn insert_layer(&self, connection: &Connection, id: &LayerId) -> Result<(), StoreError> {
        let sql = "INSERT OR IGNORE INTO lease_layers VALUES (?1, ?2)";
        connection.prepare_cached(sql)?.execute(params![self.id, id.as_str()])?;
        Ok(())
    }

    /// Within a transaction that has seen the blob.
    pub(crate) fn insert_blob(&self, connection: &Connection, digest: &Digest) -> Result<(), StoreError> {
        let sql = "INSERT OR IGNORE INTO lease_blobs VALUES (?1, ?2)";
        connection.prepare_cached(sql)?.execute(params![self.id, digest.as_str()])?;
        Ok(())
    }

    /// Within a transaction that drops the layer, or leaves it to a collection.
    pub(crate) fn delete_layer(&self, connection: &Connection, id: &LayerId) -> Result<(), StoreError> {
        let sql = "DELETE FROM lease_layers WHERE lease = ?1 AND layer = ?2";
        connection.prepare_cached(sql)?.execute(params![self.id, id.as_str()])?;
        Ok(())
    }

    /// Before that: who asks for the layer again is told the truth.
    pub(crate) fn forget_layer(&self, id: &LayerId) {
        self.held().remove(&Held::Layer(*id));
    }

    fn held(&self) -> MutexGuard<'_, HashSet<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Whoever needed trees of high stacks held their layers.
        self.opened.folds().forget();
        // A row that stays keeps too much rather than too little, and goes with its owner.
        let _ = self.opened.database().write(|transaction| {
            transaction.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([self.id])?;
            Ok(())
        });
    }
}

/// Seconds since the epoch, for people to read: nothing is decided by it.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}
