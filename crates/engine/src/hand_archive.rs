//! An image that was built elsewhere, for another container engine of this machine.

use crate::{EngineError, Recipient};
use std::io::{self, Write};
use tokio_util::sync::CancellationToken;

/// Sends an engine an archive as it comes in: docker's format for docker and podman, an OCI layout for containerd. Blocks.
///
/// # Errors
/// The engine is not there or refuses, or `write` fails.
pub fn hand_archive(
    recipient: &Recipient,
    cancel: &CancellationToken,
    write: impl FnOnce(Box<dyn Write + Send>) -> io::Result<()>,
) -> Result<(), EngineError> {
    Ok(forge_exporter::hand_archive(recipient, cancel, write)?)
}
