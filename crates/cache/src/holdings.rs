//! Which records stand on which layers: what stacks have in common is kept once, and looked at once.

use crate::sqlite::{Failure, parse, time, unsigned};
use crate::stacks::{Kept, KeptRef};
use crate::{CacheError, CacheKey, SqliteIndex};
use forge_store::LayerId;
use rusqlite::Connection;
use std::collections::HashMap;
use std::time::SystemTime;

/// All records, least recently used first, and the layers that they stand on.
///
/// The steps of a chain need half the square of their number of layers; what is kept here, and what it takes to read it, grows
/// with their number.
#[derive(Default)]
pub struct Holdings {
    /// Each once.
    pub records: Vec<HeldRecord>,
    /// Every layer that some record needs.
    pub layers: Vec<LayerId>,
    /// Layers with what is below them; none comes before one that it stands on.
    pub stands: Vec<Stand>,
    /// How often a layer or a row of layers was looked up to find this out.
    pub looked_up: usize,
}

/// A layer on the layers below it. Stacks that begin alike share their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The layer's number.
    pub layer: usize,
    /// The number of the stand below.
    pub below: Option<usize>,
}

/// What is asked of a record to decide whether it stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRecord {
    /// The smallest of its keys.
    pub key: CacheKey,
    /// What users saw.
    pub name: String,
    /// Whether it brought something in from elsewhere.
    pub is_source: bool,
    /// How long the step ran, in milliseconds.
    pub wall_ms: u64,
    /// When it was last made or used.
    pub last_used: SystemTime,
    /// The number of the layer that it made: the upper-most of its first result.
    pub own: Option<usize>,
    /// The uppermost stand of each of its results; the first is that of `own`. A layer that a stack has twice counts where it is
    /// last, and `own` only in the first.
    pub stands: Vec<usize>,
}

impl HeldRecord {
    /// The layer that the record's own was made on.
    pub fn below(&self, stands: &[Stand]) -> Option<usize> {
        let own = self.own.and(self.stands.first())?;
        stands[*own].below.map(|below| stands[below].layer)
    }
}

impl SqliteIndex {
    /// What all records stand on.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn holdings(&self) -> Result<Holdings, CacheError> {
        const SQL: &str = "SELECT name, is_source, outputs, wall_ms, last_used,
                (SELECT min(key) FROM keys WHERE record = records.id)
            FROM records ORDER BY last_used, id";
        self.read(|connection| {
            let mut reader = Reader { connection, rows: HashMap::new(), forest: Forest::default() };
            let mut statement = connection.prepare_cached(SQL)?;
            let mut rows = statement.query([])?;
            let mut records = Vec::new();
            while let Some(row) = rows.next()? {
                let (name, outputs): (String, String) = (row.get(0)?, row.get(2)?);
                let (own, stands) = reader.stands(&name, &outputs)?;
                records.push(HeldRecord {
                    key: CacheKey::from_bytes(row.get(5)?),
                    is_source: row.get(1)?,
                    wall_ms: unsigned(row.get(3)?),
                    last_used: time(row.get(4)?),
                    name,
                    own,
                    stands,
                });
            }
            let Forest { layers, stands, looked_up, .. } = reader.forest;
            Ok(Holdings { records, layers, stands, looked_up })
        })
    }
}

/// Reads stacks into a forest; each row that several share once.
struct Reader<'c> {
    connection: &'c Connection,
    /// The upper-most stand of each row of `stacks`.
    rows: HashMap<i64, Option<usize>>,
    forest: Forest,
}

impl Reader<'_> {
    /// The own layer of a record, and what it stands on.
    fn stands(&mut self, name: &str, outputs: &str) -> Result<(Option<usize>, Vec<usize>), Failure> {
        let (mut own, mut stands) = (None, Vec::new());
        for (number, output) in parse::<Vec<KeptRef>>(name, outputs)?.into_iter().enumerate() {
            let top = match output.kept() {
                Kept::Nothing => None,
                Kept::Layers(layers) => self.forest.stack(None, &layers),
                Kept::Stacked { stack, layers } => {
                    let below = self.row(name, stack)?;
                    self.forest.stack(below, &layers)
                }
            };
            if number == 0 {
                own = top.map(|top| self.forest.stands[top].layer);
                stands.extend(top);
                continue;
            }
            stands.extend(match own {
                Some(own) => top.and_then(|top| self.forest.without(top, own)),
                None => top,
            });
        }
        Ok((own, stands))
    }

    fn row(&mut self, name: &str, stack: i64) -> Result<Option<usize>, Failure> {
        // Those that are not known yet, from the top down.
        let (mut unread, mut next) = (Vec::new(), Some(stack));
        let mut below = None;
        while let Some(id) = next {
            if let Some(known) = self.rows.get(&id) {
                below = *known;
                break;
            }
            self.forest.looked_up += 1;
            let mut statement = self.connection.prepare_cached("SELECT below, layers FROM stacks WHERE id = ?1")?;
            let (under, layers): (Option<i64>, String) =
                statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            unread.push((id, parse::<Vec<LayerId>>(name, &layers)?));
            next = under;
        }
        for (id, layers) in unread.into_iter().rev() {
            below = self.forest.stack(below, &layers);
            self.rows.insert(id, below);
        }
        Ok(below)
    }
}

/// Stacks that share their beginnings.
#[derive(Default)]
struct Forest {
    layers: Vec<LayerId>,
    numbers: HashMap<LayerId, usize>,
    stands: Vec<Stand>,
    /// What a layer on a stand comes to.
    above: HashMap<(Option<usize>, usize), usize>,
    /// The number of stands that each layer has.
    counts: Vec<usize>,
    looked_up: usize,
}

impl Forest {
    /// The upper-most stand of some layers on a stand.
    fn stack(&mut self, below: Option<usize>, layers: &[LayerId]) -> Option<usize> {
        layers.iter().fold(below, |below, layer| {
            let number = self.number(*layer);
            Some(self.put(below, number))
        })
    }

    fn number(&mut self, layer: LayerId) -> usize {
        *self.numbers.entry(layer).or_insert_with(|| {
            self.layers.push(layer);
            self.counts.push(0);
            self.layers.len() - 1
        })
    }

    fn put(&mut self, below: Option<usize>, layer: usize) -> usize {
        self.looked_up += 1;
        if let Some(known) = self.above.get(&(below, layer)) {
            return *known;
        }
        let under = below.and_then(|below| self.without(below, layer));
        let stand = match self.above.get(&(under, layer)) {
            Some(known) => *known,
            None => {
                self.stands.push(Stand { layer, below: under });
                self.counts[layer] += 1;
                self.stands.len() - 1
            }
        };
        self.above.extend([((under, layer), stand), ((below, layer), stand)]);
        stand
    }

    /// The same stack without a layer.
    fn without(&mut self, stand: usize, layer: usize) -> Option<usize> {
        // Most layers stand nowhere when they are put on something.
        if self.counts[layer] == 0 {
            return Some(stand);
        }
        let (mut above, mut at) = (Vec::new(), Some(stand));
        while let Some(place) = at {
            let Stand { layer: found, below } = self.stands[place];
            if found == layer {
                return above.into_iter().rev().fold(below, |below, layer| Some(self.put(below, layer)));
            }
            above.push(found);
            at = below;
        }
        Some(stand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheIndex, ResultRef, StepInputs, StepRecord};

    fn layer(number: usize) -> LayerId {
        format!("{number:032x}").parse().unwrap()
    }

    fn record(outputs: Vec<Vec<usize>>) -> StepRecord {
        let stack = |layers: Vec<usize>| ResultRef::Layers(layers.into_iter().map(layer).collect());
        StepRecord {
            name: "RUN x".to_owned(),
            is_source: false,
            outputs: outputs.into_iter().map(stack).collect(),
            result: None,
            bytes: 1,
            wall_ms: 7,
            usage: None,
            created: SystemTime::UNIX_EPOCH,
            last_used: SystemTime::UNIX_EPOCH,
            boot_id: "boot".to_owned(),
        }
    }

    fn index_of(stacks: impl IntoIterator<Item = Vec<Vec<usize>>>) -> (tempfile::TempDir, SqliteIndex) {
        let folder = tempfile::tempdir().unwrap();
        let index = SqliteIndex::open(&folder.path().join("cache.db")).unwrap();
        for (number, outputs) in stacks.into_iter().enumerate() {
            let key = CacheKey::from_bytes([&number.to_be_bytes()[..], &[0; 24]].concat().try_into().unwrap());
            index.save(&[key], &record(outputs), &StepInputs::default()).unwrap();
        }
        (folder, index)
    }

    /// What a stand stands on, from the bottom up.
    fn stack_of(held: &Holdings, stand: usize) -> Vec<LayerId> {
        let below = |place: &usize| held.stands[*place].below;
        let mut layers: Vec<LayerId> =
            std::iter::successors(Some(stand), below).map(|place| held.layers[held.stands[place].layer]).collect();
        layers.reverse();
        layers
    }

    fn numbers(layers: &[LayerId]) -> Vec<usize> {
        layers.iter().map(|layer| usize::from_str_radix(layer.as_str(), 16).unwrap()).collect()
    }

    fn check(stacks: Vec<Vec<Vec<usize>>>, expect: &[&[&[usize]]]) {
        let (_folder, index) = index_of(stacks);
        let held = index.holdings().unwrap();
        let found = held
            .records
            .iter()
            .map(|record| record.stands.iter().map(|stand| numbers(&stack_of(&held, *stand))).collect::<Vec<_>>());
        assert_eq!(found.collect::<Vec<_>>(), expect);
    }

    #[test]
    fn stacks_that_begin_alike_share_their_beginning() {
        check(
            vec![vec![vec![1]], vec![vec![1, 2]], vec![vec![1, 3]], vec![vec![]]],
            &[&[&[1]], &[&[1, 2]], &[&[1, 3]], &[]],
        );
    }

    #[test]
    fn a_layer_counts_once_in_a_stack_and_ones_own_in_the_first() {
        check(
            vec![vec![vec![1, 2, 1]], vec![vec![1, 3, 2, 3]], vec![vec![4, 5], vec![5, 6], vec![5]]],
            &[&[&[2, 1]], &[&[1, 2, 3]], &[&[4, 5], &[6]]],
        );
    }

    #[test]
    fn what_a_chain_takes_grows_with_its_steps() {
        let read = |steps: usize| {
            let chain = (1..=steps).map(|height| vec![(0..height).collect::<Vec<_>>()]);
            let (_folder, index) = index_of(chain);
            let held = index.holdings().unwrap();
            assert_eq!((held.records.len(), held.layers.len(), held.stands.len()), (steps, steps, steps));
            let highest = held.records.iter().flat_map(|record| &record.stands).max().unwrap();
            assert_eq!(numbers(&stack_of(&held, *highest)), (0..steps).collect::<Vec<_>>());
            assert_eq!(index.all_layers().unwrap().len(), steps);
            held.looked_up
        };
        let (once, twice) = (read(300), read(600));
        // Whole stacks would have 45,000 layers and 180,000.
        assert!(once <= 300 * 64 && twice < once * 5 / 2, "{once} {twice}");
    }
}
