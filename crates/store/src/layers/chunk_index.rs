//! Where the store has chunks that were compressed before: inside the blobs that it holds, so that nothing is stored twice.

use crate::opened::Opened;
use crate::{StoreError, blobs};
use forge_image::Digest;
use rusqlite::{OptionalExtension, params};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

/// As many chunks as are remembered, a megabyte each on the average; the oldest are forgotten first.
const MOST_CHUNKS: i64 = 200_000;

/// Made when the first chunk is recorded: nothing depends on it, and a store without it has every chunk compressed anew.
/// What is known of a blob goes with the blob.
const TABLE: &str = "
CREATE TABLE IF NOT EXISTS chunks (
    serial   INTEGER PRIMARY KEY AUTOINCREMENT,
    key      BLOB NOT NULL UNIQUE,
    blob     TEXT NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    length   INTEGER NOT NULL,
    checksum BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS chunks_by_blob ON chunks (blob);
";

/// What a compressed chunk is found by: a hash of codec, level and input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChunkKey(pub(super) [u8; 32]);

/// What the table says of a chunk.
struct Row {
    /// The blob's digest, as text.
    blob: String,
    position: u64,
    length: u64,
    check: [u8; 32],
}

/// A compressed chunk within a blob.
#[derive(Debug)]
pub(super) struct ChunkPlace {
    pub(super) key: ChunkKey,
    pub(super) position: u64,
    pub(super) length: u64,
    /// The BLAKE3 hash of the compressed bytes.
    pub(super) check: [u8; 32],
}

/// Finds compressed chunks.
pub(super) struct ChunkIndex {
    opened: Arc<Opened>,
    /// Blobs that were looked into, and those that cannot be.
    sources: Mutex<HashMap<String, Option<Arc<File>>>>,
}

impl ChunkIndex {
    pub(super) fn new(opened: Arc<Opened>) -> Self {
        Self { opened, sources: Mutex::default() }
    }

    /// A compressed chunk and its checksum. Whatever goes wrong, the chunk is then compressed anew: a blob that was removed
    /// meanwhile, bytes that are not what they were, a database without the table.
    pub(super) fn find(&self, key: &ChunkKey) -> Option<(Vec<u8>, [u8; 32])> {
        let Row { blob, position, length, check } = self.row(key).ok()??;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.source(&blob)?.read_exact_at(&mut bytes, position).ok()?;
        (*blake3::hash(&bytes).as_bytes() == check).then_some((bytes, check))
    }

    fn row(&self, key: &ChunkKey) -> Result<Option<Row>, StoreError> {
        self.opened.database().read(|connection| {
            let sql = "SELECT blob, position, length, checksum FROM chunks WHERE key = ?1";
            let columns = |row: &rusqlite::Row<'_>| {
                let (position, length) = (row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
                let (position, length) = (position.cast_unsigned(), length.cast_unsigned());
                Ok(Row { blob: row.get(0)?, position, length, check: row.get(3)? })
            };
            Ok(connection.prepare_cached(sql)?.query_row([&key.0[..]], columns).optional()?)
        })
    }

    fn source(&self, blob: &str) -> Option<Arc<File>> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sources.get(blob) {
            return known.clone();
        }
        let digest: Option<Digest> = blob.parse().ok();
        let settled = digest.and_then(|digest| blobs::settle(&self.opened, &digest).ok().flatten());
        let file = settled.map(|(file, _)| Arc::new(file));
        sources.insert(blob.to_owned(), file.clone());
        file
    }

    /// Remembers the chunks of a blob that is in the store.
    pub(super) fn record(&self, blob: &Digest, places: &[ChunkPlace]) -> Result<(), StoreError> {
        if places.is_empty() {
            return Ok(());
        }
        self.opened.database().write(|transaction| {
            transaction.execute_batch(TABLE)?;
            // Where another blob has a chunk already, that blob may go before this one does.
            let sql =
                "INSERT OR REPLACE INTO chunks (key, blob, position, length, checksum) VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut insert = transaction.prepare_cached(sql)?;
            for ChunkPlace { key, position, length, check } in places {
                let (position, length) = (position.cast_signed(), length.cast_signed());
                insert.execute(params![&key.0[..], blob.as_str(), position, length, &check[..]])?;
            }
            let oldest = "DELETE FROM chunks WHERE serial <= (SELECT max(serial) FROM chunks) - ?1";
            transaction.prepare_cached(oldest)?.execute([MOST_CHUNKS])?;
            Ok(())
        })
    }
}
