//! Limits of steps: a field that the wire types do not have.

use forge_buildkit_proto::{Holder, decode, definition, definition_bytes, json_lines, pb, with_described_resources};
use forge_image::Digest;
use forge_llb::StepResources;
use prost::Message;
use std::collections::HashMap;

/// `LinuxResources` as BuildKit's newest `ops.proto` has it.
#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(int64, tag = "1")]
    memory: i64,
    #[prost(int64, tag = "2")]
    memory_swap: i64,
    #[prost(uint64, tag = "3")]
    cpu_shares: u64,
    #[prost(uint64, tag = "4")]
    cpu_period: u64,
    #[prost(int64, tag = "5")]
    cpu_quota: i64,
    #[prost(string, tag = "6")]
    cpuset_cpus: String,
    #[prost(string, tag = "7")]
    cpuset_mems: String,
}

/// The metadata of a vertex, as far as it matters.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(bool, tag = "1")]
    ignore_cache: bool,
    #[prost(map = "string, bool", tag = "5")]
    caps: HashMap<String, bool>,
    #[prost(message, optional, tag = "7")]
    linux_resources: Option<Resources>,
}

#[derive(Clone, PartialEq, Message)]
struct Definition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    def: Vec<Vec<u8>>,
    #[prost(map = "string, message", tag = "2")]
    metadata: HashMap<String, Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Solve {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(message, optional, tag = "2")]
    definition: Option<Definition>,
    #[prost(map = "string, message", tag = "10")]
    inputs: HashMap<String, Definition>,
}

fn limited(resources: Resources) -> Definition {
    let meta = pb::Meta { args: vec!["true".to_owned()], cwd: "/".to_owned(), ..pb::Meta::default() };
    let root = pb::Mount { dest: "/".to_owned(), input: -1, ..pb::Mount::default() };
    let exec = pb::ExecOp { meta: Some(meta), mounts: vec![root], ..pb::ExecOp::default() };
    let exec = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() }.encode_to_vec();
    let digest = Digest::sha256(&exec).to_string();
    let goal = pb::Op { inputs: vec![pb::Input { digest: digest.clone(), index: 0 }], ..pb::Op::default() };
    let caps = HashMap::from([("exec.meta.linux.resources".to_owned(), true)]);
    let metadata = Metadata { ignore_cache: true, caps, linux_resources: Some(resources) };
    Definition { def: vec![exec, goal.encode_to_vec()], metadata: HashMap::from([(digest, metadata)]) }
}

fn all() -> Resources {
    Resources {
        memory: 64 << 20,
        memory_swap: -1,
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpuset_cpus: "0-3".to_owned(),
        cpuset_mems: "0".to_owned(),
    }
}

fn read(bytes: &[u8]) -> Result<Option<StepResources>, String> {
    let decoded = decode(bytes).map_err(|error| error.to_string())?;
    let vertex = &decoded.graph.vertices()[0];
    assert!(vertex.metadata.ignore_cache);
    Ok(vertex.metadata.resources.as_deref().cloned())
}

fn expected() -> StepResources {
    StepResources {
        memory: Some(64 << 20),
        memory_swap: Some(-1),
        cpu_shares: Some(512),
        cpu_period: Some(100_000),
        cpu_quota: Some(50_000),
        cpuset_cpus: Some("0-3".to_owned()),
        cpuset_mems: Some("0".to_owned()),
    }
}

#[test]
fn limits_are_read_and_are_no_part_of_a_step() {
    let limited_bytes = limited(all()).encode_to_vec();
    assert_eq!(read(&limited_bytes).unwrap(), Some(expected()));
    let goal = |bytes: &[u8]| decode(bytes).unwrap().graph.goal().unwrap().vertex.clone();
    assert_eq!(goal(&limited_bytes), goal(&limited(Resources::default()).encode_to_vec()));
    // Zero is no limit, and neither is -1.
    assert_eq!(read(&limited(Resources::default()).encode_to_vec()).unwrap(), None);
    let none = Resources { memory: -1, cpu_quota: -1, ..Resources::default() };
    assert_eq!(read(&limited(none).encode_to_vec()).unwrap(), None);
}

#[test]
fn limits_survive_the_wire_types() {
    let whole = limited(all());
    let read_once = definition(&whole.encode_to_vec()).unwrap();
    // As it is handed on within messages of the older types, and as others read it.
    assert_eq!(read(&read_once.encode_to_vec()).unwrap(), Some(expected()));
    assert_eq!(Definition::decode(definition_bytes(&read_once).as_slice()).unwrap(), whole);
    let shown = json_lines(&read_once).unwrap();
    assert!(shown.contains(r#""linux_resources":{"#) && shown.contains(r#""memorySwap":-1"#), "{shown}");
    assert!(!shown.contains("forge."), "{shown}");
    // Within what a build is asked for: the definition itself, and the inputs of a front end.
    let inputs = HashMap::from([("base".to_owned(), whole.clone())]);
    let asked = Solve { reference: "r".to_owned(), definition: Some(whole), inputs }.encode_to_vec();
    let asked = with_described_resources(&asked, Holder::CONTROL_SOLVE).unwrap();
    let asked = forge_buildkit_proto::moby::buildkit::v1::SolveRequest::decode(asked.as_slice()).unwrap();
    assert_eq!((asked.r#ref.as_str(), asked.definition.as_ref()), ("r", Some(&read_once)));
    assert_eq!(asked.frontend_inputs["base"], read_once);
}

/// Meant to fail where what is written into a control group is taken as it comes.
#[test]
fn limits_that_are_none_are_refused() {
    for (resources, words) in [
        (Resources { memory: -2, ..all() }, "invalid memory limit -2"),
        (Resources { memory_swap: -2, ..all() }, "invalid memory swap limit -2"),
        (Resources { cpu_quota: i64::MIN, ..all() }, "invalid cpu quota limit -9223372036854775808"),
        (Resources { cpuset_cpus: "0;1".to_owned(), ..all() }, "invalid cpuset cpus limit \"0;1\""),
        (Resources { cpuset_mems: "../x".to_owned(), ..all() }, "invalid cpuset mems limit \"../x\""),
    ] {
        let refused = read(&limited(resources).encode_to_vec()).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    let mut garbage = definition(&limited(all()).encode_to_vec()).unwrap();
    let metadata = garbage.metadata.values_mut().find(|metadata| metadata.ignore_cache).unwrap();
    metadata.description.values_mut().for_each(|value| *value = "?".to_owned());
    assert!(read(&garbage.encode_to_vec()).unwrap_err().contains("its linux resources cannot be read"));
    assert!(with_described_resources(&[0x12, 0x7f], Holder::CONTROL_SOLVE).is_err());
}
