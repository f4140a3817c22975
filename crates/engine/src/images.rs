//! The images of the store: listing, looking, naming, removing, and moving them as archives.

use crate::destination::{OpenedDestination, open};
use crate::engine::{Engine, blocking, until_cancelled};
use crate::handed::Handed;
use crate::{
    ArchiveFormat, ArchiveReader, Destination, EngineError, HistoryRow, ImageDetails, ImageSummary, Loaded, Removal,
};
use forge_exporter::{ExistingNames, LoadInput, SavedImage};
use forge_image::{ErrorKind, ImageConfig, ImageId, Platform, Reference};
use forge_registry::TransferContext;
use forge_session::{Event, EventSink};
use forge_store::{Found, Image, LayerId, StoreError, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

impl Engine {
    /// All images, newest first; dangling ones too.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, EngineError> {
        self.blocking(|engine| {
            let listed = engine.store().images().list()?;
            let rows = listed.into_iter().filter_map(|(name, target)| engine.summary(name, &target).transpose());
            let mut rows = rows.collect::<Result<Vec<_>, _>>()?;
            rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name.cmp(&b.name)));
            Ok(rows)
        })
        .await
    }

    /// `None` where another process just removed the image.
    fn summary(&self, name: Option<Reference>, target: &Target) -> Result<Option<ImageSummary>, EngineError> {
        let images = target.images.iter().map(|id| self.store().images().get(id));
        let images: Vec<Image> = images.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let layers: BTreeSet<LayerId> = images.iter().flat_map(|image| &image.layers).copied().collect();
        let layers: Vec<LayerId> = layers.into_iter().collect();
        let Some(own) = of_this_host(&images) else { return Ok(None) };
        let root = match (&target.index, images.len()) {
            (Some(index), _) => Some(index),
            (None, 1) => own.manifest.as_ref(),
            (None, _) => None,
        };
        // Images of several platforms have no index, and so no digest in common, before they leave the store.
        let id = target.index.as_ref().filter(|_| images.len() > 1).map_or(own.id.digest(), |index| &index.digest);
        Ok(Some(ImageSummary {
            name,
            id: id.clone(),
            created: images.iter().filter_map(|image| image.created.clone()).max(),
            bytes: self.bytes_of(&layers)?,
            platforms: images.iter().map(|image| image.platform.clone()).collect(),
            digest: root.map(|descriptor| descriptor.digest.clone()),
        }))
    }

    fn image(&self, id: &ImageId) -> Result<Image, EngineError> {
        let image = self.store().images().get(id)?;
        image.ok_or_else(|| EngineError::new(ErrorKind::Environment, format!("image {id} is no longer in the store")))
    }

    fn bytes_of(&self, layers: &[LayerId]) -> Result<u64, EngineError> {
        Ok(self.store().layers().bytes(layers)?.into_iter().sum())
    }

    pub(crate) async fn target_of(&self, reference: &Reference) -> Result<Option<Target>, EngineError> {
        let (engine, reference) = (self.clone(), reference.clone());
        blocking(move || Ok(engine.store().images().target(&reference)?)).await
    }

    /// The image of the store that a text means, for a platform.
    pub(crate) async fn stored_image(&self, text: &str, platform: &Platform) -> Result<Option<Image>, EngineError> {
        let (engine, text, platform) = (self.clone(), text.to_owned(), platform.clone());
        blocking(move || match engine.store().images().resolve(&text) {
            Ok(found) => {
                let images = found.target.images.iter().map(|id| engine.image(id)).collect::<Result<Vec<_>, _>>()?;
                Ok(images.into_iter().find(|image| platform.accepts(&image.platform)))
            }
            Err(StoreError::NoSuchImage { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// One image in full. Of several platforms the host's, or the first.
    ///
    /// # Errors
    /// No such image, or several that start with these digits.
    pub async fn inspect(&self, image: &str) -> Result<ImageDetails, EngineError> {
        let (engine, text) = (self.clone(), image.to_owned());
        blocking(move || {
            let (_, image) = engine.one_image(&text)?;
            let images = engine.store().images();
            let config = images.config(&image.id)?;
            let bytes = engine.bytes_of(&image.layers)?;
            let (names, digests) = (images.names_of(&image.id)?, images.repo_digests(&image.id)?);
            let Image { id, manifest, stored, .. } = image;
            Ok(ImageDetails { id, names, digests, config, manifest, bytes, stored })
        })
        .await
    }

    pub(crate) fn one_image(&self, text: &str) -> Result<(Found, Image), EngineError> {
        let found = self.store().images().resolve(text)?;
        let images = found.target.images.iter().map(|id| self.image(id)).collect::<Result<Vec<_>, _>>()?;
        match of_this_host(&images) {
            Some(image) => Ok((found, image.clone())),
            None => Err(EngineError::new(ErrorKind::Environment, format!("{text} stands for no image"))),
        }
    }

    /// How an image came about, newest first.
    ///
    /// # Errors
    /// No such image.
    pub async fn history(&self, image: &str) -> Result<Vec<HistoryRow>, EngineError> {
        let (engine, text) = (self.clone(), image.to_owned());
        blocking(move || {
            let (_, image) = engine.one_image(&text)?;
            let config = engine.store().images().config(&image.id)?;
            engine.history_rows(&image, &config)
        })
        .await
    }

    pub(crate) fn history_rows(&self, image: &Image, config: &ImageConfig) -> Result<Vec<HistoryRow>, EngineError> {
        let mut layers = self.store().layers().bytes(&image.layers)?.into_iter();
        let mut rows = Vec::new();
        for entry in &config.history {
            let bytes = if entry.empty_layer { None } else { layers.next() };
            rows.push(HistoryRow {
                id: None,
                created: entry.created.clone(),
                created_by: entry.created_by.clone().unwrap_or_default(),
                bytes: bytes.unwrap_or_default(),
                comment: entry.comment.clone().unwrap_or_default(),
            });
        }
        rows.reverse();
        if let Some(newest) = rows.first_mut() {
            newest.id = Some(image.id.clone());
        }
        Ok(rows)
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// No such image.
    pub async fn tag(&self, image: &str, name: &Reference) -> Result<(), EngineError> {
        if name.digest().is_some() {
            let message = "refusing to create a tag with a digest reference";
            return Err(EngineError::new(ErrorKind::UserInput, message));
        }
        let (engine, text, name) = (self.clone(), image.to_owned(), name.clone());
        blocking(move || {
            let found = engine.store().images().resolve(&text)?;
            engine.store().images().tag(&name, &found.target)?;
            Ok(())
        })
        .await
    }

    /// Takes a name away from an image, and removes the image with its last name. By id, all names go, which
    /// needs `force` where there are several. With `force` a missing image is no error.
    ///
    /// # Errors
    /// Without `force`: no such image, or several names. In any case: several images start with these digits.
    pub async fn remove_image(&self, image: &str, force: bool) -> Result<Vec<Removal>, EngineError> {
        let (engine, text) = (self.clone(), image.to_owned());
        blocking(move || engine.remove(&text, force)).await
    }

    fn remove(&self, text: &str, force: bool) -> Result<Vec<Removal>, EngineError> {
        let images = self.store().images();
        let found = match images.resolve(text) {
            Err(StoreError::NoSuchImage { .. }) if force => return Ok(Vec::new()),
            found => found?,
        };
        let names = match &found.name {
            Some(name) => vec![name.clone()],
            None => self.names_by_id(&found.target, force)?,
        };
        let mut removed = Vec::new();
        for name in names {
            self.untag(&name, &found.target, &mut removed)?;
        }
        for id in &found.target.images {
            // In one go: another process may remove it or name it at any time.
            if images.delete_unnamed(id)? {
                removed.push(Removal::Deleted(id.clone()));
            }
        }
        if removed.is_empty() {
            self.ensure_unnamed(text, &found.target)?;
        }
        self.collect_layers()?;
        Ok(removed)
    }

    /// Nothing was removed: somebody else did it meanwhile, or is about to name the image, unless a digest led to one that has
    /// tags only.
    fn ensure_unnamed(&self, text: &str, target: &Target) -> Result<(), EngineError> {
        let mut names = BTreeSet::new();
        for id in &target.images {
            names.extend(self.store().images().names_of(id)?);
        }
        if names.is_empty() {
            return Ok(());
        }
        let list = names.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
        let message = format!("{text} is kept: the image is named {list}");
        Err(EngineError::new(ErrorKind::UserInput, message).with_hint("remove those names"))
    }

    /// Takes a name away; with the last tag of a repository go the digests that the repository knows the image by.
    fn untag(&self, name: &Reference, target: &Target, removed: &mut Vec<Removal>) -> Result<(), EngineError> {
        let images = self.store().images();
        if images.untag(name)? {
            removed.push(Removal::Untagged(name.clone()));
        }
        for id in &target.images {
            let of_repository = |other: &Reference| other.name() == name.name();
            if images.names_of(id)?.iter().any(of_repository) {
                continue;
            }
            for digest in images.repo_digests(id)?.into_iter().filter(of_repository) {
                if images.untag(&digest)? {
                    removed.push(Removal::Untagged(digest));
                }
            }
        }
        Ok(())
    }

    /// Tags, then names with digests.
    fn names_by_id(&self, target: &Target, force: bool) -> Result<Vec<Reference>, EngineError> {
        let (mut tags, mut digests) = (BTreeSet::new(), BTreeSet::new());
        for id in &target.images {
            tags.extend(self.store().images().names_of(id)?);
            digests.extend(self.store().images().repo_digests(id)?);
        }
        if tags.len() > 1 && !force {
            let list = tags.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
            let message = format!("image is referenced by several names: {list}");
            return Err(EngineError::new(ErrorKind::UserInput, message)
                .with_hint("remove them one by one, or all with --force"));
        }
        Ok(tags.into_iter().chain(digests).collect())
    }

    /// Writes images as an archive. A file has its old content until the archive is complete.
    ///
    /// # Errors
    /// No such image, or the archive cannot be written.
    pub async fn save(
        &self,
        images: &[String],
        format: ArchiveFormat,
        destination: &Destination,
        cancel: CancellationToken,
    ) -> Result<(), EngineError> {
        let format = match format {
            ArchiveFormat::Docker => forge_exporter::ArchiveFormat::Docker,
            ArchiveFormat::Oci => forge_exporter::ArchiveFormat::Oci,
        };
        let (texts, destination, token) = (images.to_vec(), destination.clone(), cancel.clone());
        let prepared = self.blocking(move |engine| {
            let found = |text: &String| Ok(saved(engine.store().images().resolve(text)?));
            let images = texts.iter().map(found).collect::<Result<Vec<SavedImage>, EngineError>>()?;
            Ok((images, open(&destination, &crate::Metadata::new(), &token)?))
        });
        let (images, OpenedDestination { stream, end }) = prepared.await?;
        let context = self.quiet_transfer("save", cancel.clone()).await?;
        let ids = images.iter().flat_map(|image| image.target.images.clone()).collect();
        until_cancelled(&cancel, self.bring_images(&context, ids)).await?;
        until_cancelled(&cancel, forge_exporter::save(&context, &images, format, stream)).await?;
        blocking(move || end.complete()).await
    }

    /// Reads the images of an archive. A name that stands for another image is moved only if `replace` is set.
    ///
    /// # Errors
    /// The archive is malformed, lies about its contents, or would move a name; nothing of it is kept then.
    pub async fn load(
        &self,
        input: ArchiveReader,
        replace: bool,
        cancel: CancellationToken,
    ) -> Result<Vec<Loaded>, EngineError> {
        let existing = if replace { ExistingNames::Replace } else { ExistingNames::Refuse };
        let context = self.quiet_transfer("load", cancel.clone()).await?;
        let loading = forge_exporter::load(&context, LoadInput::Stream(input), self.options().intake.loaded, existing);
        let loaded = until_cancelled(&cancel, loading).await.map_err(|error| self.explain_full_disk(error))?;
        let each = |loaded: forge_exporter::Loaded| match loaded.names.is_empty() {
            true => loaded.target.images.into_iter().map(Loaded::Unnamed).collect::<Vec<_>>(),
            false => loaded.names.into_iter().map(Loaded::Named).collect(),
        };
        Ok(loaded.into_iter().flat_map(each).collect())
    }

    /// Fetches what is not here of images that are about to be looked into.
    pub(crate) async fn bring_to_read(&self, texts: &[&str]) -> Result<(), EngineError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let found = self.blocking(move |engine| {
            let images = texts.iter().map(|text| engine.one_image(text).map(|(_, image)| image));
            let images = images.collect::<Result<Vec<_>, _>>()?;
            Ok(images.iter().flat_map(|image| image.layers.clone()).collect())
        });
        self.bring_layers_to_read(found.await?).await
    }

    /// The same for layers.
    pub(crate) async fn bring_layers_to_read(&self, layers: Vec<LayerId>) -> Result<(), EngineError> {
        let found = self.blocking(move |engine| Ok((engine.store().layers().absent(&layers)?, layers)));
        let (absent, layers) = found.await?;
        if absent.is_empty() {
            return Ok(());
        }
        let context = self.quiet_transfer("look into images", CancellationToken::new()).await?;
        self.bring(&context, layers).await
    }

    /// What moves images with nobody watching.
    async fn quiet_transfer(&self, purpose: &str, cancel: CancellationToken) -> Result<TransferContext, EngineError> {
        let session = self.session(BTreeMap::new(), Handed::default(), Arc::new(Unwatched), cancel);
        self.transfer(session, purpose).await
    }
}

fn saved(found: Found) -> SavedImage {
    let names = found.name.into_iter().filter(|name| name.tag().is_some()).collect();
    SavedImage { names, target: found.target }
}

/// Of several platforms the host's, else the first.
fn of_this_host(images: &[Image]) -> Option<&Image> {
    let host = Platform::host();
    images.iter().find(|image| host.accepts(&image.platform)).or(images.first())
}

/// Takes events for nobody.
struct Unwatched;

impl EventSink for Unwatched {
    fn emit(&self, _event: Event) {}
}
