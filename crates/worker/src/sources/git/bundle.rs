//! Git bundles: files that hold commits with what leads to them. A repository's commit can come from one, and become one.

use super::super::Asked;
use super::super::error::RemoteError;
use super::access::Access;
use super::checkout::TREE;
use super::program::{Network, Run};
use super::repository::{CHECKOUT, REPOSITORY, Repository};
use super::{Git, Pinned, choose};
use crate::error::WorkError;
use forge_llb::{BlobSource, GitRemote, is_whole_commit};
use forge_store::ScratchDir;
use std::path::Path;
use std::sync::Arc;

/// The only file of a checkout that is a bundle.
const NAME: &str = "bundle";

/// What a bundle calls a commit that has no name.
const UNNAMED: &str = "refs/heads/main";

/// A bundle that was brought here.
pub(super) struct BundleFile(ScratchDir);

impl BundleFile {
    /// Where runs see it.
    pub(super) const SEEN_AS: &str = "/bundle/file";

    /// Shows it to a run.
    pub(super) fn shown(&self, run: Run) -> Run {
        run.folder(self.0.path(), "/bundle")
    }
}

impl Git<'_> {
    /// Brings the bundle of a source here.
    pub(super) async fn bundle(&self, bundle: &BlobSource, asked: &Asked<'_>) -> Result<BundleFile, WorkError> {
        Ok(BundleFile(self.sources.blob_file(bundle, asked).await?.0))
    }

    /// What a reference leads to within a bundle, which must be the commit that is named besides.
    pub(super) async fn pin_in_bundle(
        &self,
        remote: &GitRemote,
        bundle: &BlobSource,
        commit: &str,
        asked: &Asked<'_>,
    ) -> Result<Arc<Pinned>, WorkError> {
        let plain = Pinned { commit: commit.to_owned(), tag: None, name: None };
        let differs = |found: &str| RemoteError::Commit {
            remote: remote.to_string(),
            expected: commit.to_owned(),
            found: found.to_owned(),
        };
        let wanted = match self.op.reference.as_deref().filter(|reference| !reference.is_empty()) {
            None => return Ok(Arc::new(plain)),
            Some(wanted) if is_whole_commit(wanted) && wanted == commit => return Ok(Arc::new(plain)),
            Some(wanted) if is_whole_commit(wanted) => return Err(differs(wanted).into()),
            Some(wanted) => wanted,
        };
        let key = (format!("{} {commit}", bundle.digest), wanted.to_owned());
        if let Some(pinned) = self.sources.commits.lock().expect("no holder panics").get(&key) {
            return Ok(pinned.clone());
        }
        let file = self.bundle(bundle, asked).await?;
        let run = Run::new("list the references of a bundle of", ["bundle", "list-heads", BundleFile::SEEN_AS]);
        let listed = Access::nowhere(self.sources, remote).program(Network::None)?.run(file.shown(run), asked).await?;
        // As `ls-remote` prints them.
        let listed: String =
            String::from_utf8_lossy(&listed).lines().map(|line| line.replacen(' ', "\t", 1) + "\n").collect();
        let missing = || RemoteError::NoReference { remote: remote.to_string(), reference: wanted.to_owned() };
        let found = choose(&listed, wanted).ok_or_else(missing)?;
        let is_tag = found.name.as_deref().is_some_and(|name| name.starts_with("refs/tags/"));
        let pinned = match (found.commit == commit, is_tag) {
            (true, _) => Pinned { name: found.name, ..plain },
            // An annotated tag; whether it leads there is seen when the bundle is taken in.
            (false, true) => Pinned { tag: Some(found.commit), name: found.name, ..plain },
            (false, false) => return Err(differs(&found.commit).into()),
        };
        let pinned = Arc::new(pinned);
        self.sources.commits.lock().expect("no holder panics").insert(key, pinned.clone());
        Ok(pinned)
    }
}

/// Writes a commit with its history into a bundle, the only file of the checkout.
pub(super) async fn write(
    repository: &Repository<'_>,
    pinned: &Pinned,
    commit: &str,
    root: &Path,
    asked: &Asked<'_>,
) -> Result<(), WorkError> {
    let folder = format!("{CHECKOUT}/.git");
    let format = format!("--object-format={}", if commit.len() == 64 { "sha256" } else { "sha1" });
    let name = pinned.name.as_deref().unwrap_or(UNNAMED);
    let program = repository.local()?;
    let run = async |args: &[&str]| {
        let run = Run::new("make a bundle of", args.iter().copied());
        let run = run.folder_beneath(root, TREE, CHECKOUT);
        let run =
            repository.shown_as(run, &folder).env(&format!("GIT_ALTERNATE_OBJECT_DIRECTORIES={REPOSITORY}/objects"));
        program.run(run, asked).await.map(drop)
    };
    run(&["init", "--quiet", "--bare", "--template=", &format]).await?;
    run(&["update-ref", "--", name, commit]).await?;
    run(&["bundle", "create", "--quiet", &format!("{CHECKOUT}/{NAME}"), name]).await?;
    let (git, failed) = (root.join(TREE).join(".git"), |source| RemoteError::Write { what: NAME.to_owned(), source });
    Ok(tokio::task::spawn_blocking(move || std::fs::remove_dir_all(git)).await?.map_err(failed)?)
}
