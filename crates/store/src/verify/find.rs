//! Looking. Everything that is looked at is held meanwhile, so that no collection takes it away in between.

use super::{BlobFault, Finding, LayerFault, Verification, VerifyDepth};
use crate::blobs::hash_of;
use crate::collect::CACHE_MOUNT;
use crate::layer_rows::{index_checksum, parse};
use crate::layers::{LayerIndex, check_layer, has_contents};
use crate::opened::Opened;
use crate::owner::DeadOwner;
use crate::{LayerId, Lease, StoreError, collect};
use forge_image::{Digest, ImageId, Reference};
use rusqlite::{Connection, Transaction};
use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

/// Looks at everything that has a record, and for what has none.
///
/// What a power cut may have taken is reported if it was taken: unlike everywhere else nothing is dropped unseen.
pub(crate) fn verify(opened: &Arc<Opened>, depth: VerifyDepth) -> Result<Verification, StoreError> {
    opened.reap()?;
    let mut findings = database_findings(opened, depth)?;
    if !findings.is_empty() {
        // Records of a damaged database say nothing about files.
        return Ok(Verification { findings, ..Verification::default() });
    }
    let lease = Lease::create(opened.clone(), "verify")?;
    let held = opened.database().write(|transaction| hold_all(transaction, &lease))?;
    let mut bytes = 0;
    for blob in &held.blobs {
        let (read, fault) = look_at_blob(opened, blob, depth);
        bytes += read;
        findings.extend(fault.map(|fault| Finding::Blob { digest: blob.digest.clone(), fault }));
    }
    for layer in &held.layers {
        let (read, fault) = look_at_layer(opened, layer, depth);
        bytes += read;
        findings.extend(fault.map(|fault| Finding::Layer { id: layer.id, fault }));
    }
    findings.extend(opened.database().read(incomplete_images)?);
    findings.extend(opened.database().read(incomplete_names)?);
    findings.extend(strays(opened)?);
    let findings = still_there(opened, findings)?;
    let (blobs, layers) = (held.blobs.len() as u64, held.layers.len() as u64);
    Ok(Verification { blobs, layers, images: held.images, bytes, findings })
}

fn database_findings(opened: &Opened, depth: VerifyDepth) -> Result<Vec<Finding>, StoreError> {
    let pragma = match depth {
        VerifyDepth::Records => "PRAGMA quick_check(20)",
        VerifyDepth::Bytes => "PRAGMA integrity_check(20)",
    };
    let lines: Result<Vec<String>, StoreError> = opened.database().read(|connection| {
        let mut check = connection.prepare(pragma)?;
        let lines = check.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        let mut orphans = connection.prepare("SELECT \"table\", rowid FROM pragma_foreign_key_check LIMIT 20")?;
        let orphans =
            orphans.query_map([], |row| Ok(format!("a row of {} has no parent", row.get::<_, String>(0)?)))?;
        Ok(lines.into_iter().filter(|line| line != "ok").chain(orphans.filter_map(Result::ok)).collect())
    });
    match lines {
        Ok(lines) if lines.is_empty() => Ok(Vec::new()),
        Ok(lines) => Ok(vec![Finding::Database { report: lines.join("\n") }]),
        Err(StoreError::Database { source }) => Ok(vec![Finding::Database { report: source.to_string() }]),
        Err(other) => Err(other),
    }
}

struct Held {
    blobs: Vec<HeldBlob>,
    layers: Vec<HeldLayer>,
    images: u64,
}

struct HeldBlob {
    digest: Digest,
    size: u64,
}

struct HeldLayer {
    id: LayerId,
    index_checksum: String,
}

fn hold_all(transaction: &Transaction<'_>, lease: &Lease) -> Result<Held, StoreError> {
    let mut select = transaction.prepare("SELECT digest, size FROM blobs ORDER BY serial")?;
    let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut blobs = Vec::new();
    for row in rows {
        let (digest, size) = row?;
        blobs.push(HeldBlob { digest: parse("digest", &digest)?, size: size.cast_unsigned() });
    }
    // What lies in a registry only has no files to look at.
    let sql = "SELECT id, index_checksum FROM layers
               WHERE id NOT IN (SELECT layer FROM remotes WHERE absent = 1) ORDER BY serial";
    let mut select = transaction.prepare(sql)?;
    let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
    let mut layers = Vec::new();
    for row in rows {
        let (id, index_checksum) = row?;
        layers.push(HeldLayer { id: parse("layer id", &id)?, index_checksum });
    }
    blobs.iter().try_for_each(|blob| lease.insert_blob(transaction, &blob.digest))?;
    layers.iter().try_for_each(|layer| lease.insert_layer(transaction, &layer.id))?;
    let images: i64 = transaction.query_row("SELECT count(*) FROM images", [], |row| row.get(0))?;
    Ok(Held { blobs, layers, images: images.cast_unsigned() })
}

fn look_at_blob(opened: &Opened, blob: &HeldBlob, depth: VerifyDepth) -> (u64, Option<BlobFault>) {
    let path = opened.blob_path(&blob.digest);
    let unreadable = |error: std::io::Error| (0, Some(BlobFault::Unreadable { reason: error.to_string() }));
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return (0, Some(BlobFault::Missing)),
        Err(error) => return unreadable(error),
    };
    let actual = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(error) => return unreadable(error),
    };
    if actual != blob.size {
        return (0, Some(BlobFault::Size { expected: blob.size, actual }));
    }
    match depth {
        VerifyDepth::Records => (0, None),
        VerifyDepth::Bytes => match hash_of(&mut file, &blob.digest) {
            Ok(actual) => (blob.size, (actual != blob.digest).then_some(BlobFault::Bytes { actual })),
            Err(error) => unreadable(error),
        },
    }
}

fn look_at_layer(opened: &Opened, layer: &HeldLayer, depth: VerifyDepth) -> (u64, Option<LayerFault>) {
    let folder = opened.layer_path(&layer.id);
    if !has_contents(&folder) {
        return (0, Some(LayerFault::NoTree));
    }
    let path = folder.join("index");
    if !matches!(index_checksum(&path), Ok(Some(found)) if found == layer.index_checksum) {
        return (0, Some(LayerFault::Index));
    }
    if depth == VerifyDepth::Records {
        return (0, None);
    }
    let Ok(index) = std::fs::read(&path).map_err(|_| ()).and_then(|bytes| LayerIndex::decode(&bytes).map_err(|_| ()))
    else {
        return (0, Some(LayerFault::Index));
    };
    match check_layer(&folder, &index) {
        Ok(check) if check.faults.is_empty() => (check.bytes, None),
        Ok(check) => (check.bytes, Some(LayerFault::Tree { faults: check.faults })),
        Err(error) => (0, Some(LayerFault::Unreadable { reason: error.to_string() })),
    }
}

fn incomplete_images(connection: &Connection) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT id, 'its config ' || id FROM images WHERE id NOT IN (SELECT digest FROM blobs)
               UNION ALL SELECT id, 'its manifest ' || manifest_digest FROM images
                   WHERE manifest_digest IS NOT NULL AND manifest_digest NOT IN (SELECT digest FROM blobs)
               UNION ALL SELECT image, 'layer ' || layer FROM image_layers WHERE layer NOT IN (SELECT id FROM layers)";
    let found = |id: &str, lacks| Ok(Finding::Image { id: parse::<ImageId>("image ID", id)?, lacks });
    pairs(connection, sql, found)
}

fn incomplete_names(connection: &Connection) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT name, 'its index ' || index_digest FROM names
                   WHERE index_digest IS NOT NULL AND index_digest NOT IN (SELECT digest FROM blobs)
               UNION ALL SELECT name, 'every image' FROM names WHERE name NOT IN (SELECT name FROM name_images)";
    let found = |name: &str, lacks| Ok(Finding::Name { name: parse::<Reference>("image name", name)?, lacks });
    pairs(connection, sql, found)
}

fn pairs(
    connection: &Connection,
    sql: &str,
    found: impl Fn(&str, String) -> Result<Finding, StoreError>,
) -> Result<Vec<Finding>, StoreError> {
    let mut select = connection.prepare(sql)?;
    let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| row.map_err(StoreError::from).and_then(|(key, lacks)| found(&key, lacks))).collect()
}

/// Files without a record, and what processes left that are dead and have no record either.
fn strays(opened: &Opened) -> Result<Vec<Finding>, StoreError> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for (kind, name) in collect::without_record(opened)? {
        paths.push(match kind {
            "layer" => PathBuf::from("layers").join(name),
            CACHE_MOUNT => PathBuf::from("cache-mounts").join(name),
            _ => PathBuf::from("blobs").join(name.replacen(':', "/", 1)),
        });
    }
    let leases = opened.leases_path();
    for id in collect::unknown_owners(opened)? {
        if DeadOwner::find(&leases, &id, None, opened.boot_id())?.is_some() {
            let remains = ["scratch", "leases"].map(|folder| PathBuf::from(folder).join(&id));
            paths.extend(remains.into_iter().filter(|path| opened.root().join(path).exists()));
        }
    }
    Ok(paths.into_iter().map(|path| Finding::Stray { path }).collect())
}

/// A build that runs meanwhile may itself have found and dropped what is damaged.
fn still_there(opened: &Opened, findings: Vec<Finding>) -> Result<Vec<Finding>, StoreError> {
    opened.database().read(|connection| {
        let names = |sql: &str| -> Result<HashSet<String>, StoreError> {
            let mut select = connection.prepare(sql)?;
            Ok(select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        };
        let (blobs, layers) = (names("SELECT digest FROM blobs")?, names("SELECT id FROM layers")?);
        let remains = |finding: &Finding| match finding {
            Finding::Blob { digest, .. } => blobs.contains(digest.as_str()),
            Finding::Layer { id, .. } => layers.contains(id.as_str()),
            _ => true,
        };
        Ok(findings.into_iter().filter(remains).collect())
    })
}
