//! Whether the machine forwards packets, which is one switch for everybody on it.
//!
//! A file says that it was forge that switched it on. Every set-up process that needs it holds a shared lock on the file;
//! the last one switches it off again. After a kill the file stays, and the next one takes the duty over.

use super::foreign;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// Keeps forwarding on.
pub(super) struct Forwarding {
    /// Where forge switches it on.
    duty: Option<Duty>,
}

/// To switch it off again.
struct Duty {
    lock: OwnedFd,
    path: PathBuf,
    /// Whether docker was there and did without.
    beside_docker: bool,
}

impl Forwarding {
    /// Finds out whether it is for forge to switch forwarding on, and off again.
    pub(super) fn claim(directory: &Path) -> Result<Self> {
        let network = rustix::fs::stat("/proc/self/ns/net")?.st_ino;
        let path = directory.join(format!("forge-forwarding-{network}"));
        // Looked for on both sides of the switch: the file is there before forge switches on, and until it has switched
        // off, so that neither a start nor an end in between is taken for somebody else's choice.
        let was_there = path.exists();
        let on = std::fs::read_to_string(SWITCH).is_ok_and(|text| text.trim() != "0");
        if on && !was_there && !path.exists() {
            return Ok(Self { duty: None });
        }
        let lock = lock_shared(&path)?;
        Ok(Self { duty: Some(Duty { lock, path, beside_docker: foreign::has_docker() }) })
    }

    /// Switches it on. The kernel has the writer try again and again as long as anybody changes interfaces, so nobody should who
    /// has a part in this.
    pub(super) fn switch_on(&self) -> Result<()> {
        match self.duty {
            Some(_) => std::fs::write(SWITCH, "1").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            None => Ok(()),
        }
    }

    /// Whether nobody but forge wants it.
    pub(super) fn is_forge_s(&self) -> bool {
        self.duty.is_some()
    }
}

/// Locks the file that is at the path then: whoever is last removes it.
pub(super) fn lock_shared(path: &Path) -> Result<OwnedFd> {
    loop {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(CWD, path, flags, Mode::from_raw_mode(0o600))?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared))?;
        let same = |there: rustix::fs::Stat| fstat(&file).is_ok_and(|own| own.st_ino == there.st_ino);
        if statat(CWD, path, rustix::fs::AtFlags::empty()).is_ok_and(same) {
            return Ok(file);
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let Some(Duty { lock, path, beside_docker }) = &self.duty else { return };
        // Refused while others hold it, who then have the duty.
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // A docker that started meanwhile found it on and needs it.
            let is_wanted = !beside_docker && foreign::has_docker();
            // What fails here is left to the next forge: the file is still there.
            if is_wanted || std::fs::write(SWITCH, "0").is_ok() {
                let _ = unlinkat(CWD, path, rustix::fs::AtFlags::empty());
            }
        }
    }
}
