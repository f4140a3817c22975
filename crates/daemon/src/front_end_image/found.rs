//! Where a front end comes from: an image, what a client calls by its name, or another front end.

use crate::frontend::input_config;
use crate::reply;
use crate::solve::{FrontendRequest, JobContext};
use forge_buildkit_proto::pb;
use forge_engine::{Job, JobResult};
use forge_image::{Digest, ImageConfig, Platform, Reference};
use forge_llb::ResolveMode;
use prost::Message;
use std::collections::BTreeMap;
use tonic::Status;

/// The option by which a front end is built before it is run; its own options have the second as their beginning.
const DEVELOPED: (&str, &str) = ("gateway-devel", "gateway-");

/// A front end that was found.
pub(super) struct FrontEnd {
    pub name: String,
    pub files: JobResult,
    pub config: ImageConfig,
    /// The image that it is, where it is one.
    pub image: Option<(Reference, Digest)>,
}

impl JobContext {
    /// The files and config of a front end.
    pub(super) async fn find_front_end(&self, name: String, request: &FrontendRequest) -> Result<FrontEnd, Status> {
        if request.options.contains_key(DEVELOPED.0) {
            return self.developed(name, request).await;
        }
        match request.options.get(&format!("context:{name}")).map(String::as_str) {
            None => {
                let image = name.clone();
                self.front_end_of_image(name, &image).await
            }
            Some(context) => match (context.strip_prefix("input:"), context.strip_prefix("docker-image://")) {
                (Some(input), _) => self.front_end_of_input(name, input, request).await,
                (_, Some(image)) => self.front_end_of_image(name, image).await,
                (None, None) => {
                    Err(Status::unimplemented(format!("front end {name}: the context {context:.100} is not supported")))
                }
            },
        }
    }

    /// What another front end makes.
    async fn developed(&self, name: String, request: &FrontendRequest) -> Result<FrontEnd, Status> {
        let own = request.options.iter().filter_map(|(key, value)| Some((key.strip_prefix(DEVELOPED.1)?, value)));
        let asked = FrontendRequest {
            frontend: name.clone(),
            options: own.map(|(key, value)| (key.to_owned(), value.clone())).collect(),
            definition: None,
            inputs: request.inputs.clone(),
            root: None,
        };
        let solution = Box::pin(self.frontend(asked)).await?;
        let none = || Status::unknown(format!("front end {name}: its build has no single result"));
        let [image] = solution.images.as_slice() else { return Err(none()) };
        let files = image.result.clone().ok_or_else(none)?;
        Ok(FrontEnd { name: format!("{name} (devel)"), files, config: image.config.clone(), image: None })
    }

    async fn front_end_of_input(
        &self,
        name: String,
        input: &str,
        request: &FrontendRequest,
    ) -> Result<FrontEnd, Status> {
        let definition = request.inputs.get(input);
        let definition = definition.ok_or_else(|| Status::unknown(format!("invalid input {input} for {name}")))?;
        let files = self.files_of(&name, definition).await?;
        let config = input_config(&request.options, &name)?;
        let config = config.map_or_else(|| Job::default_config(&Platform::host()), |config| *config);
        Ok(FrontEnd { name, files, config, image: None })
    }

    async fn front_end_of_image(&self, name: String, image: &str) -> Result<FrontEnd, Status> {
        let failed = |error: String| Status::unknown(format!("failed to parse front end {image:?}: {error}"));
        let reference: Reference = image.parse().map_err(|error| failed(format!("{error}")))?;
        let source = source(format!("docker-image://{reference}"));
        let judged = self.job.checked(source, None).await.map_err(|error| reply::status(&error))?;
        let Some(judged) = judged.identifier.strip_prefix("docker-image://") else {
            return Err(failed(format!("it is to be {}, which is no image", judged.identifier)));
        };
        let reference: Reference = judged.parse().map_err(|error| failed(format!("{error}")))?;
        let step = format!("resolve image config for docker-image://{reference}");
        let found = self.job.resolve_image(&reference, &Platform::host(), ResolveMode::PreferLocal, &step).await;
        let found = found.map_err(|error| reply::status(&error))?;
        let files = self.files_of(&name, &image_definition(&reference, &found.digest)).await?;
        Ok(FrontEnd { name, files, config: found.config, image: Some((reference, found.digest)) })
    }

    async fn files_of(&self, name: &str, definition: &pb::Definition) -> Result<JobResult, Status> {
        let result = self.job.definition(definition.encode_to_vec(), false).await;
        let result = result.map_err(|error| reply::status(&error))?;
        result.ok_or_else(|| Status::unknown(format!("front end {name} has no files")))
    }

    /// A folder with the definition of a front end's files, as it finds it at run time.
    pub(super) async fn own_definition(&self, front_end: &FrontEnd) -> Result<JobResult, Status> {
        let own = front_end.files.definition().map_err(|error| reply::status(&error))?;
        let step = format!("metadata of front end {}", front_end.name);
        self.files_of(&front_end.name, &file_definition("/frontend.bin", own, &step)).await
    }
}

pub(super) fn label<'a>(config: &'a ImageConfig, name: &str) -> Option<&'a str> {
    config.config.labels.get(name)?.as_str()
}

fn source(identifier: String) -> pb::SourceOp {
    pb::SourceOp { identifier, ..pb::SourceOp::default() }
}

/// An image by its digest, as the only step of a definition.
fn image_definition(reference: &Reference, digest: &Digest) -> pb::Definition {
    let name = format!("docker-image://{}", reference.with_digest(digest.clone()));
    let platform = Some(forge_buildkit_proto::encode_platform(&Platform::host()));
    let op = pb::Op { op: Some(pb::op::Op::Source(source(name))), platform, ..pb::Op::default() };
    definition(&op, pb::OpMetadata::default())
}

/// A file, as the only step of a definition.
fn file_definition(path: &str, data: Vec<u8>, name: &str) -> pb::Definition {
    let file = pb::FileActionMkFile {
        path: path.to_owned(),
        mode: 0o444,
        data,
        // The same folder every time: it is found in the cache.
        timestamp: 0,
        ..pb::FileActionMkFile::default()
    };
    let action = pb::FileAction {
        input: -1,
        secondary_input: -1,
        output: 0,
        action: Some(pb::file_action::Action::Mkfile(file)),
    };
    let op = pb::op::Op::File(pb::FileOp { actions: vec![action] });
    let op = pb::Op { op: Some(op), ..pb::Op::default() };
    let description = BTreeMap::from([("llb.customname".to_owned(), name.to_owned())]);
    definition(&op, pb::OpMetadata { description, ..pb::OpMetadata::default() })
}

fn definition(op: &pb::Op, metadata: pb::OpMetadata) -> pb::Definition {
    let bytes = op.encode_to_vec();
    let digest = Digest::sha256(&bytes).to_string();
    let goal = pb::Op { inputs: vec![pb::Input { digest: digest.clone(), index: 0 }], ..pb::Op::default() };
    let metadata = BTreeMap::from([(digest, metadata)]);
    pb::Definition { def: vec![bytes, goal.encode_to_vec()], metadata, ..pb::Definition::default() }
}
