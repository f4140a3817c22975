//! What a disk may hold after a crash, given the calls before it.
//!
//! Names and bytes are apart: a name leads to a node, and what is written goes to the node, whatever it is called. Of the
//! changes that no sync has covered, names come back as the file system's journal had them, up to some moment, or, as file systems
//! without such an order do, each for itself; bytes come back whole, not at all, or sector by sector.

use super::calls::Call;
use crate::tests::fuzz::Random;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What disks write as a whole.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Make { path: String, node: usize },
    Rename { from: String, to: String },
    Remove { path: String },
    Write { node: usize, offset: usize, bytes: Vec<u8> },
    Truncate { node: usize, length: usize },
}

/// A change, and the number of the call from whose end on it is durable.
struct Dated {
    change: Change,
    call: usize,
    durable: Option<usize>,
}

/// Everything that happened.
pub(super) struct Recording {
    changes: Vec<Dated>,
    is_folder: Vec<bool>,
    /// What was said, and at which call.
    pub said: Vec<(usize, String)>,
    /// How many calls there were.
    pub calls: usize,
}

/// Names as they were at some time; those of folders too.
type Names = BTreeMap<String, usize>;

impl Recording {
    pub(super) fn new(calls: &[Call]) -> Self {
        let mut recording = Self { changes: Vec::new(), is_folder: vec![true], said: Vec::new(), calls: calls.len() };
        let mut names = Names::from([(String::new(), 0)]);
        for (number, call) in calls.iter().enumerate() {
            recording.call(&mut names, number, call);
        }
        recording
    }

    fn call(&mut self, names: &mut Names, number: usize, call: &Call) {
        let change = match call {
            Call::MakeFile(path) | Call::MakeFolder(path) if names.contains_key(path) => return,
            Call::MakeFile(path) | Call::MakeFolder(path) => {
                self.is_folder.push(matches!(call, Call::MakeFolder(_)));
                Change::Make { path: path.clone(), node: self.is_folder.len() - 1 }
            }
            Call::Rename(from, to) => Change::Rename { from: from.clone(), to: to.clone() },
            Call::Remove(path) => Change::Remove { path: path.clone() },
            // Locks and the like were there before the recording, or have lost their names.
            Call::Write { path, offset, bytes } => match names.get(path) {
                Some(node) => Change::Write { node: *node, offset: *offset, bytes: bytes.clone() },
                None => return,
            },
            Call::Truncate(path, length) => match names.get(path) {
                Some(node) => Change::Truncate { node: *node, length: *length },
                None => return,
            },
            Call::Sync { path, begun } => return self.synced(names, path, *begun, number),
            Call::SyncAll { begun } => return self.durable(number, *begun, |_| true),
            Call::Said(text) => return self.said.push((number, text.clone())),
        };
        rename(names, &change);
        self.changes.push(Dated { change, call: number, durable: None });
    }

    /// A file's bytes, or the names in a folder.
    fn synced(&mut self, names: &Names, path: &str, begun: usize, number: usize) {
        let Some(&synced) = names.get(path) else { return };
        let is_folder = self.is_folder[synced];
        let within = |it: &str| parent(it) == path;
        self.durable(number, begun, |change| match change {
            Change::Make { path, .. } | Change::Remove { path } => is_folder && within(path),
            Change::Rename { from, to } => is_folder && (within(from) || within(to)),
            Change::Write { node, .. } | Change::Truncate { node, .. } => *node == synced,
        });
    }

    fn durable(&mut self, number: usize, begun: usize, covers: impl Fn(&Change) -> bool) {
        for dated in self.changes.iter_mut().filter(|dated| dated.call < begun && dated.durable.is_none()) {
            if covers(&dated.change) {
                dated.durable = Some(number);
            }
        }
    }

    /// Writes what may be left of a crash after so many calls.
    pub(super) fn crash(&self, calls: usize, random: &mut Random, root: &Path) {
        let before: Vec<&Dated> = self.changes.iter().filter(|dated| dated.call < calls).collect();
        let names = names_left(&before, calls, random);
        let mut bytes: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for dated in &before {
            let is_durable = dated.durable.is_some_and(|durable| durable < calls);
            self.bytes_left(&dated.change, is_durable, random, &mut bytes);
        }
        for (path, node) in &names {
            // What is above was lost: then this was too.
            if !path.is_empty() && names.get(parent(path)).is_none_or(|above| !self.is_folder[*above]) {
                continue;
            }
            let place = root.join(path);
            match self.is_folder[*node] {
                true => fs::create_dir_all(&place).unwrap(),
                false if place.parent().unwrap().is_dir() => {
                    fs::write(&place, bytes.get(node).map_or(&[][..], Vec::as_slice)).unwrap();
                }
                false => {}
            }
        }
    }

    fn bytes_left(&self, change: &Change, whole: bool, random: &mut Random, to: &mut BTreeMap<usize, Vec<u8>>) {
        let chance = if whole { 0 } else { random.below(4) };
        match change {
            Change::Truncate { node, length } if chance < 3 => to.entry(*node).or_default().resize(*length, 0),
            Change::Write { node, offset, bytes } if chance < 3 => {
                let file = to.entry(*node).or_default();
                let end = offset + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                    let is_left = chance < 2 || random.below(2) == 0;
                    let at = offset + number * SECTOR;
                    if is_left {
                        file[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The names after a crash: of those changes that are not durable, all before some moment, or any.
fn names_left(before: &[&Dated], calls: usize, random: &mut Random) -> Names {
    let in_order = random.below(2) == 0;
    let moment = random.below(calls + 1);
    let mut names = Names::from([(String::new(), 0)]);
    let last_durable = before.iter().rposition(|dated| {
        !matches!(dated.change, Change::Write { .. } | Change::Truncate { .. })
            && dated.durable.is_some_and(|durable| durable < calls)
    });
    for (number, dated) in before.iter().enumerate() {
        let is_durable = dated.durable.is_some_and(|durable| durable < calls);
        let is_left = match in_order {
            // A journal holds what came before something durable too.
            true => dated.call < moment || last_durable.is_some_and(|last| number <= last),
            false => is_durable || random.below(2) == 0,
        };
        if is_left {
            rename(&mut names, &dated.change);
        }
    }
    names
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Does to names what a change does, as far as what it needs is there.
fn rename(names: &mut Names, change: &Change) {
    match change {
        Change::Make { path, node } if names.contains_key(parent(path)) => _ = names.insert(path.clone(), *node),
        Change::Remove { path } => _ = names.remove(path),
        Change::Rename { from, to } if names.contains_key(from) && names.contains_key(parent(to)) => {
            let below =
                |path: &str| path.strip_prefix(from.as_str()).is_some_and(|it| it.is_empty() || it.starts_with('/'));
            let moved: Vec<(String, usize)> =
                names.iter().filter(|(path, _)| below(path)).map(|(path, node)| (path.clone(), *node)).collect();
            for (path, _) in &moved {
                names.remove(path);
            }
            names.extend(moved.into_iter().map(|(path, node)| (format!("{to}{}", &path[from.len()..]), node)));
        }
        _ => {}
    }
}
