use crate::StoreError;
use crate::remote_rows::SCHEMA_REMOTES;
use crate::schema::{COLUMNS_3, SCHEMA, SCHEMA_2};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections beyond this many are closed instead of kept: more threads than that do not query at once for long.
const IDLE_CONNECTIONS: usize = 8;

/// A checkpoint costs two fsyncs, so it must not come several times in one build (`docs/design/003-durability.md`).
const CHECKPOINT_PAGES: u32 = 1000;

/// Whoever opens a database that nobody else has open reads the whole WAL, so its size is paid at the start of every
/// command: 1.4 ms for 600 pages of 4 KiB. A longer one is brought into the file when the store is opened. That has to come before
/// anything is added: only a WAL all of which is in the file is begun anew, and then SQLite cuts it to this length.
const LONG_WAL: u64 = 250 * (4096 + 24);

/// What a connection keeps of the file at most, in KiB. An image of 1,000 layers changes more pages than SQLite keeps by itself;
/// those that it cannot keep are written and read again before they are committed.
const CACHE_SIZE: u32 = 8192;

/// SQLite metadata of one store, with a pool of connections.
pub(crate) struct Database {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Threads of one process queue here instead of polling each other's file lock.
    writer: Mutex<()>,
}

impl Database {
    /// Makes the file and its tables. The caller holds the lock under which a store is made.
    pub(crate) fn create(path: &Path) -> Result<(), StoreError> {
        let connection = connect(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let exists: bool =
            connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'trash'", [], |row| row.get(0))?;
        if !exists {
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        }
        Self::upgrade(path)
    }

    /// Makes the tables that a store of an earlier format lacks, durably: the `FORMAT` file vouches for them. The caller holds
    /// the lock under which a store is made.
    pub(crate) fn upgrade(path: &Path) -> Result<(), StoreError> {
        let mut connection = connect(path)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(SCHEMA_2)?;
        transaction.execute_batch(SCHEMA_REMOTES)?;
        for column in COLUMNS_3 {
            if !transaction.column_exists(None, "layers", column)? {
                transaction.execute_batch(&format!("ALTER TABLE layers ADD COLUMN {column} INTEGER"))?;
            }
        }
        Ok(transaction.commit()?)
    }

    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let first = connect(path)?;
        Ok(Self { path: path.to_owned(), idle: Mutex::new(vec![first]), writer: Mutex::new(()) })
    }

    /// Brings the WAL into the file where it is long. Best before anything is written.
    pub(crate) fn shorten_wal(&self) -> Result<(), StoreError> {
        let wal = self.path.with_extension("db-wal");
        if fs::metadata(wal).is_ok_and(|wal| wal.len() > LONG_WAL) {
            // Whoever comes next tries again, as after any commit at which SQLite could not.
            let _ = self.connection()?.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()));
        }
        Ok(())
    }

    /// Reads one consistent state.
    pub(crate) fn read<T>(&self, act: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let connection = self.connection()?;
        let reading = Reading::begin(&connection)?;
        act(reading.0)
    }

    /// Writes atomically. What is written survives the death of the process, and a power cut only after a later
    /// durable write.
    pub(crate) fn write<T>(
        &self,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _turn = lock(&self.writer);
        let mut connection = self.connection()?;
        transact(&mut connection, act)
    }

    /// Writes atomically; when this returns, this and every earlier write survives a power cut: SQLite syncs the WAL,
    /// which all of them are in.
    pub(crate) fn write_durably<T>(
        &self,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _turn = lock(&self.writer);
        let mut connection = self.connection()?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let result = transact(&mut connection, act);
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        result
    }

    /// Brings everything into the one file, which can then be given another name. Nobody may use the database any more.
    pub(crate) fn close_into_one_file(self) -> Result<(), StoreError> {
        let mut connections = self.idle.into_inner().unwrap_or_else(PoisonError::into_inner);
        let last = connections.pop();
        drop(connections);
        if let Some(connection) = last {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        }
        Ok(())
    }

    fn connection(&self) -> Result<Pooled<'_>, StoreError> {
        let idle = lock(&self.idle).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.path)?,
        };
        Ok(Pooled { pool: &self.idle, connection: Some(connection) })
    }
}

/// A transaction that reads. There are dozens in a build in which nothing has changed, so what begins and ends it is compiled
/// once for a connection, as other statements are.
struct Reading<'c>(&'c Connection);

impl<'c> Reading<'c> {
    fn begin(connection: &'c Connection) -> Result<Self, StoreError> {
        connection.prepare_cached("BEGIN DEFERRED")?.execute([])?;
        Ok(Self(connection))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // A connection that is still in the transaction is closed by its pool.
        let _ = self.0.prepare_cached("ROLLBACK").and_then(|mut statement| statement.execute([]));
    }
}

fn transact<T>(
    connection: &mut Connection,
    act: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = act(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(wait_for_lock))?;
    // A checkpoint when the last connection closes would add two fsyncs to every command.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch(&format!(
        "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; \
         PRAGMA journal_size_limit = {LONG_WAL}; PRAGMA cache_size = -{CACHE_SIZE};"
    ))?;
    Ok(connection)
}

/// Waits about a minute in all. SQLite's own busy timeout sleeps up to 100 ms at a time, transactions here take
/// less than one.
fn wait_for_lock(attempt: i32) -> bool {
    let pause = match attempt {
        0..20 => Duration::from_micros(100),
        20..100 => Duration::from_millis(1),
        _ => Duration::from_millis(5),
    };
    std::thread::sleep(pause);
    attempt < 12_000
}

/// A panic elsewhere leaves these lists whole, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Pooled<'a> {
    pool: &'a Mutex<Vec<Connection>>,
    connection: Option<Connection>,
}

impl Deref for Pooled<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("taken only by drop")
    }
}

impl DerefMut for Pooled<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("taken only by drop")
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        let mut pool = lock(self.pool);
        if let Some(connection) = self.connection.take()
            && pool.len() < IDLE_CONNECTIONS
            && connection.is_autocommit()
        {
            pool.push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail with the checkpoint left out, and with no limit of the WAL's length.
    #[test]
    fn a_long_wal_is_brought_into_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("forge.db");
        let length = || fs::metadata(path.with_extension("db-wal")).unwrap().len();
        fs::write(&path, "").unwrap();
        Database::create(&path).unwrap();
        let database = Database::open(&path).unwrap();
        let write = |database: &Database, number: u32| {
            database.write(|transaction| Ok(transaction.pragma_update(None, "user_version", number)?)).unwrap();
        };
        (0..300).for_each(|number| write(&database, number));
        drop(database);
        assert!(length() > LONG_WAL);
        let database = Database::open(&path).unwrap();
        database.shorten_wal().unwrap();
        write(&database, 300);
        assert!(length() <= LONG_WAL, "{}", length());
        (301..320).for_each(|number| write(&database, number));
        drop(database);
        let database = Database::open(&path).unwrap();
        database.shorten_wal().unwrap();
        let read = |connection: &Connection| connection.query_row("PRAGMA user_version", [], |row| row.get(0));
        let found: u32 = database.read(|connection| Ok(read(connection)?)).unwrap();
        assert_eq!((found, length() <= LONG_WAL), (319, true));
    }
}
