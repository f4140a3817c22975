use crate::opened::Opened;
use crate::{LayerId, StoreError};
use std::collections::{HashMap, HashSet};

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images, and the bytes of the layers that they need, each once.
    pub images: UsageEntry,
    /// Unpacked layers.
    pub layers: UsageEntry,
    /// Blobs.
    pub blobs: UsageEntry,
}

/// Things of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageEntry {
    /// How many there are.
    pub count: u64,
    /// The bytes in their files.
    pub bytes: u64,
    /// The bytes of those that no image needs.
    pub reclaimable: u64,
}

pub(crate) fn usage(opened: &Opened) -> Result<Usage, StoreError> {
    let image_bytes = "coalesce((SELECT sum(bytes) FROM layers WHERE id IN (SELECT layer FROM image_layers)), 0)";
    let dangling = "coalesce((SELECT sum(bytes) FROM layers WHERE id IN (SELECT layer FROM image_layers)
                    AND id NOT IN (SELECT layer FROM image_layers WHERE image IN (SELECT image FROM name_images))), 0)";
    let images = format!("SELECT count(*), {image_bytes}, {dangling} FROM images");
    let layers = "SELECT count(*), coalesce(sum(bytes), 0),
                  coalesce(sum(bytes) FILTER (WHERE id NOT IN (SELECT layer FROM image_layers)), 0) FROM layers";
    let blobs = "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(size) FILTER (WHERE digest NOT IN
                 (SELECT id FROM images UNION SELECT manifest_digest FROM images WHERE manifest_digest IS NOT NULL
                  UNION SELECT index_digest FROM names WHERE index_digest IS NOT NULL
                  UNION SELECT blob FROM layer_blobs WHERE layer IN (SELECT layer FROM image_layers))), 0) FROM blobs";
    opened.database().read(|connection| {
        let entry = |sql: &str| -> Result<UsageEntry, StoreError> {
            let number = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(|value| value as u64);
            Ok(connection.query_row(sql, [], |row| {
                Ok(UsageEntry { count: number(row, 0)?, bytes: number(row, 1)?, reclaimable: number(row, 2)? })
            })?)
        };
        Ok(Usage { images: entry(&images)?, layers: entry(layers)?, blobs: entry(blobs)? })
    })
}

/// What each layer takes on disk: its files, and the blobs made of them.
pub(crate) fn layer_bytes(opened: &Opened) -> Result<HashMap<LayerId, u64>, StoreError> {
    let sql = "SELECT layers.id, layers.bytes + coalesce(sum(blobs.size), 0) FROM layers
               LEFT JOIN layer_blobs ON layer_blobs.layer = layers.id
               LEFT JOIN blobs ON blobs.digest = layer_blobs.blob GROUP BY layers.id";
    opened.database().read(|connection| {
        let mut select = connection.prepare_cached(sql)?;
        let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let sized = |(id, bytes): (String, i64)| Some((id.parse().ok()?, bytes.max(0).cast_unsigned()));
        Ok(rows.into_iter().filter_map(sized).collect())
    })
}

/// The layers that some running process holds.
pub(crate) fn leased_layers(opened: &Opened) -> Result<HashSet<LayerId>, StoreError> {
    opened.database().read(|connection| {
        let mut select = connection.prepare_cached("SELECT DISTINCT layer FROM lease_layers")?;
        let texts = select.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
    })
}
