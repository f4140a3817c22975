use crate::StoreError;
use crate::owner::is_file_at;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A lock by name, across threads and processes; given up on drop and by the death of the process.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
}

impl LockGuard {
    pub(crate) fn wait(folder: &Path, name: &str) -> Result<Self, StoreError> {
        loop {
            let (path, file) = open(folder, name)?;
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(StoreError::os("lock", &path)(errno)),
            }
            // A lock file that nobody used may have been removed in between; then others lock a new one.
            if is_file_at(&file, &path)? {
                return Ok(Self { _file: file });
            }
        }
    }

    pub(crate) fn try_now(folder: &Path, name: &str) -> Result<Option<Self>, StoreError> {
        Self::attempt(folder, name, FlockOperation::NonBlockingLockExclusive)
    }

    /// A lock that others can have at the same time, if they ask for it in this way.
    pub(crate) fn try_shared(folder: &Path, name: &str) -> Result<Option<Self>, StoreError> {
        Self::attempt(folder, name, FlockOperation::NonBlockingLockShared)
    }

    fn attempt(folder: &Path, name: &str, operation: FlockOperation) -> Result<Option<Self>, StoreError> {
        loop {
            let (path, file) = open(folder, name)?;
            match flock(&file, operation) {
                Ok(()) if is_file_at(&file, &path)? => return Ok(Some(Self { _file: file })),
                Ok(()) | Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(StoreError::os("lock", &path)(errno)),
            }
        }
    }
}

/// The name may hold anything (a cache id, a path, an image name), so its hash becomes the file name (A24).
fn open(folder: &Path, name: &str) -> Result<(PathBuf, File), StoreError> {
    let path = folder.join(blake3::hash(name.as_bytes()).to_hex().as_str());
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(StoreError::io("open", &path))?;
    Ok((path, file))
}

/// Removes lock files that nobody holds.
pub(crate) fn remove_free(folder: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
        let path = entry.map_err(StoreError::io("list", folder))?.path();
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_file_at(&file, &path)? {
            // Held while it goes, so that whoever waits for this very file sees that it is gone.
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}
