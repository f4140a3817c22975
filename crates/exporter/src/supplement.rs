//! Adds to a list of software the layers that its files came with.

use crate::ExportError;
use forge_image::Descriptor;
use forge_registry::TransferContext;
use forge_store::{EntryKind, LayerId};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Files of a document that says of itself that it is SPDX get the layer that they came with for a comment, unless they
/// have one. What reads otherwise stays as it is.
pub(crate) fn name_layers(
    context: &TransferContext,
    document: &mut Value,
    layers: &[LayerId],
    blobs: &[Descriptor],
) -> Result<(), ExportError> {
    let Some(document) = document.as_object_mut().filter(|document| document.contains_key("spdxVersion")) else {
        return Ok(());
    };
    let mut origins = Origins { context, left: layers.iter().zip(blobs).collect(), known: HashMap::new() };
    name_files(document, &mut origins)?;
    for package in document.get_mut("packages").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(package) = package.as_object_mut() {
            name_files(package, &mut origins)?;
        }
    }
    add_creator(document);
    Ok(())
}

fn name_files(holder: &mut Map<String, Value>, origins: &mut Origins<'_>) -> Result<(), ExportError> {
    for file in holder.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(file) = file.as_object_mut() else { continue };
        if file.get("comment").and_then(Value::as_str).is_some_and(|comment| !comment.is_empty()) {
            continue;
        }
        let Some(name) = file.get("fileName").and_then(Value::as_str).map(str::to_owned) else { continue };
        if let Some(blob) = origins.find(&name)? {
            file.insert("comment".to_owned(), format!("layerID: {blob}").into());
        }
    }
    Ok(())
}

/// The document says that it was changed.
fn add_creator(document: &mut Map<String, Value>) {
    let information = document.entry("creationInfo").or_insert_with(|| json!({}));
    let Some(information) = information.as_object_mut() else { return };
    let creators = information.entry("creators").or_insert_with(|| json!([]));
    if let Some(creators) = creators.as_array_mut() {
        creators.push(concat!("Tool: forge-", env!("CARGO_PKG_VERSION")).into());
    }
}

/// Which layer a path came with, the topmost one that has it. Layers are read when they are needed.
struct Origins<'a> {
    context: &'a TransferContext,
    left: Vec<(&'a LayerId, &'a Descriptor)>,
    known: HashMap<Vec<u8>, String>,
}

impl Origins<'_> {
    fn find(&mut self, name: &str) -> Result<Option<String>, ExportError> {
        let path = name.trim_start_matches("./").trim_matches('/').as_bytes();
        loop {
            if let Some(known) = self.known.get(path) {
                return Ok(Some(known.clone()));
            }
            let Some((layer, blob)) = self.left.pop() else { return Ok(None) };
            let index = self.context.store.layers().index(layer);
            let index = index.map_err(ExportError::store("read a layer's files"))?;
            for entry in index.entries().iter().filter(|entry| !entry.is_implied()) {
                if !matches!(entry.kind, EntryKind::Whiteout) {
                    self.known.entry(entry.path.clone()).or_insert_with(|| blob.digest.to_string());
                }
            }
        }
    }
}
