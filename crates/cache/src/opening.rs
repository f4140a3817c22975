//! How the file of the index is opened and made, beside others who do the same.

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};
use std::time::Duration;

/// The format of the file, in SQLite's `user_version`. Another number here makes older files be emptied.
pub(crate) const FORMAT: i64 = 3;

/// The WAL is brought into the file when it has so many pages: who opens the file alone reads all of them.
const CHECKPOINT_PAGES: u32 = 500;

/// How long a writer waits for another process. Transactions here take well under a millisecond.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// `records` holds the records, `keys` what they are found under, `inputs` what their keys were made of
/// ([`StepInputs::to_bytes`]), `builds` the steps of the last build of each identity, as JSON.
///
/// Times are milliseconds since the epoch; lists are JSON. `boot` is the boot id of the writer.
const SCHEMA: &str = "
    DROP TABLE IF EXISTS stack_uses;
    DROP TABLE IF EXISTS stacks;
    DROP TABLE IF EXISTS builds;
    DROP TABLE IF EXISTS inputs;
    DROP TABLE IF EXISTS keys;
    DROP TABLE IF EXISTS records;
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        is_source INTEGER NOT NULL,
        outputs TEXT NOT NULL,
        result BLOB,
        bytes INTEGER NOT NULL,
        wall_ms INTEGER NOT NULL,
        cpu_us INTEGER,
        peak_memory INTEGER,
        created INTEGER NOT NULL,
        last_used INTEGER NOT NULL,
        boot TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        key BLOB PRIMARY KEY,
        record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX keys_of_record ON keys (record);
    CREATE INDEX records_by_result ON records (result);
    CREATE TABLE inputs (
        record INTEGER PRIMARY KEY REFERENCES records (id) ON DELETE CASCADE,
        inputs BLOB NOT NULL
    ) STRICT;
    CREATE TABLE builds (
        build BLOB PRIMARY KEY,
        noted INTEGER NOT NULL,
        steps TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// The same as [`prepare`], again where another process made or removed a journal of the new file in the midst of it: SQLite
/// reports that as an error of the disk.
pub(crate) fn prepare_beside_others(connection: &mut Connection) -> Result<i64, rusqlite::Error> {
    let begin = std::time::Instant::now();
    loop {
        match prepare(connection) {
            Err(error) if is_crossed(&error) && begin.elapsed() < BUSY_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            prepared => return prepared,
        }
    }
}

/// Whether a file was gone that SQLite was about to remove.
fn is_crossed(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(failure, _)
        if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_DELETE_NOENT)
}

/// Sets the connection up and brings the schema to [`FORMAT`]; gives back the format that the file had.
fn prepare(connection: &mut Connection) -> Result<i64, rusqlite::Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A checkpoint when the file is closed would add two fsyncs to every build that writes, and to every other one the
    // making and removing of the WAL.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};"
    ))?;
    let found = format(connection)?;
    if found >= FORMAT {
        return Ok(found);
    }
    // Only a new or old file comes here. The mode is stored in the file, so that later openings need not set it.
    set_wal(connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = format(&transaction)?;
    if found >= FORMAT {
        return Ok(found);
    }
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()?;
    Ok(found)
}

fn format(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Switches to WAL. SQLite does not call its busy handler for the exclusive lock that this takes
/// (`sqlite3PagerSetJournalMode`), hence the loop of our own.
fn set_wal(connection: &Connection) -> Result<(), rusqlite::Error> {
    let begin = std::time::Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())) {
            Err(error) if is_busy(&error) && begin.elapsed() < BUSY_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}
