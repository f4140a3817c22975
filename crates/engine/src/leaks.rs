//! What killed forges left on the machine and in a store.

use crate::{EngineError, running};
use forge_image::ErrorKind;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// What lives changes: what is still there after this long is left over.
const PATIENCE: Duration = Duration::from_millis(200);

/// Finds what nobody uses, one line each, without taking it away: that is done by the next forge that uses the store.
///
/// # Errors
/// The store's folders cannot be read.
pub fn leaks(root: &Path) -> Result<Vec<String>, EngineError> {
    let first = look(root)?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    std::thread::sleep(PATIENCE);
    let second = look(root)?;
    Ok(first.intersection(&second).cloned().collect())
}

fn look(root: &Path) -> Result<BTreeSet<String>, EngineError> {
    let failed = |error| EngineError::caused(ErrorKind::Environment, error).context("cannot look into the store");
    let runtime = root.join("run");
    let machine = forge_executor::left_over(&runtime).into_iter().map(|one| one.to_string());
    let store = forge_store::left_over(root).map_err(failed)?;
    let store = store.into_iter().map(|path| format!("files {}", path.display()));
    let entries = running::left_over(&runtime).into_iter().map(|path| format!("entry {}", path.display()));
    Ok(machine.chain(store).chain(entries).collect())
}
