use crate::name_files::NameFile;
use crate::opened::Opened;
use crate::{Blobs, LayerId, Lease, StoreError, image_lookup, image_rows, layer_rows, name_files};
use forge_image::{Descriptor, Digest, ImageConfig, ImageId, Platform, Reference};
use std::sync::Arc;
use std::time::SystemTime;

/// The largest config document that is read: 8 MiB, twice what registries accept for a manifest.
const CONFIG_LIMIT: u64 = 8 << 20;

/// One image for one platform.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The digest of its config.
    pub id: ImageId,
    /// What it runs on.
    pub platform: Platform,
    /// Its layers, lowest first.
    pub layers: Vec<LayerId>,
    /// Its manifest, where one was pulled, loaded or pushed; the bytes are a blob.
    pub manifest: Option<Descriptor>,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// When the store got it.
    pub stored: SystemTime,
}

/// What a name stands for: one image, or one for each platform with the index that binds them.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The index; the bytes are a blob.
    pub index: Option<Descriptor>,
    /// The images that the store has of it.
    pub images: Vec<ImageId>,
}

/// What a text that names an image led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The name by which it was found; nothing when it was an id.
    pub name: Option<Reference>,
    /// What it stands for.
    pub target: Target,
}

/// Images by id and by name.
#[derive(Clone)]
pub struct Images {
    opened: Arc<Opened>,
    blobs: Blobs,
}

impl Images {
    pub(crate) fn new(opened: Arc<Opened>, blobs: Blobs) -> Self {
        Self { opened, blobs }
    }

    /// Stores an image. `config` is what `image.id` is the SHA-256 of; layers and manifest must be in the store.
    ///
    /// Doing so again changes nothing, unless the image now comes with a manifest: then it replaces manifest and layers,
    /// which belong together. An image has no protection from a power cut before it has a name, see
    /// [`crate::Store::sync`].
    ///
    /// # Errors
    /// [`StoreError::ConfigMismatch`], [`StoreError::LayerNotFound`], [`StoreError::BlobNotFound`], or the database or
    /// the file system failed.
    pub fn put(&self, image: &Image, config: &[u8], lease: &Lease) -> Result<(), StoreError> {
        let actual = Digest::sha256(config);
        if actual != *image.id.digest() {
            return Err(StoreError::ConfigMismatch { image: image.id.clone(), actual });
        }
        self.blobs.write(config, lease)?;
        let old = self.get(&image.id)?;
        match &old {
            Some(old)
                if image.manifest.is_none() || (&old.manifest, &old.layers) == (&image.manifest, &image.layers) =>
            {
                Ok(())
            }
            // A name may already promise this image, so its new bytes have to be on the disk first.
            Some(_) => {
                layer_rows::make_durable(&self.opened, |transaction| image_rows::replace(transaction, image))?;
                self.write_files_of(&image.id)
            }
            None => self.opened.database().write(|transaction| image_rows::insert_new(transaction, image)),
        }
    }

    /// An image by its id.
    ///
    /// # Errors
    /// The database failed.
    pub fn get(&self, id: &ImageId) -> Result<Option<Image>, StoreError> {
        self.opened.database().read(|connection| image_rows::get(connection, id))
    }

    /// The exact bytes of an image's config, verified.
    ///
    /// # Errors
    /// The store does not have it, or it is damaged.
    pub fn config_bytes(&self, id: &ImageId) -> Result<Vec<u8>, StoreError> {
        self.blobs.read(id.digest(), CONFIG_LIMIT)
    }

    /// An image's config.
    ///
    /// # Errors
    /// As [`Images::config_bytes`].
    pub fn config(&self, id: &ImageId) -> Result<ImageConfig, StoreError> {
        Ok(ImageConfig::from_json(&self.config_bytes(id)?)?)
    }

    /// Gives a name to images, and returns what had it before. When this returns, the name and all that it stands for
    /// survive a power cut. Costs nothing but a query when the name already stands for that.
    ///
    /// # Errors
    /// [`StoreError::NotATag`], [`StoreError::ImageNotFound`], or the kernel could not write everything.
    pub fn tag(&self, name: &Reference, target: &Target) -> Result<Option<Target>, StoreError> {
        if name.digest().is_some() || name.tag().is_none() {
            return Err(StoreError::NotATag { name: name.familiar() });
        }
        self.set_name(name, target)
    }

    /// Records under which digest a registry knows images, as durably as [`Images::tag`].
    ///
    /// # Errors
    /// [`StoreError::NoDigest`], [`StoreError::ImageNotFound`], or the kernel could not write everything.
    pub fn pin_digest(&self, name: &Reference, target: &Target) -> Result<(), StoreError> {
        let Some(digest) = name.digest() else { return Err(StoreError::NoDigest { name: name.familiar() }) };
        self.set_name(&name.with_digest(digest.clone()), target)?;
        Ok(())
    }

    fn set_name(&self, name: &Reference, target: &Target) -> Result<Option<Target>, StoreError> {
        let (old, durable) = self.opened.database().read(|connection| {
            Ok((image_rows::target(connection, name)?, image_rows::is_durable(connection, target)?))
        })?;
        if durable && old.as_ref() == Some(target) {
            return Ok(old);
        }
        self.write_file(name, target)?;
        let set = |transaction: &rusqlite::Transaction<'_>| image_rows::set_name(transaction, name, target);
        match durable {
            true => self.opened.database().write_durably(set),
            false => layer_rows::make_durable(&self.opened, set),
        }
    }

    /// Before the row, so that the sync that makes the row durable covers the file too.
    fn write_file(&self, name: &Reference, target: &Target) -> Result<(), StoreError> {
        let file = self.opened.database().read(|connection| NameFile::of_records(connection, name, target))?;
        name_files::write(&self.opened, &file)
    }

    fn write_files_of(&self, id: &ImageId) -> Result<(), StoreError> {
        for name in self.names_of(id)?.into_iter().chain(self.repo_digests(id)?) {
            if let Some(target) = self.target(&name)? {
                self.write_file(&name, &target)?;
            }
        }
        Ok(())
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// The database failed.
    pub fn target(&self, name: &Reference) -> Result<Option<Target>, StoreError> {
        self.opened.database().read(|connection| image_rows::target(connection, name))
    }

    /// Finds images by what a user typed, as docker does; the first of these that fits:
    /// an image ID or a digest of a manifest or an index (64 digits, with or without `sha256:`); `name@digest`;
    /// `name[:tag]`; the first digits of an image ID, at least four, with or without `sha256:`.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], [`StoreError::AmbiguousId`], [`StoreError::InvalidName`], or the database failed.
    pub fn resolve(&self, text: &str) -> Result<Found, StoreError> {
        self.opened.database().read(|connection| image_lookup::resolve(connection, text))
    }

    /// All names in order, then images that have none. A name with a digest is listed only where an image has no tag.
    ///
    /// # Errors
    /// The database failed.
    pub fn list(&self) -> Result<Vec<(Option<Reference>, Target)>, StoreError> {
        self.opened.database().read(image_rows::list)
    }

    /// Takes a name away; `false` if it stood for nothing. The images stay.
    ///
    /// # Errors
    /// The database failed.
    pub fn untag(&self, name: &Reference) -> Result<bool, StoreError> {
        let removed = self.opened.database().write_durably(|transaction| image_rows::remove_name(transaction, name))?;
        name_files::remove(&self.opened, name)?;
        Ok(removed)
    }

    /// Removes an image that has no name from the store's records; `false` where it has one by now, is gone, or somebody holds its config:
    /// who has just stored it, for example, and is about to name it. Its layers and blobs go with the next
    /// [`crate::Store::collect`], as far as nothing else needs them.
    ///
    /// # Errors
    /// The database failed.
    pub fn delete_unnamed(&self, id: &ImageId) -> Result<bool, StoreError> {
        self.opened.database().write(|transaction| image_rows::delete_unnamed(transaction, id))
    }

    /// The tags that stand for an image, alone or with others.
    ///
    /// # Errors
    /// The database failed.
    pub fn names_of(&self, id: &ImageId) -> Result<Vec<Reference>, StoreError> {
        self.opened.database().read(|connection| image_rows::names_of(connection, id, image_rows::NameKind::Tag))
    }

    /// The names with digests under which registries know an image.
    ///
    /// # Errors
    /// The database failed.
    pub fn repo_digests(&self, id: &ImageId) -> Result<Vec<Reference>, StoreError> {
        self.opened.database().read(|connection| image_rows::names_of(connection, id, image_rows::NameKind::Digest))
    }
}
