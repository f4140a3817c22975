//! Builds within definitions.

use crate::client::{Client, Served, TestDaemon};
use forge_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest};
use forge_buildkit_proto::pb;
use forge_buildkit_proto::pb::file_action::Action;
use forge_image::Digest;
use prost::Message;
use std::collections::BTreeMap;
use tonic::Status;

fn input(of: &[u8]) -> pb::Input {
    pb::Input { digest: Digest::sha256(of).to_string(), index: 0 }
}

fn file(path: &str, data: Vec<u8>) -> Action {
    Action::Mkfile(pb::FileActionMkFile {
        path: path.to_owned(),
        mode: 0o644,
        data,
        timestamp: -1,
        ..Default::default()
    })
}

/// A file beside what is there.
fn with_file(of: Option<&[u8]>, action: Action) -> Vec<u8> {
    let input_index = if of.is_some() { 0 } else { -1 };
    let made = pb::FileAction { input: input_index, secondary_input: -1, output: 0, action: Some(action) };
    let op = Some(pb::op::Op::File(pb::FileOp { actions: vec![made] }));
    pb::Op { inputs: of.map(input).into_iter().collect(), op, ..pb::Op::default() }.encode_to_vec()
}

fn nested(of: &[u8], builder: i64, attrs: &[(&str, &str)]) -> Vec<u8> {
    let inputs = BTreeMap::from([("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })]);
    let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let op = Some(pb::op::Op::Build(pb::BuildOp { builder, inputs, attrs, ..pb::BuildOp::default() }));
    pb::Op { inputs: vec![input(of)], op, ..pb::Op::default() }.encode_to_vec()
}

fn definition(mut def: Vec<Vec<u8>>) -> pb::Definition {
    let goal = pb::Op { inputs: vec![input(def.last().unwrap())], ..pb::Op::default() };
    def.push(goal.encode_to_vec());
    pb::Definition { def, ..pb::Definition::default() }
}

async fn build(client: &Client, number: u32, definition: pb::Definition) -> Result<BTreeMap<String, Vec<u8>>, Status> {
    let served = Served::default();
    let session = format!("s{number}");
    let _open = client.session(&session, "key", served.clone()).await;
    let request = SolveRequest {
        r#ref: format!("r{number}"),
        session,
        definition: Some(definition),
        exporters: vec![Exporter { r#type: "tar".to_owned(), ..Exporter::default() }],
        ..SolveRequest::default()
    };
    client.control().solve(request).await?;
    let bytes = std::mem::take(&mut *served.received.lock().unwrap());
    Ok(crate::client::untar(&bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_build_is_what_its_definition_makes() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let inner = definition(vec![with_file(None, file("/inner", b"made within".to_vec()))]);
    let holder = with_file(None, file("/buildkit.llb.definition", inner.encode_to_vec()));
    let within = nested(&holder, -1, &[]);
    let top = with_file(Some(&within), file("/outer", b"made around".to_vec()));
    let whole = definition(vec![holder, within, top]);
    let files = build(&client, 1, whole.clone()).await.unwrap();
    assert_eq!((&*files["inner"], &*files["outer"], files.len()), (&b"made within"[..], &b"made around"[..], 2));
    // One within one, and a file of another name.
    let holder = with_file(None, file("/named", whole.encode_to_vec()));
    let within = nested(&holder, -1, &[("llbbuild.filename", "named")]);
    let files = build(&client, 2, definition(vec![holder.clone(), within])).await.unwrap();
    assert_eq!(files.len(), 2);
    for (number, builder, attrs, words) in [
        (3, 0, vec![], "only the LLB builder"),
        (4, -1, vec![], "buildkit.llb.definition"),
        (5, -1, vec![("llbbuild.filename", "/../../etc/passwd")], "etc/passwd"),
    ] {
        let within = nested(&holder, builder, &attrs);
        let refused = build(&client, number, definition(vec![holder.clone(), within])).await.unwrap_err();
        assert!(refused.message().contains(words), "{refused}");
    }
    let garbage = with_file(None, file("/buildkit.llb.definition", b"no definition".to_vec()));
    let within = nested(&garbage, -1, &[]);
    let refused = build(&client, 6, definition(vec![garbage, within])).await.unwrap_err();
    assert!(refused.message().contains("definition"), "{refused}");
    daemon.stop().await.unwrap();
}

/// Definitions that hold one another would go on for as long as somebody writes them.
#[tokio::test(flavor = "multi_thread")]
async fn a29_nested_builds_end() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let mut whole = definition(vec![with_file(None, file("/deepest", Vec::new()))]);
    for _ in 0..40 {
        let holder = with_file(None, file("/buildkit.llb.definition", whole.encode_to_vec()));
        let within = nested(&holder, -1, &[]);
        whole = definition(vec![holder, within]);
    }
    let refused = build(&client, 1, whole).await.unwrap_err();
    assert!(refused.message().contains("more than 32 nested builds"), "{refused}");
    daemon.stop().await.unwrap();
}
