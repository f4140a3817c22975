//! `forge store verify`.

use super::{Start, block_on};
use crate::args::VerifyArgs;
use crate::failure::Failure;
use crate::{output, sanitise, units};
use forge_engine::{BlobFault, LayerFault, Repair, StoreFinding, Verification, VerifyDepth};
use std::fmt::Write as _;

/// As many paths of a damaged layer are named.
const SHOWN_PATHS: usize = 20;

pub fn verify(start: &Start, args: &VerifyArgs) -> Result<u8, Failure> {
    let depth = if args.full { VerifyDepth::Bytes } else { VerifyDepth::Records };
    let report = block_on(async { Ok(start.engine()?.verify_store(depth, args.repair).await?) })?;
    let mut text = found_text(&report.found);
    if let Some(repair) = &report.repair {
        text += &repair_text(repair);
    }
    output::print(&text)?;
    let is_damaged = report.found.findings.iter().any(|finding| !matches!(finding, StoreFinding::Stray { .. }));
    Ok(if is_damaged && report.repair.is_none() { 1 } else { 0 })
}

fn found_text(found: &Verification) -> String {
    let mut text = String::new();
    found.findings.iter().for_each(|finding| text += &finding_text(finding));
    let _ = write!(text, "{} blobs, {} layers, {} images", found.blobs, found.layers, found.images);
    if found.bytes > 0 {
        let _ = write!(text, ", {} read", units::size(found.bytes));
    }
    let is_stray = |finding: &&StoreFinding| matches!(finding, StoreFinding::Stray { .. });
    let strays = found.findings.iter().filter(is_stray).count();
    match (found.findings.len() - strays, strays) {
        (0, 0) => text + ": whole\n",
        (0, strays) => text + &format!(": whole, {strays} files without a record, which the next prune removes\n"),
        (1, _) => text + ": 1 finding\n",
        (count, _) => text + &format!(": {count} findings\n"),
    }
}

fn finding_text(finding: &StoreFinding) -> String {
    let line = match finding {
        StoreFinding::Database { report } => format!("database: {report}"),
        StoreFinding::Blob { digest, fault } => format!("blob {digest}: {}", blob_fault(fault)),
        StoreFinding::Layer { id, fault } => return layer_text(&format!("layer {id}"), fault),
        StoreFinding::Image { id, lacks } => format!("image {id}: {lacks} is not in the store"),
        StoreFinding::Name { name, lacks } => format!("name {}: {lacks} is not in the store", name.familiar()),
        StoreFinding::Stray { path } => format!("{}: no record names it", path.display()),
    };
    line.lines().map(|line| format!("{}\n", sanitise::line(line))).collect()
}

fn blob_fault(fault: &BlobFault) -> String {
    match fault {
        BlobFault::Missing => "its file is missing".to_owned(),
        BlobFault::Size { expected, actual } => format!("its file has {actual} bytes, not {expected}"),
        BlobFault::Bytes { actual } => format!("its bytes hash to {actual}"),
        BlobFault::Unreadable { reason } => format!("it cannot be read: {reason}"),
    }
}

fn layer_text(layer: &str, fault: &LayerFault) -> String {
    let faults = match fault {
        LayerFault::NoTree => return format!("{layer}: its tree is missing\n"),
        LayerFault::Index => return format!("{layer}: its index is missing or damaged\n"),
        LayerFault::Unreadable { reason } => {
            return format!("{layer}: it cannot be read: {}\n", sanitise::line(reason));
        }
        LayerFault::Tree { faults } => faults,
    };
    let shown = faults.iter().take(SHOWN_PATHS);
    let mut text: String =
        shown.map(|fault| format!("{layer}: /{}: {}\n", sanitise::line(&fault.path), fault.reason)).collect();
    if let Some(more) = faults.len().checked_sub(SHOWN_PATHS).filter(|more| *more > 0) {
        let _ = writeln!(text, "{layer}: and {more} more");
    }
    text
}

fn repair_text(repair: &Repair) -> String {
    if let Some(path) = &repair.database {
        let path = path.display();
        return format!("set the database aside as {path}: the next command makes a new one of what is on disk\n");
    }
    let mut text = format!(
        "repaired: took out {} layers, {} blobs, {} images, {} files without a record\n",
        repair.layers.len(),
        repair.blobs.len(),
        repair.images.len(),
        repair.strays.len()
    );
    for (id, names) in &repair.images {
        let names: Vec<String> = names.iter().map(|name| sanitise::line(&name.familiar()).into_owned()).collect();
        let what = if names.is_empty() { id.to_string() } else { names.join(", ") };
        let _ = writeln!(text, "image {what} is gone: pull or build it again");
    }
    text
}
