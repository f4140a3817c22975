//! From what a user typed to an image, by docker's rules.

use crate::ids::is_lower_hex;
use crate::image_rows::target_of;
use crate::layer_rows::parse;
use crate::{Found, StoreError, Target};
use forge_image::{Digest, ImageId, Reference};
use rusqlite::{Connection, OptionalExtension, params};

/// Fewer digits are never an id: docker's `truncatedID` pattern.
const SHORTEST_PREFIX: usize = 4;

pub(crate) fn resolve(connection: &Connection, text: &str) -> Result<Found, StoreError> {
    if let Some(digest) = whole_digest(text) {
        let target = by_digest(connection, &digest)?.ok_or_else(|| no_such_image(text))?;
        return Ok(Found { name: None, target });
    }
    let name = text.parse::<Reference>();
    if let Ok(name) = &name
        && let Some(found) = by_name(connection, name)?
    {
        return Ok(found);
    }
    if let Some(id) = by_prefix(connection, text)? {
        return Ok(Found { name: None, target: alone(id) });
    }
    name?;
    Err(no_such_image(text))
}

fn no_such_image(text: &str) -> StoreError {
    StoreError::NoSuchImage { text: text.chars().take(300).collect() }
}

fn alone(image: ImageId) -> Target {
    Target { index: None, images: vec![image] }
}

fn whole_digest(text: &str) -> Option<Digest> {
    match text.len() == 64 && is_lower_hex(text) {
        true => format!("sha256:{text}").parse().ok(),
        false => text.parse().ok(),
    }
}

fn by_digest(connection: &Connection, digest: &Digest) -> Result<Option<Target>, StoreError> {
    let image = "SELECT id FROM images WHERE id = ?1";
    if let Some(id) = first(connection, image, [digest.as_str()])? {
        return Ok(Some(alone(parse("image ID", &id)?)));
    }
    let index = "SELECT name FROM names WHERE index_digest = ?1 ORDER BY name";
    if let Some(name) = first(connection, index, [digest.as_str()])? {
        return target_of(connection, &name);
    }
    let manifest = "SELECT id FROM images WHERE manifest_digest = ?1 ORDER BY id";
    let id = first(connection, manifest, [digest.as_str()])?;
    id.map(|id| Ok(alone(parse("image ID", &id)?))).transpose()
}

fn by_name(connection: &Connection, name: &Reference) -> Result<Option<Found>, StoreError> {
    let found = |name: &Reference, target| Found { name: Some(name.clone()), target };
    let Some(digest) = name.digest() else {
        return Ok(target_of(connection, &name.to_string())?.map(|target| found(name, target)));
    };
    // docker ignores a tag beside a digest.
    let pinned = name.with_digest(digest.clone());
    if let Some(target) = target_of(connection, &pinned.to_string())? {
        return Ok(Some(found(&pinned, target)));
    }
    let key = params![name.name(), digest.as_str()];
    let index = "SELECT name FROM names WHERE repository = ?1 AND index_digest = ?2 ORDER BY name";
    if let Some(name) = first(connection, index, key)? {
        return Ok(target_of(connection, &name)?.map(|target| found(&pinned, target)));
    }
    let manifest = "SELECT images.id FROM names JOIN name_images USING (name) JOIN images ON images.id = image
                    WHERE repository = ?1 AND manifest_digest = ?2 ORDER BY images.id";
    let id = first(connection, manifest, params![name.name(), digest.as_str()])?;
    id.map(|id| Ok(found(&pinned, alone(parse("image ID", &id)?)))).transpose()
}

fn first(connection: &Connection, sql: &str, key: impl rusqlite::Params) -> Result<Option<String>, StoreError> {
    Ok(connection.prepare_cached(sql)?.query_row(key, |row| row.get(0)).optional()?)
}

fn by_prefix(connection: &Connection, text: &str) -> Result<Option<ImageId>, StoreError> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() < SHORTEST_PREFIX || digits.len() > 64 || !is_lower_hex(digits) {
        return Ok(None);
    }
    let mut select = connection.prepare_cached("SELECT id FROM images WHERE id >= ?1 AND id < ?2 ORDER BY id")?;
    // `g` comes after every hexadecimal digit.
    let (from, to) = (format!("sha256:{digits}"), format!("sha256:{digits}g"));
    let ids = select.query_map([from, to], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    let matches = ids.iter().map(|id| parse("image ID", id)).collect::<Result<Vec<ImageId>, _>>()?;
    match matches.len() {
        0 | 1 => Ok(matches.into_iter().next()),
        _ => Err(StoreError::AmbiguousId { text: text.to_owned(), matches }),
    }
}
