//! Answers for results in this machine's store and in the session's contexts.

use crate::content;
use crate::context_files::ContextFiles;
use crate::missing::unselected;
use crate::source_tree::{SourceTree, Stop, Visible};
use async_trait::async_trait;
use blake3::Hasher;
use forge_cache::{CacheError, ResultRef, ResultStore, Selector};
use forge_image::ErrorKind;
use forge_session::Session;
use forge_store::{ContentDigest, LayerId, Lease, Store};
use std::sync::Arc;

/// The results of one build: what it acquires is held by its lease.
pub struct LocalResults {
    store: Store,
    lease: Arc<Lease>,
    contexts: Arc<ContextFiles>,
}

impl LocalResults {
    /// Answers for a build that holds `lease`; `contexts` are those of the build's worker.
    pub fn new(store: Store, lease: Arc<Lease>, contexts: Arc<ContextFiles>) -> Self {
        Self { store, lease, contexts }
    }
}

/// Opens what a result shows, for reading.
///
/// # Errors
/// The session has no context of that name, or the layers cannot be read.
pub(crate) fn source_tree(
    store: &Store,
    result: &ResultRef,
    session: &Arc<dyn Session>,
) -> Result<SourceTree, CacheError> {
    match result {
        ResultRef::Layers(layers) => {
            let tree = store.layers().tree(layers).map_err(|error| failed(error.kind(), error))?;
            Ok(SourceTree::of_layers(tree, Stop(session.clone())))
        }
        ResultRef::Context { name, include, exclude } => {
            let Some(context) = session.context(name) else {
                let message = format!("there is no build context named {name:?}");
                return Err(CacheError::Result { kind: ErrorKind::UserInput, message, source: None });
            };
            let visible = Visible::new(include, exclude).map_err(|error| failed(ErrorKind::UserInput, error))?;
            Ok(SourceTree::of_context(context, visible, Stop(session.clone())))
        }
    }
}

fn failed(kind: ErrorKind, error: impl std::error::Error + Send + Sync + 'static) -> CacheError {
    if kind == ErrorKind::Cancelled {
        return CacheError::Cancelled;
    }
    CacheError::Result { kind, message: error.to_string(), source: Some(Box::new(error)) }
}

#[async_trait]
impl ResultStore for LocalResults {
    async fn acquire(&self, result: &ResultRef) -> Result<bool, CacheError> {
        let (lease, layers) = (self.lease.clone(), result.layers().to_vec());
        blocking(move || lease.hold_layers(&layers).map_err(|error| failed(error.kind(), error))).await
    }

    async fn content_digest(
        &self,
        result: &ResultRef,
        selector: &Selector,
        session: &Arc<dyn Session>,
    ) -> Result<ContentDigest, CacheError> {
        let (store, contexts) = (self.store.clone(), self.contexts.clone());
        let (result, selector, session) = (result.clone(), selector.clone(), session.clone());
        blocking(move || match &result {
            ResultRef::Layers(layers) if selector == Selector::all() => fold(&store, layers),
            _ => {
                let tree = source_tree(&store, &result, &session)?;
                let paths = content::paths(&selector);
                let select = |path| contexts.select(&result, &tree, path);
                let selections = paths.iter().map(select).collect::<Result<Vec<_>, _>>();
                let selections = selections.map_err(|error| unselected(error, &result, &tree))?;
                Ok(content::digest(selections.iter().map(AsRef::as_ref), &selector, tree.keeps_owners()))
            }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, CacheError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failed(ErrorKind::Internal, error)),
    }
}

/// The content of a whole stack: that of each of its layers, in order.
fn fold(store: &Store, layers: &[LayerId]) -> Result<ContentDigest, CacheError> {
    let mut hasher = Hasher::new_derive_key("forge content of a stack of layers v1");
    for layer in layers {
        let content = store.layers().content(layer).map_err(|error| failed(error.kind(), error))?;
        let Some(content) = content else {
            let message = format!("layer {layer} is gone");
            return Err(CacheError::Result { kind: ErrorKind::Environment, message, source: None });
        };
        hasher.update(content.as_bytes());
    }
    Ok(hasher.finalize().into())
}
