//! The options of a Git address: `#ref:subdir`, and `?ref=…&subdir=…` with the rest.

use super::GitUrlError;
use crate::GitMtime;
use crate::url_credentials::percent_decoded;

/// What stands behind `#` and `?`.
#[derive(Default)]
pub(super) struct Options {
    pub reference: Option<String>,
    pub subdir: Option<String>,
    pub checksum: Option<String>,
    pub keep_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    pub mtime: Option<GitMtime>,
    pub fetch_by_commit: bool,
    tag: Option<String>,
    branch: Option<String>,
}

impl Options {
    pub(super) fn parse(query: Option<&str>, fragment: Option<&str>) -> Result<Self, GitUrlError> {
        let mut options = Self::default();
        if let Some(fragment) = fragment {
            let fragment = decoded(fragment)?;
            let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
            options.reference = Some(reference.to_owned()).filter(|reference| !reference.is_empty());
            options.subdir = Some(subdir.to_owned()).filter(|subdir| !subdir.is_empty());
        }
        let mut seen = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decoded(&key.replace('+', " "))?;
            if seen.contains(&key) {
                return Err(GitUrlError::Repeated { key });
            }
            options.set(&key, decoded(&value.replace('+', " "))?)?;
            seen.push(key);
        }
        options.choose_reference()?;
        Ok(options)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), GitUrlError> {
        if value.is_empty() && !matches!(key, "keep-git-dir" | "submodules" | "fetch-by-commit") && KEYS.contains(&key)
        {
            return Err(GitUrlError::NoValue { key: key.to_owned() });
        }
        match key {
            "ref" => agree("ref", &mut self.reference, value),
            "subdir" => agree("subdir", &mut self.subdir, value),
            "checksum" | "commit" => agree("checksum", &mut self.checksum, value),
            "tag" => agree("tag", &mut self.tag, value),
            "branch" => agree("branch", &mut self.branch, value),
            "keep-git-dir" => flag(key, &value).map(|on| self.keep_git_dir = Some(on)),
            "submodules" => flag(key, &value).map(|on| self.submodules = Some(on)),
            "fetch-by-commit" => flag(key, &value).map(|on| self.fetch_by_commit = on),
            "mtime" => mtime(&value).map(|mtime| self.mtime = Some(mtime)),
            _ => Err(GitUrlError::UnknownKey { key: key.to_owned() }),
        }
    }

    /// Makes one reference of `ref`, `tag` and `branch`.
    fn choose_reference(&mut self) -> Result<(), GitUrlError> {
        let full = |prefix: &str, name: String| match name.starts_with(prefix) {
            true => name,
            false => format!("{prefix}{name}"),
        };
        let tag = self.tag.take().map(|tag| full("refs/tags/", tag));
        let branch = self.branch.take().map(|branch| full("refs/heads/", branch));
        if tag.is_some() && branch.is_some() {
            return Err(GitUrlError::TagAndBranch);
        }
        match tag.or(branch) {
            Some(name) => agree("ref", &mut self.reference, name),
            None => Ok(()),
        }
    }
}

const KEYS: [&str; 10] =
    ["ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules", "mtime", "fetch-by-commit"];

/// Sets an option that may have been set before, to the same value only.
fn agree(key: &'static str, place: &mut Option<String>, value: String) -> Result<(), GitUrlError> {
    match place.replace(value.clone()) {
        Some(other) if other != value => Err(GitUrlError::Conflict { key, one: other, other: value }),
        _ => Ok(()),
    }
}

/// A truth value as Go's `strconv.ParseBool` reads it; none at all is true.
fn flag(key: &str, value: &str) -> Result<bool, GitUrlError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(GitUrlError::BadValue { key: key.to_owned(), value: value.to_owned() }),
    }
}

fn mtime(value: &str) -> Result<GitMtime, GitUrlError> {
    match value {
        "checkout" => Ok(GitMtime::Checkout),
        "commit" => Ok(GitMtime::Commit),
        _ => Err(GitUrlError::BadMtime { value: value.to_owned() }),
    }
}

fn decoded(text: &str) -> Result<String, GitUrlError> {
    String::from_utf8(percent_decoded(text)).map_err(|_| GitUrlError::NotText)
}
