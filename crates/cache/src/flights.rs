use crate::{CacheError, CacheKey};
use forge_session::{SingleFlight, Turn};
use rustix::fs::{FlockOperation, flock, major, minor};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at a lock that another process holds: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Makes equal steps of several builds run once, whether these are in one process or in several.
///
/// A flight is taken by key: within the process through a map, between processes by `flock` on a file named
/// after the key. The kernel releases the lock of a process that dies, so that another takes over. Whoever gets
/// the guard asks the index again before working.
pub struct Flights {
    turns: SingleFlight<CacheKey>,
    folder: Option<PathBuf>,
}

/// The right to run the step of one key, until it is dropped.
pub struct FlightGuard {
    // The file goes first: the next in this process then finds the lock free.
    _lock: Option<LockFile>,
    _turn: Turn<CacheKey>,
}

impl Flights {
    /// Flights shared with all processes that use the same folder. The folder is made when it is first needed.
    pub fn new(folder: &Path) -> Self {
        Self { turns: SingleFlight::default(), folder: Some(folder.to_owned()) }
    }

    /// Flights of this process alone.
    pub fn in_process() -> Self {
        Self { turns: SingleFlight::default(), folder: None }
    }

    /// Waits until no one else runs the step of this key, and takes it over. No thread is held while waiting.
    ///
    /// # Errors
    /// [`CacheError::Cancelled`] when the token is cancelled first; otherwise the lock file cannot be used.
    pub async fn acquire(&self, key: &CacheKey, cancellation: &CancellationToken) -> Result<FlightGuard, CacheError> {
        cancellation.run_until_cancelled(self.take(key)).await.unwrap_or(Err(CacheError::Cancelled))
    }

    /// The process that runs the step of this key now, as far as can be told.
    pub fn owner(&self, key: &CacheKey) -> Option<u32> {
        let Some(folder) = &self.folder else { return Some(std::process::id()) };
        let file = std::fs::symlink_metadata(folder.join(key.to_string())).ok()?;
        holder(&std::fs::read_to_string("/proc/locks").ok()?, file.dev(), file.ino())
    }

    /// Removes the files that killed processes left. They are empty, and there is one for each step that was running then.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn sweep(&self) -> Result<(), CacheError> {
        let Some(path) = &self.folder else { return Ok(()) };
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(|source| CacheError::Lock { path: path.clone(), source })?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            // One that cannot be opened has just gone, or is left to the next sweep.
            let Ok(file) = File::options().write(true).open(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&file, &path).unwrap_or(false) {
                drop(LockFile { path, _file: file });
            }
        }
        Ok(())
    }

    async fn take(&self, key: &CacheKey) -> Result<FlightGuard, CacheError> {
        let turn = self.turns.turn(*key).await;
        let lock = match &self.folder {
            Some(folder) => Some(LockFile::take(folder, key).await?),
            None => None,
        };
        Ok(FlightGuard { _lock: lock, _turn: turn })
    }
}

/// The process that has a file locked, as `/proc/locks` tells it (proc_locks(5)). One of a PID namespace that is out of
/// sight has no number.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let mut lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // `1: FLOCK  ADVISORY  WRITE 812 fd:01:131073 0 EOF`; who waits for a lock has an arrow before the kind.
    let line = lines.find(|fields| fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&file.as_str()))?;
    line.get(4)?.parse().ok().filter(|number| *number != 0)
}

/// A locked file. It stays empty, so that making and removing it never reaches the disk. Dropping it removes the file and
/// then lets the lock go.
struct LockFile {
    path: PathBuf,
    _file: File,
}

impl LockFile {
    /// Polls the lock: `flock` knows no timeout, and a thread that blocks in it could not be cancelled.
    async fn take(folder: &Path, key: &CacheKey) -> Result<Self, CacheError> {
        let path = folder.join(key.to_string());
        let mut pause = FIRST_PAUSE;
        loop {
            match Self::try_take(folder, &path) {
                Ok(Some(file)) => return Ok(Self { path, _file: file }),
                Ok(None) => tokio::time::sleep(pause).await,
                Err(source) => return Err(CacheError::Lock { path, source }),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn try_take(folder: &Path, path: &Path) -> io::Result<Option<File>> {
        let file = open(folder, path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, path)? => Ok(Some(file)),
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn open(folder: &Path, path: &Path) -> io::Result<File> {
    let open = || File::options().create(true).truncate(false).write(true).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(folder)?;
            open()
        }
        result => result,
    }
}

/// Whether the name still leads to the file: the owner before may have removed it between our open and our lock,
/// and then someone else may hold a new file of that name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(there) => file.metadata().map(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // A file that stays behind does no harm but for its name: the lock goes with the descriptor.
        _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_told_from_who_waits_and_from_others() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fd:01:131073 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 fd:01:131073 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 812 fd:01:131073 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 fd:01:131074 0 EOF\n";
        let device = rustix::fs::makedev(0xfd, 1);
        assert_eq!(holder(locks, device, 131_073), Some(812));
        assert_eq!(holder(locks, device, 131_074), None, "a process out of sight");
        assert_eq!(holder(locks, device, 13), None);
    }

    #[tokio::test]
    async fn an_owner_is_found_by_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        let flights = Flights::new(folder.path());
        let key = CacheKey::from_bytes([7; 32]);
        let _guard = flights.acquire(&key, &CancellationToken::new()).await.unwrap();
        assert_eq!(flights.owner(&key), Some(std::process::id()));
    }
}
