//! Writes images of the store into archives.

use crate::docker_archive::{NamedBundle, write_docker};
use crate::layout::{Layout, LayoutDestination};
use crate::package::{Bundle, GZIP};
use crate::work::blocking;
use crate::{ExportError, ExportSettings, Exported, ImageSet};
use forge_image::Reference;
use forge_registry::TransferContext;
use forge_store::{Compression, Target};
use std::io::Write;
use std::time::UNIX_EPOCH;

/// The format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// What `docker save` writes today; an OCI layout at the same time. One platform a name.
    Docker,
    /// An OCI layout only.
    Oci,
}

/// An image of the store with the names that it is saved under.
#[derive(Clone, Debug)]
pub struct SavedImage {
    /// The names; empty for an image that was asked for by its id.
    pub names: Vec<Reference>,
    /// The image, or the images of all its platforms.
    pub target: Target,
}

/// Writes images of the store as an archive. What was pulled or pushed is written with the manifest it has; other
/// images get bare tars in docker's format, as docker does, and gzip in OCI's.
///
/// # Errors
/// An image is gone, the format cannot hold it, or the stream fails; it may then be half written.
pub async fn save(
    context: &TransferContext,
    images: &[SavedImage],
    format: ArchiveFormat,
    stream: Box<dyn Write + Send>,
) -> Result<Vec<Exported>, ExportError> {
    let settings = ExportSettings::new(UNIX_EPOCH);
    let default = match format {
        ArchiveFormat::Docker => Compression::None,
        ArchiveFormat::Oci => GZIP,
    };
    let mut bundles = Vec::new();
    for image in images {
        let set = ImageSet::from_store(context, &image.target).await?;
        let bundle = Bundle::of(context, &set, &settings, default).await?;
        bundles.push(NamedBundle { names: image.names.clone(), bundle });
    }
    let exported = bundles.iter().map(|image| Exported::of(&image.bundle, &image.names)).collect();
    let context = context.clone();
    blocking(move || match format {
        ArchiveFormat::Docker => write_docker(&context, &bundles, stream),
        ArchiveFormat::Oci => write_oci(&context, &bundles, stream),
    })
    .await?;
    Ok(exported)
}

fn write_oci(
    context: &TransferContext,
    images: &[NamedBundle],
    stream: Box<dyn Write + Send>,
) -> Result<(), ExportError> {
    let mut layout = Layout::default();
    for image in images {
        layout.add_bundle(&image.bundle, &image.names);
    }
    layout.write(context, LayoutDestination::Archive(stream))
}
