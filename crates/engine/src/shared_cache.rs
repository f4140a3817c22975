//! The caches that a build shares with other machines.

use crate::build::{Build, PlatformResult};
use crate::engine::Engine;
use crate::export::compression;
use crate::steps::ShownStep;
use crate::{EngineError, LayerCompression, Transport};
use forge_cache::remote::{CacheTarget, Extent, LayoutRecords, RecordStore, RegistryRecords, SharedCache};
use forge_image::{ErrorKind, Reference};
use forge_registry::TransferContext;
use forge_session::{Event, WarningNotice};
use forge_store::Compression;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the end of a build waits for what is still being sent.
const PATIENCE: Duration = Duration::from_secs(300);

/// The caches that a build asks and tells (`--cache-from`, `--cache-to`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedCaches {
    /// Asked in this order, after this machine's own.
    pub from: Vec<CachePlace>,
    /// Told of every step.
    pub to: Vec<CacheExport>,
}

/// Where step records and their layers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// A repository, under tags that begin with the reference's.
    Registry(Reference, Transport),
    /// A folder, an OCI image layout.
    Local {
        /// The folder.
        folder: PathBuf,
        /// Tells several caches in it apart.
        tag: String,
    },
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
        let from = self.from.iter().map(|place| place.open(engine)).collect::<Result<_, _>>()?;
        let to = self.to.iter().map(|export| export.open(engine)).collect::<Result<_, _>>()?;
        Ok(Some(Arc::new(SharedCache::new(context.clone(), engine.registry()?, from, to))))
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
        })
    }
}

impl CacheExport {
    fn open(&self, engine: &Engine) -> Result<CacheTarget, EngineError> {
        let extent = match self.mode {
            CacheMode::Min => Extent::Final,
            CacheMode::Max => Extent::All,
        };
        let compression = self.compression.map_or(Compression::Gzip { level: None }, compression);
        Ok(CacheTarget::new(self.place.open(engine)?, compression, self.force_compression, extent))
    }
}

impl Build {
    /// Waits, within bounds, until the shared caches have what this build made. No failure of theirs is the build's.
    pub(crate) async fn finish_caches(&self, results: &[PlatformResult]) {
        let Some(shared) = self.shared_cache().filter(|shared| !shared.targets().is_empty()) else { return };
        let stacks: Vec<_> = results.iter().map(|result| result.solved.result.layers().to_vec()).collect();
        let name = format!("exporting cache to {}", shared.targets().join(", "));
        let shown = ShownStep::start(self.session.events(), &name);
        let cancel = self.session.cancellation();
        let lines = cancel.run_until_cancelled(shared.finish(&stacks, PATIENCE)).await;
        for short in lines.unwrap_or_default() {
            let vertex = Some(ShownStep::digest_of(&name));
            let notice =
                WarningNotice { vertex, level: 1, short, detail: Vec::new(), url: None, span: None, excerpt: None };
            self.session.events().emit(Event::Warning(notice));
        }
        _ = shown.end(Ok::<(), EngineError>(()));
    }
}
