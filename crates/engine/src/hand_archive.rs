//! An image that was built elsewhere, for another container engine of this machine or for a folder.

use crate::{EngineError, Recipient};
use std::io::{self, Read, Write};
use std::path::Path;
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

/// Puts an OCI layout that comes as an archive into a folder, beside the images that are there. Blocks.
///
/// # Errors
/// The archive is no layout, or the folder cannot be written.
pub fn unpack_layout(stream: impl Read, folder: &Path) -> Result<(), EngineError> {
    Ok(forge_exporter::unpack_layout(stream, folder)?)
}
