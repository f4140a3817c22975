//! What processes that died left in a store: seen without opening it, since whoever opens it removes that.

use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Leases and scratch folders whose owners are dead.
///
/// # Errors
/// The folders cannot be read. A store that is not there has nothing.
pub fn left_over(root: &Path) -> io::Result<Vec<PathBuf>> {
    let leases = root.join("leases");
    let mut all: Vec<_> = entries(&leases)?.into_iter().filter(|lease| is_dead(lease)).collect();
    let abandoned = |folder: &PathBuf| folder.file_name().is_none_or(|owner| is_dead(&leases.join(owner)));
    all.extend(entries(&root.join("scratch"))?.into_iter().filter(abandoned));
    all.sort();
    Ok(all)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| entry.map(|entry| entry.path())).collect(),
    }
}

/// An owner holds a lock on its lease as long as it lives; one without a lease has none any more.
fn is_dead(lease: &Path) -> bool {
    match File::open(lease) {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_living_hold_is_not_left_over() {
        let root = tempfile::tempdir().unwrap();
        assert!(left_over(root.path()).unwrap().is_empty());
        for name in ["leases", "scratch/dead", "scratch/alive", "scratch/nobody"] {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
        }
        std::fs::write(root.path().join("leases/dead"), "").unwrap();
        let lease = File::create(root.path().join("leases/alive")).unwrap();
        flock(&lease, FlockOperation::LockExclusive).unwrap();
        let found = left_over(root.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(root.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["leases/dead", "scratch/dead", "scratch/nobody"]);
    }
}
