//! Taking out what is damaged, with what cannot be without it.

use super::{Finding, Repair};
use crate::layer_rows::parse;
use crate::opened::Opened;
use crate::{StoreError, collect, name_files, rebuild};
use forge_image::ImageId;
use rusqlite::{Connection, Transaction};

/// Drops every damaged blob and layer, and the images and names that are nothing without them; removes files without a
/// record. Builds and pulls bring back what they need.
///
/// A damaged database is set aside, and nothing else done: it says nothing about files. Opening the store then makes a new one
/// of what is on disk.
pub(crate) fn repair(opened: &Opened, findings: &[Finding]) -> Result<Repair, StoreError> {
    if findings.iter().any(|finding| matches!(finding, Finding::Database { .. })) {
        let database = rebuild::discard(opened.root(), &opened.owner_id()?)?;
        return Ok(Repair { database, ..Repair::default() });
    }
    let mut repair = opened.database().write_durably(|transaction| {
        let mut repair = Repair::default();
        for finding in findings {
            drop_damaged(transaction, finding, &mut repair)?;
        }
        drop_incomplete(transaction, &mut repair)?;
        drop_needless_layers(transaction, &repair)?;
        Ok(repair)
    })?;
    let gone = repair.images.iter().flat_map(|(_, names)| names);
    gone.into_iter().try_for_each(|name| name_files::remove(opened, name))?;
    repair.strays = findings.iter().filter_map(stray).collect();
    collect::sweep(opened, collect::Pace::Swift)?;
    Ok(repair)
}

fn stray(finding: &Finding) -> Option<std::path::PathBuf> {
    match finding {
        Finding::Stray { path } => Some(path.clone()),
        _ => None,
    }
}

fn drop_damaged(transaction: &Transaction<'_>, finding: &Finding, repair: &mut Repair) -> Result<(), StoreError> {
    match finding {
        Finding::Blob { digest, .. } => {
            transaction.execute("DELETE FROM layer_blobs WHERE blob = ?1", [digest.as_str()])?;
            if transaction.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_str()])? > 0 {
                collect::insert_trash(transaction, "blob", digest.as_str())?;
                repair.blobs.push(digest.clone());
            }
        }
        Finding::Layer { id, .. } => repair.layers.push(*id),
        Finding::Database { .. } | Finding::Image { .. } | Finding::Name { .. } | Finding::Stray { .. } => {}
    }
    Ok(())
}

/// Images that lack a part go, and with them names that stood for nothing else. A foreign layer is nothing without its
/// blob: its tar cannot be made again.
fn drop_incomplete(transaction: &Transaction<'_>, repair: &mut Repair) -> Result<(), StoreError> {
    let bare = "SELECT id FROM layers WHERE is_foreign AND id NOT IN (SELECT layer FROM layer_blobs WHERE is_foreign)";
    for id in strings(transaction, bare)? {
        let id = parse("layer id", &id)?;
        if !repair.layers.contains(&id) {
            repair.layers.push(id);
        }
    }
    for layer in repair.layers.clone() {
        let sql = "SELECT DISTINCT image FROM image_layers WHERE layer = ?1";
        let mut select = transaction.prepare_cached(sql)?;
        let images = select.query_map([layer.as_str()], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        images.iter().try_for_each(|image| drop_image(transaction, image, repair))?;
    }
    let incomplete = "SELECT id FROM images WHERE id NOT IN (SELECT digest FROM blobs)
        OR (manifest_digest IS NOT NULL AND manifest_digest NOT IN (SELECT digest FROM blobs))
        OR id IN (SELECT image FROM image_layers WHERE layer NOT IN (SELECT id FROM layers))";
    for image in strings(transaction, incomplete)? {
        drop_image(transaction, &image, repair)?;
    }
    // A name that only lacks its index still stands for images.
    transaction.execute(
        "UPDATE names SET target_index = NULL, index_digest = NULL
         WHERE index_digest IS NOT NULL AND index_digest NOT IN (SELECT digest FROM blobs)",
        [],
    )?;
    transaction.execute("DELETE FROM names WHERE name NOT IN (SELECT name FROM name_images)", [])?;
    Ok(())
}

fn drop_image(transaction: &Transaction<'_>, image: &str, repair: &mut Repair) -> Result<(), StoreError> {
    let id: ImageId = parse("image ID", image)?;
    let names = crate::image_rows::delete(transaction, &id)?;
    repair.images.push((id, names));
    Ok(())
}

fn drop_needless_layers(transaction: &Transaction<'_>, repair: &Repair) -> Result<(), StoreError> {
    for layer in &repair.layers {
        if transaction.execute("DELETE FROM layers WHERE id = ?1", [layer.as_str()])? > 0 {
            collect::insert_trash(transaction, "layer", layer.as_str())?;
        }
    }
    Ok(())
}

fn strings(connection: &Connection, sql: &str) -> Result<Vec<String>, StoreError> {
    let mut select = connection.prepare(sql)?;
    Ok(select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}
