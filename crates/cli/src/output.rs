//! Standard output and standard error, with errors instead of panics when a reader goes away.

use serde_json::{Map, Value};
use std::io::{self, Write};

/// Writes to standard output.
///
/// # Errors
/// The reader went away, or the disk is full.
pub fn print(text: &str) -> io::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to standard output.
///
/// # Errors
/// The reader went away, or the disk is full.
pub fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes a remark to standard error, where losing it is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// An object without the fields that hold nothing: docker's documents leave them out.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
        }
        other => other,
    }
}
