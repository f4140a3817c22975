//! Layers that hold copies of what was selected elsewhere, found by the digest of the selection.

use crate::layer_rows::parse;
use crate::{ContentDigest, LayerId, Lease, Store, StoreError};
use rusqlite::{OptionalExtension, params};

impl Store {
    /// The layer that holds a copy of a selection, held by the lease; `None` where there is none (any more).
    ///
    /// # Errors
    /// The database failed.
    pub fn selection(&self, content: &ContentDigest, lease: &Lease) -> Result<Option<LayerId>, StoreError> {
        let text: Option<String> = self.opened.database().read(|connection| {
            let sql = "SELECT layer FROM selections WHERE content = ?1";
            Ok(connection.prepare_cached(sql)?.query_row([content.to_string()], |row| row.get(0)).optional()?)
        })?;
        let Some(layer) = text.map(|text| parse::<LayerId>("layer id", &text)).transpose()? else { return Ok(None) };
        Ok(lease.hold_layer(&layer)?.then_some(layer))
    }

    /// Says that a layer, which a lease holds, is a copy of a selection. A later one takes its place.
    ///
    /// # Errors
    /// The database failed.
    pub fn keep_selection(&self, content: &ContentDigest, layer: &LayerId) -> Result<(), StoreError> {
        self.opened.database().write(|transaction| {
            let sql = "INSERT OR REPLACE INTO selections (content, layer) VALUES (?1, ?2)";
            transaction.prepare_cached(sql)?.execute(params![content.to_string(), layer.as_str()])?;
            Ok(())
        })
    }
}
