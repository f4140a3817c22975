//! What clients are told of a step that failed, so that they can look at what it was given and what it left.

use crate::bridge::Bridge;
use crate::reply;
use crate::solution::Found;
use forge_buildkit_proto::google::protobuf::Any;
use forge_buildkit_proto::pb;
use forge_engine::{FailedOp, FailedPart, JobResult};
use prost::Message;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tonic::Status;

/// The detail as protobuf. BuildKit writes its JSON form, which has a name for each kind of op; its clients read both, since the
/// type is one of those that they know.
const SOLVE: &str = "type.googleapis.com/errdefs.Solve";

/// BuildKit's `errdefs.Solve`.
#[derive(Clone, PartialEq, Message)]
struct Solve {
    #[prost(string, repeated, tag = "1")]
    input_ids: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    mount_ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    op: Option<pb::Op>,
    #[prost(oneof = "Subject", tags = "4, 5")]
    subject: Option<Subject>,
    #[prost(map = "string, string", tag = "6")]
    description: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Subject {
    #[prost(message, tag = "4")]
    File(Place),
    #[prost(message, tag = "5")]
    Cache(Place),
}

/// BuildKit's `errdefs.FileAction` and `errdefs.ContentCache`.
#[derive(Clone, Copy, PartialEq, Message)]
struct Place {
    #[prost(int64, tag = "1")]
    index: i64,
}

/// What was told of steps that failed, by their vertices: once told, results keep their names.
#[derive(Default)]
pub(crate) struct ToldFailures(Mutex<HashMap<String, Any>>);

impl Bridge {
    /// A failure with what there is of the step, whose results have names from now on.
    pub(crate) fn with_results(&self, failed: Status) -> Status {
        let mut details = reply::details(&failed);
        if details.iter().any(|detail| detail.type_url == SOLVE) {
            return failed;
        }
        let Some(vertex) = reply::vertex_of(&details) else { return failed };
        let mut told = self.told.0.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = match told.get(&vertex) {
            Some(detail) => detail.clone(),
            None => {
                let found = vertex.parse().ok().and_then(|digest| self.job().failed_step(&digest));
                let Some(found) = found else { return failed };
                let detail = self.detail_of(found);
                told.insert(vertex, detail.clone());
                detail
            }
        };
        details.push(detail);
        reply::with_details(failed.code(), failed.message().to_owned(), details)
    }

    fn detail_of(&self, found: FailedOp) -> Any {
        let named = |result: Option<JobResult>| match result {
            Some(result) => self.name(Found { result, invocation: None }),
            None => String::new(),
        };
        let place = |index: usize| Place { index: i64::try_from(index).unwrap_or(i64::MAX) };
        let subject = match found.part {
            FailedPart::Process => None,
            FailedPart::Action(index) => Some(Subject::File(place(index))),
            FailedPart::Key(index) => Some(Subject::Cache(place(index))),
        };
        let solve = Solve {
            input_ids: found.inputs.into_iter().map(named).collect(),
            mount_ids: found.left.into_iter().map(named).collect(),
            op: found.op,
            subject,
            description: HashMap::new(),
        };
        Any { type_url: SOLVE.to_owned(), value: solve.encode_to_vec() }
    }
}
