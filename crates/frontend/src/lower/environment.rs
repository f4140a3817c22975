use crate::expand::Variables;
use std::collections::HashMap;

/// Variables in the order in which they were set first.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    entries: Vec<(String, String)>,
    positions: HashMap<String, usize>,
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

    /// Sets a variable; one that was set keeps its place.
    pub fn set(&mut self, key: &str, value: String) {
        match self.positions.get(key) {
            Some(&position) => self.entries[position].1 = value,
            None => {
                self.positions.insert(key.to_owned(), self.entries.len());
                self.entries.push((key.to_owned(), value));
            }
        }
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
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
