//! The containers that run, for every forge that uses the store.
//!
//! One locked file for each: `run/containers/<id>.json`. A file that nobody locks is what a killed forge left.

use crate::EngineError;
use forge_image::ErrorKind;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is known of a running container.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Record {
    pub id: String,
    pub name: Option<String>,
    pub image: String,
    pub labels: Vec<(String, String)>,
}

/// A container's place among those that run, until this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    path: PathBuf,
    _lock: File,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What stays is removed by the next container.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Enters a container, and removes what killed ones left.
///
/// # Errors
/// Another one has its name.
pub(crate) fn enter(run: &Path, record: &Record) -> Result<Entry, EngineError> {
    let folder = run.join("containers");
    let failed = |source: std::io::Error| {
        EngineError::caused(ErrorKind::Environment, source).context("cannot note the container")
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    // One at a time, so that two of a name see each other.
    let gate = File::create(folder.join(".lock")).map_err(failed)?;
    flock(&gate, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
    for other in std::fs::read_dir(&folder).map_err(failed)?.flatten() {
        match others(&other.path()) {
            Some(other) if other.name.is_some() && other.name == record.name => return Err(taken(&other)),
            _ => {}
        }
    }
    let path = folder.join(format!("{}.json", record.id));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
    let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    file.write_all(&text).map_err(failed)?;
    Ok(Entry { path, _lock: file })
}

/// Entries that nobody locks: those of killed ones.
pub(crate) fn left_over(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("containers")).into_iter().flatten().flatten().map(|entry| entry.path());
    let unlocked = |path: &PathBuf| {
        let lock = |file: File| flock(&file, FlockOperation::NonBlockingLockShared);
        path.extension().is_some_and(|kind| kind == "json") && File::open(path).is_ok_and(|file| lock(file).is_ok())
    };
    entries.filter(unlocked).collect()
}

/// Reads the entry of a container that runs; removes one that does not.
fn others(path: &Path) -> Option<Record> {
    if path.extension()? != "json" {
        return None;
    }
    let file = File::open(path).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(_) => serde_json::from_reader(file).ok(),
        Ok(()) => {
            // Somebody else may have been faster.
            let _ = std::fs::remove_file(path);
            None
        }
    }
}

fn taken(other: &Record) -> EngineError {
    let name = other.name.as_deref().unwrap_or_default();
    let message =
        format!("Conflict. The container name {:?} is already in use by container {:?}", format!("/{name}"), other.id);
    EngineError::new(ErrorKind::UserInput, message)
        .with_hint("wait until that container has ended, or take another name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, name: &str) -> Record {
        Record { id: id.into(), name: Some(name.into()), image: "i".into(), labels: vec![("a".into(), "b".into())] }
    }

    #[test]
    fn a_name_is_free_when_its_container_has_ended() {
        let run = tempfile::tempdir().unwrap();
        let first = enter(run.path(), &record("1", "web")).unwrap();
        let error = enter(run.path(), &record("2", "web")).unwrap_err();
        assert!(error.to_string().contains("\"/web\" is already in use by container \"1\""), "{error}");
        let other = enter(run.path(), &record("3", "db")).unwrap();
        drop(first);
        let again = enter(run.path(), &record("4", "web")).unwrap();
        // As a killed forge leaves it: the file without its lock.
        let left = again.path.clone();
        std::mem::drop((other, again));
        std::fs::write(&left, serde_json::to_vec(&record("4", "web")).unwrap()).unwrap();
        enter(run.path(), &record("5", "web")).unwrap();
        assert!(!left.exists());
    }
}
