//! Identity, order and refusal: what every user of the graph relies on.

use forge_image::{Digest, Platform};
use forge_llb::*;

fn image(name: &str) -> Vertex {
    let source = ImageSource::new(name.parse().unwrap());
    Vertex {
        op: Op::Source(SourceOp::Image(source)),
        inputs: vec![],
        platform: Some(Platform::new("linux", "amd64", None)),
        metadata: Metadata { name: name.to_owned(), ..Metadata::default() },
    }
}

fn run(base: &Edge, command: &str) -> Vertex {
    let args = vec!["/bin/sh".into(), "-c".into(), command.into()];
    let exec = ExecOp { env: vec!["A=1".into()], ..ExecOp::new(args) };
    Vertex { op: Op::Exec(exec), inputs: vec![base.clone()], platform: None, metadata: Metadata::default() }
}

#[test]
fn the_dump_shows_everything_that_counts() {
    let mut graph = Graph::new();
    let base = graph.add(image("alpine")).unwrap();
    let step = graph.add(run(&base, "true")).unwrap();
    graph.set_goal(Some(step)).unwrap();
    let expect = "\
#0 linux/amd64 \"alpine\"
  image docker.io/library/alpine:latest
#1 \"\"
  exec [\"/bin/sh\", \"-c\", \"true\"]
  env [\"A=1\"]
  mount / from #0/ -> 0
goal #1
";
    assert_eq!(graph.to_string(), expect);
}

#[test]
fn golden_digests_of_the_canonical_encoding() {
    let base = image("alpine");
    assert_eq!(base.digest().digest().short(), GOLDEN_IMAGE);
    let edge = Edge { vertex: base.digest(), output: 0 };
    assert_eq!(run(&edge, "true").digest().digest().short(), GOLDEN_RUN);
}

const GOLDEN_IMAGE: &str = "037b9dceb969";
const GOLDEN_RUN: &str = "dac424fb251b";

#[test]
fn metadata_and_proxies_are_not_part_of_the_identity() {
    let mut graph = Graph::new();
    let base = graph.add(image("alpine")).unwrap();
    let mut twin = image("alpine");
    twin.metadata = Metadata { name: "other".into(), ignore_cache: true, ..Metadata::default() };
    assert_eq!(graph.add(twin).unwrap(), base);
    assert_eq!(graph.vertices().len(), 1);
    assert!(graph.vertices()[0].metadata.ignore_cache, "one that must ignore the cache wins");
    let mut proxied = run(&base, "true");
    if let Op::Exec(exec) = &mut proxied.op {
        exec.proxy_env.push("HTTP_PROXY=http://user:secret@proxy".into());
    }
    assert_eq!(proxied.digest(), run(&base, "true").digest());
}

#[test]
fn only_what_the_goal_needs_is_needed() {
    let mut graph = Graph::new();
    let unused = graph.add(image("unused")).unwrap();
    let base = graph.add(image("alpine")).unwrap();
    let step = graph.add(run(&base, "true")).unwrap();
    graph.add(run(&unused, "false")).unwrap();
    graph.set_goal(Some(step.clone())).unwrap();
    let needed: Vec<_> = graph.needed().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(needed, [base.vertex, step.vertex]);
}

#[test]
fn a27_references_to_nothing_are_refused() {
    let mut graph = Graph::new();
    let base = graph.add(image("alpine")).unwrap();
    let nowhere = Edge { vertex: VertexDigest::new(Digest::sha256(b"nowhere")), output: 0 };
    assert!(matches!(graph.add(run(&nowhere, "x")), Err(GraphError::UnknownInput { .. })));
    let second = Edge { output: 1, ..base.clone() };
    assert!(matches!(graph.set_goal(Some(second)), Err(GraphError::UnknownOutput { outputs: 1, .. })));
    let mut wrong = run(&base, "x");
    if let Op::Exec(exec) = &mut wrong.op {
        exec.mounts[0].input = Some(7);
    }
    assert!(matches!(graph.add(wrong), Err(GraphError::BadIndex { index: 7, .. })));
    let action = FileAction {
        base: FileInput::Action(0),
        kind: FileKind::Rm(RmAction { path: "/x".into(), allow_not_found: true, allow_wildcard: false }),
    };
    for actions in [vec![], vec![action]] {
        let file =
            Vertex { op: Op::File(FileOp { actions }), inputs: vec![], platform: None, metadata: Metadata::default() };
        assert!(matches!(graph.add(file), Err(GraphError::BadIndex { .. })));
    }
}

#[test]
fn a_vertex_from_elsewhere_keeps_its_name() {
    let mut graph = Graph::new();
    let theirs = VertexDigest::new(Digest::sha256(b"the bytes that it came as"));
    let base = graph.add_as(theirs.clone(), image("alpine")).unwrap();
    assert_eq!(base, Edge { vertex: theirs.clone(), output: 0 });
    let step = graph.add(run(&base, "true")).unwrap();
    graph.set_goal(Some(step)).unwrap();
    assert_eq!(graph.needed()[0].0, theirs);
    assert_eq!(graph.named().next().unwrap().0, &theirs);
    assert!(graph.to_string().contains("mount / from #0/"), "{graph}");
    assert!(graph.get(&image("alpine").digest()).is_none());
}

#[test]
fn what_is_handed_on_is_part_of_the_goal_and_must_be_there() {
    let mut graph = Graph::new();
    let (kept, needed) = (graph.add(image("alpine")).unwrap(), graph.add(image("busybox")).unwrap());
    let handed = |outputs: Vec<usize>| Vertex {
        op: Op::Passthrough(PassthroughOp { id: "p".into(), outputs }),
        inputs: vec![kept.clone(), needed.clone()],
        platform: None,
        metadata: Metadata::default(),
    };
    let goal = graph.add(handed(vec![0])).unwrap();
    assert_ne!(graph.add(handed(vec![1])).unwrap().vertex, goal.vertex);
    graph.set_goal(Some(goal)).unwrap();
    let contributing = graph.contributing();
    assert!(contributing.contains(&(kept.vertex.clone(), 0)) && !contributing.contains(&(needed.vertex.clone(), 0)));
    assert!(graph.add(handed(vec![2])).is_err());
}
