//! Whether the store is whole, and taking out what is damaged.

use crate::EngineError;
use crate::engine::{Engine, blocking};
use forge_store::{Repair, Verification, VerifyDepth};

/// What was found, and what was done about it.
#[derive(Clone, Debug)]
pub struct VerifyReport {
    /// What was looked at, and what was wrong.
    pub found: Verification,
    /// What was taken out; `None` where only looking was asked for, or nothing was wrong.
    pub repair: Option<Repair>,
}

impl Engine {
    /// What the user is to be told of the store as it was found when it was opened: empty but after a mishap.
    pub fn notices_of_store(&self) -> Vec<String> {
        let Some(rebuilt) = self.store().rebuilt() else { return Vec::new() };
        let found = format!("found {} layers and {} names on disk", rebuilt.layers, rebuilt.names.len());
        let mut notices = vec![match &rebuilt.set_aside {
            Some(path) => format!("the store's database was damaged and is now {}: {found}", path.display()),
            None => format!("the store's database was lost: {found}"),
        }];
        notices.extend(
            rebuilt.lost.iter().map(|name| format!("{} was not whole: pull or build it again", name.familiar())),
        );
        notices
    }

    /// Compares the store with its records; with `repair`, takes out what is damaged: builds and pulls bring it back.
    ///
    /// # Errors
    /// The store cannot be read at all, or not be changed.
    pub async fn verify_store(&self, depth: VerifyDepth, repair: bool) -> Result<VerifyReport, EngineError> {
        let store = self.store().clone();
        blocking(move || {
            let found = store.verify(depth)?;
            let repair = match repair && !found.findings.is_empty() {
                true => Some(store.repair(&found.findings)?),
                false => None,
            };
            Ok(VerifyReport { found, repair })
        })
        .await
    }
}
