//! Answers for results in this machine's store and in the session's contexts.

use crate::content;
use crate::context_files::ContextFiles;
use crate::images::ImageResolver;
use crate::missing::unselected;
use crate::selection::Selection;
use crate::source_tree::{SourceTree, Stop, Visible};
use async_trait::async_trait;
use blake3::Hasher;
use forge_cache::{CacheError, Listing, ResultRef, ResultStore, Selector};
use forge_image::ErrorKind;
use forge_session::{ContextSelection, Session, at_once};
use forge_store::{ContentDigest, LayerId, LayerRecord, Lease, Store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The results of one build: what it acquires is held by its lease.
pub struct LocalResults {
    store: Store,
    lease: Arc<Lease>,
    contexts: Arc<ContextFiles>,
    /// Who fetches layers that are read and not here; without it they are errors.
    images: Option<Arc<ImageResolver>>,
    listings: Listings,
    contents: Arc<Mutex<Contents>>,
}

/// What was listed while it was digested: reading it again would mean walking the layers again. Selections of contexts are
/// remembered as they are.
type Listings = Arc<Mutex<HashMap<(ResultRef, Selector), Listing>>>;

impl LocalResults {
    /// Answers for a build that holds `lease`; `contexts` are those of the build's worker.
    pub fn new(store: Store, lease: Arc<Lease>, contexts: Arc<ContextFiles>) -> Self {
        Self { store, lease, contexts, listings: Listings::default(), images: None, contents: Arc::default() }
    }

    /// Fetches layers that are read and lie in a registry only.
    #[must_use]
    pub fn fetching(self, images: Arc<ImageResolver>) -> Self {
        Self { images: Some(images), ..self }
    }

    async fn present(&self, result: &ResultRef) -> Result<ResultRef, CacheError> {
        let Some(images) = &self.images else { return Ok(result.clone()) };
        let present = images.present(std::slice::from_ref(result), &images.context().vertex).await;
        let present = present.map_err(|error| failed(error.kind(), error))?;
        Ok(present.into_iter().next().expect("one result for one"))
    }
}

/// Opens what a result shows, for reading. Layers may be absent, until something of them is read.
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
            let tree = store.layers().known_tree(layers).map_err(|error| failed(error.kind(), error))?;
            Ok(SourceTree::of_layers(tree, Stop(session.clone())))
        }
        ResultRef::Context { name, include, exclude, follow, metadata_only } => {
            let metadata_only = metadata_only.as_deref();
            let wanted = ContextSelection { include, exclude, follow, metadata_only, ..ContextSelection::all(name) };
            let Some(context) = session.selected_context(&wanted) else {
                let message = format!("there is no build context named {name:?}");
                return Err(CacheError::Result { kind: ErrorKind::UserInput, message, source: None });
            };
            // What was followed came beside what is included, and the list of what there is beside everything.
            let include = if follow.is_empty() && metadata_only.is_none() { &include[..] } else { &[] };
            let visible = Visible::new(include, exclude).map_err(|error| failed(ErrorKind::UserInput, error))?;
            Ok(SourceTree::of_context(context, visible, Stop(session.clone())))
        }
    }
}

/// The same for digesting: which times of layers are content is known then.
///
/// # Errors
/// As with [`source_tree`].
pub(crate) fn digested_tree(
    store: &Store,
    result: &ResultRef,
    session: &Arc<dyn Session>,
) -> Result<SourceTree, CacheError> {
    let tree = source_tree(store, result, session)?;
    // Top-most first, as the tree counts them.
    let times = result.layers().iter().rev().map(|layer| Ok(layer_record(store, layer)?.times));
    Ok(tree.with_times(times.collect::<Result<_, CacheError>>()?))
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
        let held = at_once(move || lease.hold_layers(&layers).map_err(|error| failed(error.kind(), error))).await;
        held.map_err(|error| failed(ErrorKind::Internal, error))?
    }

    async fn discard(&self, result: &ResultRef) -> Result<(), CacheError> {
        let Some(layer) = result.layers().last().cloned() else { return Ok(()) };
        let (store, lease) = (self.store.clone(), self.lease.clone());
        blocking(move || store.layers().discard(&layer, &lease).map_err(|error| failed(error.kind(), error))).await
    }

    async fn content_digest(
        &self,
        result: &ResultRef,
        selector: &Selector,
        session: &Arc<dyn Session>,
    ) -> Result<ContentDigest, CacheError> {
        let result = match *selector == Selector::all() {
            // What a stack amounts to is known without it.
            true => result.clone(),
            false => self.present(result).await?,
        };
        if *selector == Selector::all()
            && let ResultRef::Layers(layers) = &result
            && let Ok(known) = lock(&self.contents).fold(layers)
        {
            return Ok(known);
        }
        let (store, contexts, listings) = (self.store.clone(), self.contexts.clone(), self.listings.clone());
        let contents = self.contents.clone();
        let (selector, session) = (selector.clone(), session.clone());
        blocking(move || match &result {
            ResultRef::Layers(layers) if selector == Selector::all() => look_up(&store, layers, &contents),
            _ => {
                let (selections, owners) = selected(&store, &contexts, &result, &selector, &session)?;
                let selections = selections.iter().map(AsRef::as_ref);
                if !result.layers().is_empty() {
                    let listing = content::listing(selections.clone(), &selector, owners);
                    lock(&listings).insert((result, selector.clone()), listing);
                }
                Ok(content::digest(selections, &selector, owners))
            }
        })
        .await
    }

    async fn listing(
        &self,
        result: &ResultRef,
        selector: &Selector,
        session: &Arc<dyn Session>,
    ) -> Result<Option<Listing>, CacheError> {
        let (result, selector, session) = (result.clone(), selector.clone(), session.clone());
        if !result.layers().is_empty() {
            return Ok(lock(&self.listings).remove(&(result, selector)));
        }
        let (store, contexts) = (self.store.clone(), self.contexts.clone());
        blocking(move || {
            let (selections, owners) = selected(&store, &contexts, &result, &selector, &session)?;
            Ok(Some(content::listing(selections.iter().map(AsRef::as_ref), &selector, owners)))
        })
        .await
    }
}

/// What the paths of a selector select, and whether owners of it make a difference.
fn selected(
    store: &Store,
    contexts: &ContextFiles,
    result: &ResultRef,
    selector: &Selector,
    session: &Arc<dyn Session>,
) -> Result<(Vec<Arc<Selection>>, bool), CacheError> {
    let tree = digested_tree(store, result, session)?;
    let paths = content::paths(selector);
    let selections = paths.iter().map(|path| contexts.select(result, &tree, path)).collect::<Result<Vec<_>, _>>();
    let selections = selections.map_err(|error| unselected(error, result, &tree))?;
    Ok((selections, tree.keeps_owners()))
}

/// What is behind the lock is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
) -> Result<T, CacheError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failed(ErrorKind::Internal, error)),
    }
}

/// What layers amount to. A layer's content does not change, and steps of a chain ask for the same ones again and again.
#[derive(Default)]
struct Contents {
    of: HashMap<LayerId, ContentDigest>,
    /// The last stack that was asked for, and the hasher behind its layers: the next step's stack is mostly that and one more.
    folded: (Vec<LayerId>, Option<Hasher>),
}

impl Contents {
    /// Those of a stack's layers whose content is not known.
    fn unknown(&self, layers: &[LayerId]) -> Vec<LayerId> {
        layers.iter().filter(|layer| !self.of.contains_key(*layer)).copied().collect()
    }

    /// The content of a whole stack: that of each of its layers, in order.
    ///
    /// # Errors
    /// The first layer whose content is not known; what is below it need not be looked at again.
    fn fold(&mut self, layers: &[LayerId]) -> Result<ContentDigest, LayerId> {
        let (folded, hasher) = &mut self.folded;
        if !layers.starts_with(folded) {
            folded.clear();
            *hasher = None;
        }
        let hasher = hasher.get_or_insert_with(|| Hasher::new_derive_key("forge content of a stack of layers v1"));
        for layer in &layers[folded.len()..] {
            hasher.update(self.of.get(layer).ok_or(*layer)?.as_bytes());
            folded.push(*layer);
        }
        Ok(hasher.finalize().into())
    }
}

/// The content of a whole stack of any layers.
fn look_up(store: &Store, layers: &[LayerId], contents: &Mutex<Contents>) -> Result<ContentDigest, CacheError> {
    let unknown = lock(contents).unknown(layers);
    // All at once: a chain that was found in the cache has hundreds.
    let found = store.layers().contents(&unknown).map_err(|error| failed(error.kind(), error))?;
    let mut contents = lock(contents);
    contents.of.extend(unknown.into_iter().zip(found).filter_map(|(layer, content)| Some((layer, content?))));
    contents.fold(layers).map_err(|layer| gone(&layer))
}

fn layer_record(store: &Store, layer: &LayerId) -> Result<LayerRecord, CacheError> {
    let record = store.layers().get(layer).map_err(|error| failed(error.kind(), error))?;
    record.ok_or_else(|| gone(layer))
}

fn gone(layer: &LayerId) -> CacheError {
    CacheError::Result { kind: ErrorKind::Environment, message: format!("layer {layer} is gone"), source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(number: usize) -> LayerId {
        format!("{number:032x}").parse().unwrap()
    }

    /// Seen to fail with what was folded kept for a stack that does not begin with it.
    #[test]
    fn a_stack_amounts_to_the_same_whatever_was_asked_before() {
        let known = || Contents {
            of: (0..9).map(|number| (layer(number), ContentDigest::from(blake3::hash(&[number as u8])))).collect(),
            ..Contents::default()
        };
        let stacks = [&[1, 2, 3][..], &[1, 2, 3, 4], &[1, 2], &[], &[4, 2, 3, 1], &[4, 2, 3, 1, 4], &[1, 2, 3]];
        let mut used = known();
        for stack in stacks {
            let layers: Vec<LayerId> = stack.iter().copied().map(layer).collect();
            assert_eq!(used.fold(&layers), known().fold(&layers), "{stack:?}");
        }
        let unknown = [layer(1), layer(77), layer(2)];
        assert_eq!(used.fold(&unknown), Err(layer(77)));
        used.of.insert(layer(77), ContentDigest::from(blake3::hash(b"later")));
        let mut fresh = Contents { of: used.of.clone(), ..Contents::default() };
        assert_eq!(used.fold(&unknown), fresh.fold(&unknown));
    }
}
