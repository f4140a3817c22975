//! Long stacks of layers as the index keeps them: what steps of a chain have in common is written once.

use crate::ResultRef;
use crate::sqlite::{Failure, json, parse};
use forge_store::LayerId;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// So many layers stand in one row. A record has fewer of its own, and what each step of a chain adds to the file does not
/// grow with the chain.
const TOGETHER: usize = 64;

/// Made by the first who has something to write into them. `stacks`: each row has [`TOGETHER`] layers on those of the row
/// `below`; `hash` is that of all of them. `stack_uses`: which outputs of which records stand on a row.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS stacks (
        id INTEGER PRIMARY KEY,
        hash BLOB UNIQUE NOT NULL,
        below INTEGER REFERENCES stacks (id),
        layers TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS stack_uses (
        record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE,
        stack INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS stack_uses_of_record ON stack_uses (record);
";

/// A result as a record's row has it: [`ResultRef`], or layers on a row of `stacks`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeptRef {
    Layers(Vec<LayerId>),
    /// Nothing is kept of what makes one client's files differ from those that lie elsewhere: it ends with the build.
    Context {
        name: String,
        include: Vec<String>,
        exclude: Vec<String>,
    },
    Stacked {
        stack: i64,
        layers: Vec<LayerId>,
    },
}

/// The layers that a [`KeptRef`] names.
pub(crate) enum Kept {
    Nothing,
    Layers(Vec<LayerId>),
    /// Those of the row, and these on them.
    Stacked {
        stack: i64,
        layers: Vec<LayerId>,
    },
}

impl KeptRef {
    pub(crate) fn kept(self) -> Kept {
        match self {
            Self::Layers(layers) => Kept::Layers(layers),
            Self::Context { .. } => Kept::Nothing,
            Self::Stacked { stack, layers } => Kept::Stacked { stack, layers },
        }
    }
}

/// Writes the stacks of results; the text for the record's row, and the rows of `stacks` that it names.
pub(crate) fn keep(connection: &Connection, outputs: &[ResultRef]) -> Result<(String, Vec<i64>), Failure> {
    let mut used = Vec::new();
    let mut kept = Vec::with_capacity(outputs.len());
    for output in outputs {
        kept.push(match output {
            ResultRef::Layers(layers) if layers.len() > TOGETHER => {
                let (below, own) = layers.split_at((layers.len() - 1) / TOGETHER * TOGETHER);
                let stack = intern(connection, below)?;
                used.push(stack);
                KeptRef::Stacked { stack, layers: own.to_vec() }
            }
            ResultRef::Layers(layers) => KeptRef::Layers(layers.clone()),
            ResultRef::Context { name, include, exclude, .. } => {
                KeptRef::Context { name: name.clone(), include: include.clone(), exclude: exclude.clone() }
            }
        });
    }
    Ok((json(&kept), used))
}

/// Notes which rows a record stands on.
pub(crate) fn note(connection: &Connection, record: i64, used: &[i64]) -> Result<(), rusqlite::Error> {
    for stack in used {
        let sql = "INSERT INTO stack_uses (record, stack) VALUES (?1, ?2)";
        connection.prepare_cached(sql)?.execute(params![record, stack])?;
    }
    Ok(())
}

/// The row of a stack of whole rows; what is not there is written.
fn intern(connection: &Connection, layers: &[LayerId]) -> Result<i64, Failure> {
    if !is_made(connection)? {
        connection.execute_batch(SCHEMA)?;
    }
    let mut hasher = blake3::Hasher::new_derive_key("forge stack of layers v1");
    let hash = |row: &[LayerId]| *hasher.update(&digits(row)).finalize().as_bytes();
    let hashes: Vec<[u8; 32]> = layers.chunks(TOGETHER).map(hash).collect();
    let mut found = None;
    let mut missing = hashes.len();
    while missing > 0 && found.is_none() {
        let mut statement = connection.prepare_cached("SELECT id FROM stacks WHERE hash = ?1")?;
        found = statement.query_row([&hashes[missing - 1]], |row| row.get::<_, i64>(0)).optional()?;
        missing -= usize::from(found.is_none());
    }
    for (hash, row) in hashes.iter().zip(layers.chunks(TOGETHER)).skip(missing) {
        let sql = "INSERT INTO stacks (hash, below, layers) VALUES (?1, ?2, ?3) RETURNING id";
        let values = params![hash, found, json(&row)];
        found = Some(connection.prepare_cached(sql)?.query_row(values, |row| row.get(0))?);
    }
    Ok(found.expect("a long stack has a row"))
}

/// Whether there is anything of what [`SCHEMA`] makes.
fn is_made(connection: &Connection) -> Result<bool, rusqlite::Error> {
    connection.prepare_cached("SELECT 1 FROM sqlite_master WHERE name = 'stacks'")?.exists([])
}

/// The ids of layers, one after the other, as hashes take them: all at once is many times as fast as one by one.
pub(crate) fn digits(layers: &[LayerId]) -> Vec<u8> {
    let mut digits = Vec::with_capacity(size_of_val(layers));
    layers.iter().for_each(|layer| digits.extend_from_slice(layer.as_str().as_bytes()));
    digits
}

/// Removes the rows that no record stands on any more.
pub(crate) fn drop_unused(connection: &Connection) -> Result<(), rusqlite::Error> {
    if !is_made(connection)? {
        return Ok(());
    }
    // From the top down: a row that another one stands on stays until that is gone.
    let sql = "DELETE FROM stacks WHERE id NOT IN (SELECT stack FROM stack_uses)
               AND id NOT IN (SELECT below FROM stacks WHERE below IS NOT NULL)";
    while connection.prepare_cached(sql)?.execute([])? > 0 {}
    Ok(())
}

/// Reads results; of stacks that several records stand on, each is read once.
pub(crate) struct Stacks<'c> {
    connection: &'c Connection,
    known: HashMap<i64, Vec<LayerId>>,
}

impl<'c> Stacks<'c> {
    pub(crate) fn new(connection: &'c Connection) -> Self {
        Self { connection, known: HashMap::new() }
    }

    /// The results that a record's row names.
    pub(crate) fn outputs(&mut self, name: &str, text: &str) -> Result<Vec<ResultRef>, Failure> {
        let kept: Vec<KeptRef> = parse(name, text)?;
        let whole = |kept| match kept {
            KeptRef::Layers(layers) => Ok(ResultRef::Layers(layers)),
            KeptRef::Context { name, include, exclude } => {
                Ok(ResultRef::Context { name, include, exclude, follow: Vec::new(), metadata_only: None })
            }
            KeptRef::Stacked { stack, layers } => {
                let below = self.layers(name, stack)?;
                Ok(ResultRef::Layers([below, &layers].concat()))
            }
        };
        kept.into_iter().map(whole).collect()
    }

    fn layers(&mut self, name: &str, stack: i64) -> Result<&[LayerId], Failure> {
        const SQL: &str = "WITH RECURSIVE chain (below, layers, depth) AS (
                SELECT below, layers, 0 FROM stacks WHERE id = ?1
                UNION ALL
                SELECT stacks.below, stacks.layers, depth + 1 FROM stacks JOIN chain ON stacks.id = chain.below)
            SELECT layers FROM chain ORDER BY depth DESC";
        if !self.known.contains_key(&stack) {
            let mut statement = self.connection.prepare_cached(SQL)?;
            let mut layers = Vec::new();
            for row in statement.query_map([stack], |row| row.get::<_, String>(0))? {
                layers.extend(parse::<Vec<LayerId>>(name, &row?)?);
            }
            self.known.insert(stack, layers);
        }
        Ok(&self.known[&stack])
    }
}
