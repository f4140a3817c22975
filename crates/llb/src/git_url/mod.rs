//! Addresses of Git repositories as Dockerfiles and command lines have them.

mod error;
mod query;
mod remote;

pub use error::GitUrlError;
pub use remote::{GitRemote, GitTransport};

use crate::{GitMtime, GitSource, UrlCredentials};
use query::Options;
use std::fmt;

/// A Git address: `https://example.com/repo.git#ref:subdir`, or with a query (`?branch=main&subdir=doc`).
///
/// `Display` writes it without user information, in the form with a fragment, so that it can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitUrl {
    /// The repository.
    pub remote: GitRemote,
    /// The user information of an HTTP address.
    pub credentials: Option<UrlCredentials>,
    /// The branch, tag, full reference name or commit.
    pub reference: Option<String>,
    /// The folder of the repository, cleaned, without leading slash; empty for all of it.
    pub subdir: String,
    /// The first digits of the commit that the reference must lead to, in lower case.
    pub checksum: Option<String>,
    /// Whether `.git` is kept, where the address says so.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched, where the address says so.
    pub submodules: Option<bool>,
    /// Which times the files get, where the address says so.
    pub mtime: Option<GitMtime>,
    /// Whether the commit of the checksum is fetched without asking what the reference leads to.
    pub fetch_by_commit: bool,
}

impl GitUrl {
    /// Reads an address where a source is expected. `None` is for what is no Git address: another URL, a path.
    /// `http(s)` addresses are Git addresses when their path ends in `.git`.
    ///
    /// # Errors
    /// It is a Git address and has a part that is refused ([`GitRemote::parse`]), an option that is unknown,
    /// repeated, contradicted or without a proper value.
    pub fn parse(text: &str) -> Result<Option<Self>, GitUrlError> {
        let (address, query, fragment) = split(text);
        if !is_git(address) {
            return Ok(None);
        }
        Self::from_parts(address, query, fragment).map(Some)
    }

    /// Reads an address where the main build context is expected: as [`GitUrl::parse`], and `github.com/owner/name`
    /// is taken for `https://github.com/owner/name`.
    ///
    /// # Errors
    /// As [`GitUrl::parse`].
    pub fn parse_main_context(text: &str) -> Result<Option<Self>, GitUrlError> {
        match text.starts_with("github.com/") {
            false => Self::parse(text),
            true => {
                let (address, query, fragment) = split(text);
                Self::from_parts(&format!("https://{address}"), query, fragment).map(Some)
            }
        }
    }

    fn from_parts(address: &str, query: Option<&str>, fragment: Option<&str>) -> Result<Self, GitUrlError> {
        let (remote, credentials) = GitRemote::parse(address)?;
        let options = Options::parse(query, fragment)?;
        options.reference.as_deref().map(check_git_reference).transpose()?;
        let checksum = options.checksum.map(|checksum| checked_git_checksum(&checksum)).transpose()?;
        if options.fetch_by_commit && !checksum.as_deref().is_some_and(is_whole_commit) {
            return Err(GitUrlError::FetchByCommit);
        }
        Ok(Self {
            remote,
            credentials,
            reference: options.reference,
            subdir: cleaned_git_subdir(options.subdir.as_deref().unwrap_or_default())?,
            checksum,
            keep_git_dir: options.keep_git_dir,
            submodules: options.submodules,
            mtime: options.mtime,
            fetch_by_commit: options.fetch_by_commit,
        })
    }

    /// The source with the defaults for what the address leaves open: no `.git`, with submodules, times of the
    /// checkout, the usual names of secrets, and for SSH the session's `default` agent.
    pub fn source(&self) -> GitSource {
        GitSource {
            credentials: self.credentials.clone(),
            reference: self.reference.clone(),
            subdir: self.subdir.clone(),
            checksum: self.checksum.clone(),
            keep_git_dir: self.keep_git_dir.unwrap_or(false),
            skip_submodules: !self.submodules.unwrap_or(true),
            mtime: self.mtime.unwrap_or_default(),
            fetch_by_commit: self.fetch_by_commit,
            ssh: (self.remote.transport() == GitTransport::Ssh).then(|| "default".to_owned()),
            ..GitSource::new(self.remote.as_str())
        }
    }
}

impl fmt::Display for GitUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.remote)?;
        match (&self.reference, self.subdir.as_str()) {
            (None, "") => Ok(()),
            (reference, "") => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, subdir) => write!(f, "#{}:{subdir}", reference.as_deref().unwrap_or_default()),
        }
    }
}

/// The address, what is behind `?`, and what is behind `#`.
fn split(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, fragment) = text.split_once('#').map_or((text, None), |(rest, fragment)| (rest, Some(fragment)));
    let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
    (address, query, fragment)
}

/// Whether an address without options is meant for Git.
fn is_git(address: &str) -> bool {
    match address.split_once("://") {
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "git" | "ssh" => true,
            "http" | "https" => rest.split_once('/').is_some_and(|(_, path)| path.ends_with(".git")),
            _ => false,
        },
        None => is_scp(address),
    }
}

/// Whether it looks like `user@host:path`. A path of the local disk with a slash before the colon does not.
fn is_scp(address: &str) -> bool {
    let word = |text: &str, signs: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || signs.contains(&byte))
    };
    let parts = address.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?.0)));
    parts.is_some_and(|(user, host)| word(user, b"-_") && word(host, b"-."))
}

/// Checks the name of a reference, or a commit, by the rules of `git check-ref-format`. What passes cannot be taken
/// for an option, a range or a refspec (A106).
///
/// # Errors
/// It breaks a rule.
pub fn check_git_reference(reference: &str) -> Result<(), GitUrlError> {
    let refuse = |reason| Err(GitUrlError::Reference { reference: reference.to_owned(), reason });
    let foreign = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    if reference.is_empty() || reference.len() > 1024 {
        return refuse("its length is not between 1 and 1024 bytes");
    }
    if reference.starts_with('-') {
        return refuse("it begins with a dash");
    }
    if reference.chars().any(foreign) || reference.contains("..") || reference.contains("@{") || reference == "@" {
        return refuse("it holds what no name of a reference has");
    }
    let bad = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock") || part.ends_with('.');
    match reference.split('/').any(bad) {
        true => refuse("a part of it is empty, begins or ends with a dot, or ends with .lock"),
        false => Ok(()),
    }
}

/// A commit or its first digits, in lower case.
///
/// # Errors
/// It is not between 7 and 64 hexadecimal digits.
pub fn checked_git_checksum(checksum: &str) -> Result<String, GitUrlError> {
    match (7..=64).contains(&checksum.len()) && checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(checksum.to_ascii_lowercase()),
        false => Err(GitUrlError::Checksum { checksum: checksum.to_owned() }),
    }
}

/// Whether it is a whole commit, of either hash that git knows.
pub fn is_whole_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A folder within a checkout, with `.` and `..` taken out; `..` at the root stays there (A107).
///
/// # Errors
/// It holds control characters.
pub fn cleaned_git_subdir(subdir: &str) -> Result<String, GitUrlError> {
    if subdir.chars().any(char::is_control) || subdir.len() > 4096 {
        return Err(GitUrlError::Subdir { subdir: subdir.chars().take(300).collect() });
    }
    let mut parts = Vec::new();
    for part in subdir.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests;
