//! Puts the result of a build where the request wants it.

use crate::build::{Build, PlatformResult, count, notices};
use crate::engine::blocking;
use crate::steps::ShownStep;
use crate::{BuildOutcome, Destination, EngineError, ImageOutput, LayerCompression, Output};
use forge_exporter::{
    AssembledImage, BuiltTree, ExportError, ExportSettings, Exported, ImageSet, LayoutDestination, assemble, to_docker,
    to_local, to_oci, to_store, to_tar,
};
use forge_image::{Digest, ErrorKind};
use forge_session::{Event, WarningNotice};
use forge_store::Compression;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file that takes the place of another one only when it is complete.
struct Replacement {
    file: File,
    temporary: PathBuf,
    destination: PathBuf,
}

impl Build {
    pub(crate) async fn export(
        &self,
        results: Vec<PlatformResult>,
        warnings: Vec<WarningNotice>,
    ) -> Result<BuildOutcome, EngineError> {
        let outputs = match self.request.outputs.as_slice() {
            [] => vec![Output::Image(ImageOutput::default())],
            outputs => outputs.to_vec(),
        };
        let mut outcome = BuildOutcome {
            image: None,
            descriptor: None,
            names: Vec::new(),
            metadata: Vec::new(),
            warnings,
            steps: count(&results),
            notices: notices(&results),
        };
        for output in &outputs {
            if let Some(exported) = self.export_one(output, &results).await? {
                self.take(&mut outcome, exported)?;
            }
        }
        Ok(outcome)
    }

    /// What the caller is told of an output; with several, the first that made an image counts.
    fn take(&self, outcome: &mut BuildOutcome, exported: Exported) -> Result<(), EngineError> {
        for remark in &exported.remarks {
            let short = remark.clone();
            let notice = WarningNotice { vertex: None, level: 1, short, detail: Vec::new(), url: None, span: None };
            self.session.events().emit(Event::Warning(notice));
        }
        for (key, value) in exported.metadata() {
            if !outcome.metadata.iter().any(|(known, _)| *known == key) {
                outcome.metadata.push((key, value));
            }
        }
        // Images of several platforms get their index, and so a digest in common, when they leave the store; until
        // then the first one's id stands for them.
        let index = exported.descriptor.as_ref().filter(|_| exported.images.len() > 1);
        let image: Option<Digest> = match (index, exported.images.first()) {
            (Some(index), _) => Some(index.digest.clone()),
            (None, first) => first.map(|image| image.id.digest().clone()),
        };
        outcome.image = outcome.image.take().or(image);
        outcome.descriptor = outcome.descriptor.take().or(exported.descriptor);
        outcome
            .names
            .extend(exported.names.into_iter().filter(|name| !outcome.names.contains(name)).collect::<Vec<_>>());
        Ok(())
    }

    async fn export_one(&self, output: &Output, results: &[PlatformResult]) -> Result<Option<Exported>, EngineError> {
        let events = self.session.events();
        match output {
            Output::CacheOnly => Ok(None),
            Output::Image(image) => {
                let shown = ShownStep::start(events, "exporting to image");
                let exported = shown.end(self.to_image(image, results).await)?;
                if image.push {
                    return self.push_image(image, results).await.map(Some);
                }
                Ok(Some(exported))
            }
            Output::Oci(image, destination) => {
                let shown = ShownStep::start(events, "exporting to oci image format");
                shown.end(self.to_layout(image, destination, results).await).map(Some)
            }
            Output::Docker(image, destination) => {
                let shown = ShownStep::start(events, "exporting to docker image format");
                shown.end(self.to_docker_archive(image, destination, results).await).map(Some)
            }
            Output::Local(folder) => {
                let shown = ShownStep::start(events, "exporting to client directory");
                let epoch = self.epoch(results);
                let written = to_local(&self.transfer, &trees(results), epoch, folder).await;
                Ok(shown.end(written).map(Some)?)
            }
            Output::Tar(destination) => {
                let shown = ShownStep::start(events, "exporting to client tarball");
                shown.end(self.to_tarball(destination, results).await).map(Some)
            }
        }
    }

    async fn to_image(&self, output: &ImageOutput, results: &[PlatformResult]) -> Result<Exported, EngineError> {
        let settings = self.settings(output, results);
        let images = self.assemble(&settings, results).await?;
        let exported = to_store(&self.transfer, &images, &settings).await?;
        if settings.names.is_empty() {
            // A name is made durable with what it names; an id that is only printed must be too.
            let store = self.engine.store().clone();
            blocking(move || Ok(store.sync()?)).await?;
        }
        Ok(exported)
    }

    async fn push_image(&self, output: &ImageOutput, results: &[PlatformResult]) -> Result<Exported, EngineError> {
        let settings = self.settings(output, results);
        let shown = ShownStep::start(self.session.events(), "pushing image");
        let images = self.assemble(&settings, results).await?;
        let pushed = forge_exporter::push(&self.transfer, &self.engine.registry()?, &images, &settings).await;
        Ok(shown.end(pushed)?.exported)
    }

    async fn to_layout(
        &self,
        output: &ImageOutput,
        destination: &Destination,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let settings = self.settings(output, results);
        let images = self.assemble(&settings, results).await?;
        if let Destination::Directory(folder) = destination {
            let destination = LayoutDestination::Folder(folder.clone());
            return Ok(to_oci(&self.transfer, &images, &settings, destination).await?);
        }
        let (stream, replacement) = open(destination)?;
        let exported = to_oci(&self.transfer, &images, &settings, LayoutDestination::Archive(stream)).await;
        finish(exported, replacement).await
    }

    async fn to_docker_archive(
        &self,
        output: &ImageOutput,
        destination: &Destination,
        results: &[PlatformResult],
    ) -> Result<Exported, EngineError> {
        let settings = self.settings(output, results);
        let images = self.assemble(&settings, results).await?;
        let (stream, replacement) = open(destination)?;
        finish(to_docker(&self.transfer, &images, &settings, stream).await, replacement).await
    }

    async fn to_tarball(&self, destination: &Destination, results: &[PlatformResult]) -> Result<Exported, EngineError> {
        let (stream, replacement) = open(destination)?;
        finish(to_tar(&self.transfer, &trees(results), self.epoch(results), stream).await, replacement).await
    }

    fn epoch(&self, results: &[PlatformResult]) -> Option<i64> {
        results.iter().find_map(|result| result.lowered.source_date_epoch).or(self.request.source_date_epoch)
    }

    fn settings(&self, output: &ImageOutput, results: &[PlatformResult]) -> ExportSettings {
        let mut names = self.request.tags.clone();
        names.extend(output.names.iter().filter(|name| !self.request.tags.contains(name)).cloned());
        ExportSettings {
            names,
            compression: output.compression.map(compression),
            force_compression: output.force_compression,
            source_date_epoch: self.epoch(results),
            // On wherever an epoch is set: times in layers are otherwise what makes two builds differ.
            rewrite_timestamp: self.epoch(results).is_some(),
            ..ExportSettings::new(self.request.now)
        }
    }

    async fn assemble(&self, settings: &ExportSettings, results: &[PlatformResult]) -> Result<ImageSet, EngineError> {
        let mut images: Vec<AssembledImage> = Vec::new();
        for result in results {
            images.push(assemble(&self.transfer, &result.built(), settings).await?);
        }
        Ok(ImageSet::new(images)?)
    }
}

fn compression(layer: LayerCompression) -> Compression {
    match layer {
        LayerCompression::Uncompressed => Compression::None,
        LayerCompression::Gzip(level) => Compression::Gzip { level },
        LayerCompression::Zstd(level) => Compression::Zstd { level },
    }
}

fn trees(results: &[PlatformResult]) -> Vec<BuiltTree> {
    let tree = |result: &PlatformResult| BuiltTree {
        platform: result.platform.clone(),
        layers: result.solved.result.layers().to_vec(),
    };
    results.iter().map(tree).collect()
}

/// Opens a destination for writing.
fn open(destination: &Destination) -> Result<(Box<dyn Write + Send>, Option<Replacement>), EngineError> {
    match destination {
        Destination::Stdout => Ok((Box::new(std::io::stdout()), None)),
        Destination::File(path) => {
            let doing = format!("cannot write {}", path.display());
            let replacement = Replacement::create(path).map_err(|error| EngineError::io(error).context(&doing))?;
            let stream = replacement.file.try_clone().map_err(EngineError::io)?;
            Ok((Box::new(stream), Some(replacement)))
        }
        Destination::Directory(path) => {
            let message = format!("{} is a folder, but this output is one stream", path.display());
            Err(EngineError::new(ErrorKind::UserInput, message))
        }
    }
}

async fn finish(
    exported: Result<Exported, ExportError>,
    replacement: Option<Replacement>,
) -> Result<Exported, EngineError> {
    let exported = exported?;
    if let Some(replacement) = replacement {
        blocking(move || replacement.commit().map_err(EngineError::io)).await?;
    }
    Ok(exported)
}

impl Replacement {
    fn create(destination: &Path) -> std::io::Result<Self> {
        let name = destination.file_name().ok_or_else(|| std::io::Error::other("it names no file"))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let temporary = destination.with_file_name(hidden);
        let file = File::create(&temporary)?;
        Ok(Self { file, temporary, destination: destination.to_owned() })
    }

    fn commit(self) -> std::io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.destination)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a commit there is nothing of that name any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
