use crate::StoreError;
use crate::ids::random_hex;
use rusqlite::{Connection, params};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One opened store of one process, as other processes see it.
///
/// Its leases and scratch folders live as long as it does. That it lives is shown by a flock on `leases/<id>`, which the
/// kernel drops with the process: unlike a pid this also holds across pid namespaces. The row tells in addition which
/// process it is, and decides where the lock file is gone.
pub(crate) struct Owner {
    pub(crate) id: String,
    path: PathBuf,
    lock: File,
}

/// What tells a process from all others, past and present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: u32,
    /// Clock ticks from boot to the start of the process, proc(5) `stat` field 22.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

impl ProcessIdentity {
    pub(crate) fn own(boot_id: &str) -> Result<Self, StoreError> {
        let pid = std::process::id();
        let path = format!("/proc/{pid}/stat");
        let missing = || StoreError::io("read", &path)(io::ErrorKind::InvalidData.into());
        Ok(Self { pid, start_time: start_time(pid).ok_or_else(missing)?, boot_id: boot_id.to_owned() })
    }

    /// Whether that process runs, seen from this pid namespace.
    fn runs(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything, so count from its end.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The kernel's name for the time since it was started, `/proc/sys/kernel/random/boot_id`.
pub(crate) fn boot_id() -> Result<String, StoreError> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).map_err(StoreError::io("read", path))?.trim().to_owned())
}

impl Owner {
    /// Takes a new lock file. The row must be written after it, and deleted before it.
    pub(crate) fn new(leases: &Path) -> Result<Self, StoreError> {
        loop {
            let id = random_hex();
            let path = leases.join(&id);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(StoreError::io("create", &path))?;
            flock(&file, FlockOperation::LockExclusive).map_err(StoreError::os("lock", &path))?;
            // Between the two calls above somebody may have taken the file for a dead process's and removed it.
            if is_file_at(&file, &path)? {
                return Ok(Self { id, path, lock: file });
            }
        }
    }

    /// The lock, for somebody who goes on when this process has ended.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        self.lock.as_fd().try_clone_to_owned()
    }

    pub(crate) fn insert(&self, connection: &Connection, process: &ProcessIdentity) -> Result<(), StoreError> {
        let mut insert = connection.prepare_cached("INSERT INTO owners VALUES (?1, ?2, ?3, ?4)")?;
        insert.execute(params![self.id, process.pid, process.start_time as i64, process.boot_id])?;
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // A file left behind is removed by whoever finds that nobody locks it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether `path` still names the open file.
pub(crate) fn is_file_at(file: &File, path: &Path) -> Result<bool, StoreError> {
    let own = file.metadata().map_err(StoreError::io("inspect", path))?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((own.dev(), own.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("inspect", path)(error)),
    }
}

/// The lock of an owner that is dead; as long as it is held nobody else clears up after that owner.
pub(crate) struct DeadOwner {
    pub(crate) id: String,
    _lock: Option<File>,
}

impl DeadOwner {
    /// The owner's remains, or nothing when it lives. `process` is what its row says, if it has one.
    pub(crate) fn find(
        leases: &Path,
        id: &str,
        process: Option<&ProcessIdentity>,
        own_boot: &str,
    ) -> Result<Option<Self>, StoreError> {
        let path = leases.join(id);
        let dead = |lock| Ok(Some(Self { id: id.to_owned(), _lock: lock }));
        let other_boot = process.is_some_and(|process| process.boot_id != own_boot);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let runs = !other_boot && process.is_some_and(ProcessIdentity::runs);
                return if runs { Ok(None) } else { dead(None) };
            }
            Err(error) => return Err(StoreError::io("open", &path)(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => dead(Some(file)),
            Err(Errno::WOULDBLOCK) if other_boot => dead(None),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(StoreError::os("lock", &path)(errno)),
        }
    }
}

/// The owners on record, but for one.
pub(crate) fn others(connection: &Connection, own: Option<&str>) -> Result<Vec<(String, ProcessIdentity)>, StoreError> {
    let mut select = connection.prepare_cached("SELECT id, pid, start_time, boot_id FROM owners WHERE id IS NOT ?1")?;
    let rows = select.query_map([own], |row| {
        let process =
            ProcessIdentity { pid: row.get(1)?, start_time: row.get::<_, i64>(2)? as u64, boot_id: row.get(3)? };
        Ok((row.get(0)?, process))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
