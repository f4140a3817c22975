//! What an index says of the image that it has for a platform: the documents that lead from the name to statements about it.

use crate::document_store::{config_bytes, manifest_bytes};
use crate::{FetchError, Registry, RegistrySource, TransferContext, resolve_image};
use forge_image::{Descriptor, Digest, Index, Manifest, Platform, Reference};
use std::sync::Arc;

/// Documents by their descriptors. Signatures of others' tools are not looked for.
#[derive(Clone, Debug)]
pub struct AttestationChain {
    /// The index that the name stands for.
    pub root: Digest,
    /// The manifest for the platform; it is named, and is not among the documents.
    pub image_manifest: Digest,
    /// The manifest that lists the statements about it.
    pub attestation_manifest: Option<Digest>,
    /// The index, the manifest with statements, and those statements that were wanted.
    pub documents: Vec<(Descriptor, Vec<u8>)>,
}

/// Finds what is said of an image; `None` where the name stands for no index, beside which nothing can be said. `statements`
/// are the predicate types of the statements that are read, too.
///
/// # Errors
/// The registry fails or lies, there is nothing for the platform, or the documents are refused.
pub async fn attestation_chain(
    context: &TransferContext,
    registry: &Arc<Registry>,
    reference: &Reference,
    platform: &Platform,
    statements: &[String],
) -> Result<Option<AttestationChain>, FetchError> {
    let resolved = resolve_image(context, registry, reference, platform).await?;
    let Some(root) = resolved.index() else { return Ok(None) };
    let source = RegistrySource::new(registry.clone(), reference.clone());
    let malformed = |descriptor: &Descriptor| {
        let digest = descriptor.digest.clone();
        move |source| FetchError::Document { digest, source }
    };
    let bytes = manifest_bytes(context, &source, root).await?;
    let index = Index::from_json(&bytes, Some(&root.media_type)).map_err(malformed(root))?;
    let mut chain = AttestationChain {
        root: root.digest.clone(),
        image_manifest: resolved.manifest.digest.clone(),
        attestation_manifest: None,
        documents: vec![(root.clone(), bytes)],
    };
    let Some(said) = index.manifests.iter().find(|entry| is_about(entry, &resolved.manifest.digest)) else {
        return Ok(Some(chain));
    };
    let bytes = manifest_bytes(context, &source, said).await?;
    let manifest = Manifest::from_json(&bytes, Some(&said.media_type)).map_err(malformed(said))?;
    chain.attestation_manifest = Some(said.digest.clone());
    chain.documents.push((said.clone(), bytes));
    for layer in &manifest.layers {
        let predicate = layer.annotations.get("in-toto.io/predicate-type").and_then(|value| value.as_str());
        if predicate.is_some_and(|predicate| statements.iter().any(|wanted| wanted == predicate)) {
            chain.documents.push((layer.clone(), config_bytes(context, &source, layer).await?));
        }
    }
    Ok(Some(chain))
}

/// Whether an entry of an index holds statements about a manifest.
fn is_about(entry: &Descriptor, manifest: &Digest) -> bool {
    let says = |name: &str, value: &str| entry.annotations.get(name).is_some_and(|found| found == value);
    says("vnd.docker.reference.type", "attestation-manifest") && says("vnd.docker.reference.digest", manifest.as_str())
}
