//! Tables of contents of layers that stay where they are.

use crate::blob_fetch::blocking;
use crate::layer_fetch::absent;
use crate::{FetchError, Registry, TransferContext};
use forge_store::{LayerId, RemoteLayer, StoreError, TableOfContents};
use futures_util::future::try_join_all;
use std::sync::Arc;

/// Has known to this process's store what the tables of contents of absent layers say, by parts of their blobs. `false` where a
/// layer has none, or its registry serves no parts: then the layers themselves must be fetched to know what is in them.
///
/// # Errors
/// A registry fails, or the store.
pub async fn tell_layers(
    context: &TransferContext,
    registry: &Arc<Registry>,
    layers: &[LayerId],
) -> Result<bool, FetchError> {
    let absent = absent(context, layers).await?;
    let tables: Option<Vec<TableOfContents>> =
        absent.iter().map(|(remote, _)| TableOfContents::of(&remote.blob)).collect();
    let Some(tables) = tables else { return Ok(false) };
    let fetched = absent.iter().zip(&tables).map(|((remote, _), table)| content(context, registry, remote, table));
    let contents = try_join_all(fetched).await?;
    let Some(contents) = contents.into_iter().collect::<Option<Vec<_>>>() else { return Ok(false) };
    let context = context.clone();
    blocking(move || {
        let layers = context.store.layers();
        for (((remote, parents), table), content) in absent.iter().zip(&tables).zip(contents) {
            let told = layers.tell(&remote.layer, parents, table, content);
            if !told.map_err(FetchError::store("read the table of contents of a layer"))? {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// What a table's digest is of, from the store or from the registry; `None` where there is no such thing.
async fn content(
    context: &TransferContext,
    registry: &Registry,
    remote: &RemoteLayer,
    table: &TableOfContents,
) -> Result<Option<Vec<u8>>, FetchError> {
    if let Some(content) = stored(context, table).await? {
        return Ok(Some(content));
    }
    let RemoteLayer { blob, repository, .. } = remote;
    let part = |range| registry.fetch_part(repository, blob, range, &*context.session);
    let footer = match table.footer(blob) {
        None => Vec::new(),
        Some(range) => match part(range).await? {
            Some(footer) => footer,
            None => return Ok(None),
        },
    };
    let Some(range) = table.range(blob, &footer) else { return Ok(None) };
    let Some(bytes) = part(range).await? else { return Ok(None) };
    let (context, table) = (context.clone(), table.clone());
    blocking(move || {
        let Some(content) = table.verified(bytes) else { return Ok(None) };
        // For the next build, as long as nobody collects it.
        context.store.blobs().write(&content, &context.lease).map_err(FetchError::store("keep a table of contents"))?;
        Ok(Some(content))
    })
    .await
}

/// As large as any table can be.
const MOST: u64 = 512 << 20;

async fn stored(context: &TransferContext, table: &TableOfContents) -> Result<Option<Vec<u8>>, FetchError> {
    let (context, digest) = (context.clone(), table.digest().clone());
    blocking(move || match context.store.blobs().read(&digest, MOST) {
        Ok(content) => Ok(Some(content)),
        Err(StoreError::BlobNotFound { .. } | StoreError::DamagedBlob { .. }) => Ok(None),
        Err(error) => Err(FetchError::store("read the table of contents of a layer")(error)),
    })
    .await
}
