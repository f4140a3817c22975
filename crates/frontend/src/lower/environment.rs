use crate::expand::Variables;
use std::collections::HashMap;

/// Names and what they stand for, in the order in which they came first.
#[derive(Clone, Debug)]
pub(super) struct Bindings<V> {
    entries: Vec<(String, V)>,
    positions: HashMap<String, usize>,
}

/// Variables that are set.
pub(super) type Environment = Bindings<String>;

/// The ARGs of a stage; without a value where neither it nor the caller gives one.
pub(super) type DeclaredArgs = Bindings<Option<String>>;

impl<V> Default for Bindings<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), positions: HashMap::new() }
    }
}

impl<V> Bindings<V> {
    /// Binds a name; one that was bound keeps its place.
    pub fn set(&mut self, name: &str, value: V) {
        match self.positions.get(name) {
            Some(&position) => self.entries[position].1 = value,
            None => {
                self.positions.insert(name.to_owned(), self.entries.len());
                self.entries.push((name.to_owned(), value));
            }
        }
    }

    /// Whether a name is bound.
    pub fn contains(&self, name: &str) -> bool {
        self.positions.contains_key(name)
    }

    /// What a name is bound to.
    pub fn value(&self, name: &str) -> Option<&V> {
        self.positions.get(name).map(|position| &self.entries[*position].1)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Names and values.
    pub fn entries(&self) -> &[(String, V)] {
        &self.entries
    }
}

impl Environment {
    /// Reads `KEY=value` entries, as image configs hold them.
    pub fn from_entries(entries: &[String]) -> Self {
        let mut environment = Self::default();
        for entry in entries {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            environment.set(key, value.to_owned());
        }
        environment
    }

    /// As `KEY=value`.
    pub fn to_entries(&self) -> Vec<String> {
        self.entries.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    /// How many bytes [`Self::to_entries`] makes.
    pub fn size(&self) -> usize {
        self.entries.iter().map(|(key, value)| key.len() + value.len() + 1).sum()
    }
}

impl Variables for Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.positions.get(name).map(|position| self.entries[*position].1.as_str())
    }
}
