//! The records of images and names.

use crate::layer_rows::{self, from_json, parse, to_json};
use crate::{Image, StoreError, Target, blobs};
use forge_image::{Digest, ImageId, Reference};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names come with a tag or with a digest.
#[derive(Clone, Copy)]
pub(crate) enum NameKind {
    Tag,
    Digest,
}

/// Stores an image; where another process just did the same, there is nothing to do.
pub(crate) fn insert_new(connection: &Connection, image: &Image) -> Result<(), StoreError> {
    match exists(connection, &image.id)? {
        true => Ok(()),
        false => replace(connection, image),
    }
}

/// Stores an image in the place of what had its id. Names keep it.
pub(crate) fn replace(connection: &Connection, image: &Image) -> Result<(), StoreError> {
    require_parts(connection, image)?;
    let sql = "INSERT INTO images VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (id) DO UPDATE SET platform = ?2, manifest = ?3, manifest_digest = ?4, created = ?5";
    let stored = image.stored.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    connection.prepare_cached(sql)?.execute(params![
        image.id.digest().as_str(),
        to_json(&image.platform),
        image.manifest.as_ref().map(to_json),
        image.manifest.as_ref().map(|manifest| manifest.digest.as_str()),
        image.created,
        stored
    ])?;
    connection.prepare_cached("DELETE FROM image_layers WHERE image = ?1")?.execute([image.id.digest().as_str()])?;
    let mut insert = connection.prepare_cached("INSERT INTO image_layers VALUES (?1, ?2, ?3)")?;
    for (position, layer) in image.layers.iter().enumerate() {
        insert.execute(params![image.id.digest().as_str(), position as i64, layer.as_str()])?;
    }
    Ok(())
}

fn require_parts(connection: &Connection, image: &Image) -> Result<(), StoreError> {
    for layer in &image.layers {
        if !layer_rows::exists(connection, layer)? {
            return Err(StoreError::LayerNotFound { layer: *layer });
        }
    }
    for digest in image.manifest.iter().map(|manifest| &manifest.digest).chain([image.id.digest()]) {
        require_blob(connection, digest)?;
    }
    Ok(())
}

fn require_blob(connection: &Connection, digest: &Digest) -> Result<(), StoreError> {
    match blobs::row(connection, digest)? {
        Some(_) => Ok(()),
        None => Err(StoreError::BlobNotFound { digest: digest.clone() }),
    }
}

fn exists(connection: &Connection, id: &ImageId) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached("SELECT 1 FROM images WHERE id = ?1")?.exists([id.digest().as_str()])?)
}

pub(crate) fn get(connection: &Connection, id: &ImageId) -> Result<Option<Image>, StoreError> {
    let mut select =
        connection.prepare_cached("SELECT platform, manifest, created, stored FROM images WHERE id = ?1")?;
    let columns = |row: &Row<'_>| {
        Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get(2)?, row.get::<_, i64>(3)?))
    };
    let row = select.query_row([id.digest().as_str()], columns).optional()?;
    let Some((platform, manifest, created, stored)) = row else { return Ok(None) };
    Ok(Some(Image {
        id: id.clone(),
        platform: from_json("platform", &platform)?,
        layers: strings(connection, "SELECT layer FROM image_layers WHERE image = ?1 ORDER BY position", id.digest())?
            .iter()
            .map(|layer| parse("layer id", layer))
            .collect::<Result<_, _>>()?,
        manifest: manifest.map(|text| from_json("descriptor", &text)).transpose()?,
        created,
        stored: seconds(stored),
    }))
}

fn seconds(stored: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(stored.max(0) as u64)
}

fn strings(connection: &Connection, sql: &str, key: &Digest) -> Result<Vec<String>, StoreError> {
    let mut select = connection.prepare_cached(sql)?;
    let rows = select.query_map([key.as_str()], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What a name stands for.
pub(crate) fn target(connection: &Connection, name: &Reference) -> Result<Option<Target>, StoreError> {
    target_of(connection, &name.to_string())
}

pub(crate) fn target_of(connection: &Connection, name: &str) -> Result<Option<Target>, StoreError> {
    let mut select = connection.prepare_cached("SELECT target_index FROM names WHERE name = ?1")?;
    let index: Option<Option<String>> = select.query_row([name], |row| row.get(0)).optional()?;
    let Some(index) = index else { return Ok(None) };
    let mut select = connection.prepare_cached("SELECT image FROM name_images WHERE name = ?1 ORDER BY position")?;
    let images = select.query_map([name], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Target {
        index: index.map(|text| from_json("descriptor", &text)).transpose()?,
        images: images.iter().map(|image| parse("image ID", image)).collect::<Result<_, _>>()?,
    }))
}

/// Points a name at images, and returns what it pointed at.
pub(crate) fn set_name(
    connection: &Connection,
    name: &Reference,
    target: &Target,
) -> Result<Option<Target>, StoreError> {
    if let Some(missing) = missing(connection, target)? {
        return Err(StoreError::ImageNotFound { image: missing });
    }
    if let Some(index) = &target.index {
        require_blob(connection, &index.digest)?;
    }
    let text = name.to_string();
    let old = target_of(connection, &text)?;
    let sql = "INSERT INTO names VALUES (?1, ?2, ?3, ?4, ?5)
               ON CONFLICT (name) DO UPDATE SET target_index = ?4, index_digest = ?5";
    connection.prepare_cached(sql)?.execute(params![
        text,
        name.name(),
        name.digest().map(Digest::as_str),
        target.index.as_ref().map(to_json),
        target.index.as_ref().map(|index| index.digest.as_str())
    ])?;
    connection.prepare_cached("DELETE FROM name_images WHERE name = ?1")?.execute([&text])?;
    let mut insert = connection.prepare_cached("INSERT INTO name_images VALUES (?1, ?2, ?3)")?;
    for (position, image) in target.images.iter().enumerate() {
        insert.execute(params![text, position as i64, image.digest().as_str()])?;
    }
    Ok(old)
}

fn missing(connection: &Connection, target: &Target) -> Result<Option<ImageId>, StoreError> {
    for image in &target.images {
        if !exists(connection, image)? {
            return Ok(Some(image.clone()));
        }
    }
    Ok(None)
}

/// Whether all that a target needs has been synced since it was written.
pub(crate) fn is_durable(connection: &Connection, target: &Target) -> Result<bool, StoreError> {
    let pending_image = "
        SELECT 1 FROM image_layers JOIN layers ON layers.id = image_layers.layer
            WHERE image_layers.image = ?1 AND layers.boot_id IS NOT NULL
        UNION ALL SELECT 1 FROM blobs WHERE digest = ?1 AND boot_id IS NOT NULL
        UNION ALL SELECT 1 FROM images JOIN blobs ON blobs.digest = images.manifest_digest
            WHERE images.id = ?1 AND blobs.boot_id IS NOT NULL
        UNION ALL SELECT 1 FROM image_layers JOIN layer_blobs ON layer_blobs.layer = image_layers.layer
            JOIN blobs ON blobs.digest = layer_blobs.blob
            WHERE image_layers.image = ?1 AND blobs.boot_id IS NOT NULL";
    let mut pending = connection.prepare_cached(pending_image)?;
    for image in &target.images {
        if pending.exists([image.digest().as_str()])? {
            return Ok(false);
        }
    }
    let Some(index) = &target.index else { return Ok(true) };
    let mut pending = connection.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1 AND boot_id IS NOT NULL")?;
    Ok(!pending.exists([index.digest.as_str()])?)
}

pub(crate) fn remove_name(connection: &Connection, name: &Reference) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached("DELETE FROM names WHERE name = ?1")?.execute([name.to_string()])? > 0)
}

/// Removes an image, and returns the names that stood for it alone and are gone with it.
pub(crate) fn delete(connection: &Connection, id: &ImageId) -> Result<Vec<Reference>, StoreError> {
    let orphaned = "DELETE FROM names WHERE name IN (SELECT name FROM name_images WHERE image = ?1)
                    AND name NOT IN (SELECT name FROM name_images WHERE image <> ?1) RETURNING name";
    if !exists(connection, id)? {
        return Err(StoreError::ImageNotFound { image: id.clone() });
    }
    let names = strings(connection, orphaned, id.digest())?;
    connection.prepare_cached("DELETE FROM name_images WHERE image = ?1")?.execute([id.digest().as_str()])?;
    connection.prepare_cached(DELETE_UNUSED)?.execute([id.digest().as_str()])?;
    names.iter().map(|name| parse("image name", name)).collect()
}

/// Deletes an image that has no name and that nobody holds; `false` where that is not so.
pub(crate) fn delete_unnamed(connection: &Connection, id: &ImageId) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached(DELETE_UNUSED)?.execute([id.digest().as_str()])? > 0)
}

/// Whoever stored an image and has yet to name it holds its config.
const DELETE_UNUSED: &str = "DELETE FROM images WHERE id = ?1
    AND NOT EXISTS (SELECT 1 FROM name_images WHERE image = ?1)
    AND NOT EXISTS (SELECT 1 FROM lease_blobs WHERE blob = ?1)";

pub(crate) fn names_of(connection: &Connection, id: &ImageId, kind: NameKind) -> Result<Vec<Reference>, StoreError> {
    let sql = match kind {
        NameKind::Tag => {
            "SELECT DISTINCT names.name FROM name_images JOIN names USING (name)
             WHERE image = ?1 AND digest IS NULL ORDER BY 1"
        }
        NameKind::Digest => {
            "SELECT DISTINCT names.name FROM name_images JOIN names USING (name)
             WHERE image = ?1 AND digest IS NOT NULL ORDER BY 1"
        }
    };
    strings(connection, sql, id.digest())?.iter().map(|name| parse("image name", name)).collect()
}

/// All names, tags and digests, with what they stand for.
pub(crate) fn list_names(connection: &Connection) -> Result<Vec<(Reference, Target)>, StoreError> {
    let mut select = connection.prepare_cached("SELECT name FROM names ORDER BY name")?;
    let names = select.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    let target =
        |name: &String| target_of(connection, name)?.ok_or_else(|| StoreError::invalid_row("image name", name));
    names.iter().map(|name| Ok((parse("image name", name)?, target(name)?))).collect()
}

pub(crate) fn list(connection: &Connection) -> Result<Vec<(Option<Reference>, Target)>, StoreError> {
    let tags = "SELECT name FROM names WHERE digest IS NULL ORDER BY name";
    let tagged = "SELECT image FROM name_images JOIN names USING (name) WHERE digest IS NULL";
    let pins = format!(
        "SELECT name FROM names WHERE digest IS NOT NULL
         AND name NOT IN (SELECT name FROM name_images WHERE image IN ({tagged})) ORDER BY name"
    );
    let mut listed = Vec::new();
    for sql in [tags, &pins] {
        let mut select = connection.prepare_cached(sql)?;
        let names = select.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        for name in names {
            let target = target_of(connection, &name)?.ok_or_else(|| StoreError::invalid_row("image name", &name))?;
            listed.push((Some(parse("image name", &name)?), target));
        }
    }
    let unnamed = "SELECT id FROM images WHERE id NOT IN (SELECT image FROM name_images) ORDER BY stored DESC, id";
    let mut select = connection.prepare_cached(unnamed)?;
    for id in select.query_map([], |row| row.get::<_, String>(0))? {
        listed.push((None, Target { index: None, images: vec![parse("image ID", &id?)?] }));
    }
    Ok(listed)
}
