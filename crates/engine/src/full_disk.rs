//! What the user is told where the store's file system is full (F09, F10).

use crate::{Engine, EngineError};

/// The kernel's words, and SQLite's.
const WORDS: [&str; 3] = ["No space left on device", "database or disk is full", "Disk quota exceeded"];

impl Engine {
    /// Says how large the store's file system is where something failed for want of space.
    pub(crate) fn explain_full_disk(&self, error: EngineError) -> EngineError {
        let detail = error.detail().unwrap_or_default();
        let message = error.to_string();
        if !WORDS.iter().any(|words| message.contains(words) || detail.contains(words)) {
            return error;
        }
        let root = self.store().root();
        match rustix::fs::statvfs(root) {
            Ok(found) => error.with_hint(format!("the file system of {} {}", root.display(), hint(&found))),
            // The error itself is what counts.
            Err(_) => error,
        }
    }
}

/// What a failed step had taken is free again by now: the numbers are those without it.
fn hint(found: &rustix::fs::StatVfs) -> String {
    let megabytes = |blocks: u64| blocks.saturating_mul(found.f_frsize) / 1_000_000;
    let mut text =
        format!("takes {} MB, of which {} MB are free now", megabytes(found.f_blocks), megabytes(found.f_bavail));
    if found.f_files > 0 {
        text += &format!(", and {} files, of which {} are free now", found.f_files, found.f_favail);
    }
    text + ": `forge prune -a` frees what the build cache holds, `forge rmi` what an image does"
}
