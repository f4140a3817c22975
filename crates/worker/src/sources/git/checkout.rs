//! From a commit to a layer.

use super::super::Asked;
use super::super::error::RemoteError;
use super::access::{Access, Whose};
use super::program::Run;
use super::repository::{CHECKOUT, REPOSITORY, Repository};
use super::{Git, Pinned, bundle, submodules};
use crate::error::WorkError;
use forge_cache::ResultRef;
use forge_llb::{GitForm, GitMtime, GitRemote};
use forge_session::open_in_root;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The checkout's name below the scratch folder.
pub(super) const TREE: &str = "tree";

/// Checks a commit out, with its submodules, and makes a layer of the wanted folder.
pub(super) async fn snapshot(
    git: &Git<'_>,
    remote: &GitRemote,
    pinned: &Pinned,
    asked: &Asked<'_>,
) -> Result<ResultRef, WorkError> {
    let (sources, op, subdir) = (git.sources, git.op, git.subdir()?);
    let store = sources.store.clone();
    let scratch = tokio::task::spawn_blocking(move || store.scratch("checkout")).await??;
    let root = scratch.path().to_owned();
    std::fs::create_dir(root.join(TREE)).map_err(write_failed)?;

    let access = match op.bundle {
        Some(_) => Access::nowhere(sources, remote),
        None => Access::new(sources, op, remote, Whose::Named, asked).await?,
    };
    let repository = Repository::open(sources, access, &pinned.commit, asked).await?;
    // A tag may have been moved since it was pinned, and its old object may be nowhere any more; the commit alone will do.
    let object = if op.keep_git_dir { pinned.object() } else { &pinned.commit };
    match &op.bundle {
        Some(bundle) => repository.take_in(&git.bundle(bundle, asked).await?, pinned, asked).await?,
        None if op.form == GitForm::Bundle => repository.fetch_history(pinned, asked).await?,
        None => repository.fetch(pinned, object, asked).await?,
    }
    let commit = repository.commit(object, asked).await?;
    let nested = match op.form {
        GitForm::Bundle => {
            bundle::write(&repository, pinned, &commit, &root, asked).await?;
            Vec::new()
        }
        GitForm::Files => {
            let entries = repository.entries(&commit, asked).await?;
            repository.check_out(&commit, &root, TREE, asked).await?;
            match op.skip_submodules {
                true => Vec::new(),
                false => submodules::listed(&repository, &entries, asked).await?,
            }
        }
    };
    let time = match op.mtime {
        GitMtime::Checkout => None,
        GitMtime::Commit => Some(repository.commit_time(&commit, asked).await?),
    };
    if op.keep_git_dir && subdir.is_empty() {
        keep_git_dir(&repository, pinned, &commit, &root, asked).await?;
    }
    // A submodule may be of the same repository.
    drop(repository);
    submodules::check_out(git, remote, nested, &root, asked).await?;

    let (store, lease, shown) = (sources.store.clone(), sources.lease.clone(), remote.to_string());
    let work = move || -> Result<ResultRef, WorkError> {
        let active = store.layers().prepare(&[])?;
        let chosen = open_folder(&root.join(TREE), &subdir)
            .map_err(|_| RemoteError::NoFolder { remote: shown, subdir: subdir.clone() })?;
        move_children(&chosen, active.upper()).map_err(write_failed)?;
        if let Some(seconds) = time {
            set_times(active.upper(), seconds).map_err(write_failed)?;
        }
        let layer = store.layers().commit(active, &lease)?;
        drop(scratch);
        Ok(ResultRef::Layers(vec![layer.id]))
    };
    tokio::task::spawn_blocking(work).await?
}

fn write_failed(source: std::io::Error) -> RemoteError {
    RemoteError::Write { what: "a checkout".to_owned(), source }
}

/// Gives the checkout a `.git` of its own with this one commit, whose bytes depend on nothing else: no logs, one pack,
/// an index without times.
async fn keep_git_dir(
    repository: &Repository<'_>,
    pinned: &Pinned,
    commit: &str,
    root: &Path,
    asked: &Asked<'_>,
) -> Result<(), WorkError> {
    let folder = format!("{CHECKOUT}/.git");
    let format = format!("--object-format={}", if commit.len() == 64 { "sha256" } else { "sha1" });
    let program = repository.local()?;
    let run = async |args: &[&str]| {
        let run = Run::new("make .git for", args.iter().copied());
        let run = run.folder_beneath(root, TREE, CHECKOUT);
        let run =
            repository.shown_as(run, &folder).env(&format!("GIT_ALTERNATE_OBJECT_DIRECTORIES={REPOSITORY}/objects"));
        program.run(run, asked).await.map(drop)
    };
    run(&["init", "--quiet", "--template=", &format]).await?;
    let shallow = root.join(TREE).join(".git/shallow");
    std::fs::write(shallow, format!("{commit}\n")).map_err(write_failed)?;
    run(&["remote", "add", "--", "origin", &repository.remote()]).await?;
    if let Some(name) = &pinned.name {
        run(&["update-ref", "--", name, pinned.object()]).await?;
    }
    run(&["update-ref", "--no-deref", "--", "HEAD", commit]).await?;
    run(&["repack", "-a", "-d", "-q"]).await?;
    Ok(run(&["read-tree", "HEAD"]).await?)
}

/// Opens the folder that becomes the root; links on the way are followed within the checkout (A107).
fn open_folder(checkout: &Path, subdir: &str) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(checkout, flags, Mode::empty())?;
    let subdir = if subdir.is_empty() { "." } else { subdir };
    Ok(open_in_root(root.as_fd(), Path::new(subdir), flags)?)
}

fn move_children(from: &OwnedFd, to: &Path) -> std::io::Result<()> {
    let to = rustix::fs::open(to, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let names: Vec<_> = rustix::fs::Dir::read_from(from)?
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        rustix::fs::renameat(from, name, &to, name)?;
    }
    Ok(())
}

/// Gives everything in a folder, and the folder last, one time.
fn set_times(path: &Path, seconds: i64) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            set_times(&entry?.path(), seconds)?;
        }
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
