//! Front ends that are images: this program, in an image of its own.

use crate::client::{Client, Served, TestDaemon};
use crate::front_end_program as program;
use crate::{Test, gone, processes_with, run};
use forge_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest as BuildRequest};
use forge_testkit::TestRegistry;
use tonic::{Code, Status};

pub const TESTS: &[Test] = &[
    ("privileged_a_front_end_image_is_asked_by_syntax", by_syntax),
    ("privileged_a42_front_end_images_can_be_switched_off", a42_switched_off),
    ("privileged_a42_front_ends_that_misbehave_end_with_their_build", a42_misbehaving),
];

/// Pushes the image; gives its name.
async fn pushed(client: &Client, registry: &TestRegistry) -> String {
    let (dockerfile, context) = program::image();
    let mut served = Served::context("dockerfile", &[("Dockerfile", &dockerfile)]);
    served.files.insert("context".to_owned(), context);
    let name = format!("{}/team/front:1", registry.authority());
    let _open = client.session("session-image", "key", served).await;
    let attrs = [("name", name.as_str()), ("push", "true")];
    let request = BuildRequest {
        r#ref: "image".to_owned(),
        session: "session-image".to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        exporters: vec![Exporter {
            r#type: "image".to_owned(),
            attrs: attrs.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }],
        ..BuildRequest::default()
    };
    client.control().solve(request).await.unwrap();
    name
}

fn files(dockerfile: &str) -> Served {
    Served::context("dockerfile", &[("Dockerfile", dockerfile), ("Real", "FROM scratch\nCOPY a /made\n")])
        .and("context", &[("a", "text")])
}

/// Asks the image itself, by name.
async fn asked(client: &Client, number: usize, options: &[(&str, &str)]) -> Result<(), Status> {
    let (reference, session) = (format!("asked-{number}"), format!("session-asked-{number}"));
    let _open = client.session(&session, "key", files("")).await;
    let request = BuildRequest {
        r#ref: reference,
        session,
        frontend: "gateway.v0".to_owned(),
        frontend_attrs: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..BuildRequest::default()
    };
    client.control().solve(request).await.map(drop)
}

fn by_syntax() {
    run(async {
        let registry = TestRegistry::start();
        let daemon = TestDaemon::start_online().await;
        let client = daemon.client().await;
        let image = pushed(&client, &registry).await;
        // No Dockerfile at all, and one with the syntax as a build argument.
        let foreign = format!("# syntax={image} --word\nanything: at all\n");
        let arguments = format!("{image} --other");
        for (name, text, options, line) in [
            ("one", foreign.as_str(), Vec::new(), format!("{image} --word")),
            ("two", "FROM none\n", vec![("build-arg:BUILDKIT_SYNTAX", arguments.as_str())], arguments.clone()),
        ] {
            let (response, made) = client.build(name, files(text), &options).await.unwrap();
            assert_eq!(made["made"], b"text");
            assert_eq!(response.exporter_response["frontend.made"], "text");
            assert_eq!(response.exporter_response["frontend.cmdline"], line);
        }
        let source = ("source", image.as_str());
        let mut number = 0;
        let mut refused = async |options: &[(&str, &str)]| {
            number += 1;
            asked(&client, number, options).await.unwrap_err()
        };
        let said = refused(&[source, ("what", "fail")]).await;
        assert_eq!((said.code(), said.message()), (Code::InvalidArgument, "said no"));
        let ended = refused(&[source, ("what", "exit")]).await;
        assert!(ended.message().ends_with("exit code: 5: last words"), "{ended}");
        let nothing = refused(&[source, ("what", "nothing")]).await;
        assert!(nothing.message().contains("no result for incomplete build"), "{nothing}");
        let unknown = refused(&[source, ("frontend.caps", "known,unknown")]).await;
        assert_eq!(
            (unknown.code(), unknown.message()),
            (Code::Unimplemented, "unsupported frontend capability unknown")
        );
        let nested = refused(&[source, ("what", "itself")]).await;
        assert!(nested.message().contains("more than 8 front ends ask each other"), "{nested}");
        let absent = refused(&[("source", &format!("{image}-absent"))]).await;
        assert!(absent.message().contains("not found"), "{absent}");
        asked(&client, 99, &[source]).await.unwrap();
    });
}

/// Front ends that hang until their build is cancelled, that say what nobody understands, or too much. Seen to fail where a
/// cancelled build goes on waiting: the process was found.
fn a42_misbehaving() {
    run(async {
        let registry = TestRegistry::start();
        let daemon = TestDaemon::start_online().await;
        let client = daemon.client().await;
        let image = pushed(&client, &registry).await;
        let source = ("source", image.as_str());
        for (number, what) in ["hang", "silence"].into_iter().enumerate() {
            let asking = client.clone();
            let image = image.clone();
            let asked =
                tokio::spawn(async move { asked(&asking, number, &[("source", &image), ("what", what)]).await });
            let search = async {
                while processes_with("front-end") == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(20), search).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            asked.abort();
            gone("front-end").await;
        }
        let garbage = asked(&client, 10, &[source, ("what", "garbage")]).await.unwrap_err();
        assert!(garbage.message().ends_with("frontend grpc server closed unexpectedly"), "{garbage}");
        let oversized = asked(&client, 11, &[source, ("what", "oversized")]).await.unwrap_err();
        assert!(oversized.message().contains("message length too large"), "{oversized}");
        gone("front-end").await;
        // The daemon is none the worse for it.
        asked(&client, 12, &[source]).await.unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = daemon.socket.parent().unwrap().to_str().unwrap();
        assert_eq!(mounts.lines().filter(|line| line.contains(root)).collect::<Vec<_>>(), Vec::<&str>::new());
    });
}

/// Meant to fail with `check` of the options left out: the image is looked for then.
fn a42_switched_off() {
    run(async {
        let daemon = TestDaemon::start_as(|options| options.front_ends.enabled = false).await;
        let client = daemon.client().await;
        let evil = "localhost:1/evil:1";
        for (name, text, options) in [
            ("one", format!("# syntax={evil}\nFROM scratch\n"), Vec::new()),
            ("two", "FROM scratch\n".to_owned(), vec![("build-arg:BUILDKIT_SYNTAX", evil)]),
        ] {
            let failed = client.build(name, files(&text), &options).await.unwrap_err();
            assert!(failed.message().contains("disabled by the configuration"), "{failed}");
        }
        let failed = asked(&client, 1, &[("source", evil)]).await.unwrap_err();
        assert!(failed.message().contains("disabled by the configuration"), "{failed}");
    });
}
