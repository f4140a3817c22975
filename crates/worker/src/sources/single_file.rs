//! A file tree of one file.

use super::Sources;
use super::error::RemoteError;
use crate::error::WorkError;
use forge_cache::ResultRef;
use forge_store::ScratchDir;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the only file of a tree is.
pub(super) struct SingleFile {
    /// The bytes: the file itself goes into the tree.
    pub bytes: PathBuf,
    /// The folder that they lie in.
    pub folder: ScratchDir,
    pub name: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: SystemTime,
}

impl Sources {
    /// Makes a layer of a file.
    pub(super) async fn commit_file(&self, file: SingleFile) -> Result<ResultRef, WorkError> {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let work = move || -> Result<ResultRef, WorkError> {
            let active = store.layers().prepare(&[])?;
            let place = active.upper().join(&file.name);
            settle(&file, &place, active.upper())
                .map_err(|source| RemoteError::Write { what: file.name.clone(), source })?;
            drop(file.folder);
            Ok(ResultRef::Layers(vec![store.layers().commit(active, &lease)?.id]))
        };
        tokio::task::spawn_blocking(work).await?
    }
}

fn settle(what: &SingleFile, to: &Path, folder: &Path) -> std::io::Result<()> {
    std::fs::rename(&what.bytes, to)?;
    let file = File::open(to)?;
    // The owner first: changing it clears set-id bits.
    let (uid, gid) = what.owner;
    rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(what.mode))?;
    let time = Timespec { tv_sec: seconds(what.mtime), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::futimens(&file, &times)?;
    Ok(rustix::fs::utimensat(rustix::fs::CWD, folder, &times, AtFlags::empty())?)
}

pub(super) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
