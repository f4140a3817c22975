//! Blobs that a client keeps as a shared cache: one bundle names all records.

use super::bundle::{self, Bundle};
use super::{RecordStore, blocking, failed, read_blob, store_failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use forge_image::{Descriptor, Digest, MediaType};
use forge_registry::{FetchError, ImageSource, MAX_MANIFEST, TransferContext};
use forge_session::BlobFolder;
use forge_store::BlobWriter;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::sync::OnceCell;

const OF_OTHERS: &str = "it holds no records of forge; the keys of a cache of BuildKit are others";

/// Records among the blobs of a client. What is written is found by the bundle alone, whose digest the client is told.
pub struct ContentRecords {
    folder: Arc<dyn BlobFolder>,
    /// The bundle that is read; `None` where there is none yet.
    root: Option<Digest>,
    bundle: OnceCell<Bundle>,
}

impl ContentRecords {
    /// The records that a bundle names.
    pub fn new(folder: Arc<dyn BlobFolder>, root: Option<Digest>) -> Self {
        Self { folder, root, bundle: OnceCell::new() }
    }

    async fn load(&self, context: &TransferContext, root: &Digest) -> Result<Bundle, CacheError> {
        let refused = |reason: &str| CacheError::RemoteRecord { place: self.name(), reason: reason.to_owned() };
        let mut document = Bounded { bytes: Vec::new(), limit: MAX_MANIFEST };
        let read = self.folder.read(root, &mut document).await;
        read.map_err(|error| failed(self.name(), error))?;
        if Digest::sha256(&document.bytes) != *root {
            return Err(refused(&format!("{root} is damaged")));
        }
        let (config, layers) = bundle::parts(&document.bytes).ok_or_else(|| refused("it is no cache"))?;
        let blobs = ContentBlobs(self.folder.clone());
        let config = read_blob(context, &blobs, &config, bundle::MOST_CONFIG).await?;
        Bundle::read(&config, layers).ok_or_else(|| refused(OF_OTHERS))
    }
}

#[async_trait]
impl RecordStore for ContentRecords {
    fn name(&self) -> String {
        self.folder.name()
    }

    async fn record(&self, context: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(root) = &self.root else { return Ok(None) };
        let bundle = self.bundle.get_or_try_init(|| self.load(context, root)).await?;
        Ok(bundle.document(key))
    }

    fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError> {
        Ok(Arc::new(ContentBlobs(self.folder.clone())))
    }

    async fn put_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError> {
        let (store, digest) = (context.store.clone(), blob.digest.clone());
        let file = blocking(move || store.blobs().open(&digest).map_err(store_failed)).await?;
        self.folder.write(&blob.digest, file).await.map_err(|error| failed(self.name(), error))
    }

    async fn put_record(&self, _: &TransferContext, _: &CacheKey, _: &[u8]) -> Result<(), CacheError> {
        // The bundle holds it.
        Ok(())
    }

    async fn put_bundle(&self, context: &TransferContext, kind: &MediaType, document: &[u8]) -> Result<(), CacheError> {
        let (kept, bytes) = (context.clone(), document.to_vec());
        blocking(move || kept.store.blobs().write(&bytes, &kept.lease).map(drop).map_err(store_failed)).await?;
        self.put_blob(context, &Descriptor::of(kind.clone(), document)).await
    }
}

struct ContentBlobs(Arc<dyn BlobFolder>);

#[async_trait]
impl ImageSource for ContentBlobs {
    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        mut into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let place = || format!("{} of {}", descriptor.digest, self.0.name());
        let mut counted = Counted { into: &mut into, count: 0, limit: descriptor.size, progress };
        let read = self.0.read(&descriptor.digest, &mut counted).await;
        read.map_err(|error| FetchError::elsewhere(place(), error))?;
        let lease = context.lease.clone();
        let finish = move || into.finish(&lease).map_err(store_failed);
        blocking(finish).await.map(drop).map_err(|error| FetchError::elsewhere(place(), error))
    }
}

/// Digest and size are compared at the end; what is too long already need not come.
fn too_long() -> io::Error {
    io::Error::other("it is longer than it should be")
}

struct Counted<'a> {
    into: &'a mut BlobWriter,
    count: u64,
    limit: u64,
    progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.count += bytes.len() as u64;
        if self.count > self.limit {
            return Err(too_long());
        }
        self.into.write_all(bytes)?;
        (self.progress)(self.count);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(too_long());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
