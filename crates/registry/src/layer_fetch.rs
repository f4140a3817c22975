//! Layers: known by what an image's documents say of them, brought and unpacked when somebody reads them.

use crate::blob_fetch::{blocking, ensure_followed, lock};
use crate::{FetchError, ImageSource, Registry, RegistrySource, ResolvedImage, TransferContext};
use forge_image::{Descriptor, DiffId, Digest, Reference};
use forge_store::{Adoption, BlobFollower, FileTimes, LayerId, LayerRecord, RemoteLayer, StoreError};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

/// How many blobs come in at once.
const CONCURRENT_BLOBS: usize = 4;

/// Has a resolved image's layers known to the store, lowest first, as ones that its repository has, and held. Fetches
/// nothing: [`bring_layers`] does, for those that somebody reads.
///
/// # Errors
/// The store failed.
pub async fn know_layers(
    context: &TransferContext,
    image: &ResolvedImage,
    reference: &Reference,
) -> Result<Vec<LayerId>, FetchError> {
    let stack: Vec<_> = image.layers().map(|(blob, diff_id)| (blob.clone(), diff_id.clone())).collect();
    let (context, repository) = (context.clone(), repository_of(reference));
    blocking(move || {
        let known = context.store.layers().know(&stack, &repository, &context.lease);
        known.map_err(FetchError::store("record layers"))
    })
    .await
}

fn repository_of(reference: &Reference) -> Reference {
    reference.name().parse().expect("the name of a reference is a reference")
}

/// Has layers unpacked that so far lie in registries only. Blobs come in side by side and are unpacked in order, each
/// while it and later ones are still coming. Layers that are here cost one look.
///
/// # Errors
/// A registry does not have a layer any more, or has something else; the store failed.
pub async fn bring_layers(
    context: &TransferContext,
    registry: &Arc<Registry>,
    layers: &[LayerId],
) -> Result<(), FetchError> {
    let absent = absent(context, layers).await?;
    if absent.is_empty() {
        return Ok(());
    }
    let wanted: Vec<Wanted> =
        absent.iter().map(|(remote, parents)| Wanted::remote(registry, remote, parents)).collect();
    let mut incoming = Incoming::start(context, wanted.iter().map(Wanted::transfer).collect());
    for (wanted, (remote, _)) in wanted.into_iter().zip(absent) {
        let brought = incoming.unpack(context, wanted).await;
        brought.map_err(|error| untimely(error, remote))?;
    }
    Ok(())
}

/// Says that it is not the image asked for now that fails, but one that was found before.
fn untimely(error: FetchError, remote: RemoteLayer) -> FetchError {
    match error {
        FetchError::Registry(_) => FetchError::Absent {
            blob: remote.blob.digest,
            repository: Box::new(remote.repository),
            source: Box::new(error),
        },
        other => other,
    }
}

/// What is absent of some layers and of those below them, lowest first, each with the layers below it.
pub(crate) async fn absent(
    context: &TransferContext,
    layers: &[LayerId],
) -> Result<Vec<(RemoteLayer, Vec<LayerId>)>, FetchError> {
    let (store, layers) = (context.store.clone(), layers.to_vec());
    let context = context.clone();
    blocking(move || {
        let all = store.layers();
        let failed = || FetchError::store("look for layers");
        let mut seen = HashSet::new();
        let mut wanted = Vec::new();
        for remote in all.absent(&layers).map_err(failed())? {
            let mut stack = vec![remote];
            while let Some(parent) = stack.last().and_then(|remote| remote.parent) {
                match all.remote(&parent).map_err(failed())? {
                    Some(below) => stack.push(below),
                    None => break,
                }
            }
            stack.reverse();
            let ids: Vec<LayerId> = stack.iter().map(|remote| remote.layer).collect();
            context.lease.hold_layers(&ids).map_err(failed())?;
            for (height, remote) in stack.into_iter().enumerate() {
                if remote.absent && seen.insert(remote.layer) {
                    wanted.push((remote, ids[..height].to_vec()));
                }
            }
        }
        Ok(wanted)
    })
    .await
}

/// A layer as somebody says that it can be had.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferedLayer {
    /// The blob that carries it.
    pub blob: Descriptor,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// Where forge made it, which of its times are content. What turns out to be made by others is kept as that.
    pub made: Option<FileTimes>,
    /// When it was made, where that is known: images say so of their layers.
    pub created: Option<SystemTime>,
}

/// Has the layers of a resolved image in the store, unpacked, from a source that may not be there later.
///
/// # Errors
/// A blob cannot be fetched or unpacked, or is not what manifest and config say.
pub async fn fetch_layers(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    image: &ResolvedImage,
) -> Result<Vec<LayerId>, FetchError> {
    let diff_ids: Arc<[DiffId]> = image.config.rootfs.diff_ids.clone().into();
    let present = present_layers(context, &diff_ids).await?;
    let offer = |(blob, diff_id): (&Descriptor, &DiffId)| OfferedLayer {
        blob: blob.clone(),
        diff_id: diff_id.clone(),
        made: None,
        created: None,
    };
    let missing: Vec<_> = image.layers().skip(present.len()).map(offer).collect();
    fetch_above(context, source, present, &missing).await
}

/// Has a stack of layers in the store, unpacked, lowest first.
///
/// # Errors
/// As [`fetch_layers`].
pub async fn fetch_stack(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    stack: &[OfferedLayer],
) -> Result<Vec<LayerId>, FetchError> {
    let (looking, offered) = (context.clone(), stack.to_vec());
    let present = blocking(move || present_part(&looking, &offered)).await?;
    let missing = &stack[present.len()..];
    fetch_above(context, source, present, missing).await
}

async fn fetch_above(
    context: &TransferContext,
    source: &Arc<dyn ImageSource>,
    mut layers: Vec<LayerId>,
    missing: &[OfferedLayer],
) -> Result<Vec<LayerId>, FetchError> {
    let blobs: Vec<_> = missing.iter().map(|offered| (source.clone(), offered.blob.clone())).collect();
    let mut incoming = Incoming::start(context, blobs);
    for offered in missing {
        let OfferedLayer { blob, diff_id, made, created } = offered.clone();
        let name = format!("{} {diff_id}", layers.last().map_or("", LayerId::as_str));
        let wanted = Wanted { source: source.clone(), blob, diff_id, made, parents: layers.clone(), name };
        let layer = incoming.unpack(context, wanted).await?;
        if let Some(created) = created {
            let (context, layer) = (context.clone(), layer);
            let dated = move || context.store.layers().date(&layer, created).map_err(FetchError::store("date a layer"));
            blocking(dated).await?;
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// The layers of the longest part of a stack, counted from below, that is here.
fn present_part(context: &TransferContext, stack: &[OfferedLayer]) -> Result<Vec<LayerId>, FetchError> {
    let all = context.store.layers();
    let failed = || FetchError::store("look for layers");
    let mut present = Vec::new();
    for OfferedLayer { diff_id, made, .. } in stack {
        let found = match made {
            Some(_) => all.find_adopted(&present, diff_id, &context.lease),
            None => all.find_unpacked(&present, diff_id, &context.lease),
        };
        let Some(layer) = found.map_err(failed())? else { break };
        if !all.absent(std::slice::from_ref(&layer)).map_err(failed())?.is_empty() {
            break;
        }
        present.push(layer);
    }
    Ok(present)
}

/// The layers of the longest part of the stack, counted from below, that is unpacked already.
async fn present_layers(context: &TransferContext, diff_ids: &Arc<[DiffId]>) -> Result<Vec<LayerId>, FetchError> {
    let (context, diff_ids) = (context.clone(), diff_ids.clone());
    blocking(move || {
        let all = context.store.layers();
        let failed = || FetchError::store("look for unpacked layers");
        for length in (1..=diff_ids.len()).rev() {
            if let Some(layers) = all.find_chain(&diff_ids[..length], &context.lease).map_err(failed())? {
                let absent = all.absent(&layers).map_err(failed())?;
                let here = layers.iter().take_while(|id| absent.iter().all(|remote| remote.layer != **id));
                return Ok(here.cloned().collect());
            }
        }
        Ok(Vec::new())
    })
    .await
}

/// A layer that is to be unpacked.
#[derive(Clone)]
struct Wanted {
    source: Arc<dyn ImageSource>,
    blob: Descriptor,
    diff_id: DiffId,
    /// As in [`OfferedLayer`].
    made: Option<FileTimes>,
    /// The layers below it, unpacked by the time it is its turn.
    parents: Vec<LayerId>,
    /// Names the place in a stack that it is for.
    name: String,
}

impl Wanted {
    fn remote(registry: &Arc<Registry>, remote: &RemoteLayer, parents: &[LayerId]) -> Self {
        Self {
            source: Arc::new(RegistrySource::new(registry.clone(), remote.repository.clone())),
            blob: remote.blob.clone(),
            diff_id: remote.diff_id.clone(),
            made: None,
            parents: parents.to_vec(),
            name: remote.layer.to_string(),
        }
    }

    fn transfer(&self) -> (Arc<dyn ImageSource>, Descriptor) {
        (self.source.clone(), self.blob.clone())
    }
}

/// Blobs on their way. Dropping it stops the transfers.
struct Incoming {
    arrivals: HashMap<Digest, Arrival>,
    tasks: JoinSet<()>,
}

/// A blob on its way.
struct Arrival {
    /// What reads along, once the blob begins to arrive; nothing where it is here already.
    begun: oneshot::Receiver<BlobFollower>,
    ended: oneshot::Receiver<Result<(), FetchError>>,
}

impl Incoming {
    fn start(context: &TransferContext, blobs: Vec<(Arc<dyn ImageSource>, Descriptor)>) -> Self {
        let slots = Arc::new(Semaphore::new(CONCURRENT_BLOBS));
        let mut incoming = Self { arrivals: HashMap::new(), tasks: JoinSet::new() };
        for (source, blob) in blobs {
            if incoming.arrivals.contains_key(&blob.digest) {
                continue;
            }
            let ((begin, begun), (end, ended)) = (oneshot::channel(), oneshot::channel());
            incoming.arrivals.insert(blob.digest.clone(), Arrival { begun, ended });
            let (context, slots) = (context.clone(), slots.clone());
            incoming.tasks.spawn(async move {
                let _slot = slots.acquire_owned().await.expect("the semaphore is never closed");
                // The receivers are gone only when the whole pull was given up.
                let begun = |follower| drop(begin.send(follower));
                let _ = end.send(ensure_followed(&context, &*source, &blob, "downloading", begun).await);
            });
        }
        incoming
    }

    /// Unpacks a layer, while its blob is still arriving where it is.
    async fn unpack(&mut self, context: &TransferContext, wanted: Wanted) -> Result<LayerId, FetchError> {
        let _only = lock(context, format!("unpack {}", wanted.name)).await?;
        let Some(Arrival { begun, ended }) = self.arrivals.remove(&wanted.blob.digest) else {
            // The blob of an earlier layer.
            return unpack(context, wanted, None).await;
        };
        if let Ok(follower) = begun.await
            && let Ok(layer) = unpack(context, wanted.clone(), Some(follower)).await
        {
            self.ended(ended).await?;
            return Ok(layer);
        }
        // Why a blob did not arrive is for its transfer to say; one that arrived in the end is whole now.
        self.ended(ended).await?;
        unpack(context, wanted, None).await
    }

    async fn ended(&mut self, ended: oneshot::Receiver<Result<(), FetchError>>) -> Result<(), FetchError> {
        match ended.await {
            Ok(result) => result,
            Err(_) => Err(self.failure().await),
        }
    }

    /// Why a transfer ended without an answer.
    async fn failure(&mut self) -> FetchError {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                return FetchError::Thread(error);
            }
        }
        FetchError::Cancelled
    }
}

async fn unpack(
    context: &TransferContext,
    wanted: Wanted,
    arriving: Option<BlobFollower>,
) -> Result<LayerId, FetchError> {
    let context = context.clone();
    blocking(move || {
        let progress = context.begin(wanted.blob.digest.to_string(), "extracting", wanted.blob.size);
        let record = unpack_now(&context, &wanted, arriving, &mut |done| progress.set(done));
        let record = record.map_err(FetchError::store("unpack a layer"))?;
        progress.complete();
        Ok(record.id)
    })
    .await
}

/// Unpacks a layer as what its offer says that it is; one of forge's that is none is a foreign one.
fn unpack_now(
    context: &TransferContext,
    Wanted { blob, diff_id, made, parents, .. }: &Wanted,
    mut arriving: Option<BlobFollower>,
    report: &mut dyn FnMut(u64),
) -> Result<LayerRecord, StoreError> {
    let (layers, lease) = (context.store.layers(), &context.lease);
    if let Some(times) = *made {
        let adoption = Adoption { blob, diff_id, times };
        let adopted = match arriving.take() {
            None => layers.adopt(parents, &adoption, lease, report),
            Some(arriving) => layers.adopt_arriving(parents, &adoption, arriving, lease, report),
        };
        if let Some(record) = adopted? {
            return Ok(record);
        }
    }
    match arriving {
        None => layers.unpack(parents, blob, diff_id, lease, report),
        Some(arriving) => layers.unpack_arriving(parents, (blob, diff_id), arriving, lease, report),
    }
}
