//! Limits of what is unpacked.

use super::limits::bytes;
use anyhow::{Context, bail};
use forge_engine::IntakeLimits;

/// Sets the limit of a key.
///
/// # Errors
/// An unknown key, or a value that is no such limit.
pub fn set_limit(limits: &mut IntakeLimits, key: &str, value: &str) -> anyhow::Result<()> {
    let number = || {
        let number = value.parse().ok().filter(|number| *number > 0);
        number.context("expected a number of at least 1")
    };
    match key {
        "bytes" => limits.unpacked.bytes = bytes("unpack-limit", value)?,
        "ratio" => limits.unpacked.ratio = number()?,
        "ratio-floor" => limits.unpacked.ratio_floor = bytes("unpack-limit", value)?,
        "entries" => limits.unpacked.entries = number()?,
        "depth" => limits.unpacked.depth = number()?,
        "header" => limits.unpacked.header = bytes("unpack-limit", value)?,
        "load-bytes" => limits.loaded.bytes = bytes("unpack-limit", value)?,
        "load-entries" => limits.loaded.entries = number()?,
        _ => bail!("expected bytes, ratio, ratio-floor, entries, depth, header, load-bytes or load-entries"),
    }
    Ok(())
}
