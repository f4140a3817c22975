//! Images under names in the store.

use crate::package::{Bundle, GZIP, Package};
use crate::push::keep_documents;
use crate::work::blocking;
use crate::{AssembledImage, ExportError, ExportSettings, Exported, ExportedImage, ImageSet};
use forge_image::{Descriptor, Reference};
use forge_registry::TransferContext;
use forge_store::{Image, Target};

/// Records images in the store and gives them the names of the settings. Nothing is compressed and no manifest is
/// made: that happens when an image leaves the store. Without names the image stays, nameless.
///
/// # Errors
/// The store cannot record it.
pub async fn to_store(
    context: &TransferContext,
    images: &ImageSet,
    settings: &ExportSettings,
) -> Result<Exported, ExportError> {
    let (context, images, settings) = (context.clone(), images.clone(), settings.clone());
    // A new name waits for the disk.
    blocking(move || {
        let records: Vec<Recorded<'_>> = images.images().iter().map(|image| (image, image.manifest.clone())).collect();
        record(&context, &records, None, &settings)?;
        let exported = |image: &AssembledImage| ExportedImage {
            platform: image.platform.clone(),
            id: image.id.clone(),
            manifest: None,
        };
        let images = images.images().iter().map(exported).collect();
        Ok(Exported { descriptor: None, images, names: settings.names, remarks: Vec::new() })
    })
    .await
}

/// The same, with manifests made as the settings say: what is pushed or saved later has them. The result's digest is pinned
/// under the settings' digest names.
///
/// # Errors
/// A layer is gone, the settings contradict each other, or the store cannot record it.
pub async fn to_store_packaged(
    context: &TransferContext,
    images: &ImageSet,
    settings: &ExportSettings,
) -> Result<Exported, ExportError> {
    let bundle = Bundle::of(context, images, settings, GZIP).await?;
    keep_documents(context, &bundle).await?;
    let (context, images, settings) = (context.clone(), images.clone(), settings.clone());
    blocking(move || {
        let manifest = |package: &Package| Some(package.manifest.descriptor.clone());
        let manifests = bundle.packages.iter().map(manifest);
        let records: Vec<Recorded<'_>> = images.images().iter().zip(manifests).collect();
        let index = bundle.index.as_ref().map(|index| index.descriptor.clone());
        let target = record(&context, &records, index, &settings)?;
        let mut names = settings.names.clone();
        for name in &settings.digest_names {
            let pinned = name.with_digest(bundle.root.digest.clone());
            let done = context.store.images().pin_digest(&pinned, &target);
            done.map_err(ExportError::store("record the image's digest"))?;
            names.extend(Some(pinned).filter(|_| !settings.names.contains(name)));
        }
        Ok(Exported::of(&bundle, &names))
    })
    .await
}

/// Makes manifests as the settings say and keeps nothing: tells what the result would be known by.
///
/// # Errors
/// A layer is gone, or the settings contradict each other.
pub async fn package(
    context: &TransferContext,
    images: &ImageSet,
    settings: &ExportSettings,
) -> Result<Exported, ExportError> {
    let bundle = Bundle::of(context, images, settings, GZIP).await?;
    Ok(Exported::of(&bundle, &settings.names))
}

/// An image, and the manifest that stands for it.
type Recorded<'a> = (&'a AssembledImage, Option<Descriptor>);

fn record(
    context: &TransferContext,
    images: &[Recorded<'_>],
    index: Option<Descriptor>,
    settings: &ExportSettings,
) -> Result<Target, ExportError> {
    let records = context.store.images();
    for (image, manifest) in images {
        let record = record_of(image, manifest.clone(), settings);
        let put = records.put(&record, &image.config_bytes, &context.lease);
        put.map_err(ExportError::store("record the image"))?;
    }
    let target = Target { index, images: images.iter().map(|(image, _)| image.id.clone()).collect() };
    // A push by digest moves no tag anywhere.
    let tags = settings.names.iter().filter(|_| !settings.push_by_digest);
    let name = |name: &Reference| records.tag(name, &target).map(drop).map_err(ExportError::store("name the image"));
    tags.into_iter().try_for_each(name)?;
    Ok(target)
}

fn record_of(image: &AssembledImage, manifest: Option<Descriptor>, settings: &ExportSettings) -> Image {
    Image {
        id: image.id.clone(),
        platform: image.platform.clone(),
        layers: image.layer_ids(),
        manifest,
        created: image.config.created.clone(),
        stored: settings.now,
    }
}
