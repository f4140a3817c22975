//! Where a client wants the result.

use crate::reply;
use crate::session::send::{self, SentTree, Taken};
use crate::session::{ClientSession, SessionFiles, content};
use crate::solution::{Solution, platform_key};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_buildkit_proto::moby::buildkit::v1::{Descriptor, Exporter};
use forge_engine::{
    Annotation, AnnotationScope, AttestationForm, BuildOutcome, BuildRequest, Destination, DigestNames, Epoch,
    ExistingBlobs, FilesOutput, ImageOutput, Job, Keep, LayerCompression, MediaTypes, Metadata, Nondistributable,
    Output, OutputStream, PlatformFolders, Push, Times, Transport,
};
use forge_image::Reference;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::Status;

/// What an exporter has to do, read before anything runs.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Image(ImageOutput),
    Oci(ImageOutput),
    /// Into the content store of the client.
    Layout(ImageOutput),
    Docker(ImageOutput),
    Tar(FilesOutput),
    Local(FilesOutput),
    /// Forge's own: what would be done, and nothing of it is.
    Forecast,
}

/// The answer to the client: names and values.
pub(crate) type Response = HashMap<String, String>;

/// Reads what a client says of an output.
pub(crate) fn plan(exporter: &Exporter) -> Result<Plan, Status> {
    let attributes = &exporter.attrs;
    match exporter.r#type.as_str() {
        "image" => Ok(Plan::Image(image(attributes)?)),
        "oci" => match switch(attributes, "tar")? {
            Some(false) => Ok(Plan::Layout(image(attributes)?)),
            _ => Ok(Plan::Oci(image(attributes)?)),
        },
        "docker" => match switch(attributes, "tar")? {
            Some(false) => Ok(Plan::Layout(image(attributes)?)),
            _ => Ok(Plan::Docker(image(attributes)?)),
        },
        "tar" => files(attributes).map(Plan::Tar),
        "local" => {
            match attributes.get("mode").map(String::as_str) {
                None | Some("" | "copy" | "delete") => {}
                Some(other) => return Err(Status::unknown(format!("invalid local exporter mode {other:?}"))),
            }
            files(attributes).map(Plan::Local)
        }
        forge_engine::PLAN_OUTPUT => Ok(Plan::Forecast),
        other => Err(Status::unknown(format!("exporter {other:?} could not be found"))),
    }
}

/// `true`, `1`, nothing at all; and their opposites.
fn switch(attributes: &HashMap<String, String>, name: &str) -> Result<Option<bool>, Status> {
    match attributes.get(name).map(String::as_str) {
        None => Ok(None),
        Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(_) => Err(Status::unknown(format!("non-bool value specified for {name}"))),
    }
}

fn files(attributes: &HashMap<String, String>) -> Result<FilesOutput, Status> {
    let folders = switch(attributes, "platform-split")?.map(|split| match split {
        true => PlatformFolders::Always,
        false => PlatformFolders::Never,
    });
    let attestation_prefix = attributes.get("attestation-prefix").cloned().unwrap_or_default();
    Ok(FilesOutput { epoch: epoch(attributes)?, folders, attestation_prefix })
}

fn epoch(attributes: &HashMap<String, String>) -> Result<Epoch, Status> {
    match attributes.get("source-date-epoch").map(String::as_str) {
        None => Ok(Epoch::OfBuild),
        Some("") => Ok(Epoch::Unset),
        Some(text) => text.parse().map(Epoch::At).map_err(|_| Status::unknown("invalid SOURCE_DATE_EPOCH")),
    }
}

fn image(attributes: &HashMap<String, String>) -> Result<ImageOutput, Status> {
    let names = attributes.get("name").map(String::as_str).unwrap_or_default();
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "*");
    let parse = |name: &str| -> Result<Reference, Status> {
        name.parse().map_err(|error| Status::unknown(format!("failed to parse {name}: {error}")))
    };
    let is = |name: &str| Ok::<_, Status>(switch(attributes, name)?.unwrap_or(false));
    let transport = if is("registry.insecure")? { Transport::Plain } else { Transport::Configured };
    let push = match (is("push")?, is("push-by-digest")?) {
        (true, true) => Push::Digest(transport),
        (true, false) => Push::Names(transport),
        (false, _) => Push::No,
    };
    let prefix = attributes.get("dangling-name-prefix").filter(|prefix| !prefix.is_empty());
    let output = ImageOutput {
        names: names.map(parse).collect::<Result<_, _>>()?,
        digest_names: DigestNames {
            canonical: is("name-canonical")?,
            prefix: prefix.map(|prefix| parse(prefix)).transpose()?,
            prefix_only_without_names: is("danging-name-empty-only")?,
        },
        push,
        // Clients want its descriptor.
        keep: if switch(attributes, "store")?.unwrap_or(true) { Keep::Manifest } else { Keep::Nothing },
        compression: compression(attributes)?,
        force_compression: is("force-compression")?,
        media_types: match switch(attributes, "oci-mediatypes")? {
            Some(false) => MediaTypes::Docker,
            _ => MediaTypes::Oci,
        },
        annotations: annotations(attributes)?,
        // Over this interface the times of files are changed only when that is asked for.
        times: Times { epoch: epoch(attributes)?, rewrite: Some(is("rewrite-timestamp")?) },
        existing_blobs: ExistingBlobs::Kept,
        nondistributable: match is("prefer-nondist-layers")? {
            true => Nondistributable::Referred,
            false => Nondistributable::Embedded,
        },
        attestation_form: match switch(attributes, "oci-artifact")? {
            Some(false) => AttestationForm::Image,
            _ => AttestationForm::Artifact,
        },
    };
    Ok(output)
}

/// `annotation-index[linux/amd64].key`.
fn annotations(attributes: &HashMap<String, String>) -> Result<Vec<Annotation>, Status> {
    let mut found = Vec::new();
    for (name, value) in attributes {
        let Some(rest) = name.strip_prefix("annotation") else { continue };
        let Some((place, key)) = split_place(rest) else { continue };
        let (scope, platform) = match place.split_once('[') {
            Some((scope, platform)) => (scope, Some(platform.trim_end_matches(']'))),
            None => (place, None),
        };
        let scope = match scope {
            "" | "-manifest" => AnnotationScope::Manifest,
            "-manifest-descriptor" => AnnotationScope::ManifestDescriptor,
            "-index" => AnnotationScope::Index,
            "-index-descriptor" => AnnotationScope::IndexDescriptor,
            _ => return Err(Status::unknown(format!("unrecognized annotation type {scope}"))),
        };
        let platform = platform.map(str::parse).transpose();
        let platform = platform.map_err(|error| Status::unknown(format!("invalid platform in {name}: {error}")))?;
        found.push(Annotation { scope, platform, key: key.to_owned(), value: value.clone() });
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

/// At the dot that ends the place; platforms may hold dots.
fn split_place(text: &str) -> Option<(&str, &str)> {
    let from = text.find(']').unwrap_or(0);
    let dot = from + text[from..].find('.')?;
    Some((&text[..dot], &text[dot + 1..]))
}

fn compression(attributes: &HashMap<String, String>) -> Result<Option<LayerCompression>, Status> {
    let level = attributes.get("compression-level").filter(|level| !level.is_empty());
    let level: Option<i32> = level
        .map(|level| level.parse().map_err(|_| Status::unknown("non-integer value specified for compression-level")))
        .transpose()?;
    match attributes.get("compression").map(String::as_str) {
        None | Some("") => Ok(level.map(|level| LayerCompression::Gzip(u32::try_from(level).ok()))),
        Some("uncompressed") => Ok(Some(LayerCompression::Uncompressed)),
        Some("gzip") => Ok(Some(LayerCompression::Gzip(level.and_then(|level| u32::try_from(level).ok())))),
        Some("zstd") => Ok(Some(LayerCompression::Zstd(level))),
        // Which BuildKit has not.
        Some("zstd:chunked") => Ok(Some(LayerCompression::ZstdChunked(level))),
        Some("estargz") => Ok(Some(LayerCompression::Estargz(level.and_then(|level| u32::try_from(level).ok())))),
        Some(other) => Err(Status::unknown(format!("unsupported compression type {other}"))),
    }
}

/// What an output made, where that is an image of the store.
pub(crate) fn descriptor(plan: &Plan, response: &Response) -> Option<Descriptor> {
    let Plan::Image(_) = plan else { return None };
    let told = STANDARD.decode(response.get("containerimage.descriptor")?).ok()?;
    let told: forge_image::Descriptor = serde_json::from_slice(&told).ok()?;
    Some(Descriptor {
        media_type: told.media_type.to_string(),
        digest: told.digest.to_string(),
        size: i64::try_from(told.size).ok()?,
        annotations: HashMap::new(),
    })
}

/// Writes a result where the client wants it. `number` is the output's place among the client's.
pub(crate) async fn export(
    plan: &Plan,
    number: usize,
    job: &Job,
    base: BuildRequest,
    session: Option<&Arc<ClientSession>>,
    solution: &Solution,
    files: &SessionFiles,
) -> Result<Response, Status> {
    let told;
    let plan = match told_by(solution, plan)? {
        Some(changed) => {
            told = changed;
            &told
        }
        None => plan,
    };
    let client = || session.ok_or_else(|| Status::failed_precondition("the build has no session to export to"));
    match plan {
        Plan::Image(image) => to_engine(job, base, Output::Image(image.clone()), solution).await,
        Plan::Oci(image) => {
            let output = |destination| Output::Oci(image.clone(), destination);
            to_stream(job, base, client()?, number, output, solution).await
        }
        Plan::Layout(image) => to_content(job, base, client()?, image, solution, files).await,
        Plan::Docker(_) if solution.is_map => {
            Err(Status::unknown("docker exporter does not currently support exporting manifest lists"))
        }
        Plan::Docker(image) => {
            let output = |destination| Output::Docker(image.clone(), destination);
            to_stream(job, base, client()?, number, output, solution).await
        }
        Plan::Tar(files) => {
            let folders = files.folders.or(solution.is_map.then_some(PlatformFolders::Always));
            let files = FilesOutput { folders, ..files.clone() };
            let output = |destination| Output::Tar(files, destination);
            to_stream(job, base, client()?, number, output, solution).await
        }
        Plan::Local(files) => to_folder(job, client()?, number, files, solution).await,
        Plan::Forecast => Err(Status::invalid_argument("a build is planned or made")),
    }
}

/// The plan with what the result brings along: the name, where the client gave none, and annotations.
fn told_by(solution: &Solution, plan: &Plan) -> Result<Option<Plan>, Status> {
    let (Plan::Image(image) | Plan::Oci(image) | Plan::Layout(image) | Plan::Docker(image)) = plan else {
        return Ok(None);
    };
    let mut image = image.clone();
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    if let Some(name) = solution.metadata.get("image.name").filter(|_| image.names.is_empty()) {
        image.names = self::image(&HashMap::from([("name".to_owned(), text(name))]))?.names;
    }
    let metadata = solution.metadata.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    // The client's own are the last word.
    let own = std::mem::replace(&mut image.annotations, annotations(&metadata)?);
    image.annotations.extend(own);
    Ok(Some(match plan {
        Plan::Image(_) => Plan::Image(image),
        Plan::Oci(_) => Plan::Oci(image),
        Plan::Layout(_) => Plan::Layout(image),
        _ => Plan::Docker(image),
    }))
}

async fn to_engine(job: &Job, base: BuildRequest, output: Output, solution: &Solution) -> Result<Response, Status> {
    let mut request = BuildRequest { outputs: vec![output], ..base };
    if solution.is_map {
        // Results that are known by their platforms are an index, even of one.
        request.build_args.insert("BUILDKIT_MULTI_PLATFORM".to_owned(), "true".to_owned());
    }
    // A thread's stack would not hold it all.
    let outcome = Box::pin(job.export(request, &solution.images)).await.map_err(|error| reply::status(&error))?;
    Ok(response(&outcome))
}

async fn to_stream(
    job: &Job,
    base: BuildRequest,
    client: &Arc<ClientSession>,
    number: usize,
    output: impl FnOnce(Destination) -> Output,
    solution: &Solution,
) -> Result<Response, Status> {
    // What it needs runs before the client makes a file for it.
    solution.evaluate(job).await?;
    let (opened, taken) = oneshot::channel();
    let session = client.clone();
    let open = move |metadata: &Metadata| {
        let told = told(metadata);
        let (writer, taken) = send::stream(&session, number, &told)
            .map_err(|status| std::io::Error::other(status.message().to_owned()))?;
        // Whoever waits is still there: it is what runs this.
        let _ = opened.send((taken, told));
        Ok::<Box<dyn std::io::Write + Send>, _>(Box::new(writer))
    };
    let destination = Destination::Stream(OutputStream::opening(open));
    let written = to_engine(job, base, output(destination), solution).await;
    // Nothing was sent: the reason is the engine's.
    let Ok((taken, told)) = taken.await else { return written };
    let taken = match &written {
        // Whoever failed to write holds the stream no more; the client's reason is the better one.
        Err(_) => tokio::time::timeout(std::time::Duration::from_secs(1), taken).await.unwrap_or(Ok(Ok(Taken::Whole))),
        Ok(_) => taken.await,
    };
    match taken.map_err(|error| Status::internal(error.to_string()))?? {
        Taken::Unwanted => Ok(written.unwrap_or(told)),
        Taken::Whole => written,
    }
}

/// The client itself adds what was written to the index of its layout.
async fn to_content(
    job: &Job,
    base: BuildRequest,
    client: &Arc<ClientSession>,
    image: &ImageOutput,
    solution: &Solution,
    files: &SessionFiles,
) -> Result<Response, Status> {
    let folder = files.scratch().map_err(|error| Status::internal(error.to_string()))?;
    let output = Output::Oci(image.clone(), Destination::Directory(folder.path().join("layout")));
    let response = to_engine(job, base, output, solution).await?;
    content::push_layout(client, "export", &folder.path().join("layout")).await?;
    Ok(response)
}

async fn to_folder(
    job: &Job,
    client: &Arc<ClientSession>,
    number: usize,
    files: &FilesOutput,
    solution: &Solution,
) -> Result<Response, Status> {
    let split = files.folders.map_or(solution.is_map, |folders| folders == PlatformFolders::Always);
    solution.evaluate(job).await?;
    let mut trees = Vec::new();
    for image in &solution.images {
        let Some(result) = &image.result else { continue };
        let tree = job.tree(result).await.map_err(|error| reply::status(&error))?;
        let key = platform_key(&image.platform);
        let folder = split.then(|| key.replace('/', "_"));
        let platform = (solution.is_map && !split).then(|| image.platform.clone());
        let statements = job.statement_files(image, tree.clone(), &files.attestation_prefix, platform).await;
        let statements = statements.map_err(|error| reply::status(&error))?;
        trees.push(SentTree { folder, platform: key, tree, statements });
    }
    // Lists are in the order of names.
    trees.sort_by(|a: &SentTree, b| a.folder.cmp(&b.folder));
    let epoch = files.epoch.with(solution.images.iter().find_map(|image| image.source_date_epoch));
    send::trees(client, number, trees, epoch).await?;
    Ok(Response::new())
}

/// What the client is told of an image.
fn response(outcome: &BuildOutcome) -> Response {
    told(outcome.metadata.iter().map(|(name, value)| (name, value)))
}

fn told<'a>(metadata: impl IntoIterator<Item = (&'a String, &'a serde_json::Value)>) -> Response {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => STANDARD.encode(other.to_string()),
    };
    metadata.into_iter().map(|(name, value)| (name.clone(), text(value))).collect()
}
