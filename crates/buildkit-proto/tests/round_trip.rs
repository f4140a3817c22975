//! What is written and read again is the same: graphs of Dockerfiles, and graphs of everything.

mod support;

use forge_buildkit_proto::{SourceFile, decode, definition_bytes, encode, pb};
use forge_frontend::{ImageKeySource, LowerOptions, Lowered, ResolvedImage, ResolvedImages, SourceTime, lower, parse};
use forge_image::{Digest, ErrorKind, ImageConfig, Platform};
use forge_llb::*;
use prost::Message as _;
use std::collections::HashMap;
use std::path::Path;

fn bytes(graph: &Graph, sources: &[SourceFile]) -> Vec<u8> {
    definition_bytes(&encode(graph, sources).unwrap())
}

/// The graph as a definition can hold it: only what is needed, a copy for each source.
fn plain(graph: &Graph) -> Graph {
    let mut plain = Graph::new();
    let mut edges: HashMap<VertexDigest, VertexDigest> = HashMap::new();
    for (digest, vertex) in graph.needed() {
        let mut vertex = vertex.clone();
        for edge in &mut vertex.inputs {
            edge.vertex = edges[&edge.vertex].clone();
        }
        if let Op::File(file) = &mut vertex.op {
            split_copies(file);
        }
        edges.insert(digest, plain.add(vertex).unwrap().vertex);
    }
    let goal = graph.goal().map(|edge| Edge { vertex: edges[&edge.vertex].clone(), output: edge.output });
    plain.set_goal(goal).unwrap();
    plain
}

fn split_copies(file: &mut FileOp) {
    let mut positions: Vec<usize> = Vec::new();
    let mut actions: Vec<FileAction> = Vec::new();
    for mut action in std::mem::take(&mut file.actions) {
        let moved = |input: FileInput| match input {
            FileInput::Action(earlier) => FileInput::Action(positions[earlier]),
            other => other,
        };
        action.base = moved(action.base);
        match action.kind {
            FileKind::Copy(copy) => {
                let from = moved(copy.from);
                for source in &copy.sources {
                    let one = CopyAction { from, sources: vec![source.clone()], ..copy.clone() };
                    actions.push(FileAction { base: action.base, kind: FileKind::Copy(one) });
                    action.base = FileInput::Action(actions.len() - 1);
                }
            }
            _ => actions.push(action),
        }
        positions.push(actions.len() - 1);
    }
    file.actions = actions;
}

fn limits(graph: &Graph) -> Vec<Option<&StepResources>> {
    graph.vertices().iter().map(|vertex| vertex.metadata.resources.as_deref()).collect()
}

#[track_caller]
fn check(graph: &Graph, sources: &[SourceFile], what: &str) {
    let first = bytes(graph, sources);
    let decoded = decode(&first).unwrap_or_else(|error| panic!("{what}: {error}\n{graph}"));
    assert_eq!(decoded.graph.to_string(), plain(graph).to_string(), "{what}");
    assert_eq!(limits(&decoded.graph), limits(&plain(graph)), "{what}");
    assert!(bytes(&decoded.graph, &decoded.sources) == first, "{what}: {graph}");
}

#[test]
fn p16_graphs_of_everything_survive() {
    for seed in 0..3000 {
        check(&support::graph(seed), &[], &format!("seed {seed}"));
    }
}

fn image(name: &str, platform: &Platform) -> ResolvedImage {
    let mut config = ImageConfig::new(platform);
    config.config.env = vec!["PATH=/bin".to_owned()];
    ResolvedImage { digest: Digest::sha256(name.as_bytes()), config, replaced: None }
}

/// The graph of a Dockerfile; `None` where it is refused.
fn lowered(text: &[u8]) -> Option<Graph> {
    let dockerfile = parse("Dockerfile", text).ok()?;
    let mut options = LowerOptions::new("linux/amd64".parse().unwrap());
    let mut known = ResolvedImages::new();
    loop {
        match lower(&dockerfile, &options, &known).ok()? {
            Lowered::Done(image) => return Some(image.graph),
            Lowered::Need(requests) => known.extend(requests.into_iter().map(|request| {
                let name = match &request.key.source {
                    ImageKeySource::Image(reference) => reference.to_string(),
                    ImageKeySource::OciLayout { name, .. } => name.clone(),
                };
                let image = image(&name, &request.key.platform);
                (request.key, image)
            })),
            Lowered::NeedTime(_) => options.source_time = SourceTime::Seconds(1),
        }
    }
}

#[test]
fn dockerfiles_survive() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/frontend");
    let mut survived = 0;
    for case in std::fs::read_dir(folder).unwrap() {
        let path = case.unwrap().path();
        let Ok(text) = std::fs::read(path.join("Dockerfile")) else { continue };
        let Some(graph) = lowered(&text) else { continue };
        let source =
            SourceFile { name: "Dockerfile".into(), data: text, language: "Dockerfile".into(), definition: Vec::new() };
        check(&graph, &[source], &path.display().to_string());
        survived += 1;
    }
    assert!(survived > 20, "{survived}");
}

#[test]
fn a_pinned_name_with_a_digest_stays_the_same_image() {
    let digest = Digest::sha256(b"index");
    let named = |reference: &str, pinned| ImageSource { pinned, ..ImageSource::new(reference.parse().unwrap()) };
    let with_tag = format!("alpine:3@{digest}");
    let without = format!("alpine@{digest}");
    for (written, read) in [
        (named(&with_tag, None), named("alpine:3", Some(digest.clone()))),
        (named(&with_tag, Some(digest.clone())), named("alpine:3", Some(digest.clone()))),
        (named(&without, None), named(&without, Some(digest.clone()))),
        (named(&without, Some(Digest::sha256(b"x"))), named(&without, Some(Digest::sha256(b"x")))),
    ] {
        let mut graph = Graph::new();
        let op = Op::Source(SourceOp::Image(written));
        let goal = graph.add(Vertex { op, inputs: vec![], platform: None, metadata: Metadata::default() }).unwrap();
        graph.set_goal(Some(goal)).unwrap();
        let decoded = decode(&bytes(&graph, &[])).unwrap().graph;
        assert_eq!(decoded.vertices()[0].op, Op::Source(SourceOp::Image(read)));
    }
}

#[test]
fn a_time_beyond_nanoseconds_is_refused() {
    let mut graph = support::graph(3);
    let rm = |timestamp| {
        let owner = None;
        let kind = FileKind::Mkdir(MkdirAction { path: "/x".into(), mode: 0, make_parents: true, owner, timestamp });
        Op::File(FileOp { actions: vec![FileAction { base: FileInput::Scratch, kind }] })
    };
    let metadata = Metadata { name: "mkdir".into(), ..Metadata::default() };
    let vertex = |timestamp| Vertex { op: rm(timestamp), inputs: vec![], platform: None, metadata: metadata.clone() };
    let goal = graph.add(vertex(Some(i64::MAX / 1000))).unwrap();
    graph.set_goal(Some(goal)).unwrap();
    assert!(encode(&graph, &[]).unwrap_err().to_string().contains("2262"));
    let goal = graph.add(vertex(Some(-1))).unwrap();
    graph.set_goal(Some(goal)).unwrap();
    check(&graph, &[], "a second before 1970");
}

/// The entries of a definition may stand in any order but for the last one.
#[test]
fn the_order_of_entries_does_not_matter() {
    for seed in 0..200 {
        let graph = support::graph(seed);
        let mut definition = encode(&graph, &[]).unwrap();
        let Some((_, others)) = definition.def.split_last_mut() else { continue };
        others.reverse();
        let shuffled = decode(&definition_bytes(&definition)).unwrap().graph;
        assert_eq!(shuffled.vertices().len(), graph.needed().len());
        for (digest, vertex) in decode(&bytes(&graph, &[])).unwrap().graph.named() {
            assert_eq!(shuffled.get(digest), Some(vertex));
        }
    }
}

/// Chains of merges are refused neither for their depth nor for their names.
#[test]
fn a115_long_chains_are_read() {
    let mut graph = Graph::new();
    let vertex = |op, inputs| Vertex { op, inputs, platform: None, metadata: Metadata::default() };
    let local = LocalSource::new("context");
    let mut edge = graph.add(vertex(Op::Source(SourceOp::Local(local)), vec![])).unwrap();
    for _ in 0..20_000 {
        edge = graph.add(vertex(Op::Merge, vec![edge.clone(), edge])).unwrap();
    }
    graph.set_goal(Some(edge)).unwrap();
    assert_eq!(decode(&bytes(&graph, &[])).unwrap().graph.vertices().len(), 20_001);
}

fn refused(definition: &pb::Definition) -> String {
    let error = decode(&definition_bytes(definition)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UserInput | ErrorKind::Unsupported));
    error.to_string()
}

/// A definition of those ops; each may name the ones before it, the last one's output is the result.
fn definition(ops: Vec<pb::Op>) -> pb::Definition {
    let def = ops.iter().map(pb::Op::encode_to_vec).collect();
    let mut definition = pb::Definition { def, ..pb::Definition::default() };
    let goal = pb::Input { digest: Digest::sha256(definition.def.last().unwrap()).to_string(), index: 0 };
    definition.def.push(pb::Op { inputs: vec![goal], ..pb::Op::default() }.encode_to_vec());
    definition
}

#[test]
fn a27_what_makes_no_sense_is_refused() {
    let op = |kind| pb::Op { op: Some(kind), ..pb::Op::default() };
    let exec = |exec: pb::ExecOp| refused(&definition(vec![op(pb::op::Op::Exec(exec))]));
    let file = |actions| refused(&definition(vec![op(pb::op::Op::File(pb::FileOp { actions }))]));
    let meta = Some(pb::Meta { args: vec!["x".into()], ..pb::Meta::default() });
    let root = pb::Mount { dest: "/".into(), input: -1, ..pb::Mount::default() };
    let mounts = |mounts: Vec<pb::Mount>| exec(pb::ExecOp { meta: meta.clone(), mounts, ..pb::ExecOp::default() });
    assert!(exec(pb::ExecOp::default()).contains("without meta"));
    assert!(mounts(vec![]).contains("without a root"));
    assert!(mounts(vec![root.clone(), root.clone()]).contains("several root"));
    assert!(mounts(vec![pb::Mount { input: 3, ..root.clone() }]).contains("no input 3"));
    assert!(mounts(vec![pb::Mount { output: 9, ..root.clone() }]).contains("output 9"));
    assert!(mounts(vec![pb::Mount { mount_type: 9, ..root.clone() }]).contains("type 9"));
    assert!(mounts(vec![pb::Mount { mount_type: 3, ..root.clone() }]).contains("no cache options"));
    assert!(mounts(vec![pb::Mount { result_id: "r".into(), ..root.clone() }]).contains("result by its id"));
    assert!(mounts(vec![root.clone(), pb::Mount { dest: "/b".into(), ..root.clone() }]).contains("same output"));
    assert!(file(vec![]).contains("without actions"));
    let rm = |input, output| pb::FileAction {
        input,
        secondary_input: -1,
        output,
        action: Some(pb::file_action::Action::Rm(pb::FileActionRm::default())),
    };
    assert!(file(vec![rm(0, 0)]).contains("neither an input nor before it"));
    assert!(file(vec![rm(-1, 0), rm(-1, 0)]).contains("not that of its last action"));
    assert!(file(vec![pb::FileAction { action: None, ..rm(-1, 0) }]).contains("unknown kind"));
    assert!(refused(&definition(vec![op(pb::op::Op::Build(pb::BuildOp::default()))])).contains("nested build"));
    let missing = pb::Input { digest: Digest::sha256(b"nowhere").to_string(), index: 0 };
    let merge = |inputs| pb::Op { inputs, ..op(pb::op::Op::Merge(pb::MergeOp::default())) };
    assert!(refused(&definition(vec![merge(vec![missing])])).contains("which the definition does not have"));
    let nonsense = pb::Input { digest: "nonsense".into(), index: -1 };
    assert!(refused(&definition(vec![merge(vec![nonsense])])).contains("needs nonsense"));
    let mut unnamed = definition(vec![merge(vec![])]);
    unnamed.def.pop();
    assert!(refused(&unnamed).contains("the last entry"));
    let filter = Some(pb::WorkerConstraints { filter: vec!["x".into()] });
    assert!(refused(&definition(vec![pb::Op { constraints: filter, ..merge(vec![]) }])).contains("choice of workers"));
    let platform = Some(pb::Platform { os: "../x".into(), architecture: "y".into(), ..pb::Platform::default() });
    assert!(refused(&definition(vec![pb::Op { platform, ..merge(vec![]) }])).contains("invalid platform"));
}

/// BuildKit refuses a capability that it has but does not list.
#[test]
fn symbolic_modes_are_not_marked() {
    for seed in 0..200 {
        let definition = encode(&support::graph(seed), &[]).unwrap();
        let mut marked = definition.metadata.values().flat_map(|metadata| metadata.caps.keys());
        assert!(marked.all(|name| name != "file.copy.modestring"));
    }
}
