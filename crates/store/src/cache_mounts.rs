//! Folders that outlive builds: what `RUN --mount=type=cache` shows to steps.

use crate::collect::{self, insert_trash};
use crate::lease::now;
use crate::lock::LockGuard;
use crate::opened::Opened;
use crate::tree_size::tree_size;
use crate::{ContentDigest, IdError, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The cache mounts of a store, by key.
///
/// ```text
/// cache-mounts/<name>/tree     what steps see; a folder, or a file where the first content was one
/// ```
/// A folder comes into place whole, inside the transaction that writes its record. Whoever uses it holds the lock
/// `cache mount <name>`, shared or exclusive; whoever removes it must get that lock first, so nothing in use is removed
/// (F18), by no process.
#[derive(Clone)]
pub struct CacheMounts {
    opened: Arc<Opened>,
}

/// What tells a cache mount from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheMountKey {
    /// The name that steps give it, any text.
    pub id: String,
    /// What it held at first; `None` for nothing.
    pub first_content: Option<ContentDigest>,
}

impl CacheMountKey {
    fn to_text(&self) -> String {
        // The digest comes first: it holds no space, the id may hold anything.
        let content = self.first_content.map(|digest| digest.to_string()).unwrap_or_default();
        format!("{content} {}", self.id)
    }

    fn parse(text: &str) -> Option<Self> {
        let (content, id) = text.split_once(' ')?;
        let content: Result<Option<ContentDigest>, IdError> = match content {
            "" => Ok(None),
            content => content.parse().map(Some),
        };
        Some(Self { id: id.to_owned(), first_content: content.ok()? })
    }
}

/// How a folder is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMountUse {
    /// Together with everybody else who does so.
    Shared,
    /// Alone; while it is in use elsewhere there is another folder.
    Private,
    /// Alone; while it is in use elsewhere there is none.
    Locked,
}

/// What asking for a folder comes to.
pub enum CacheMountFound {
    /// It is there, and the caller's until the guard is dropped.
    Folder(CacheMountGuard),
    /// Somebody else uses it in a way that excludes this one.
    InUse,
    /// There is none: [`CacheMounts::create`] makes it.
    Absent,
}

/// What the store knows of a cache mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMountRecord {
    /// The folder's name, 32 hexadecimal digits.
    pub name: String,
    /// What it is found by.
    pub key: CacheMountKey,
    /// Where its first content came from, for people.
    pub origin: String,
    /// The bytes of its files when it was last left.
    pub bytes: u64,
    /// When it was made, to the second.
    pub created: SystemTime,
    /// When it was last taken into use, to the second.
    pub last_used: SystemTime,
}

/// A folder in use.
pub struct CacheMountGuard {
    opened: Arc<Opened>,
    record: CacheMountRecord,
    tree: PathBuf,
    lock: LockGuard,
    usage: CacheMountUse,
}

impl CacheMounts {
    pub(crate) fn new(opened: Arc<Opened>) -> Self {
        Self { opened }
    }

    /// Takes a folder into use. Never waits.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn find(&self, key: &CacheMountKey, usage: CacheMountUse) -> Result<CacheMountFound, StoreError> {
        loop {
            let records = self.opened.database().read(|connection| of_key(connection, key))?;
            let Some(first) = records.first() else { return Ok(CacheMountFound::Absent) };
            let candidates = match usage {
                CacheMountUse::Private => records.as_slice(),
                CacheMountUse::Shared | CacheMountUse::Locked => std::slice::from_ref(first),
            };
            let mut vanished = false;
            for record in candidates {
                let Some(lock) = self.try_lock(&record.name, usage)? else { continue };
                match self.take(record, lock, usage)? {
                    Some(guard) => return Ok(CacheMountFound::Folder(guard)),
                    None => vanished = true,
                }
            }
            match (vanished, usage) {
                // Removed between the reading and the locking.
                (true, _) => continue,
                (false, CacheMountUse::Private) => return Ok(CacheMountFound::Absent),
                (false, _) => return Ok(CacheMountFound::InUse),
            }
        }
    }

    /// Makes a folder of `staged`, which is moved, and takes it into use; `None` when somebody else made it in the
    /// meantime, and [`CacheMounts::find`] is to be asked again. `staged` lies in a scratch folder of this store.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn create(
        &self,
        key: &CacheMountKey,
        usage: CacheMountUse,
        staged: &Path,
        origin: &str,
    ) -> Result<Option<CacheMountGuard>, StoreError> {
        let name = crate::ids::random_hex();
        let lock = self.try_lock(&name, usage)?;
        let lock = lock.expect("nobody else knows a name that was made just now");
        if key.first_content.is_some() {
            // A record that survives a power cut must not name files that did not.
            self.opened.sync_files()?;
        }
        let folder = self.opened.scratch_path("cachemount")?;
        crate::scratch::create_private(&folder)?;
        let tree = folder.join("tree");
        std::fs::rename(staged, &tree).map_err(StoreError::io("move into place", &tree))?;
        let made = self.opened.database().write(|transaction| {
            if usage != CacheMountUse::Private && !of_key(transaction, key)?.is_empty() {
                return Ok(false);
            }
            let sql = "INSERT INTO cache_mounts (name, key, origin, bytes, created, last_used)
                       VALUES (?1, ?2, ?3, 0, ?4, ?4)";
            transaction.prepare_cached(sql)?.execute(params![name, key.to_text(), origin, now()])?;
            let path = self.opened.cache_mount_path(&name);
            std::fs::rename(&folder, &path).map_err(StoreError::io("move into place", &path))?;
            Ok(true)
        })?;
        if !made {
            let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(None) };
            crate::removal::remove_tree(parent, name)?;
            return Ok(None);
        }
        let record = self.opened.database().read(|connection| of_name(connection, &name))?;
        match record {
            Some(record) => Ok(Some(self.guard(record, lock, usage))),
            None => Ok(None),
        }
    }

    /// All folders, the oldest first, and whether each is in use.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn list(&self) -> Result<Vec<(CacheMountRecord, bool)>, StoreError> {
        let records = self.opened.database().read(all)?;
        let used = |record: CacheMountRecord| {
            let free = self.try_lock(&record.name, CacheMountUse::Locked)?.is_some();
            Ok((record, !free))
        };
        records.into_iter().map(used).collect()
    }

    /// Removes a folder with all that it holds; `false` when it is in use, or gone already.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let removed = self.give_up(name)?;
        collect::empty_trash(&self.opened)?;
        Ok(removed)
    }

    /// The same, except that the next collection removes the files.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn give_up(&self, name: &str) -> Result<bool, StoreError> {
        let Some(_lock) = self.try_lock(name, CacheMountUse::Locked)? else { return Ok(false) };
        self.opened.database().write(|transaction| {
            let removed = transaction.prepare_cached("DELETE FROM cache_mounts WHERE name = ?1")?.execute([name])?;
            if removed > 0 {
                insert_trash(transaction, collect::CACHE_MOUNT, name)?;
            }
            Ok(removed > 0)
        })
    }

    /// Has nobody find what is kept under a key any more: whoever asks next begins anew. Who uses a folder goes on with it;
    /// it is removed with the next collection.
    ///
    /// # Errors
    /// The file system or the database failed.
    pub fn forget(&self, key: &CacheMountKey) -> Result<(), StoreError> {
        for record in self.opened.database().read(|connection| of_key(connection, key))? {
            if self.give_up(&record.name)? {
                continue;
            }
            let old = CacheMountKey { id: format!("{} (forgotten)", key.id), ..key.clone() };
            self.opened.database().write(|transaction| {
                let sql = "UPDATE cache_mounts SET key = ?2 WHERE name = ?1";
                transaction.prepare_cached(sql)?.execute(params![record.name, old.to_text()])?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn try_lock(&self, name: &str, usage: CacheMountUse) -> Result<Option<LockGuard>, StoreError> {
        let lock = format!("cache mount {name}");
        match usage {
            CacheMountUse::Shared => self.opened.try_lock_shared(&lock),
            CacheMountUse::Private | CacheMountUse::Locked => self.opened.try_lock(&lock),
        }
    }

    /// `None` when the folder was removed before it was locked.
    fn take(
        &self,
        record: &CacheMountRecord,
        lock: LockGuard,
        usage: CacheMountUse,
    ) -> Result<Option<CacheMountGuard>, StoreError> {
        let name = &record.name;
        let record = self.opened.database().write(|transaction| {
            let sql = "UPDATE cache_mounts SET last_used = ?2 WHERE name = ?1";
            let before = of_name(transaction, name)?;
            transaction.prepare_cached(sql)?.execute(params![name, now()])?;
            Ok(before)
        })?;
        let Some(record) = record else { return Ok(None) };
        let guard = self.guard(record, lock, usage);
        if guard.tree.symlink_metadata().is_ok() {
            return Ok(Some(guard));
        }
        // Somebody removed the files by hand, or a power cut did.
        let name = guard.record.name.clone();
        drop(guard);
        self.remove(&name).map(|_| None)
    }

    fn guard(&self, record: CacheMountRecord, lock: LockGuard, usage: CacheMountUse) -> CacheMountGuard {
        let tree = self.opened.cache_mount_path(&record.name).join("tree");
        CacheMountGuard { opened: self.opened.clone(), record, tree, lock, usage }
    }
}

impl CacheMountGuard {
    /// What steps see.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// What was known of it before it was taken into use.
    pub fn record(&self) -> &CacheMountRecord {
        &self.record
    }

    /// Leaves the folder and notes how large it is by now; the last one to leave a shared folder does.
    ///
    /// # Errors
    /// The folder cannot be read, or the database failed.
    pub fn release(self) -> Result<(), StoreError> {
        let Self { opened, record, tree, lock, usage } = self;
        let alone = match usage {
            CacheMountUse::Private | CacheMountUse::Locked => Some(lock),
            CacheMountUse::Shared => {
                drop(lock);
                opened.try_lock(&format!("cache mount {}", record.name))?
            }
        };
        let Some(_alone) = alone else { return Ok(()) };
        let bytes = tree_size(&tree).map_err(StoreError::os("measure", &tree))?;
        opened.database().write(|transaction| {
            let sql = "UPDATE cache_mounts SET bytes = ?2 WHERE name = ?1";
            transaction.prepare_cached(sql)?.execute(params![record.name, bytes as i64])?;
            Ok(())
        })
    }
}

const COLUMNS: &str = "name, key, origin, bytes, created, last_used";

fn record(row: &Row<'_>) -> rusqlite::Result<Option<CacheMountRecord>> {
    let time = |at: usize| -> rusqlite::Result<SystemTime> {
        let seconds: i64 = row.get(at)?;
        Ok(UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned()))
    };
    let Some(key) = CacheMountKey::parse(&row.get::<_, String>(1)?) else { return Ok(None) };
    Ok(Some(CacheMountRecord {
        name: row.get(0)?,
        key,
        origin: row.get(2)?,
        bytes: row.get::<_, i64>(3)?.max(0).cast_unsigned(),
        created: time(4)?,
        last_used: time(5)?,
    }))
}

fn of_key(connection: &Connection, key: &CacheMountKey) -> Result<Vec<CacheMountRecord>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM cache_mounts WHERE key = ?1 ORDER BY serial");
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map([key.to_text()], record)?.collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().flatten().collect())
}

fn of_name(connection: &Connection, name: &str) -> Result<Option<CacheMountRecord>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM cache_mounts WHERE name = ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([name], record).optional()?.flatten())
}

fn all(connection: &Connection) -> Result<Vec<CacheMountRecord>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM cache_mounts ORDER BY serial");
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map([], record)?.collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().flatten().collect())
}
