use crate::document_store::manifest_bytes;
use crate::{FetchError, ImageSource, TransferContext};
use forge_image::{Descriptor, Index};
use std::collections::HashSet;

/// Indexes nested deeper than this are refused (A70).
const MAX_INDEX_DEPTH: usize = 4;
/// Images with more entries in their indexes than this are refused (A70).
const MAX_INDEX_ENTRIES: usize = 10_000;

/// All image manifests below a manifest or index, in order; nested indexes are read. Attestations are left out.
///
/// # Errors
/// A document cannot be read, or nesting and number exceed the limits of A70.
pub async fn image_manifests(
    context: &TransferContext,
    source: &dyn ImageSource,
    root: &Descriptor,
) -> Result<Vec<Descriptor>, FetchError> {
    let mut found = Vec::new();
    let mut visited = HashSet::new();
    let mut todo = vec![(root.clone(), 0)];
    let mut entries = 0;
    while let Some((descriptor, depth)) = todo.pop() {
        entries += 1;
        if entries > MAX_INDEX_ENTRIES || depth > MAX_INDEX_DEPTH {
            return Err(FetchError::IndexLimit);
        }
        if is_attestation(&descriptor) || !visited.insert((descriptor.digest.clone(), descriptor.platform.clone())) {
            continue;
        }
        if descriptor.media_type.is_index() {
            let index = read_index(context, source, &descriptor).await?;
            if index.manifests.len() > MAX_INDEX_ENTRIES {
                return Err(FetchError::IndexLimit);
            }
            todo.extend(index.manifests.into_iter().rev().map(|entry| (entry, depth + 1)));
        } else if descriptor.media_type.is_manifest() {
            found.push(descriptor);
        } else if depth == 0 {
            return Err(FetchError::NotAnImage { digest: descriptor.digest, media_type: descriptor.media_type });
        }
    }
    Ok(found)
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
}

async fn read_index(
    context: &TransferContext,
    source: &dyn ImageSource,
    descriptor: &Descriptor,
) -> Result<Index, FetchError> {
    let bytes = manifest_bytes(context, source, descriptor).await?;
    Index::from_json(&bytes, Some(&descriptor.media_type))
        .map_err(|source| FetchError::Document { digest: descriptor.digest.clone(), source })
}
