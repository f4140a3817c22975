//! A server of Bazel's Remote Execution API as a shared cache: blobs in its content addressable storage, records in its action
//! cache.
//!
//! A key is an action: one that nobody executes, told from others by its salt. What it "made" is the record's document and the blobs that
//! this names, as files. Servers keep what an action made as long as they keep the action, and find it only when all of it is there.

mod client;
mod encrypted;
mod protocol;

use super::{RecordStore, blocking, failed, store_failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use client::{Client, Upload};
use forge_image::{Descriptor, Digest, Manifest};
use forge_registry::{FetchError, HostOptions, ImageSource, MAX_MANIFEST, Registry, TransferContext};
use forge_store::BlobWriter;
use prost::Message as _;
use protocol::{ActionResult, OutputFile};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Where a server is, and which of its instances is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReapiPlace {
    /// `host:port`.
    pub authority: String,
    /// The instance's name, mostly none.
    pub instance: String,
    /// Whether and how connections are encrypted.
    pub security: ReapiSecurity,
}

/// Whether connections to a server are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReapiSecurity {
    /// They are not.
    Plain,
    /// By TLS.
    Tls {
        /// A file of certificates, in PEM, that are trusted beside the usual ones.
        trusted: Option<PathBuf>,
        /// Files with the certificate and the key of the one who asks.
        client: Option<(PathBuf, PathBuf)>,
    },
}

/// The file that is a record's document.
const RECORD: &str = "forge-record";

/// Records of a server. To be called within a runtime.
///
/// # Errors
/// The address is none; a file of certificates is none.
pub fn reapi_records(registry: &Registry, place: ReapiPlace) -> Result<Arc<dyn RecordStore>, CacheError> {
    let ReapiPlace { authority, instance, security } = place;
    let (name, tls) = match security {
        ReapiSecurity::Plain => (format!("grpc://{authority}"), None),
        ReapiSecurity::Tls { trusted, client } => {
            let keypair = client.map(|(certificate, key)| (key, certificate)).into_iter().collect();
            let own = HostOptions { ca: trusted.into_iter().collect(), keypair, ..HostOptions::default() };
            let name = format!("grpcs://{authority}");
            let tls = registry.tls(&authority, &own).map_err(|error| failed(name.clone(), error))?;
            (name, Some(tls))
        }
    };
    let client = Client::new(name.clone(), &authority, instance, tls)?;
    Ok(Arc::new(Reapi { name, client, command: Arc::default() }))
}

#[derive(Clone)]
struct Reapi {
    name: String,
    client: Client,
    /// Whether the command of all actions is there.
    command: Arc<OnceCell<()>>,
}

/// The command of all actions. Nobody ever executes it.
fn command() -> (Vec<u8>, protocol::Digest) {
    let command = protocol::Command { arguments: vec!["forge-cache-step".to_owned()] };
    with_digest(command.encode_to_vec())
}

/// The action that a key is.
fn action(key: &CacheKey) -> (Vec<u8>, protocol::Digest) {
    let action = protocol::Action {
        command_digest: Some(command().1),
        input_root_digest: Some(with_digest(Vec::new()).1),
        salt: format!("forge cache key 1 {key}").into_bytes(),
    };
    with_digest(action.encode_to_vec())
}

fn with_digest(bytes: Vec<u8>) -> (Vec<u8>, protocol::Digest) {
    let digest = of(&Digest::sha256(&bytes), bytes.len() as u64);
    (bytes, digest)
}

fn of(digest: &Digest, size: u64) -> protocol::Digest {
    protocol::Digest { hash: digest.hex().to_owned(), size_bytes: i64::try_from(size).unwrap_or(i64::MAX) }
}

impl Reapi {
    async fn put_command(&self) -> Result<(), CacheError> {
        let (bytes, digest) = command();
        self.put(&digest, Upload::Bytes(bytes)).await
    }

    async fn put(&self, digest: &protocol::Digest, upload: Upload) -> Result<(), CacheError> {
        match self.client.is_missing(digest.clone()).await? {
            true => self.client.write(digest, upload).await,
            false => Ok(()),
        }
    }
}

#[async_trait]
impl RecordStore for Reapi {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn record(&self, _: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(result) = self.client.action_result(action(key).1).await? else { return Ok(None) };
        let refused = |reason: &str| CacheError::RemoteRecord { place: self.name.clone(), reason: reason.to_owned() };
        let file = result.output_files.into_iter().find(|file| file.path == RECORD).and_then(|file| file.digest);
        let digest = file.ok_or_else(|| refused("an action is no record"))?;
        if digest.size_bytes.unsigned_abs() > MAX_MANIFEST {
            return Err(refused("a record is too long"));
        }
        // The server may have dropped it since.
        let Some(mut reading) = self.client.read(&digest).await? else { return Ok(None) };
        let mut document = Vec::new();
        while let Some(piece) = reading.next().await? {
            document.extend_from_slice(&piece);
            if document.len() as u64 > MAX_MANIFEST {
                return Err(refused("a record is too long"));
            }
        }
        match Digest::sha256(&document).hex() == digest.hash {
            true => Ok(Some(document)),
            false => Err(refused("a record is damaged")),
        }
    }

    fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError> {
        Ok(Arc::new(self.clone()))
    }

    async fn put_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError> {
        let (store, digest) = (context.store.clone(), blob.digest.clone());
        let file = blocking(move || store.blobs().open(&digest).map_err(store_failed)).await?;
        self.put(&of(&blob.digest, blob.size), Upload::File(Arc::new(file))).await
    }

    async fn put_record(&self, _: &TransferContext, key: &CacheKey, document: &[u8]) -> Result<(), CacheError> {
        let (bytes, action) = action(key);
        let digest = of(&Digest::sha256(document), document.len() as u64);
        self.put(&digest, Upload::Bytes(document.to_vec())).await?;
        // Servers that check what is complete want the action itself, too.
        self.command.get_or_try_init(|| self.put_command()).await?;
        self.put(&action, Upload::Bytes(bytes)).await?;
        let manifest = Manifest::from_json(document, None).map_err(|error| failed(self.name.clone(), error))?;
        let file = |path: String, digest| OutputFile { path, digest: Some(digest) };
        let blobs = manifest.layers.iter().enumerate();
        let blobs = blobs.map(|(number, blob)| file(format!("blob-{number}"), of(&blob.digest, blob.size)));
        let output_files = std::iter::once(file(RECORD.to_owned(), digest)).chain(blobs).collect();
        self.client.update_action_result(action, ActionResult { output_files, exit_code: 0 }).await
    }
}

#[async_trait]
impl ImageSource for Reapi {
    async fn blob(
        &self,
        context: &TransferContext,
        descriptor: &Descriptor,
        mut into: BlobWriter,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let place = || format!("{} of {}", descriptor.digest, self.name);
        let broken = |error: CacheError| FetchError::elsewhere(place(), error);
        let reading = self.client.read(&of(&descriptor.digest, descriptor.size)).await.map_err(broken)?;
        let Some(mut reading) = reading else {
            return Err(FetchError::elsewhere(place(), std::io::Error::from(std::io::ErrorKind::NotFound)));
        };
        let mut count = 0;
        while let Some(piece) = reading.next().await.map_err(broken)? {
            count += piece.len() as u64;
            if count > descriptor.size {
                return Err(FetchError::elsewhere(place(), std::io::Error::other("it is longer than it should be")));
            }
            into.write_all(&piece).map_err(|error| FetchError::elsewhere(place(), error))?;
            progress(count);
        }
        let lease = context.lease.clone();
        blocking(move || into.finish(&lease).map_err(store_failed)).await.map(drop).map_err(broken)
    }
}
