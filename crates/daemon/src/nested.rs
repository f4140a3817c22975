//! Builds within the definitions of clients: each is replaced by what it makes before the whole is looked at.

use crate::bridge::{blocking, read_file};
use crate::reply;
use forge_buildkit_proto::moby::buildkit::v1::frontend::ReadFileRequest;
use forge_buildkit_proto::{DecodeError, nested_build, pb};
use forge_engine::{EngineError, Job};
use prost::Message;
use tonic::Status;

/// As many are replaced in one definition: one may make the next.
const MOST: usize = 32;

/// Replaces all nested builds; what has their definitions is built for that.
///
/// # Errors
/// One is of a kind that there is not, has no definition, or cannot be built so far; there are too many.
pub(crate) async fn expand(job: &Job, mut definition: pb::Definition) -> Result<pb::Definition, Status> {
    for _ in 0..=MOST {
        let (given, found) = blocking(move || {
            let found = nested_build(&definition).map_err(refused)?;
            Ok((definition, found))
        })
        .await?;
        let Some(nested) = found else { return Ok(given) };
        let input = job.definition(nested.input.encode_to_vec(), false).await.map_err(|error| reply::status(&error))?;
        let empty = || Status::unknown(format!("failed to open {}: no such file or directory", nested.file));
        let tree = job.tree(&input.ok_or_else(empty)?).await.map_err(|error| reply::status(&error))?;
        definition = blocking(move || {
            let request = ReadFileRequest { file_path: nested.file.clone(), ..ReadFileRequest::default() };
            let file = read_file(&tree, &request)?.data;
            let by = forge_buildkit_proto::definition(&file);
            let by = by.map_err(|error| Status::unknown(format!("{} is no definition: {error}", nested.file)))?;
            nested.replace(&given, &by).map_err(refused)
        })
        .await?;
    }
    Err(Status::invalid_argument(format!("the definition has more than {MOST} nested builds")))
}

fn refused(error: DecodeError) -> Status {
    reply::status(&EngineError::caused(error.kind(), error))
}
