//! The bare repositories that outlive builds, one for each address.

use super::super::error::RemoteError;
use super::super::{Asked, Sources};
use super::Pinned;
use super::access::Access;
use super::bundle::BundleFile;
use super::program::{Network, Program, Run};
use super::tree::{self, TreeLine};
use crate::error::WorkError;
use forge_registry::TransferContext;
use forge_store::{CacheMountFound, CacheMountGuard, CacheMountKey, CacheMountUse};
use std::path::Path;
use std::time::Duration;

/// Where runs see the repository, and where they see the checkout.
pub(super) const REPOSITORY: &str = "/repository";
pub(super) const CHECKOUT: &str = "/checkout";

/// How often forge looks whether another build is done with the repository.
const PATIENCE: Duration = Duration::from_millis(100);

/// One repository, ours alone until it is dropped.
pub(super) struct Repository<'a> {
    access: Access<'a>,
    sources: &'a Sources,
    guard: CacheMountGuard,
}

impl<'a> Repository<'a> {
    /// Waits for the repository, and makes it where there is none, for commits like the one at hand.
    ///
    /// # Errors
    /// The store or git fails; the session is cancelled.
    pub(super) async fn open(
        sources: &'a Sources,
        access: Access<'a>,
        commit: &str,
        asked: &Asked<'_>,
    ) -> Result<Self, WorkError> {
        let guard = take(sources, &access, asked).await?;
        let repository = Self { access, sources, guard };
        let tree = repository.guard.tree().to_owned();
        let failed = |source| RemoteError::Write { what: "a repository".to_owned(), source };
        tokio::task::spawn_blocking(move || remove_leftovers(&tree)).await?.map_err(failed)?;
        if !is_whole(repository.guard.tree()) {
            let program = repository.local()?;
            let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
            let run = Run::new("make a repository for", ["init", "--quiet", "--bare", "--template=", format]);
            program.run(repository.shown(run), asked).await?;
        }
        Ok(repository)
    }

    /// A program without network.
    pub(super) fn local(&self) -> Result<Program<'_>, RemoteError> {
        self.access.program(Network::None)
    }

    /// Shows a run the repository.
    pub(super) fn shown(&self, run: Run) -> Run {
        self.shown_as(run, REPOSITORY)
    }

    /// Shows a run the repository, while it works in another.
    pub(super) fn shown_as(&self, run: Run, folder: &str) -> Run {
        run.folder(self.guard.tree(), REPOSITORY).env(&format!("GIT_DIR={folder}"))
    }

    /// The address without user information.
    pub(super) fn remote(&self) -> String {
        self.access.remote.to_string()
    }

    /// Sees that an object is there, the pinned commit or the tag that leads to it: asked for by itself, which most servers allow, else by its reference, else
    /// among all branches and tags. Nothing else is accepted than what was pinned (A111).
    ///
    /// # Errors
    /// The server does not hand the object out.
    pub(super) async fn fetch(&self, pinned: &Pinned, object: &str, asked: &Asked<'_>) -> Result<(), RemoteError> {
        if self.has(object, asked).await? {
            return Ok(());
        }
        let context = TransferContext { vertex: asked.vertex.clone(), ..self.sources.images.context().clone() };
        let progress = context.begin(pinned.commit.clone(), "fetching", 0);
        let branches = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let name = pinned.name.as_deref().unwrap_or("HEAD");
        let tries: [&[&str]; 3] = [&["--depth=1", pinned.object()], &["--depth=1", name], &branches];
        let mut failure = None;
        for what in tries {
            match self.fetch_once(what, asked).await {
                Err(RemoteError::Git { action, remote, message }) => {
                    failure.get_or_insert(RemoteError::Git { action, remote, message });
                }
                Err(error) => return Err(error),
                Ok(()) if self.has(object, asked).await? => {
                    progress.complete();
                    return Ok(());
                }
                Ok(()) => {}
            }
        }
        let (remote, reference) = (self.remote(), pinned.commit.clone());
        Err(failure.unwrap_or(RemoteError::NoReference { remote, reference }))
    }

    /// The same with everything that leads to the commit.
    ///
    /// # Errors
    /// As [`Repository::fetch`].
    pub(super) async fn fetch_history(&self, pinned: &Pinned, asked: &Asked<'_>) -> Result<(), RemoteError> {
        let is_shallow = self.guard.tree().join("shallow").exists();
        if !is_shallow && self.has(&pinned.commit, asked).await? {
            return Ok(());
        }
        let branches = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let name = pinned.name.as_deref().unwrap_or(&pinned.commit);
        let mut failure = None;
        for what in [&[name][..], &branches] {
            let deeper = is_shallow.then_some("--unshallow");
            match self.fetch_once(&deeper.into_iter().chain(what.iter().copied()).collect::<Vec<_>>(), asked).await {
                Ok(()) if self.has(&pinned.commit, asked).await? => return Ok(()),
                Ok(()) => {}
                Err(error @ RemoteError::Git { .. }) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        let (remote, reference) = (self.remote(), pinned.commit.clone());
        Err(failure.unwrap_or(RemoteError::NoReference { remote, reference }))
    }

    /// Takes in what a bundle has, which must lead to the pinned commit.
    ///
    /// # Errors
    /// It is none, or of something else.
    pub(super) async fn take_in(
        &self,
        bundle: &BundleFile,
        pinned: &Pinned,
        asked: &Asked<'_>,
    ) -> Result<(), RemoteError> {
        if !self.has(pinned.object(), asked).await? {
            let run = Run::new("take in a bundle of", ["bundle", "unbundle", BundleFile::SEEN_AS]);
            self.local()?.run(bundle.shown(self.shown(run)), asked).await?;
        }
        let found = self.commit(pinned.object(), asked).await?;
        match found == pinned.commit {
            true => Ok(()),
            false => Err(RemoteError::Commit { remote: self.remote(), expected: pinned.commit.clone(), found }),
        }
    }

    async fn fetch_once(&self, what: &[&str], asked: &Asked<'_>) -> Result<(), RemoteError> {
        let (depth, references): (Vec<&str>, Vec<&str>) = what.iter().partition(|word| word.starts_with("--"));
        let options = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--force"];
        let args = [&options[..], &depth, &["--", self.access.address()], &references].concat();
        let program = self.access.program(Network::Reached)?;
        program.run(self.shown(Run::new("fetch", args)), asked).await.map(drop)
    }

    async fn has(&self, object: &str, asked: &Asked<'_>) -> Result<bool, RemoteError> {
        let commit = format!("{object}^{{commit}}");
        let run = Run::new("look into", ["cat-file", "-e", &commit]);
        match self.local()?.run(self.shown(run), asked).await {
            Ok(_) => Ok(true),
            Err(RemoteError::Git { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The commit that an object leads to: itself, or what a tag names.
    pub(super) async fn commit(&self, object: &str, asked: &Asked<'_>) -> Result<String, RemoteError> {
        let run = Run::new("look into", ["rev-parse", "--verify", "--end-of-options", &format!("{object}^{{commit}}")]);
        let printed = self.local()?.run(self.shown(run), asked).await?;
        Ok(String::from_utf8_lossy(&printed).trim().to_owned())
    }

    /// When a commit was made, in seconds since the epoch.
    pub(super) async fn commit_time(&self, commit: &str, asked: &Asked<'_>) -> Result<i64, RemoteError> {
        let run = Run::new("read", ["cat-file", "commit", &format!("{commit}^{{commit}}")]);
        let printed = self.local()?.run(self.shown(run), asked).await?;
        let bad = || self.bad_tree(commit, "has no time");
        committed(&printed).ok_or_else(bad)
    }

    /// The bytes of an object.
    pub(super) async fn object(&self, kind: &str, id: &str, asked: &Asked<'_>) -> Result<Vec<u8>, RemoteError> {
        let run = Run::new("read", ["cat-file", kind, id]);
        self.local()?.run(self.shown(run), asked).await
    }

    /// The entries of a commit's tree, all of which may be checked out (A110).
    pub(super) async fn entries(&self, commit: &str, asked: &Asked<'_>) -> Result<Vec<TreeLine>, RemoteError> {
        let run = Run::new("list the files of", ["ls-tree", "-r", "-t", "-z", "--full-tree", commit]);
        let printed = self.local()?.run(self.shown(run), asked).await?;
        tree::read(&printed).map_err(|(path, reason)| self.bad_tree(&path, reason))
    }

    /// Writes the files of a commit into a folder below a root.
    pub(super) async fn check_out(
        &self,
        commit: &str,
        root: &Path,
        path: &str,
        asked: &Asked<'_>,
    ) -> Result<(), RemoteError> {
        let run = Run::new("check out", ["read-tree", "--reset", "-u", "--no-sparse-checkout", commit]);
        let run = run.folder_beneath(root, path, CHECKOUT).env(&format!("GIT_WORK_TREE={CHECKOUT}"));
        let run = run.env("GIT_INDEX_FILE=/tmp/index");
        self.local()?.run(self.shown(run), asked).await.map(drop)
    }

    pub(super) fn bad_tree(&self, path: &str, reason: &'static str) -> RemoteError {
        RemoteError::Tree { remote: self.remote(), path: path.to_owned(), reason }
    }
}

/// The committer's time: the number behind the last `>` of its line.
fn committed(commit: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(commit);
    let head = text.split("\n\n").next()?;
    let line = head.lines().find_map(|line| line.strip_prefix("committer "))?;
    line.rsplit_once('>')?.1.split_whitespace().next()?.parse().ok()
}

/// Waits for the folder. Steps cannot reach it: the content that it is said to have begun with is a digest that no
/// content has.
async fn take(sources: &Sources, access: &Access<'_>, asked: &Asked<'_>) -> Result<CacheMountGuard, WorkError> {
    let never = blake3::derive_key("forge repositories of git sources v1", access.remote.as_str().as_bytes());
    let key = CacheMountKey { id: "git".to_owned(), first_content: Some(blake3::Hash::from_bytes(never).into()) };
    let origin = access.remote.to_string();
    loop {
        let (store, key, origin) = (sources.store.clone(), key.clone(), origin.clone());
        let attempt = move || -> Result<Option<CacheMountGuard>, WorkError> {
            let mounts = store.cache_mounts();
            match mounts.find(&key, CacheMountUse::Locked)? {
                CacheMountFound::Folder(guard) => Ok(Some(guard)),
                CacheMountFound::InUse => Ok(None),
                CacheMountFound::Absent => {
                    let staged = store.scratch("git")?;
                    let tree = staged.path().join("repository");
                    let failed = |source| RemoteError::Write { what: "a repository".to_owned(), source };
                    std::fs::create_dir(&tree).map_err(failed)?;
                    Ok(mounts.create(&key, CacheMountUse::Locked, &tree, &origin)?)
                }
            }
        };
        if let Some(guard) = tokio::task::spawn_blocking(attempt).await?? {
            return Ok(guard);
        }
        let stopped = asked.session.cancellation().cancelled();
        if tokio::time::timeout(PATIENCE, stopped).await.is_ok() {
            return Err(WorkError::Cancelled);
        }
    }
}

/// Whether there is a repository. A git that was killed while it made one leaves less, which making it again completes.
fn is_whole(repository: &Path) -> bool {
    repository.join("HEAD").is_file() && ["objects", "refs"].iter().all(|name| repository.join(name).is_dir())
}

/// Removes what a git that was killed left behind: locks, which the next one would take for another that is at work, and
/// packs that did not come in whole. Blocks.
fn remove_leftovers(repository: &Path) -> std::io::Result<()> {
    let packs = repository.join("objects/pack");
    let mut folders = vec![repository.to_owned(), repository.join("refs"), packs.clone()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let name = name.as_encoded_bytes();
            if kind.is_dir() && folder.starts_with(repository.join("refs")) {
                folders.push(entry.path());
            } else if !kind.is_dir() && (name.ends_with(b".lock") || folder == packs && name.starts_with(b"tmp_")) {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_git_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let kept = ["HEAD", "refs/heads/tmp_x", "refs/heads/a/b", "objects/pack/pack-1.pack"];
        let left = ["shallow.lock", "HEAD.lock", "refs/heads/a/b.lock", "objects/pack/tmp_pack_1"];
        remove_leftovers(folder.path()).unwrap();
        assert!(!is_whole(folder.path()));
        for name in kept.iter().chain(&left) {
            std::fs::create_dir_all(place(name).parent().unwrap()).unwrap();
            std::fs::write(place(name), "").unwrap();
        }
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(kept.map(|name| place(name).exists()), [true; 4]);
        assert_eq!(left.map(|name| place(name).exists()), [false; 4]);
        assert!(is_whole(folder.path()));
    }

    #[test]
    fn the_committers_time_is_read() {
        let commit = "tree x\nauthor A <a> 1 +0000\ncommitter > B <b> 784111777 -0100\n\ncommitter C <c> 5 +0000\n";
        assert_eq!(committed(commit.as_bytes()), Some(784_111_777));
        assert_eq!(committed(b"tree x\n\ncommitter C <c> 5 +0000\n"), None);
    }
}
