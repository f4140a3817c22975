//! Where results go: as the daemon is asked for them, and as they are taken here.

use forge_buildkit_proto::moby::buildkit::v1::Exporter;
use forge_engine::{
    Annotation, AnnotationScope, AttestationForm, BuildRequest, Destination, EngineError, Epoch, FilesOutput,
    FolderMode, ImageOutput, Keep, LayerCompression, MediaTypes, Nondistributable, Output, PlatformFolders, Push,
    Recipient, Times, Transport,
};
use forge_image::ErrorKind;
use std::collections::HashMap;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// What is done with a result that comes in.
#[derive(Clone)]
pub(crate) enum Target {
    /// It is written as it comes.
    Stream(Destination),
    /// Its files are.
    Folder(PathBuf, FolderMode),
    /// It is an OCI layout, whose files are written beside those of the layout that is there.
    Layout(PathBuf),
    /// Another container engine of this machine is handed it as it comes.
    Engine(Recipient),
}

/// What is done with each output of a request, by its place. Those that stay with the daemon have none.
pub(crate) struct Targets {
    targets: Vec<Option<Target>>,
    /// Cancelled when nobody wants them any more.
    pub cancel: CancellationToken,
}

impl Targets {
    /// For what has no outputs.
    pub(crate) fn none() -> Self {
        Self { targets: Vec::new(), cancel: CancellationToken::new() }
    }

    /// That of a call, whose metadata have the number.
    pub(crate) fn get(&self, number: Option<&str>) -> Option<&Target> {
        self.targets.get(number?.parse::<usize>().ok()?)?.as_ref()
    }
}

type Attributes = HashMap<String, String>;

/// What the daemon is asked for, and what is done with it here.
///
/// # Errors
/// An output that the daemon cannot be asked for.
pub(crate) fn outputs(
    request: &BuildRequest,
    cancel: CancellationToken,
) -> Result<(Vec<Exporter>, Targets), EngineError> {
    let default = [Output::Image(ImageOutput::default())];
    let wanted = if request.outputs.is_empty() { &default[..] } else { &request.outputs };
    let (mut exporters, mut targets) = (Vec::new(), Vec::new());
    for output in wanted {
        let (kind, attrs, target) = match output {
            Output::CacheOnly => continue,
            Output::Image(image) => ("image", of_image(image, request)?, None),
            Output::Oci(image, to) => {
                let target = match to {
                    Destination::Directory(folder) => Target::Layout(folder.clone()),
                    other => Target::Stream(other.clone()),
                };
                ("oci", of_image(image, request)?, Some(target))
            }
            Output::Docker(image, to) => ("docker", of_image(image, request)?, Some(Target::Stream(to.clone()))),
            Output::Tar(files, to) => ("tar", of_files(files), Some(Target::Stream(to.clone()))),
            Output::Local(files, mode, folder) => {
                ("local", of_files(files), Some(Target::Folder(folder.clone(), *mode)))
            }
            Output::Handed(image, recipient) => {
                let attributes = of_image(image, request)?;
                (handed_as(recipient, &attributes)?, attributes, Some(Target::Engine(recipient.clone())))
            }
        };
        exporters.push(Exporter { r#type: kind.to_owned(), attrs });
        targets.push(target);
    }
    Ok((exporters, Targets { targets, cancel }))
}

/// The format in which an engine takes an image.
fn handed_as(recipient: &Recipient, attributes: &Attributes) -> Result<&'static str, EngineError> {
    match recipient {
        Recipient::Docker { .. } | Recipient::Podman { .. } => Ok("docker"),
        Recipient::Containerd { .. } if attributes.contains_key("name") => Ok("oci"),
        Recipient::Containerd { .. } => {
            Err(EngineError::new(ErrorKind::UserInput, "containerd knows images by their names: there is none"))
        }
    }
}

/// A flag that a build elsewhere cannot have.
pub(crate) fn unsupported(what: impl std::fmt::Display, why: &str) -> EngineError {
    EngineError::new(
        ErrorKind::Unsupported,
        format!("{what} is not supported for a build by a daemon or a front end image: {why}"),
    )
}

fn of_image(image: &ImageOutput, request: &BuildRequest) -> Result<Attributes, EngineError> {
    let mut attributes = Attributes::new();
    let mut set = |name: &str, value: &str| _ = attributes.insert(name.to_owned(), value.to_owned());
    let names: Vec<String> = request.tags.iter().chain(&image.names).map(ToString::to_string).collect();
    if !names.is_empty() {
        set("name", &names.join(","));
    }
    if let Push::Names(transport) | Push::Digest(transport) = image.push {
        set("push", "true");
        set("registry.insecure", if transport == Transport::Plain { "true" } else { "false" });
    }
    if let Push::Digest(_) = image.push {
        set("push-by-digest", "true");
    }
    if image.keep == Keep::Nothing {
        set("store", "false");
    }
    if image.digest_names.canonical {
        set("name-canonical", "true");
    }
    if let Some(prefix) = &image.digest_names.prefix {
        set("dangling-name-prefix", &prefix.to_string());
    }
    if image.digest_names.prefix_only_without_names {
        set("danging-name-empty-only", "true");
    }
    if image.force_compression {
        set("force-compression", "true");
    }
    if image.media_types == MediaTypes::Docker {
        set("oci-mediatypes", "false");
    }
    if image.nondistributable == Nondistributable::Referred {
        set("prefer-nondist-layers", "true");
    }
    if image.attestation_form == AttestationForm::Image {
        set("oci-artifact", "false");
    }
    if let Some((kind, level)) = image.compression.map(compression).transpose()? {
        set("compression", kind);
        if let Some(level) = level {
            set("compression-level", &level.to_string());
        }
    }
    attributes.extend(image.annotations.iter().map(annotation));
    attributes.extend(of_times(image.times, request.source_date_epoch));
    Ok(attributes)
}

/// A kind of compression and its level.
fn compression(compression: LayerCompression) -> Result<(&'static str, Option<i64>), EngineError> {
    Ok(match compression {
        LayerCompression::Uncompressed => ("uncompressed", None),
        LayerCompression::Gzip(level) => ("gzip", level.map(i64::from)),
        LayerCompression::Estargz(level) => ("estargz", level.map(i64::from)),
        LayerCompression::Zstd(level) => ("zstd", level.map(i64::from)),
        // A daemon that is not forge's refuses it by name.
        LayerCompression::ZstdChunked(level) => ("zstd:chunked", level.map(i64::from)),
    })
}

fn annotation(annotation: &Annotation) -> (String, String) {
    let scope = match annotation.scope {
        AnnotationScope::Manifest => "",
        AnnotationScope::ManifestDescriptor => "-manifest-descriptor",
        AnnotationScope::Index => "-index",
        AnnotationScope::IndexDescriptor => "-index-descriptor",
    };
    let platform = annotation.platform.as_ref().map(|platform| format!("[{platform}]")).unwrap_or_default();
    (format!("annotation{scope}{platform}.{}", annotation.key), annotation.value.clone())
}

/// Over this interface the times of files are changed only when that is asked for; here they are where there is an epoch.
fn of_times(times: Times, build: Option<i64>) -> Attributes {
    let mut attributes = of_epoch(times.epoch);
    if times.rewrite.unwrap_or_else(|| times.epoch.with(build).is_some()) {
        attributes.insert("rewrite-timestamp".to_owned(), "true".to_owned());
    }
    attributes
}

fn of_epoch(epoch: Epoch) -> Attributes {
    let value = match epoch {
        Epoch::OfBuild => return Attributes::new(),
        Epoch::Unset => String::new(),
        Epoch::At(seconds) => seconds.to_string(),
    };
    HashMap::from([("source-date-epoch".to_owned(), value)])
}

fn of_files(files: &FilesOutput) -> Attributes {
    let mut attributes = of_epoch(files.epoch);
    if let Some(folders) = files.folders {
        let split = folders == PlatformFolders::Always;
        attributes.insert("platform-split".to_owned(), split.to_string());
    }
    if !files.attestation_prefix.is_empty() {
        attributes.insert("attestation-prefix".to_owned(), files.attestation_prefix.clone());
    }
    attributes
}
