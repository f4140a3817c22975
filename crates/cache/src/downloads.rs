//! What is known of files that web servers sent before, so that they need not send them again.

use crate::sqlite::{millis, time};
use crate::{CacheError, SqliteIndex};
use forge_image::Digest;
use rusqlite::{OptionalExtension, Row, params};
use std::time::SystemTime;

/// The table lies beside the index's own, and is made when it is first needed: it has no part in their format. `address`
/// is a hash: addresses may hold tokens.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS downloads (
    address BLOB PRIMARY KEY,
    etag TEXT,
    last_modified TEXT,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    filename TEXT NOT NULL,
    mtime INTEGER,
    checked INTEGER NOT NULL
) STRICT, WITHOUT ROWID";

/// So many are remembered; those that were not asked for the longest are forgotten first.
const MOST: i64 = 10_000;

/// Identifies what was asked for: an address, and whatever else the answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DownloadKey([u8; 32]);

impl DownloadKey {
    /// The key of an address and of what was sent along.
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("forge download v1");
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Self(hasher.finalize().into())
    }
}

/// A file as a web server sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Its `ETag`, if it had a strong one.
    pub etag: Option<String>,
    /// Its `Last-Modified`, as it was sent.
    pub last_modified: Option<String>,
    /// The digest of its bytes.
    pub digest: Digest,
    /// The number of its bytes.
    pub size: u64,
    /// Its name.
    pub filename: String,
    /// Its time, where the server said one.
    pub mtime: Option<SystemTime>,
}

impl SqliteIndex {
    /// What was sent the last time.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn download(&self, key: &DownloadKey) -> Result<Option<Download>, CacheError> {
        self.write(|transaction| {
            transaction.execute_batch(SCHEMA)?;
            const SQL: &str =
                "SELECT etag, last_modified, digest, size, filename, mtime FROM downloads WHERE address = ?1";
            let found = transaction.prepare_cached(SQL)?.query_row([key.0], read).optional()?;
            // A digest that does not parse is as good as none.
            Ok(found.flatten())
        })
    }

    /// Remembers what was sent.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn save_download(&self, key: &DownloadKey, download: &Download, now: SystemTime) -> Result<(), CacheError> {
        self.write(|transaction| {
            transaction.execute_batch(SCHEMA)?;
            const SQL: &str = "INSERT OR REPLACE INTO downloads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let Download { etag, last_modified, digest, size, filename, mtime } = download;
            let (digest, size) = (digest.as_str(), i64::try_from(*size).unwrap_or(i64::MAX));
            let mtime = mtime.map(millis);
            let values = params![key.0, etag, last_modified, digest, size, filename, mtime, millis(now)];
            transaction.prepare_cached(SQL)?.execute(values)?;
            const FORGET: &str = "DELETE FROM downloads WHERE address IN
                (SELECT address FROM downloads ORDER BY checked DESC LIMIT -1 OFFSET ?1)";
            transaction.prepare_cached(FORGET)?.execute([MOST])?;
            Ok(())
        })
    }
}

fn read(row: &Row<'_>) -> Result<Option<Download>, rusqlite::Error> {
    let digest: String = row.get(2)?;
    let Ok(digest) = digest.parse() else { return Ok(None) };
    Ok(Some(Download {
        etag: row.get(0)?,
        last_modified: row.get(1)?,
        digest,
        size: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
        filename: row.get(4)?,
        mtime: row.get::<_, Option<i64>>(5)?.map(time),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn download(etag: Option<&str>) -> Download {
        Download {
            etag: etag.map(str::to_owned),
            last_modified: None,
            digest: Digest::sha256(b"x"),
            size: 1,
            filename: "x".to_owned(),
            mtime: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)),
        }
    }

    #[test]
    fn what_was_sent_is_known_by_address_across_openings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.db");
        let (here, there) = (DownloadKey::new(&[b"ab", b"c"]), DownloadKey::new(&[b"a", b"bc"]));
        assert_ne!(here, there);
        let index = SqliteIndex::open(&path).unwrap();
        assert_eq!(index.download(&here).unwrap(), None);
        index.save_download(&here, &download(None), SystemTime::now()).unwrap();
        index.save_download(&here, &download(Some("\"1\"")), SystemTime::now()).unwrap();
        drop(index);
        let index = SqliteIndex::open(&path).unwrap();
        assert_eq!(index.download(&here).unwrap(), Some(download(Some("\"1\""))));
        assert_eq!(index.download(&there).unwrap(), None);
    }
}
