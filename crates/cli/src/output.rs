//! Standard output and standard error, with errors instead of panics when a reader goes away.

use std::io::{self, Write};

/// Writes to standard output.
///
/// # Errors
/// The reader went away, or the disk is full.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a remark to standard error, where losing it is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
