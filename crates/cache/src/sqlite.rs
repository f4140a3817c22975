use crate::memory::TOUCH_INTERVAL;
use crate::opening::{FORMAT, prepare_beside_others};
use crate::stacks::{self, Stacks};
use crate::{BuildId, BuildSteps, CacheError, CacheIndex, CacheKey, StepInputs, StepRecord, StepUsage};
use forge_store::LayerId;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// So many builds are remembered; those that were not noted for the longest are forgotten first.
const MOST_BUILDS: i64 = 1000;

/// The columns of a record, in the order in which [`read_record`] takes them.
macro_rules! columns {
    () => {
        "name, is_source, outputs, result, bytes, wall_ms, cpu_us, peak_memory, created, last_used, boot"
    };
}

/// An index in one SQLite file that several processes use at once.
///
/// The file is in WAL mode with `synchronous=NORMAL`: a power cut may lose the latest records, it does not
/// damage the file. What a record points at is for [`crate::ResultStore::acquire`] to check.
pub struct SqliteIndex {
    connection: Mutex<Connection>,
    path: PathBuf,
    emptied: Option<i64>,
}

impl SqliteIndex {
    /// Opens the file and makes it if it is not there.
    ///
    /// # Errors
    /// The file cannot be used, or a later forge wrote it.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let error = |source| CacheError::Index { action: "open", path: path.to_owned(), source };
        // SQLite would make it readable for all, and its further files like it. What fails here, fails there again; only
        // of file systems that are read-only it would not say so.
        match OpenOptions::new().create(true).append(true).mode(0o600).open(path) {
            Err(source) if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                return Err(CacheError::NotWritable { path: path.to_owned(), source });
            }
            _ => {}
        }
        let mut connection = Connection::open(path).map_err(error)?;
        match prepare_beside_others(&mut connection).map_err(error)? {
            found if found > FORMAT => Err(CacheError::NewerFormat { path: path.to_owned(), found, known: FORMAT }),
            found => {
                let emptied = (1..FORMAT).contains(&found).then_some(found);
                Ok(Self { connection: Mutex::new(connection), path: path.to_owned(), emptied })
            }
        }
    }

    /// The earlier format of the file, if it had one: then its records were of no use any more, and the index is empty.
    pub fn emptied(&self) -> Option<i64> {
        self.emptied
    }

    /// Removes the records of some keys at once; says of each key whether it led to one.
    ///
    /// # Errors
    /// The file cannot be changed.
    pub fn remove_all(&self, keys: &[CacheKey]) -> Result<Vec<bool>, CacheError> {
        self.write(|transaction| {
            let mut removed = Vec::with_capacity(keys.len());
            for key in keys {
                removed.push(match record_of(transaction, key)? {
                    Some(id) => delete(transaction, id)?,
                    None => false,
                });
            }
            stacks::drop_unused(transaction)?;
            Ok(removed)
        })
    }

    /// Runs a read.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T, CacheError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection).map_err(|failure| self.error("read", failure))
    }

    /// Runs a change as one transaction that takes the write lock at its start: a reader that becomes a writer
    /// later would fail with SQLITE_BUSY at once instead of waiting.
    pub(crate) fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T, CacheError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let run = || -> Result<T, Failure> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|failure| self.error("write", failure))
    }

    fn error(&self, action: &'static str, failure: Failure) -> CacheError {
        match failure {
            Failure::Sqlite(source) => CacheError::Index { action, path: self.path.clone(), source },
            Failure::Json { name, source } => CacheError::Damaged { name, source },
        }
    }
}

/// Why a statement failed, before the file's name is added.
pub(crate) enum Failure {
    Sqlite(rusqlite::Error),
    Json { name: String, source: serde_json::Error },
}

impl From<rusqlite::Error> for Failure {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sqlite(source)
    }
}

impl CacheIndex for SqliteIndex {
    fn query(&self, key: &CacheKey) -> Result<Option<StepRecord>, CacheError> {
        const SQL: &str =
            concat!("SELECT ", columns!(), " FROM records WHERE id = (SELECT record FROM keys WHERE key = ?1)");
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let columns = statement.query_row([key.as_bytes()], Columns::read).optional()?;
            columns.map(|columns| columns.decode(&mut Stacks::new(connection))).transpose()
        })
    }

    fn save(&self, keys: &[CacheKey], record: &StepRecord, inputs: &StepInputs) -> Result<(), CacheError> {
        if keys.is_empty() {
            return Ok(());
        }
        let inputs = inputs.to_bytes();
        self.write(|transaction| {
            let (outputs, used) = stacks::keep(transaction, &record.outputs)?;
            let id = insert(transaction, &Columns::encode(record, outputs))?;
            stacks::note(transaction, id, &used)?;
            let sql = "INSERT INTO inputs (record, inputs) VALUES (?1, ?2)";
            transaction.prepare_cached(sql)?.execute(params![id, inputs])?;
            keys.iter().try_for_each(|key| point(transaction, key, id))
        })
    }

    fn equal(&self, result: &CacheKey) -> Result<Option<StepRecord>, CacheError> {
        const SQL: &str = concat!("SELECT ", columns!(), " FROM records WHERE result = ?1 ORDER BY id LIMIT 1");
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let columns = statement.query_row([result.as_bytes()], Columns::read).optional()?;
            columns.map(|columns| columns.decode(&mut Stacks::new(connection))).transpose()
        })
    }

    fn inputs(&self, key: &CacheKey) -> Result<Option<StepInputs>, CacheError> {
        const SQL: &str = "SELECT inputs FROM inputs WHERE record = (SELECT record FROM keys WHERE key = ?1)";
        let bytes: Option<Vec<u8>> = self.read(|connection| {
            Ok(connection.prepare_cached(SQL)?.query_row([key.as_bytes()], |row| row.get(0)).optional()?)
        })?;
        bytes.map(|bytes| StepInputs::from_bytes(&bytes)).transpose()
    }

    fn last_build(&self, build: &BuildId) -> Result<Option<BuildSteps>, CacheError> {
        self.read(|connection| {
            let steps: Option<String> = last_build(connection, build)?;
            steps.map(|steps| parse("the last build", &steps)).transpose()
        })
    }

    fn note_build(&self, build: &BuildId, steps: &BuildSteps, now: SystemTime) -> Result<(), CacheError> {
        let steps = json(steps);
        if self.read(|connection| Ok(last_build(connection, build)?))?.is_some_and(|last| last == steps) {
            return Ok(());
        }
        self.write(|transaction| {
            let sql = "INSERT OR REPLACE INTO builds VALUES (?1, ?2, ?3)";
            transaction.prepare_cached(sql)?.execute(params![build.as_bytes(), millis(now), steps])?;
            let sql = "DELETE FROM builds WHERE build IN
                       (SELECT build FROM builds ORDER BY noted DESC LIMIT -1 OFFSET ?1)";
            transaction.prepare_cached(sql)?.execute([MOST_BUILDS])?;
            Ok(())
        })
    }

    fn link(&self, keys: &[CacheKey], existing: &CacheKey) -> Result<bool, CacheError> {
        self.write(|transaction| {
            let Some(id) = record_of(transaction, existing)? else { return Ok(false) };
            keys.iter().try_for_each(|key| point(transaction, key, id))?;
            Ok(true)
        })
    }

    fn touch(&self, keys: &[CacheKey], now: SystemTime) -> Result<(), CacheError> {
        let due = millis(now).saturating_sub(TOUCH_INTERVAL.as_millis() as i64);
        // Looked up before the write lock is asked for: most often there is nothing to write.
        let stale: Vec<i64> = self.read(|connection| {
            // One state for all of them, instead of one for each.
            let connection = connection.unchecked_transaction()?;
            const SQL: &str =
                "SELECT id FROM records WHERE id = (SELECT record FROM keys WHERE key = ?1) AND last_used < ?2";
            let mut statement = connection.prepare_cached(SQL)?;
            let find = |key: &CacheKey| statement.query_row(params![key.as_bytes(), due], |row| row.get(0)).optional();
            let found: Result<Vec<Option<i64>>, rusqlite::Error> = keys.iter().map(find).collect();
            Ok(found?.into_iter().flatten().collect())
        })?;
        if stale.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            let mut statement = transaction.prepare_cached("UPDATE records SET last_used = ?2 WHERE id = ?1")?;
            stale.iter().try_for_each(|id| statement.execute(params![id, millis(now)]).map(drop))?;
            Ok(())
        })
    }

    fn remove(&self, key: &CacheKey) -> Result<bool, CacheError> {
        self.write(|transaction| {
            let Some(id) = record_of(transaction, key)? else { return Ok(false) };
            let removed = delete(transaction, id)?;
            stacks::drop_unused(transaction)?;
            Ok(removed)
        })
    }

    fn remove_where(&self, unwanted: &mut dyn FnMut(&StepRecord) -> bool) -> Result<Vec<StepRecord>, CacheError> {
        let mut all = self.read(|connection| {
            let mut statement = connection.prepare_cached(concat!("SELECT ", columns!(), ", id FROM records"))?;
            let rows = statement.query_map([], |row| Ok((Columns::read(row)?, row.get::<_, i64>(11)?)))?;
            let mut stacks = Stacks::new(connection);
            let decode = |row: Result<(Columns, i64), rusqlite::Error>| -> Result<(i64, StepRecord), Failure> {
                let (columns, id) = row?;
                Ok((id, columns.decode(&mut stacks)?))
            };
            rows.map(decode).collect::<Result<Vec<_>, Failure>>()
        })?;
        self.write(|transaction| {
            all.retain(|(_, record)| unwanted(record));
            let mut removed = Vec::new();
            for (id, record) in all {
                if delete(transaction, id)? {
                    removed.push(record);
                }
            }
            stacks::drop_unused(transaction)?;
            Ok(removed)
        })
    }

    fn list(&self) -> Result<Vec<(CacheKey, StepRecord)>, CacheError> {
        const SQL: &str = concat!(
            "SELECT ",
            columns!(),
            ", (SELECT min(key) FROM keys WHERE record = records.id) FROM records ORDER BY last_used, id"
        );
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, [u8; 32]>(11)?, Columns::read(row)?)))?;
            let mut stacks = Stacks::new(connection);
            rows.map(|row| {
                let (key, columns) = row?;
                Ok((CacheKey::from_bytes(key), columns.decode(&mut stacks)?))
            })
            .collect()
        })
    }

    fn all_layers(&self) -> Result<HashSet<LayerId>, CacheError> {
        Ok(self.holdings()?.layers.into_iter().collect())
    }
}

fn insert(transaction: &Transaction<'_>, columns: &Columns) -> Result<i64, Failure> {
    const SQL: &str = concat!(
        "INSERT INTO records (",
        columns!(),
        ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) RETURNING id"
    );
    let Columns { name, is_source, outputs, result, bytes, wall_ms, cpu_us, peak_memory, created, last_used, boot } =
        columns;
    let values =
        params![name, is_source, outputs, result, bytes, wall_ms, cpu_us, peak_memory, created, last_used, boot];
    Ok(transaction.prepare_cached(SQL)?.query_row(values, |row| row.get(0))?)
}

fn last_build(connection: &Connection, build: &BuildId) -> Result<Option<String>, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT steps FROM builds WHERE build = ?1")?;
    statement.query_row([build.as_bytes()], |row| row.get(0)).optional()
}

fn record_of(transaction: &Transaction<'_>, key: &CacheKey) -> Result<Option<i64>, Failure> {
    let mut statement = transaction.prepare_cached("SELECT record FROM keys WHERE key = ?1")?;
    Ok(statement.query_row([key.as_bytes()], |row| row.get(0)).optional()?)
}

/// Makes a key lead to a record, and drops the record it led to when that was its last key.
fn point(transaction: &Transaction<'_>, key: &CacheKey, id: i64) -> Result<(), Failure> {
    let before = record_of(transaction, key)?.filter(|before| *before != id);
    let sql = "INSERT INTO keys (key, record) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET record = ?2";
    transaction.prepare_cached(sql)?.execute(params![key.as_bytes(), id])?;
    if let Some(before) = before {
        let sql = "DELETE FROM records WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM keys WHERE record = ?1)";
        transaction.prepare_cached(sql)?.execute([before])?;
    }
    Ok(())
}

fn delete(transaction: &Transaction<'_>, id: i64) -> Result<bool, Failure> {
    Ok(transaction.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id])? == 1)
}

/// A record as its row holds it.
struct Columns {
    name: String,
    is_source: bool,
    outputs: String,
    result: Option<[u8; 32]>,
    bytes: i64,
    wall_ms: i64,
    cpu_us: Option<i64>,
    peak_memory: Option<i64>,
    created: i64,
    last_used: i64,
    boot: String,
}

impl Columns {
    fn read(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            name: row.get(0)?,
            is_source: row.get(1)?,
            outputs: row.get(2)?,
            result: row.get(3)?,
            bytes: row.get(4)?,
            wall_ms: row.get(5)?,
            cpu_us: row.get(6)?,
            peak_memory: row.get(7)?,
            created: row.get(8)?,
            last_used: row.get(9)?,
            boot: row.get(10)?,
        })
    }

    fn encode(record: &StepRecord, outputs: String) -> Self {
        Self {
            name: record.name.clone(),
            outputs,
            is_source: record.is_source,
            result: record.result.map(|result| *result.as_bytes()),
            bytes: signed(record.bytes),
            wall_ms: signed(record.wall_ms),
            cpu_us: record.usage.map(|usage| signed(usage.cpu_us)),
            peak_memory: record.usage.map(|usage| signed(usage.peak_memory)),
            created: millis(record.created),
            last_used: millis(record.last_used),
            boot: record.boot_id.clone(),
        }
    }

    fn decode(self, stacks: &mut Stacks<'_>) -> Result<StepRecord, Failure> {
        Ok(StepRecord {
            outputs: stacks.outputs(&self.name, &self.outputs)?,
            is_source: self.is_source,
            result: self.result.map(CacheKey::from_bytes),
            bytes: unsigned(self.bytes),
            wall_ms: unsigned(self.wall_ms),
            usage: self
                .cpu_us
                .zip(self.peak_memory)
                .map(|(cpu, memory)| StepUsage { cpu_us: unsigned(cpu), peak_memory: unsigned(memory) }),
            created: time(self.created),
            last_used: time(self.last_used),
            boot_id: self.boot,
            name: self.name,
        })
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("lists of strings and enums of them have a JSON form")
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|source| Failure::Json { name: name.to_owned(), source })
}

pub(crate) fn millis(time: SystemTime) -> i64 {
    let past = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(past.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
