//! The caches that a build shares with other machines.

mod attributes;

use crate::build::Build;
use crate::engine::{Engine, blocking};
use crate::export::compression;
use crate::steps::ShownStep;
use crate::{EngineError, LayerCompression, Transport};
use forge_cache::remote::{
    BundleForm, CacheOrigin, CacheTarget, CachesSent, ContentRecords, Dispatch, Extent, GhaPlace, LayoutRecords,
    ReapiPlace, RecordSigner, RecordStore, RegistryRecords, S3Place, SharedCache, Trust, forget_inline, gha_records,
    reapi_records, s3_records,
};
use forge_exporter::BuiltImage;
use forge_image::{Descriptor, Digest, ErrorKind, Reference, chain};
use forge_registry::TransferContext;
use forge_session::{BlobFolder, Event, WarningNotice};
use forge_store::{Compression, LayerId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the end of a build waits for what is still being sent.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long that of one that failed does.
const FAILED_PATIENCE: Duration = Duration::from_secs(10);
/// How many records are sent at once.
const AT_ONCE: usize = 4;

/// The caches that a build asks and tells (`--cache-from`, `--cache-to`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedCaches {
    /// Asked in this order, after this machine's own.
    pub from: Vec<CacheImport>,
    /// Told of every step.
    pub to: Vec<CacheExport>,
    /// Whether images say in their configs which steps they are made of.
    pub inline: bool,
    /// Whether the build may come to ask further caches while it runs.
    pub open_ended: bool,
}

/// Where step records and their layers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// A repository, under tags that begin with the reference's; read is also the image of that name.
    Registry(Reference, Transport),
    /// A folder, an OCI image layout.
    Local {
        /// The folder.
        folder: PathBuf,
        /// Tells several caches in it apart.
        tag: String,
    },
    /// A bucket.
    S3(S3Place),
    /// GitHub's cache of Actions.
    Gha(GhaPlace),
    /// A server of Bazel's Remote Execution API.
    Reapi(ReapiPlace),
    /// Blobs of the client, and the document among them that is read.
    Client(ClientFolder, Option<Digest>),
}

/// Blobs that a client keeps. Two are the same if they are called the same.
#[derive(Clone)]
pub struct ClientFolder(pub Arc<dyn BlobFolder>);

impl std::fmt::Debug for ClientFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientFolder").field(&self.0.name()).finish()
    }
}

impl PartialEq for ClientFolder {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for ClientFolder {}

/// Where steps are looked for, and whose are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImport {
    /// Where.
    pub place: CachePlace,
    /// Files with public keys: only what one of them signed is taken, where there are any.
    pub verify_keys: Vec<PathBuf>,
    /// Whether cache mounts are looked for there too, and what tells those of this project apart.
    pub mounts: Option<String>,
}

/// Where steps are sent, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheExport {
    /// Where.
    pub place: CachePlace,
    /// Which steps.
    pub mode: CacheMode,
    /// The compression of layers that were made here or came as bare tars; gzip where `None`.
    pub compression: Option<LayerCompression>,
    /// Whether other layers are converted too.
    pub force_compression: bool,
    /// A file with the private key that signs.
    pub sign_key: Option<PathBuf>,
    /// How many records are sent at once.
    pub at_once: usize,
    /// Whether cache mounts are sent too, and what tells those of this project apart.
    pub mounts: Option<String>,
    /// What the document looks like that names all records under the cache's own name, where there is to be one.
    pub bundle: Option<CacheBundle>,
    /// Whether the build fails where something cannot be sent.
    pub required: bool,
}

/// A document that names all records of a build, shaped as BuildKit's caches are (`image-manifest=`, `oci-mediatypes=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheBundle {
    /// An index instead of a manifest.
    pub index: bool,
    /// Docker's media types.
    pub docker: bool,
}

/// Which steps are sent (`mode=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Those whose results are in the image.
    Min,
    /// All.
    #[default]
    Max,
}

impl SharedCaches {
    /// Opens what is named; `None` where nothing is.
    pub(crate) fn open(
        &self,
        engine: &Engine,
        context: &TransferContext,
    ) -> Result<Option<Arc<SharedCache>>, EngineError> {
        if *self == Self::default() {
            return Ok(None);
        }
        let from = self.from.iter().map(|import| import.open(engine)).collect::<Result<_, _>>()?;
        let to = self.to.iter().map(|export| export.open(engine)).collect::<Result<_, _>>()?;
        let shared = SharedCache::new(context.clone(), engine.registry()?, from, to);
        Ok(Some(Arc::new(if self.inline { shared.with_inline() } else { shared })))
    }
}

impl CachePlace {
    fn open(&self, engine: &Engine) -> Result<Arc<dyn RecordStore>, EngineError> {
        let refused = |message: String| EngineError::new(ErrorKind::UserInput, message);
        Ok(match self {
            Self::Local { folder, tag } => {
                let records = LayoutRecords::new(folder, tag);
                Arc::new(records.ok_or_else(|| refused(format!("the cache's tag {tag:?} is invalid")))?)
            }
            Self::Registry(reference, transport) => {
                let plain = std::slice::from_ref(reference);
                let registry = engine.hasty_registry(if *transport == Transport::Plain { plain } else { &[] })?;
                let records = RegistryRecords::new(registry, reference).map_err(|error| {
                    refused(format!("the cache {reference} cannot be used: {error}"))
                        .with_hint("keys are added to its tag, which can have at most 63 characters")
                })?;
                Arc::new(records)
            }
            Self::S3(place) => s3_records(engine.hasty_registry(&[])?, place.clone()),
            Self::Reapi(place) => reapi_records(&*engine.hasty_registry(&[])?, place.clone())?,
            Self::Client(folder, root) => Arc::new(ContentRecords::new(folder.0.clone(), root.clone())),
            Self::Gha(place) => gha_records(engine.hasty_registry(&[])?, place.clone()),
        })
    }
}

impl CacheImport {
    fn open(&self, engine: &Engine) -> Result<CacheOrigin, EngineError> {
        let keys = self.verify_keys.iter().map(|path| read_key(path, Trust::key_from_pem));
        let trust = match self.verify_keys.is_empty() {
            true => Trust::Everybody,
            false => Trust::Keys(keys.collect::<Result<_, _>>()?),
        };
        Ok(CacheOrigin { store: self.place.open(engine)?, trust, mounts: self.mounts.clone() })
    }
}

impl CacheExport {
    fn open(&self, engine: &Engine) -> Result<CacheTarget, EngineError> {
        let extent = match self.mode {
            CacheMode::Min => Extent::Final,
            CacheMode::Max => Extent::All,
        };
        let dispatch = Dispatch {
            compression: self.compression.map_or(Compression::Gzip { level: None }, compression),
            force: self.force_compression,
            extent,
            signer: self.sign_key.as_ref().map(|path| read_key(path, RecordSigner::from_pem)).transpose()?,
            at_once: self.at_once,
            mounts: self.mounts.clone(),
            bundle: self.bundle.map(|CacheBundle { index, docker }| BundleForm { index, docker }),
            required: self.required,
        };
        Ok(CacheTarget::new(self.place.open(engine)?, dispatch))
    }
}

/// Reads a key of a cache. One that cannot be read is not passed over: what it is to guard against would come in.
fn read_key<T, E: std::error::Error>(path: &Path, read: impl FnOnce(&str) -> Result<T, E>) -> Result<T, EngineError> {
    let refused = |cause: String| {
        EngineError::new(ErrorKind::UserInput, format!("cannot use the key {}: {cause}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    read(&text).map_err(|error| refused(chain(&error)))
}

impl Build {
    /// Waits, within bounds, until the shared caches have what this build made; gives back the document that names it all,
    /// where there is one. `stacks` are the layers of its results.
    ///
    /// # Errors
    /// Something was not sent to a cache that is required.
    pub(crate) async fn finish_caches(&self, stacks: &[Vec<LayerId>]) -> Result<Option<Descriptor>, EngineError> {
        let Some(shared) = self.shared_cache().filter(|shared| !shared.targets().is_empty()) else { return Ok(None) };
        let name = format!("exporting cache to {}", shared.targets().join(", "));
        let shown = ShownStep::start(self.session.events(), &name);
        let cancel = self.session.cancellation();
        let finished = cancel.run_until_cancelled(shared.finish(stacks, PATIENCE)).await;
        let CachesSent { lines, failure, bundle } = finished.unwrap_or_default();
        if let Some(failure) = failure {
            return shown.end(Err(EngineError::new(ErrorKind::Remote, failure)));
        }
        for short in lines {
            let vertex = Some(ShownStep::digest_of(&name));
            let notice =
                WarningNotice { vertex, level: 1, short, detail: Vec::new(), url: None, span: None, excerpt: None };
            self.session.events().emit(Event::Warning(notice));
        }
        shown.end(Ok(bundle))
    }

    /// Asks further caches from now on.
    pub(crate) async fn ask_also(&self, imports: &[CacheImport]) -> Result<(), EngineError> {
        self.solver().await?;
        let Some(shared) = self.shared_cache() else { return Ok(()) };
        let opened = imports.iter().map(|import| import.open(&self.engine)).collect::<Result<_, _>>()?;
        shared.ask_also(opened);
        Ok(())
    }

    /// Lets what is being sent arrive, for a moment: what succeeded of a build that failed helps the next one.
    pub(crate) async fn finish_caches_of_failure(&self) {
        let Some(shared) = self.shared_cache().filter(|shared| !shared.targets().is_empty()) else { return };
        // The failure is what the user is to read.
        _ = self.session.cancellation().run_until_cancelled(shared.finish(&[], FAILED_PATIENCE)).await;
    }

    /// Has the config of an image say which steps made it, where that is wanted, and nothing of its base's.
    pub(crate) async fn with_inline_cache(&self, mut built: BuiltImage) -> Result<BuiltImage, EngineError> {
        forget_inline(&mut built.config);
        let Some(shared) = self.shared_cache() else { return Ok(built) };
        blocking(move || {
            shared.write_inline(&built.layers, &mut built.config)?;
            Ok(built)
        })
        .await
    }
}
