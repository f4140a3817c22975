//! What changed between two runs of a step, told from what their keys were made of.

use crate::{EntryChange, InputPart, StepInputs};
use std::collections::BTreeSet;

/// Something that a step's key is made of and that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A value of the step: a variable where the name is `env NAME`, else what the name says.
    Value {
        /// Its name.
        name: String,
        /// What it was; `None` where it was not set.
        old: Option<String>,
        /// What it is.
        new: Option<String>,
    },
    /// Something that the step reads of an input.
    Entry {
        /// The number of the input.
        input: usize,
        /// The path within it.
        path: Vec<u8>,
        /// What became of it.
        change: EntryChange,
    },
    /// What another step made.
    Input {
        /// The number of the input.
        input: usize,
    },
}

/// What changed between an earlier run and a later one; nothing where only what is not recorded can have.
pub fn changes(earlier: &StepInputs, later: &StepInputs) -> Vec<Change> {
    let mut found = values(&earlier.readable, &later.readable);
    for input in 0..later.parts.len().max(earlier.parts.len()) {
        if earlier.parts.get(input) != later.parts.get(input) {
            found.extend(of_input(earlier, later, input));
        }
    }
    found
}

fn of_input(earlier: &StepInputs, later: &StepInputs, input: usize) -> Vec<Change> {
    let (Some(old), Some(new)) = (earlier.listing(input), later.listing(input)) else {
        // An input that came or went shows in the values.
        let both = earlier.parts.get(input).and(later.parts.get(input));
        return both.map(|_: &InputPart| Change::Input { input }).into_iter().collect();
    };
    let entries: Vec<Change> =
        old.changes(new).into_iter().map(|(path, change)| Change::Entry { input, path, change }).collect();
    match entries.is_empty() {
        true => vec![Change::Input { input }],
        false => entries,
    }
}

/// Values are compared by their names; those that stand several times under one name, as lists.
fn values(old: &[(String, String)], new: &[(String, String)]) -> Vec<Change> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (name, _) in new.iter().chain(old) {
        let of = |pairs: &[(String, String)]| {
            let values: Vec<&str> =
                pairs.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect();
            (!values.is_empty()).then(|| values.join("; "))
        };
        if names.insert(name) && of(old) != of(new) {
            found.push(Change::Value { name: name.clone(), old: of(old), new: of(new) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheKey, ListedEntry, ListedKind, Listing, OpKey};

    fn inputs(readable: &[(&str, &str)], file: u8, parent: &str) -> StepInputs {
        let content = [file; 8];
        let (mode, owner, rest) = (Some(0o644), None, [0; 8]);
        let listed = ListedEntry { path: b"f".to_vec(), kind: ListedKind::File, mode, owner, content, rest };
        StepInputs {
            readable: readable.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            parts: vec![
                InputPart::Key { key: CacheKey::definition(&OpKey::new(parent.as_bytes()), &[]), output: 0 },
                InputPart::Content(blake3::hash(&[file]).into()),
            ],
            listings: vec![(1, Listing::new(vec![listed]))],
            keys: Vec::new(),
        }
    }

    #[test]
    fn what_changed_is_named() {
        let old = inputs(&[("args", "make"), ("env A", "1"), ("env B", "1")], 1, "parent");
        assert!(changes(&old, &old).is_empty());
        let new = inputs(&[("args", "make"), ("env A", "2"), ("env C", "3")], 2, "other");
        let value = |name: &str, old: Option<&str>, new: Option<&str>| Change::Value {
            name: name.to_owned(),
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
        };
        let bytes = EntryChange::Bytes(ListedKind::File);
        let expect = [
            value("env A", Some("1"), Some("2")),
            value("env C", None, Some("3")),
            value("env B", Some("1"), None),
            Change::Input { input: 0 },
            Change::Entry { input: 1, path: b"f".to_vec(), change: bytes },
        ];
        assert_eq!(changes(&old, &new), expect);
        assert_eq!(StepInputs::from_bytes(&old.to_bytes()).unwrap(), old);
        assert!(StepInputs::from_bytes(&old.to_bytes()[1..]).is_err());
    }
}
