//! Puts the result of a build where the request wants it.

use crate::build::{Build, PlatformResult, count};
use crate::destination::{OpenedDestination, open};
use crate::engine::{blocking, until_cancelled};
use crate::steps::ShownStep;
use crate::told::told;
use crate::{
    BuildOutcome, Destination, DigestNames, EngineError, FilesOutput, ImageOutput, Keep, LayerCompression, MediaTypes,
    Metadata, Output, Push, Transport,
};
use forge_exporter::{
    AssembledImage, Attestation, BuiltTree, ExportSettings, Exported, FolderMode, ImageSet, LayoutDestination,
    Nondistributable, PlatformFolders, Recipient, assemble, hand_over, package, to_docker, to_local, to_oci, to_store,
    to_store_packaged, to_tar,
};
use forge_frontend::LoweredImage;
use forge_image::Reference;
use forge_registry::{Registry, TransferContext};
use forge_session::{Event, WarningNotice};
use forge_store::Compression;
use std::path::Path;
use std::sync::Arc;

/// The step that makes an image and sends it away.
const EXPORTING: &str = "exporting to image";

/// An output whose bytes are where they belong.
enum Written {
    /// Nothing is left to do.
    Whole(Box<Exported>),
    /// An image that is to be recorded and named in the store.
    Image(Box<Nameless>),
}

/// An image before it is named.
struct Nameless {
    images: ImageSet,
    settings: ExportSettings,
    finality: Finality,
    /// What was pushed of it.
    pushed: Option<Exported>,
}

/// What the store does with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finality {
    /// Keeps it without a manifest: one is made when it leaves.
    Layers,
    /// Keeps it with the manifest that was asked for.
    Manifest,
    /// Nothing.
    Forgotten,
}

impl Finality {
    fn of(output: &ImageOutput) -> Self {
        let ImageOutput { names: _, digest_names, push: _, keep, compression, .. } = output;
        let says_nothing = *digest_names == DigestNames::default()
            && compression.is_none()
            && !output.force_compression
            && output.media_types == MediaTypes::Oci
            && output.nondistributable == Nondistributable::Embedded
            && output.annotations.is_empty();
        match (keep, says_nothing) {
            (Keep::Nothing, _) => Self::Forgotten,
            (Keep::Named, true) => Self::Layers,
            (Keep::Named, false) | (Keep::Manifest, _) => Self::Manifest,
        }
    }
}

impl Build {
    /// Writes all outputs, and only then gives names in the store: a build that fails moves none. Cancellation is
    /// heeded until the first name is given.
    pub(crate) async fn export(
        &self,
        results: Vec<PlatformResult>,
        warnings: Vec<WarningNotice>,
    ) -> Result<BuildOutcome, EngineError> {
        let written = until_cancelled(self.session.cancellation(), self.write_all(&results)).await?;
        let mut exported = Vec::new();
        for written in written {
            exported.push(match written {
                Written::Whole(exported) => *exported,
                Written::Image(image) => {
                    let named = self.name(&image).await?;
                    image.pushed.unwrap_or(named)
                }
            });
        }
        for remark in exported.iter().flat_map(|exported| &exported.remarks) {
            let short = remark.clone();
            let notice = WarningNotice {
                vertex: None,
                level: 1,
                short,
                detail: Vec::new(),
                url: None,
                span: None,
                excerpt: None,
            };
            self.session.events().emit(Event::Warning(notice));
        }
        Ok(BuildOutcome { warnings, steps: count(&results), notices: self.engine.build_notices(), ..told(&exported) })
    }

    async fn write_all(&self, results: &[PlatformResult]) -> Result<Vec<Written>, EngineError> {
        let default = [Output::Image(ImageOutput::default())];
        let outputs = match self.request.outputs.as_slice() {
            [] => &default,
            outputs => outputs,
        };
        let mut written = Vec::new();
        for output in outputs {
            written.extend(self.write(output, results).await?);
        }
        Ok(written)
    }

    /// All but the usual ways are on the heap, so that a build makes room for the one that it takes.
    async fn write(&self, output: &Output, results: &[PlatformResult]) -> Result<Option<Written>, EngineError> {
        let events = self.session.events();
        if reads_layers(output) {
            let layers = results.iter().flat_map(|result| result.built().layers).collect();
            Box::pin(self.engine.bring(&self.transfer, layers)).await?;
        }
        let exported = match output {
            Output::CacheOnly => return Ok(None),
            Output::Image(image) => return self.write_image(image, results).await.map(Some),
            Output::Oci(image, destination) => {
                let shown = ShownStep::start(events, "exporting to oci image format");
                shown.end(Box::pin(self.to_layout(image, destination, results)).await)
            }
            Output::Docker(image, destination) => {
                let shown = ShownStep::start(events, "exporting to docker image format");
                shown.end(Box::pin(self.to_docker_archive(image, destination, results)).await)
            }
            Output::Handed(image, recipient) => {
                let shown = ShownStep::start(events, &format!("sending image to {}", recipient.name()));
                shown.end(Box::pin(self.hand_over(image, recipient, results)).await)
            }
            Output::Local(files, mode, folder) => {
                let shown = ShownStep::start(events, "exporting to client directory");
                shown.end(Box::pin(self.to_folder(files, *mode, folder, results)).await)
            }
            Output::Tar(files, destination) => {
                let shown = ShownStep::start(events, "exporting to client tarball");
                shown.end(Box::pin(self.to_tarball(files, destination, results)).await)
            }
        };
        exported.map(|exported| Some(Written::Whole(Box::new(exported))))
    }

    async fn write_image(&self, output: &ImageOutput, results: &[PlatformResult]) -> Result<Written, EngineError> {
        let settings = self.settings(output, results);
        let shown = ShownStep::start(self.session.events(), EXPORTING);
        let finality = Finality::of(output);
        let leaves = output.push.is_wanted() || finality != Finality::Layers;
        let settings = if leaves { leaving(settings) } else { settings };
        let written = async {
            let images = self.assemble(&settings, results).await?;
            let pushed = match output.push.transport() {
                Some(transport) => Some(Box::pin(self.push_image(&images, &settings, transport, finality)).await?),
                None => None,
            };
            Ok::<_, EngineError>((images, pushed))
        };
        let (images, pushed) = shown.end(written.await)?;
        Ok(Written::Image(Box::new(Nameless { images, settings, finality, pushed })))
    }

    /// Pushes under all names. The store has the image before, without a name, so that it can remember the digests
    /// that the registry knows it by.
    async fn push_image(
        &self,
        images: &ImageSet,
        settings: &ExportSettings,
        transport: Transport,
        finality: Finality,
    ) -> Result<Exported, EngineError> {
        let registry = self.registry_for(transport, &settings.names).await?;
        if finality != Finality::Forgotten {
            let nameless = ExportSettings { names: Vec::new(), ..settings.clone() };
            to_store(&self.transfer, images, &nameless).await?;
        }
        // What it sends is told as part of the export, as clients of BuildKit look for it.
        let context = TransferContext { vertex: ShownStep::digest_of(EXPORTING), ..self.transfer.clone() };
        Ok(forge_exporter::push(&context, &registry, images, settings).await?.exported)
    }

    pub(crate) async fn registry_for(
        &self,
        transport: Transport,
        names: &[Reference],
    ) -> Result<Arc<Registry>, EngineError> {
        let names = names.to_vec();
        let registry = self.engine.blocking(move |engine| match transport {
            Transport::Configured => engine.registry(),
            Transport::Plain => engine.plain_registry(&names),
        });
        registry.await
    }

    /// Records an image in the store and gives it its names.
    async fn name(&self, image: &Nameless) -> Result<Exported, EngineError> {
        let Nameless { images, settings, finality, .. } = image;
        if *finality == Finality::Forgotten {
            return Ok(package(&self.transfer, images, settings).await?);
        }
        let names: Vec<String> = settings.names.iter().map(Reference::to_string).collect();
        let step = match names.is_empty() {
            true => "writing image".to_owned(),
            false => format!("naming to {}", names.join(", ")),
        };
        let shown = ShownStep::start(self.session.events(), &step);
        let exported = match finality {
            Finality::Manifest => to_store_packaged(&self.transfer, images, settings).await,
            _ => to_store(&self.transfer, images, settings).await,
        };
        let exported = shown.end(exported)?;
        if names.is_empty() {
            // A name is made durable with what it names; an id that is only printed must be too.
            self.engine.blocking(|engine| Ok(engine.store().sync()?)).await?;
        }
        Ok(exported)
    }

    async fn open_destination(
        &self,
        destination: &Destination,
        metadata: Metadata,
    ) -> Result<OpenedDestination, EngineError> {
        let (destination, cancel) = (destination.clone(), self.session.cancellation().clone());
        blocking(move || open(&destination, &metadata, &cancel)).await
    }

    async fn to_layout(
        &self,
        output: &ImageOutput,
        destination: &Destination,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let settings = leaving(self.settings(output, results));
        let images = self.assemble(&settings, results).await?;
        if let Destination::Directory(folder) = destination {
            let destination = LayoutDestination::Folder(folder.clone());
            return Ok(to_oci(&self.transfer, &images, &settings, destination).await?);
        }
        let metadata = match destination {
            // The layers are compressed for that, and need not be again.
            Destination::Stream(stream) if stream.wants_metadata() => {
                package(&self.transfer, &images, &settings).await?.metadata()
            }
            _ => Metadata::new(),
        };
        let OpenedDestination { stream, end } = self.open_destination(destination, metadata).await?;
        let exported = to_oci(&self.transfer, &images, &settings, LayoutDestination::Archive(stream)).await?;
        blocking(move || end.complete()).await?;
        Ok(exported)
    }

    async fn to_docker_archive(
        &self,
        output: &ImageOutput,
        destination: &Destination,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let settings = leaving(self.settings(output, results));
        let images = self.assemble(&settings, results).await?;
        let OpenedDestination { stream, end } = self.open_destination(destination, Metadata::new()).await?;
        let exported = to_docker(&self.transfer, &images, &settings, stream).await?;
        blocking(move || end.complete()).await?;
        Ok(exported)
    }

    async fn hand_over(
        &self,
        output: &ImageOutput,
        recipient: &Recipient,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let settings = self.settings(output, results);
        let settings = ExportSettings { leaving: settings.compression.or(Some(Compression::None)), ..settings };
        let images = self.assemble(&settings, results).await?;
        Ok(hand_over(&self.transfer, &images, &settings, recipient).await?)
    }

    async fn to_folder(
        &self,
        files: &FilesOutput,
        mode: FolderMode,
        folder: &Path,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let trees = trees(results, &files.attestation_prefix);
        let epoch = files.epoch.with(self.epoch(results));
        let folders = files.folders.unwrap_or(PlatformFolders::for_platforms(trees.len()));
        Ok(to_local(&self.transfer, &trees, epoch, folders, mode, folder).await?)
    }

    async fn to_tarball(
        &self,
        files: &FilesOutput,
        destination: &Destination,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let trees = trees(results, &files.attestation_prefix);
        let epoch = files.epoch.with(self.epoch(results));
        let folders = files.folders.unwrap_or(PlatformFolders::for_platforms(trees.len()));
        let OpenedDestination { stream, end } = self.open_destination(destination, Metadata::new()).await?;
        let exported = to_tar(&self.transfer, &trees, epoch, folders, stream).await?;
        blocking(move || end.complete()).await?;
        Ok(exported)
    }

    fn epoch(&self, results: &[PlatformResult]) -> Option<i64> {
        results.iter().find_map(|result| result.lowered.source_date_epoch).or(self.request.source_date_epoch)
    }

    fn settings(&self, output: &ImageOutput, results: &[PlatformResult]) -> ExportSettings {
        self.settings_of(output, self.epoch(results))
    }

    /// What an image leaves with, before there is one.
    pub(crate) fn leaving_settings(&self, output: &ImageOutput, image: &LoweredImage) -> ExportSettings {
        leaving(self.settings_of(output, image.source_date_epoch.or(self.request.source_date_epoch)))
    }

    fn settings_of(&self, output: &ImageOutput, epoch: Option<i64>) -> ExportSettings {
        let mut names = self.request.tags.clone();
        names.extend(output.names.iter().filter(|name| !self.request.tags.contains(name)).cloned());
        let epoch = output.times.epoch.with(epoch);
        ExportSettings {
            digest_names: digest_names(&output.digest_names, &names),
            names,
            compression: output.compression.map(compression),
            force_compression: output.force_compression,
            oci_mediatypes: output.media_types == MediaTypes::Oci,
            source_date_epoch: epoch,
            // On wherever an epoch is set: times in layers are otherwise what makes two builds differ.
            rewrite_timestamp: output.times.rewrite.unwrap_or(true),
            push_by_digest: matches!(output.push, Push::Digest(_)),
            annotations: output.annotations.clone(),
            existing_blobs: output.existing_blobs,
            nondistributable: output.nondistributable,
            attestation_form: output.attestation_form,
            ..ExportSettings::new(self.request.now)
        }
    }

    async fn assemble(&self, settings: &ExportSettings, results: &[PlatformResult]) -> Result<ImageSet, EngineError> {
        let mut images: Vec<AssembledImage> = Vec::new();
        for result in results {
            let built = self.with_inline_cache(result.built()).await?;
            let image = assemble(&self.transfer, &built, settings).await?;
            images.push(AssembledImage { attestations: result.said.clone(), ..image });
        }
        let images = ImageSet::new(images)?;
        Ok(if self.wants_index() { images.indexed() } else { images })
    }
}

/// The names that get the result's digest.
fn digest_names(wanted: &DigestNames, names: &[Reference]) -> Vec<Reference> {
    let canonical = names.iter().filter(|_| wanted.canonical);
    let dangling = wanted.prefix.iter().filter(|_| names.is_empty() || !wanted.prefix_only_without_names);
    canonical.chain(dangling).cloned().collect()
}

/// Whether an output needs every layer here. An image of the store is named before its base was ever read, and one that is
/// pushed leaves its base where it is.
fn reads_layers(output: &Output) -> bool {
    match output {
        Output::CacheOnly => false,
        Output::Image(image) => image.push.transport().is_none() && Finality::of(image) != Finality::Layers,
        _ => true,
    }
}

/// For an image that goes somewhere: its layers are hashed and compressed in one pass.
fn leaving(settings: ExportSettings) -> ExportSettings {
    let leaving = settings.compression.unwrap_or(Compression::Gzip { level: None });
    ExportSettings { leaving: Some(leaving), ..settings }
}

pub(crate) fn compression(layer: LayerCompression) -> Compression {
    match layer {
        LayerCompression::Uncompressed => Compression::None,
        LayerCompression::Gzip(level) => Compression::Gzip { level },
        LayerCompression::ZstdChunked(level) => Compression::ZstdChunked { level },
        LayerCompression::Estargz(level) => Compression::Estargz { level },
        LayerCompression::Zstd(level) => Compression::Zstd { level },
    }
}

/// What is said of a result, under the names that an output gives its files.
fn said(result: &PlatformResult, prefix: &str) -> Vec<Attestation> {
    let named = |attestation: &Attestation| Attestation {
        file_name: format!("{prefix}{}", attestation.file_name),
        ..attestation.clone()
    };
    result.said.iter().map(named).collect()
}

fn trees(results: &[PlatformResult], prefix: &str) -> Vec<BuiltTree> {
    let tree = |result: &PlatformResult| BuiltTree {
        platform: result.platform.clone(),
        layers: result.solved.result.layers().to_vec(),
        attestations: said(result, prefix),
    };
    results.iter().map(tree).collect()
}
