//! What forge takes from the environment, read once; tests hand in their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Environment variables whose names and values are text.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable, set to whatever.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A variable that is set and not empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// A variable that tools spell both ways; the lower-case one wins, as in curl.
    pub fn either_case(&self, name: &str) -> Option<String> {
        self.filled(&name.to_ascii_lowercase()).or_else(|| self.filled(name)).map(str::to_owned)
    }

    /// The user's home folder.
    pub fn home(&self) -> PathBuf {
        PathBuf::from(self.filled("HOME").unwrap_or("/"))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}
