//! Limits of steps in the metadata of definitions, as clients of the newest BuildKit send them.

use crate::client::TestDaemon;
use crate::steered::Steered;
use crate::{Test, run};
use forge_buildkit_proto::moby::buildkit::v1::SolveResponse;
use forge_buildkit_proto::moby::buildkit::v1::frontend as wire;
use forge_buildkit_proto::pb;
use forge_image::Digest;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

pub const TESTS: &[Test] =
    &[("privileged_limits_in_metadata_hold", hold), ("privileged_limits_that_are_none", refused)];

/// What a build is asked for, its definition as bytes: the generated type has no field for limits.
#[derive(Clone, PartialEq, Message)]
struct Solve {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(bytes = "vec", tag = "2")]
    definition: Vec<u8>,
    #[prost(string, tag = "5")]
    session: String,
}

/// The same of a front end.
#[derive(Clone, PartialEq, Message)]
struct BridgeSolve {
    #[prost(bytes = "vec", tag = "1")]
    definition: Vec<u8>,
    #[prost(bool, tag = "5")]
    allow_result_return: bool,
    #[prost(bool, tag = "14")]
    evaluate: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    vertex: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(map = "string, bool", tag = "5")]
    caps: std::collections::HashMap<String, bool>,
    #[prost(message, optional, tag = "7")]
    linux_resources: Option<Resources>,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(int64, tag = "1")]
    memory: i64,
}

#[derive(Clone, PartialEq, Message)]
struct More {
    #[prost(message, repeated, tag = "2")]
    metadata: Vec<Entry>,
}

/// A shell's script on a result, with so much memory.
fn limited(base: &pb::Definition, script: &str, memory: i64) -> Vec<u8> {
    let mut definition = base.clone();
    let goal = pb::Op::decode(definition.def.pop().unwrap().as_slice()).unwrap();
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let env = vec!["PATH=/bin".to_owned()];
    let meta = pb::Meta { args, env, cwd: "/".to_owned(), ..pb::Meta::default() };
    let root = pb::Mount { dest: "/".to_owned(), ..pb::Mount::default() };
    let exec = pb::ExecOp { meta: Some(meta), mounts: vec![root], ..pb::ExecOp::default() };
    let op = pb::Op { inputs: goal.inputs, op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() }.encode_to_vec();
    let vertex = Digest::sha256(&op).to_string();
    let goal = pb::Op { inputs: vec![pb::Input { digest: vertex.clone(), index: 0 }], ..pb::Op::default() };
    definition.def.extend([op, goal.encode_to_vec()]);
    let linux_resources = Some(Resources { memory });
    let caps = [("exec.meta.linux.resources".to_owned(), true)].into();
    let entry = Entry { vertex, metadata: Some(Metadata { caps, linux_resources }) };
    let mut bytes = definition.encode_to_vec();
    bytes.extend(More { metadata: vec![entry] }.encode_to_vec());
    bytes
}

/// Calls a method with a message of the test's own.
async fn call<A, B>(build: &Steered, method: &'static str, request: Request<A>) -> Result<B, Status>
where
    A: Message + 'static,
    B: Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(build.client.channel.clone());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<A, B>::default();
    Ok(grpc.unary(request, PathAndQuery::from_static(method), codec).await?.into_inner())
}

async fn steered(build: &Steered, definition: Vec<u8>) -> Result<wire::SolveResponse, Status> {
    let asked = BridgeSolve { definition, allow_result_return: true, evaluate: true };
    call(build, "/moby.buildkit.v1.frontend.LLBBridge/Solve", build.request(asked)).await
}

async fn direct(build: &Steered, reference: &str, definition: Vec<u8>) -> Result<SolveResponse, Status> {
    let session = format!("session-{}", build.reference);
    let asked = Solve { reference: reference.to_owned(), definition, session };
    call(build, "/moby.buildkit.v1.Control/Solve", Request::new(asked)).await
}

/// Whether this machine can bound memory.
fn has_memory_controller() -> bool {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "memory")
        || std::path::Path::new("/sys/fs/cgroup/memory").is_dir()
}

/// Takes 100 MiB, and ends otherwise each time that the number is another one.
fn eater(number: u32) -> String {
    format!("dd if=/dev/zero bs=100M count=1 of=/dev/null; code=$?; echo {number}; exit $code")
}

/// Seen to fail with requests read as the generated types have them.
fn hold() {
    run(async {
        let daemon = TestDaemon::start().await;
        let build = Steered::begin(&daemon, "b").await;
        let base = build.definition("base").await;
        // A machine without a memory controller says so instead.
        let enforced = has_memory_controller();
        let (small, large) = (32 << 20, 1 << 30);
        for (number, memory, fails) in [(1, small, true), (2, large, false), (3, 0, false)] {
            let fails = fails && enforced;
            let within = steered(&build, limited(&base, &eater(number), memory)).await;
            assert_eq!(within.is_err(), fails, "{number}: {within:?}");
            let alone = direct(&build, &format!("alone-{number}"), limited(&base, &eater(10 + number), memory)).await;
            assert_eq!(alone.is_err(), fails, "{number}: {alone:?}");
        }
        // What a step may take is no part of what it is: it is found.
        direct(&build, "again", limited(&base, &eater(12), small)).await.unwrap();
        build.finish().await.unwrap();
    });
}

fn refused() {
    run(async {
        let daemon = TestDaemon::start().await;
        let build = Steered::begin(&daemon, "b").await;
        let base = build.definition("base").await;
        for failed in [
            steered(&build, limited(&base, "true", -2)).await.unwrap_err(),
            direct(&build, "other", limited(&base, "true", -2)).await.unwrap_err(),
        ] {
            assert!(failed.message().contains("invalid memory limit -2"), "{failed}");
        }
        build.finish().await.unwrap();
    });
}
