//! Caches that machines share: step records and their layers, in a registry or a folder.
//!
//! Every key has a record of its own, so that whoever writes at the same time loses nothing of the others': there is no list
//! that all would have to change. Nothing that comes from elsewhere is believed: documents and blobs are verified by digest
//! and size, layers by their DiffIds, and a record can name no layer but those that it brings. Whatever fails on the way is a
//! miss, told in one line.
//!
//! Reading order: [`RemoteCache`] (what the solver asks), [`RemoteMounts`] (what
//! steps ask), [`SharedCache`] (the answer); [`RecordStore`], [`LayoutRecords`],
//! [`RegistryRecords`], [`ContentRecords`], `inline`, `bundle`, `objects`, [`s3_records`], [`gha_records`], [`reapi_records`] (places); `document` (a record on its way),
//! [`Trust`], `source` (in), [`CacheTarget`] (out); `mounts`.

mod bundle;
mod content;
mod document;
mod gha;
mod inline;
mod layout;
mod mounts;
mod objects;
mod reapi;
mod repository;
mod s3;
mod s3_parts;
mod shared;
mod signature_v4;
mod source;
mod target;
mod trust;

pub use bundle::BundleForm;
pub use content::ContentRecords;
pub use gha::{GhaPlace, gha_records};
pub use inline::forget_inline;
pub use layout::LayoutRecords;
pub use reapi::{ReapiPlace, ReapiSecurity, reapi_records};
pub use repository::RegistryRecords;
pub use s3::{S3Place, s3_records};
pub use shared::{CachesSent, SharedCache};
pub use signature_v4::S3Credentials;
pub use source::CacheOrigin;
pub use target::{CacheTarget, Dispatch, Extent};
pub use trust::{KeyError, RecordSigner, Trust};

use crate::{CacheError, CacheKey, StepRecord};
use async_trait::async_trait;
use forge_image::{Descriptor, Digest, MediaType};
use forge_registry::{ImageSource, TransferContext};
use forge_store::CacheMountKey;
use std::path::Path;
use std::sync::Arc;

/// A cache beside this machine's own, asked where that has nothing.
#[async_trait]
pub trait RemoteCache: Send + Sync {
    /// What is kept under a key; its layers are in the store then and held by the build's lease. `vertex` is who wants it.
    /// Whatever fails is `None`.
    async fn find(&self, key: &CacheKey, vertex: &Digest) -> Option<FoundRecord>;

    /// Takes note that a step ran. Returns at once.
    fn made(&self, keys: &[CacheKey], record: &StepRecord);

    /// Takes note that a record of this machine was used. Returns at once.
    fn used(&self, keys: &[CacheKey], record: &StepRecord);

    /// Takes note that steps were neither needed nor found here, because what follows from them was.
    async fn skipped(&self, keys: &[CacheKey]);
}

/// What a cache elsewhere has of a step.
pub struct FoundRecord {
    /// All keys that it is kept under.
    pub keys: Vec<CacheKey>,
    /// The record.
    pub record: StepRecord,
    /// The outputs that are not kept there, by their numbers: the record has nothing in their places.
    pub absent: Vec<usize>,
}

/// Cache mounts beside this machine's own.
#[async_trait]
pub trait RemoteMounts: Send + Sync {
    /// Fills an empty folder with what a mount holds elsewhere; `false` where there is nothing, or something failed, which is
    /// told. The folder may be half full then. `vertex` is who wants it.
    async fn fill(&self, mount: &CacheMountKey, into: &Path, vertex: &Digest) -> bool;

    /// Takes note that a step uses a mount. Returns at once.
    fn mounted(&self, mount: &CacheMountKey);
}

/// A place where records are kept by key, and blobs by digest.
#[async_trait]
pub trait RecordStore: Send + Sync {
    /// What users see.
    fn name(&self) -> String;

    /// The document under a key, its digest verified; `None` where there is none.
    ///
    /// # Errors
    /// The place cannot be reached or read.
    async fn record(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError>;

    /// Where the blobs of records are read.
    ///
    /// # Errors
    /// The place cannot be read.
    fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError>;

    /// Has a blob there without having it here, from another repository; `false` where its bytes are wanted.
    ///
    /// # Errors
    /// The place cannot be reached.
    async fn mount(
        &self,
        _context: &TransferContext,
        _blob: &Descriptor,
        _from: &forge_image::Reference,
    ) -> Result<bool, CacheError> {
        Ok(false)
    }

    /// Brings a blob of the store there, if it lacks it.
    ///
    /// # Errors
    /// The place cannot be reached or written.
    async fn put_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError>;

    /// Puts a document under a key; what it names is there already.
    ///
    /// # Errors
    /// The place cannot be reached or written.
    async fn put_record(&self, context: &TransferContext, key: &CacheKey, document: &[u8]) -> Result<(), CacheError>;

    /// Gives the place's own name to a document that names all records of a build; what it names is there already.
    /// Nothing where records are found by their keys alone.
    ///
    /// # Errors
    /// The place cannot be reached or written.
    async fn put_bundle(
        &self,
        _context: &TransferContext,
        _media_type: &MediaType,
        _document: &[u8],
    ) -> Result<(), CacheError> {
        Ok(())
    }
}

/// Reads a blob of a place into memory.
async fn read_blob(
    context: &TransferContext,
    source: &dyn ImageSource,
    blob: &Descriptor,
    limit: u64,
) -> Result<Vec<u8>, CacheError> {
    if blob.size > limit {
        return Err(failed("the cache", std::io::Error::other(format!("{} has {} bytes", blob.digest, blob.size))));
    }
    let (store, named) = (context.store.clone(), blob.clone());
    let writer = move || store.blobs().writer(Some((&named.digest, named.size))).map_err(store_failed);
    let writer = blocking(writer).await?;
    source.blob(context, blob, writer, &|_| {}).await.map_err(|error| failed("the cache", error))?;
    let (store, digest) = (context.store.clone(), blob.digest.clone());
    blocking(move || {
        let mut bytes = Vec::new();
        let mut file = store.blobs().open(&digest).map_err(store_failed)?;
        std::io::Read::read_to_end(&mut file, &mut bytes).map_err(|error| failed("the store", error))?;
        Ok(bytes)
    })
    .await
}

/// Something failed between here and a place.
fn failed(place: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> CacheError {
    CacheError::Remote { place: place.into(), source: Box::new(source) }
}

fn store_failed(error: forge_store::StoreError) -> CacheError {
    failed("the store", error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, CacheError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failed("a thread", error)),
    }
}
