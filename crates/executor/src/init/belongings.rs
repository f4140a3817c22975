//! What a caller leaves who is killed.

use super::RemoveFolder;
use crate::message::Paths;
use std::os::fd::OwnedFd;

/// A folder and a file that go with the caller, who removes them himself unless he is killed.
pub(super) struct Belongings {
    paths: Paths,
    /// Held until both are gone.
    _lock: OwnedFd,
    /// Where the caller says that he ends in order.
    farewell: OwnedFd,
}

impl Belongings {
    /// From what came with a message; nothing where there are none.
    pub(super) fn of(paths: Option<Paths>, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let [lock, farewell] = <[OwnedFd; 2]>::try_from(descriptors).ok()?;
        Some(Self { paths: paths?, _lock: lock, farewell })
    }

    /// Waits for the caller's end. Whoever is killed here too leaves them to the next one that finds the file without a lock.
    pub(super) fn remove_if_orphaned(self, remove: RemoveFolder) {
        let said = rustix::io::retry_on_intr(|| rustix::io::read(&self.farewell, &mut [0]));
        if said == Ok(0) {
            remove(&self.paths.folder);
            let _ = std::fs::remove_file(&self.paths.mark);
        }
    }
}
