//! Where results go, and what clients are told of them.

use crate::chosen_outputs::ChosenOutputs;
use crate::client::{Client, Served, TestDaemon};
use forge_buildkit_proto::moby::buildkit::v1::{BuildHistoryRequest, Exporter, SolveRequest, SolveResponse};
use std::collections::HashMap;

fn one_file() -> Served {
    Served::context("dockerfile", &[("Dockerfile", "FROM scratch\nCOPY a /\n")]).and("context", &[("a", "text")])
}

async fn build(client: &Client, reference: &str, served: Served, exporters: Vec<Exporter>) -> SolveResponse {
    let enable_session_exporter = served.exporters.is_some();
    let session = format!("session-{reference}");
    let _open = client.session(&session, "key", served).await;
    let request = SolveRequest {
        r#ref: reference.to_owned(),
        session,
        frontend: "dockerfile.v0".to_owned(),
        exporters,
        enable_session_exporter,
        ..SolveRequest::default()
    };
    client.control().solve(request).await.unwrap().into_inner()
}

fn output(kind: &str, attributes: &[(&str, &str)]) -> Exporter {
    let attrs = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Exporter { r#type: kind.to_owned(), attrs }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_it_will_hold() {
    let daemon = TestDaemon::start().await;
    let (client, served) = (daemon.client().await, one_file());
    let response = build(&client, "one", served.clone(), vec![output("oci", &[])]).await.exporter_response;
    let told = served.told.lock().unwrap().clone();
    assert_eq!(told["containerimage.digest"], response["containerimage.digest"]);
    assert!(told.contains_key("containerimage.config.digest") && !served.received.lock().unwrap().is_empty());
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_remembers_what_each_of_its_images_is() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let docker = output("image", &[("name", "b"), ("oci-mediatypes", "false")]);
    build(&client, "one", one_file(), vec![output("image", &[("name", "a")]), docker]).await;
    let history = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let mut history = client.control().listen_build_history(history).await.unwrap().into_inner();
    let result = history.message().await.unwrap().unwrap().record.unwrap().result.unwrap();
    let kinds: Vec<&str> = (0..2).map(|number| result.results[&number].media_type.as_str()).collect();
    let expected =
        ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
    assert_eq!(kinds, expected);
    assert_eq!(result.result_deprecated.as_ref(), result.results.get(&0));
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_choose_outputs_when_there_is_a_result() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let outputs = ChosenOutputs { chosen: vec![("tar".to_owned(), HashMap::new())], ..ChosenOutputs::default() };
    let served = Served { exporters: Some(outputs.clone()), ..one_file() };
    build(&client, "one", served.clone(), vec![output("image", &[("name", "a")])]).await;
    assert_eq!(outputs.refs.lock().unwrap().len(), 1, "the result has a name under which it can be looked at");
    assert!(outputs.finished.lock().unwrap().contains_key("containerimage.descriptor"));
    assert!(!served.received.lock().unwrap().is_empty(), "the second output is the chosen one");
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_may_do_without_the_epoch_of_its_build() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let dockerfile = "ARG SOURCE_DATE_EPOCH=1445412480\nFROM scratch\nCOPY a /\n";
    let rewritten = async |reference: &str, attributes: &[(&str, &str)]| {
        let served = Served::context("dockerfile", &[("Dockerfile", dockerfile)]).and("context", &[("a", "text")]);
        build(&client, reference, served.clone(), vec![output("oci", attributes)]).await;
        let received = served.received.lock().unwrap().clone();
        let received = String::from_utf8_lossy(&received);
        assert!(received.contains(r#""created":"2015-10-21T07:28:00Z""#), "the front end dates what it describes");
        received.contains("rewritten-timestamp")
    };
    assert!(rewritten("one", &[("rewrite-timestamp", "true")]).await);
    assert!(!rewritten("two", &[("rewrite-timestamp", "true"), ("source-date-epoch", "")]).await);
    daemon.stop().await.unwrap();
}
