//! Revisions of Git repositories, checked out by the machine's own git program inside the sandbox.
//!
//! Bare repositories outlive builds, one for each address, and are fetched into with depth 1. Nothing that a repository
//! holds is executed: no hooks, no filters, no configuration but ours; submodules are fetched by forge as repositories
//! of their own and never by git (A108). Trees are listed and judged before they are checked out (A110).

mod access;
mod bundle;
mod checkout;
mod program;
mod repository;
mod ssh;
mod submodules;
mod tree;

use super::error::RemoteError;
use super::{Asked, ReadObjects, Source, SourceFacts, SourceState, Sources, remote_key};
use crate::error::WorkError;
use access::{Access, Whose};
use async_trait::async_trait;
use forge_cache::ResultRef;
use forge_llb::is_whole_commit;
use forge_llb::{
    GitForm, GitMtime, GitRemote, GitSource, check_git_reference, checked_git_checksum, cleaned_git_subdir,
};
use forge_solver::CacheMap;
use program::{Network, Run};
use repository::Repository;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What references were found to lead to in this build, by address and reference.
pub(super) type Commits = Mutex<HashMap<(String, String), Arc<Pinned>>>;

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    /// The commit.
    pub commit: String,
    /// The annotated tag that leads to it.
    pub tag: Option<String>,
    /// The full name of the reference; `None` for commits.
    pub name: Option<String>,
}

pub(super) struct Git<'a> {
    pub sources: &'a Sources,
    pub op: &'a GitSource,
}

#[async_trait]
impl Source for Git<'_> {
    async fn cache_map(&self, asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        let remote = self.remote()?;
        let pinned = self.pin(&remote, asked).await?;
        let GitSource { keep_git_dir, skip_submodules, mtime, .. } = self.op;
        let kept = keep_git_dir.then(|| format!("{:?} {:?}", pinned.name, pinned.tag));
        let subdir = self.subdir()?;
        let form = if self.op.form == GitForm::Bundle { " bundle" } else { "" };
        let key = format!(
            "git{form} {} {remote} {kept:?} submodules {} mtime {} {subdir}",
            pinned.commit,
            !skip_submodules,
            *mtime == GitMtime::Commit
        );
        Ok(remote_key(&key, [("git", remote.to_string()), ("commit", pinned.commit.clone()), ("subdir", subdir)]))
    }

    async fn state(&self, asked: &Asked<'_>) -> Result<SourceState, WorkError> {
        let remote = self.remote()?;
        Ok(SourceState::Commit(self.pin(&remote, asked).await?.commit.clone()))
    }

    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let remote = self.remote()?;
        let pinned = self.pin(&remote, asked).await?;
        checkout::snapshot(self, &remote, &pinned, asked).await
    }

    async fn facts(&self, objects: ReadObjects, asked: &Asked<'_>) -> Result<SourceFacts, WorkError> {
        let remote = self.remote()?;
        let pinned = self.pin(&remote, asked).await?;
        let name = match &pinned.name {
            Some(name) => name.clone(),
            None if self.op.bundle.is_some() => String::new(),
            None => self.branch(&remote, &pinned.commit, asked).await?.unwrap_or_default(),
        };
        let read = match objects {
            ReadObjects::No => None,
            ReadObjects::Yes => {
                let access = Access::new(self.sources, self.op, &remote, Whose::Named, asked).await?;
                let repository = Repository::open(self.sources, access, &pinned.commit, asked).await?;
                repository.fetch(&pinned, pinned.object(), asked).await?;
                let tag = match &pinned.tag {
                    Some(tag) => Some(repository.object("tag", tag, asked).await?),
                    None => None,
                };
                Some((repository.object("commit", &pinned.commit, asked).await?, tag))
            }
        };
        let commit = pinned.tag.is_some().then(|| pinned.commit.clone());
        Ok(SourceFacts::Revision { object: pinned.object().to_owned(), commit, name, objects: read })
    }

    async fn time(&self, asked: &Asked<'_>) -> Result<Option<SystemTime>, WorkError> {
        let remote = self.remote()?;
        let pinned = self.pin(&remote, asked).await?;
        let access = Access::new(self.sources, self.op, &remote, Whose::Named, asked).await?;
        let repository = Repository::open(self.sources, access, &pinned.commit, asked).await?;
        repository.fetch(&pinned, &pinned.commit, asked).await?;
        let seconds = repository.commit_time(&pinned.commit, asked).await?;
        Ok(u64::try_from(seconds).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)))
    }
}

impl Git<'_> {
    /// The address, checked here too: not every graph was made by a front end of ours.
    fn remote(&self) -> Result<GitRemote, RemoteError> {
        Ok(GitRemote::parse(&self.op.remote)?.0)
    }

    fn subdir(&self) -> Result<String, RemoteError> {
        Ok(cleaned_git_subdir(&self.op.subdir)?)
    }

    /// Finds out what the reference leads to, once for a build.
    async fn pin(&self, remote: &GitRemote, asked: &Asked<'_>) -> Result<Arc<Pinned>, WorkError> {
        let checksum = self.op.checksum.as_deref().map(checked_git_checksum).transpose().map_err(RemoteError::from)?;
        let wanted = self.op.reference.as_deref().filter(|reference| !reference.is_empty());
        wanted.map(check_git_reference).transpose().map_err(RemoteError::from)?;
        if let (Some(bundle), Some(commit)) = (&self.op.bundle, &checksum) {
            return self.pin_in_bundle(remote, bundle, commit, asked).await;
        }
        let pinned = match (self.op.fetch_by_commit, &checksum, wanted) {
            (true, Some(commit), name) if is_whole_commit(commit) => {
                let name = name.filter(|name| name.starts_with("refs/")).map(str::to_owned);
                Arc::new(Pinned { commit: commit.clone(), tag: None, name })
            }
            (_, _, Some(reference)) if is_whole_commit(&reference.to_ascii_lowercase()) => {
                Arc::new(Pinned { commit: reference.to_ascii_lowercase(), tag: None, name: None })
            }
            (_, _, wanted) => self.ask(remote, wanted, asked).await?,
        };
        match &checksum {
            Some(expected) if !pinned.is(expected) => {
                let found = pinned.tag.iter().fold(pinned.commit.clone(), |all, tag| format!("{all} or {tag}"));
                Err(RemoteError::Commit { remote: remote.to_string(), expected: expected.clone(), found }.into())
            }
            _ => Ok(pinned),
        }
    }

    /// The branch that the default reference stands for: one that leads to the same commit.
    async fn branch(&self, remote: &GitRemote, commit: &str, asked: &Asked<'_>) -> Result<Option<String>, WorkError> {
        if self.op.reference.as_deref().is_some_and(|reference| !reference.is_empty()) {
            return Ok(None);
        }
        let access = Access::new(self.sources, self.op, remote, Whose::Named, asked).await?;
        let run =
            Run::new("list the branches of", ["ls-remote", "--symref", "--", access.address(), "HEAD", "refs/heads/*"]);
        let listed = access.program(Network::Reached)?.run(run, asked).await?;
        Ok(branch_of(&String::from_utf8_lossy(&listed), commit))
    }

    /// Asks the server for a reference, once in a build, so that all who ask see the same commit (A111).
    async fn ask(&self, remote: &GitRemote, wanted: Option<&str>, asked: &Asked<'_>) -> Result<Arc<Pinned>, WorkError> {
        let wanted = wanted.unwrap_or("HEAD");
        let key = (remote.to_string(), wanted.to_owned());
        if let Some(pinned) = self.sources.commits.lock().expect("no holder panics").get(&key) {
            return Ok(pinned.clone());
        }
        let access = Access::new(self.sources, self.op, remote, Whose::Named, asked).await?;
        let peeled = format!("{wanted}^{{}}");
        let run = Run::new("list the references of", ["ls-remote", "--", access.address(), wanted, &peeled]);
        let listed = access.program(Network::Reached)?.run(run, asked).await?;
        let missing = || RemoteError::NoReference { remote: remote.to_string(), reference: wanted.to_owned() };
        let pinned = Arc::new(choose(&String::from_utf8_lossy(&listed), wanted).ok_or_else(missing)?);
        self.sources.commits.lock().expect("no holder panics").insert(key, pinned.clone());
        Ok(pinned)
    }
}

impl Pinned {
    /// Whether it is what a checksum names.
    fn is(&self, checksum: &str) -> bool {
        self.commit.starts_with(checksum) || self.tag.as_ref().is_some_and(|tag| tag.starts_with(checksum))
    }

    /// The object that is fetched: the tag, where there is one.
    fn object(&self) -> &str {
        self.tag.as_deref().unwrap_or(&self.commit)
    }
}

/// The branch that `git ls-remote --symref` says is the default one, else the first one that leads to a commit.
fn branch_of(listed: &str, commit: &str) -> Option<String> {
    let default = listed.lines().find_map(|line| line.strip_prefix("ref: ")?.split_once('\t'));
    if let Some((name, "HEAD")) = default {
        return Some(name.to_owned());
    }
    let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
    lines.find(|(id, name)| *id == commit && name.starts_with("refs/heads/")).map(|(_, name)| name.to_owned())
}

/// Takes a reference out of what `git ls-remote` printed. A full name is taken as it is, else a branch comes before a tag
/// before anything else, as `git checkout` has it.
fn choose(listed: &str, wanted: &str) -> Option<Pinned> {
    let lines = listed.lines().filter_map(|line| line.split_once('\t'));
    let references: HashMap<&str, &str> =
        lines.filter(|(commit, _)| is_whole_commit(commit)).map(|(commit, name)| (name, commit)).collect();
    let candidates = match wanted {
        "HEAD" => vec!["HEAD".to_owned()],
        full if full.starts_with("refs/") => vec![full.to_owned()],
        short => ["refs/heads/", "refs/tags/", "refs/"].map(|prefix| format!("{prefix}{short}")).to_vec(),
    };
    let name = candidates.into_iter().find(|name| references.contains_key(name.as_str()))?;
    let object = references[name.as_str()].to_owned();
    let peeled = references.get(format!("{name}^{{}}").as_str()).map(|commit| (*commit).to_owned());
    let name = Some(name).filter(|name| name != "HEAD");
    Some(match peeled {
        Some(commit) => Pinned { commit, tag: Some(object), name },
        None => Pinned { commit: object, tag: None, name },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn check(listed: &[(&str, &str)], wanted: &str, expected: Option<(&str, Option<&str>, Option<&str>)>) {
        let text: String = listed.iter().map(|(commit, name)| format!("{commit}\t{name}\n")).collect();
        let found = choose(&text, wanted);
        let found = found.as_ref().map(|p| (p.commit.as_str(), p.tag.as_deref(), p.name.as_deref()));
        assert_eq!(found, expected, "{listed:?} {wanted}");
    }

    #[test]
    fn references_are_chosen_as_git_does() {
        check(&[(A, "HEAD")], "HEAD", Some((A, None, None)));
        check(&[(A, "refs/tags/x"), (B, "refs/heads/x")], "x", Some((B, None, Some("refs/heads/x"))));
        check(&[(A, "refs/tags/x"), (B, "refs/tags/x^{}")], "x", Some((B, Some(A), Some("refs/tags/x"))));
        check(&[(A, "refs/pull/1/head")], "pull/1/head", Some((A, None, Some("refs/pull/1/head"))));
        check(&[(A, "refs/heads/a/x"), (A, "refs/heads/x2")], "x", None);
        check(&[(A, "refs/heads/refs/heads/x")], "refs/heads/x", None);
    }

    #[test]
    fn the_default_branch_has_a_name() {
        let listed = format!("ref: refs/heads/main\tHEAD\n{A}\tHEAD\n{A}\trefs/heads/a\n");
        assert_eq!(branch_of(&listed, A).as_deref(), Some("refs/heads/main"));
        assert_eq!(branch_of(&format!("{A}\tHEAD\n{A}\trefs/heads/a\n"), A).as_deref(), Some("refs/heads/a"));
        assert_eq!(branch_of(&format!("{B}\trefs/heads/a\n"), A), None);
    }

    // Seen to fail without `is_whole_commit` in `choose`.
    #[test]
    fn a106_what_a_server_calls_a_commit_is_checked() {
        check(&[("--output=/x", "HEAD")], "HEAD", None);
        check(&[("abc", "HEAD"), ("", "HEAD")], "HEAD", None);
    }

    #[test]
    fn a111_checksums_are_prefixes_of_the_commit_or_its_tag() {
        let pinned = Pinned { commit: A.to_owned(), tag: Some(B.to_owned()), name: None };
        assert!(pinned.is("aaaaaaa") && pinned.is(B) && !pinned.is("aaaaaab"));
    }
}
