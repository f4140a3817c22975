//! Single blobs of registries and OCI layouts, each as the only entry of a tree.

use super::error::RemoteError;
use super::single_file::SingleFile;
use super::{Asked, Source, SourceState, Sources, file_name, remote_key};
use crate::error::WorkError;
use async_trait::async_trait;
use forge_cache::ResultRef;
use forge_image::{Descriptor, Digest, MediaType};
use forge_llb::BlobSource;
use forge_registry::{ContentHash, FetchError, RegistrySource, TransferContext, ensure_blob};
use forge_solver::CacheMap;
use forge_store::ScratchDir;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// What a blob gets, as a download does.
const DEFAULT_MODE: u32 = 0o600;

pub(super) struct Blob<'a> {
    pub sources: &'a Sources,
    pub op: &'a BlobSource,
}

#[async_trait]
impl Source for Blob<'_> {
    /// It is known by what it is: nobody is asked.
    async fn cache_map(&self, _asked: &Asked<'_>) -> Result<CacheMap, WorkError> {
        let BlobSource { digest, owner, .. } = self.op;
        let ((uid, gid), name) = (owner.unwrap_or_default(), self.name()?);
        let key = format!("blob {digest} {:o} {uid}:{gid} {name}", self.mode());
        let readable = [("blob", self.op.reference.to_string()), ("digest", digest.to_string()), ("name", name)];
        Ok(remote_key(&key, readable))
    }

    async fn state(&self, _asked: &Asked<'_>) -> Result<SourceState, WorkError> {
        Ok(SourceState::File(self.op.digest.clone()))
    }

    async fn snapshot(&self, asked: &Asked<'_>) -> Result<ResultRef, WorkError> {
        let name = self.name()?;
        let (folder, bytes) = self.sources.blob_file(self.op, asked).await?;
        let (mode, owner) = (self.mode(), self.op.owner.unwrap_or_default());
        self.sources.commit_file(SingleFile { bytes, folder, name, mode, owner, mtime: UNIX_EPOCH }).await
    }
}

impl Blob<'_> {
    fn mode(&self) -> u32 {
        self.op.mode.unwrap_or(DEFAULT_MODE) & 0o7777
    }

    fn name(&self) -> Result<String, RemoteError> {
        let wanted = self.op.filename.as_deref().unwrap_or_else(|| self.op.digest.hex());
        file_name::choose(Some(wanted), None, "").map_err(|(name, reason)| RemoteError::FileName {
            url: self.op.reference.to_string(),
            name,
            reason,
        })
    }
}

impl Sources {
    /// The bytes of a blob as a file of its own, verified.
    pub(super) async fn blob_file(
        &self,
        op: &BlobSource,
        asked: &Asked<'_>,
    ) -> Result<(ScratchDir, PathBuf), WorkError> {
        let from = match &op.layout {
            Some(layout) => {
                let folder = self.images.layout_folder(layout, Some(&op.digest)).await?;
                folder.join("blobs").join(op.digest.algorithm()).join(op.digest.hex())
            }
            None => self.fetch_blob(op, asked).await?,
        };
        let (store, digest, shown) = (self.store.clone(), op.digest.clone(), op.reference.to_string());
        let copy = move || -> Result<(ScratchDir, PathBuf), WorkError> {
            let folder = store.scratch("blob")?;
            let path = folder.path().join("file");
            let failed = |source| RemoteError::Read { what: shown.clone(), source };
            let found = copied(&from, &path, &digest).map_err(failed)?;
            if found != digest {
                return Err(RemoteError::Mismatch { url: shown, expected: digest, found }.into());
            }
            Ok((folder, path))
        };
        tokio::task::spawn_blocking(copy).await?
    }

    /// Brings a blob of a registry into the store.
    async fn fetch_blob(&self, op: &BlobSource, asked: &Asked<'_>) -> Result<PathBuf, WorkError> {
        let context = TransferContext { vertex: asked.vertex.clone(), ..self.images.context().clone() };
        let registry = self.images.shared_registry();
        let size = registry.blob_size(&op.reference, &op.digest, &*context.session).await.map_err(FetchError::from)?;
        let missing = || RemoteError::NoBlob { reference: op.reference.to_string() };
        let descriptor = Descriptor::new(
            MediaType::Other("application/octet-stream".to_owned()),
            op.digest.clone(),
            size.ok_or_else(missing)?,
        );
        let source = RegistrySource::new(registry, op.reference.clone());
        ensure_blob(&context, &source, &descriptor, "downloading").await?;
        Ok(self.store.blobs().path(&op.digest))
    }
}

/// Copies a file, and says what its digest is.
fn copied(from: &std::path::Path, to: &std::path::Path, expected: &Digest) -> io::Result<Digest> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    let (mut hasher, mut buffer) = (ContentHash::like(expected), vec![0; 256 << 10]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => {
                hasher.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
}
