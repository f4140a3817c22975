//! What clients are told of steps that failed.

use crate::client::TestDaemon;
use crate::steered::{BASE, Steered, root, shell};
use crate::{Test, run};
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::frontend::NewContainerRequest;
use forge_buildkit_proto::pb;
use prost::Message;
use tonic::Status;

pub const TESTS: &[Test] = &[
    ("privileged_what_a_failed_process_left_can_be_looked_at", process),
    ("privileged_what_a_failed_copy_was_to_change_can_be_looked_at", copy),
    ("privileged_an_input_that_could_not_be_read_can_be_looked_at", key),
];

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

fn process() {
    run(async {
        let daemon = TestDaemon::start().await;
        let run = "FROM base AS bad\nRUN --mount=type=bind,from=base,target=/rw,rw echo kept >/data && echo seen >/rw/f && false\n";
        let build = Steered::begin_with(&daemon, "b", &format!("{BASE}{run}")).await;
        let failed = build.stage("bad").await.unwrap_err();
        assert!(failed.message().contains("did not complete successfully: exit code: 1"), "{failed}");
        let solve = told(&failed);
        let Some(pb::op::Op::Exec(exec)) = solve.op.and_then(|op| op.op) else { panic!("{failed:?}") };
        assert_eq!((solve.input_ids.len(), solve.mount_ids.len()), (exec.mounts.len(), exec.mounts.len()));
        assert_eq!((solve.file, solve.cache), (None, None));
        let place = |target: &str| exec.mounts.iter().position(|mount| mount.dest == target).unwrap();
        let writable = pb::Mount { dest: "/rw".into(), ..root(&solve.mount_ids[place("/rw")]) };
        let mounts = vec![root(&solve.mount_ids[place("/")]), writable];
        assert_eq!(look(&build, mounts, "cat /data /rw/f").await, "kept\nseen\n");
        let given = vec![root(&solve.input_ids[place("/")])];
        assert_eq!(look(&build, given, "ls /data >/dev/null 2>&1 || echo nothing").await, "nothing\n");
        // Told once more it is the same.
        assert_eq!(told(&build.stage("bad").await.unwrap_err()).mount_ids.len(), exec.mounts.len());
        build.finish().await.unwrap();
    });
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

fn key() {
    run(async {
        let daemon = TestDaemon::start().await;
        let run = "FROM base AS other\nRUN echo kept >/data\nFROM base AS bad\nRUN --mount=type=bind,from=other,source=/none,target=/x true\n";
        let build = Steered::begin_with(&daemon, "b", &format!("{BASE}{run}")).await;
        let solve = told(&build.stage("bad").await.unwrap_err());
        assert!(solve.file.is_none() && solve.cache.is_some(), "{solve:?}");
        assert_eq!((solve.input_ids.len(), solve.mount_ids.len()), (1, 0));
        assert_eq!(look(&build, vec![root(&solve.input_ids[0])], "cat /data").await, "kept\n");
        build.finish().await.unwrap();
    });
}
