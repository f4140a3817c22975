//! docker's archive format: `manifest.json` beside an OCI layout, as `docker save` writes today.

use crate::layout::{Layout, LayoutDestination, blob_path};
use crate::package::{Bundle, GZIP, Package};
use crate::work::blocking;
use crate::{ExportError, ExportSettings, Exported, ImageSet};
use forge_image::{Platform, Reference};
use forge_registry::TransferContext;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::Write;

/// An entry of `manifest.json`. Unknown fields (`LayerSources`, `Parent`) are not needed to read an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ArchiveEntry {
    /// The path of the config.
    pub(crate) config: String,
    /// Familiar names with tags; `null` where there are none.
    pub(crate) repo_tags: Option<Vec<String>>,
    /// The paths of the layers, lowest first.
    pub(crate) layers: Vec<String>,
}

/// Images of one platform with the names that they leave under.
pub(crate) struct NamedBundle {
    pub(crate) names: Vec<Reference>,
    pub(crate) bundle: Bundle,
}

/// Adds `manifest.json` and, for old readers, `repositories`.
pub(crate) fn add_docker_files(layout: &mut Layout, images: &[NamedBundle]) -> Result<(), ExportError> {
    let mut entries = Vec::new();
    let mut repositories = Map::new();
    for image in images {
        let package = only_package(&image.bundle)?;
        entries.push(archive_entry(package, &image.names));
        list_repositories(&mut repositories, package, &image.names);
    }
    let json = |value: Value| value.to_string().into_bytes();
    let entries = serde_json::to_value(entries).expect("an archive entry holds only strings");
    layout.add_bytes("manifest.json", json(entries));
    if !repositories.is_empty() {
        layout.add_bytes("repositories", json(repositories.into()));
    }
    Ok(())
}

pub(crate) fn only_package(bundle: &Bundle) -> Result<&Package, ExportError> {
    match bundle.packages.as_slice() {
        [only] => Ok(only),
        several => Err(several_platforms(several.iter().map(|package| package.platform.clone()).collect())),
    }
}

fn several_platforms(platforms: Vec<Platform>) -> ExportError {
    ExportError::SeveralPlatforms { format: "docker archive", platforms }
}

fn archive_entry(package: &Package, names: &[Reference]) -> ArchiveEntry {
    let tags: Vec<String> = names.iter().filter(|name| name.tag().is_some()).map(Reference::familiar).collect();
    ArchiveEntry {
        config: blob_path(&package.config.descriptor.digest),
        repo_tags: Some(tags).filter(|tags| !tags.is_empty()),
        layers: package.layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
    }
}

fn list_repositories(repositories: &mut Map<String, Value>, package: &Package, names: &[Reference]) {
    let Some(top) = package.layers.last() else { return };
    for name in names {
        let Some(tag) = name.tag() else { continue };
        let tags = repositories.entry(name.familiar_name()).or_insert_with(|| Map::new().into());
        let tags = tags.as_object_mut().expect("only objects are put in");
        tags.insert(tag.to_owned(), top.digest.hex().into());
    }
}

/// Writes an image as a docker archive that is a valid OCI layout too; `docker load`, podman and skopeo read it.
///
/// # Errors
/// There are several platforms, a layer is gone, or the stream fails; it may then be half written.
pub async fn to_docker(
    context: &TransferContext,
    images: &ImageSet,
    settings: &ExportSettings,
    stream: Box<dyn Write + Send>,
) -> Result<Exported, ExportError> {
    if images.images().len() > 1 {
        return Err(several_platforms(images.images().iter().map(|image| image.platform.clone()).collect()));
    }
    let bundle = Bundle::of(context, images, settings, GZIP).await?;
    let exported = Exported::of(&bundle, &settings.names);
    let image = NamedBundle { names: settings.names.clone(), bundle };
    let context = context.clone();
    blocking(move || write_docker(&context, &[image], stream)).await?;
    Ok(exported)
}

pub(crate) fn write_docker(
    context: &TransferContext,
    images: &[NamedBundle],
    stream: Box<dyn Write + Send>,
) -> Result<(), ExportError> {
    let mut layout = Layout::default();
    for image in images {
        layout.add_bundle(&image.bundle, &image.names);
    }
    add_docker_files(&mut layout, images)?;
    layout.write(context, LayoutDestination::Archive(stream))
}
