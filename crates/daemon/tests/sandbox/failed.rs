//! What clients are told of steps that failed.

use crate::client::TestDaemon;
use crate::steered::{BASE, Steered, root, shell};
use crate::{Test, run};
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::frontend::NewContainerRequest;
use forge_buildkit_proto::pb;
use prost::Message;
use tonic::Status;

pub const TESTS: &[Test] = &[("privileged_what_a_failed_copy_was_to_change_can_be_looked_at", copy)];

/// BuildKit's `errdefs.Solve`, as a client reads it.
#[derive(Clone, PartialEq, Message)]
struct Solve {
    #[prost(string, repeated, tag = "1")]
    input_ids: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    mount_ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    op: Option<pb::Op>,
    #[prost(message, optional, tag = "4")]
    file: Option<Place>,
    #[prost(message, optional, tag = "5")]
    cache: Option<Place>,
}

#[derive(Clone, PartialEq, Message)]
struct Place {
    #[prost(int64, tag = "1")]
    index: i64,
}

fn told(failed: &Status) -> Solve {
    let details = rpc::Status::decode(failed.details()).unwrap().details;
    let detail = details.iter().find(|detail| detail.type_url.ends_with("/errdefs.Solve"));
    Solve::decode(detail.unwrap_or_else(|| panic!("{details:?}")).value.as_slice()).unwrap()
}

/// What a shell says in a container on some results.
async fn look(build: &Steered, mounts: Vec<pb::Mount>, script: &str) -> String {
    let id = format!("looking {script}");
    let request = NewContainerRequest { container_id: id.clone(), mounts, ..NewContainerRequest::default() };
    build.container_with(request).await.unwrap();
    let said = build.processes().await.run("1", shell(&id, script)).await;
    build.release(&id).await.unwrap();
    said.output
}

fn copy() {
    run(async {
        let daemon = TestDaemon::start().await;
        let run = "FROM base AS bad\nRUN echo kept >/data\nCOPY busybox /data/x\n";
        let build = Steered::begin_with(&daemon, "b", &format!("{BASE}{run}")).await;
        let solve = told(&build.stage("bad").await.unwrap_err());
        assert!(matches!(solve.op.and_then(|op| op.op), Some(pb::op::Op::File(_))));
        assert_eq!((solve.file, solve.cache), (Some(Place { index: 0 }), None));
        assert_eq!((solve.input_ids.len(), solve.mount_ids.len()), (2, 1));
        assert_eq!(look(&build, vec![root(&solve.mount_ids[0])], "cat /data").await, "kept\n");
        build.finish().await.unwrap();
    });
}
