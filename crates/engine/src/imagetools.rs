//! Images of registries without the store: looked at, and put together anew.

use crate::engine::{Engine, until_cancelled};
use crate::handed::Handed;
use crate::steps::ShownStep;
use crate::{Annotation, EngineError};
use forge_exporter::{Composed, ExportError, Part, Single, compose};
use forge_image::{Descriptor, Digest, ErrorKind, ImageConfig, Index, Manifest, Platform, Reference};
use forge_registry::{
    Document, Registry, RegistryError, RegistrySource, TransferContext, ensure_blob, resolve_manifest,
};
use forge_session::EventSink;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a registry has under a name.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    /// The name that was asked for.
    pub name: Reference,
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// The document, to the byte.
    pub bytes: Vec<u8>,
    /// Its entries, if it is an index.
    pub entries: Option<Vec<Descriptor>>,
    /// The configs of its images by platform, where they were asked for.
    pub configs: Vec<(Platform, ImageConfig)>,
}

/// An index that is to be made.
#[derive(Clone, Debug)]
pub struct ComposeRequest {
    /// What it is made of, in order.
    pub sources: Vec<ComposeSource>,
    /// The names that it gets.
    pub names: Vec<Reference>,
    /// What is noted in it.
    pub annotations: Vec<Annotation>,
    /// Only these platforms; empty for all.
    pub platforms: Vec<Platform>,
    /// Whether a single manifest gets an index of its own.
    pub prefer_index: bool,
    /// Whether it is only made, and sent nowhere.
    pub dry_run: bool,
}

/// An image or an index that exists.
#[derive(Clone, Debug, PartialEq)]
pub struct ComposeSource {
    /// Its name, with a tag or a digest.
    pub name: Reference,
    /// What its entry is to say besides: annotations and a platform.
    pub note: Option<Descriptor>,
}

/// An index that was made.
#[derive(Clone, Debug)]
pub struct ComposeOutcome {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The names that it has now.
    pub names: Vec<Reference>,
}

impl Engine {
    /// Looks at what a registry has under a name. Configs are fetched only if they are wanted.
    ///
    /// # Errors
    /// The registry fails, or has nothing of that name.
    pub async fn inspect_remote(
        &self,
        name: &Reference,
        configs: bool,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<RemoteImage, EngineError> {
        let step = format!("looking at {}", name.familiar());
        let tools = self.tools(&step, events, cancel.clone()).await?;
        until_cancelled(&cancel, tools.inspect(name, configs)).await
    }

    /// Makes an index of what registries have and gives it its names there.
    ///
    /// # Errors
    /// A source is not to be had, nothing fits, or a registry refuses. No name is given before everything that it stands for
    /// is there.
    pub async fn compose(
        &self,
        request: &ComposeRequest,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<ComposeOutcome, EngineError> {
        let step = "creating the index";
        let tools = self.tools(step, events.clone(), cancel.clone()).await?;
        let shown = ShownStep::start(&*events, step);
        shown.end(until_cancelled(&cancel, tools.compose(request)).await)
    }

    async fn tools(
        &self,
        step: &str,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Tools, EngineError> {
        let session = self.session(BTreeMap::new(), Handed::default(), events, cancel);
        let context = self.transfer(session, step).await?;
        Ok(Tools { context, registry: self.blocking(Self::registry).await? })
    }
}

/// What the work is done with.
struct Tools {
    context: TransferContext,
    registry: Arc<Registry>,
}

impl Tools {
    async fn document(&self, name: &Reference) -> Result<Document, EngineError> {
        Ok(self.registry.resolve(name, &*self.context.session).await?)
    }

    async fn inspect(&self, name: &Reference, configs: bool) -> Result<RemoteImage, EngineError> {
        let Document { descriptor, bytes } = self.document(name).await?;
        let entries = entries(&descriptor, &bytes)?;
        let mut found = Vec::new();
        if configs {
            let images = entries.clone().unwrap_or_else(|| vec![descriptor.clone()]);
            for image in images.into_iter().filter(|entry| entry.media_type.is_manifest() && !is_attestation(entry)) {
                let (platform, config) = self.config(name, image).await?;
                found.push((platform, config));
            }
        }
        Ok(RemoteImage { name: name.clone(), descriptor, bytes, entries, configs: found })
    }

    async fn config(&self, name: &Reference, manifest: Descriptor) -> Result<(Platform, ImageConfig), EngineError> {
        let source = RegistrySource::new(self.registry.clone(), name.clone());
        let image = resolve_manifest(&self.context, &source, manifest.clone(), manifest.clone()).await?;
        Ok((manifest.platform.unwrap_or(image.platform), image.config))
    }

    async fn compose(&self, request: &ComposeRequest) -> Result<ComposeOutcome, EngineError> {
        let (mut parts, mut homes) = (Vec::new(), HashMap::new());
        for source in &request.sources {
            let part = self.part(source).await?;
            for entry in part.entries.iter().flatten().chain([&part.descriptor]) {
                homes.entry(entry.digest.clone()).or_insert_with(|| source.name.clone());
            }
            parts.push(part);
        }
        let single = if request.prefer_index { Single::Index } else { Single::Copy };
        let made = compose(&parts, &request.annotations, &request.platforms, single)?;
        if !request.dry_run {
            self.send(&made, &homes, &request.names).await?;
        }
        let Composed { descriptor, bytes, .. } = made;
        Ok(ComposeOutcome { descriptor, bytes, names: request.names.clone() })
    }

    async fn part(&self, source: &ComposeSource) -> Result<Part, EngineError> {
        let Document { mut descriptor, bytes } = self.document(&source.name).await?;
        let entries = entries(&descriptor, &bytes)?;
        if entries.is_none() {
            let note = source.note.clone();
            descriptor.annotations = note.as_ref().map(|note| note.annotations.clone()).unwrap_or_default();
            descriptor.platform = match note.and_then(|note| note.platform) {
                Some(platform) => Some(platform),
                None => self.config(&source.name, descriptor.clone()).await.ok().map(|(platform, _)| platform),
            };
        }
        Ok(Part { descriptor, entries, bytes })
    }

    /// Brings everything that a document stands for to each repository, then the document, under all its names last.
    async fn send(
        &self,
        made: &Composed,
        homes: &HashMap<Digest, Reference>,
        names: &[Reference],
    ) -> Result<(), EngineError> {
        for name in names {
            let roots = if made.entries.is_empty() { vec![made.descriptor.clone()] } else { made.entries.clone() };
            for root in roots {
                let home = homes.get(&root.digest).expect("every entry came from a source");
                if home.name() != name.name() {
                    self.copy(home, name, root).await?;
                }
            }
        }
        let session = &*self.context.session;
        for name in names {
            let sent = self.registry.push_manifest(name, &made.descriptor.media_type, &made.bytes, session).await;
            sent.map_err(failed(name))?;
        }
        Ok(())
    }

    /// Copies a manifest, or an index with all that it names, from one repository to another.
    async fn copy(&self, home: &Reference, place: &Reference, root: Descriptor) -> Result<(), EngineError> {
        let session = &*self.context.session;
        let (mut todo, mut documents) = (vec![root], Vec::new());
        while let Some(next) = todo.pop() {
            let plain = Descriptor::new(next.media_type.clone(), next.digest.clone(), next.size);
            let document = self.registry.manifest(home, &plain, session).await.map_err(failed(home))?;
            todo.extend(entries(&document.descriptor, &document.bytes)?.unwrap_or_default());
            documents.push(document);
            if documents.len() > MOST_DOCUMENTS {
                return Err(EngineError::new(ErrorKind::Remote, format!("{home} names too many manifests")));
            }
        }
        // What is named goes before what names it.
        for document in documents.into_iter().rev() {
            let Document { descriptor, bytes } = document;
            if descriptor.media_type.is_manifest() {
                self.copy_blobs(home, place, &descriptor, &bytes).await?;
            }
            let pinned = place.with_digest(descriptor.digest);
            let sent = self.registry.push_manifest(&pinned, &descriptor.media_type, &bytes, session).await;
            sent.map_err(failed(place))?;
        }
        Ok(())
    }

    async fn copy_blobs(
        &self,
        home: &Reference,
        place: &Reference,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<(), EngineError> {
        let manifest = Manifest::from_json(bytes, Some(&descriptor.media_type))
            .map_err(|error| EngineError::caused(ErrorKind::Remote, error))?;
        let session = &*self.context.session;
        let same_registry = home.registry() == place.registry();
        let mounts: Vec<String> = same_registry.then(|| home.repository().to_owned()).into_iter().collect();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let offered = self.registry.offer_blob(place, blob, &mounts, session).await.map_err(failed(place))?;
            if offered.is_some() {
                continue;
            }
            let source = RegistrySource::new(self.registry.clone(), home.clone());
            ensure_blob(&self.context, &source, blob, "downloading").await?;
            let (store, digest) = (self.context.store.clone(), blob.digest.clone());
            let file = crate::engine::blocking(move || Ok(store.blobs().open(&digest)?)).await?;
            let progress = self.context.begin(blob.digest.to_string(), "pushing", blob.size);
            let report = |done| progress.set(done);
            let pushed = self.registry.push_blob(place, blob, file, &[], session, &report).await;
            pushed.map_err(failed(place))?;
            progress.complete();
        }
        Ok(())
    }
}

/// As for pulls (A70).
const MOST_DOCUMENTS: usize = 10_000;

fn entries(descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Vec<Descriptor>>, EngineError> {
    if !descriptor.media_type.is_index() {
        return Ok(None);
    }
    let index = Index::from_json(bytes, Some(&descriptor.media_type));
    Ok(Some(index.map_err(|error| EngineError::caused(ErrorKind::Remote, error))?.manifests))
}

fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
}

fn failed(name: &Reference) -> impl FnOnce(RegistryError) -> ExportError + use<> {
    let reference = Box::new(name.clone());
    move |source| ExportError::Registry { reference, source: Box::new(source) }
}
