//! A front end that is an image: this program, in an image of its own.

use crate::client::{Client, Served, TestDaemon};
use crate::{Test, gone, processes_with, run};
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    self as wire, InputsRequest, PingRequest, ReadFileRequest, ReturnRequest, SolveRequest, result,
};
use forge_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest as BuildRequest};
use forge_testkit::TestRegistry;
use hyper_util::rt::TokioIo;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;
use tokio::net::unix::pipe::{Receiver, Sender};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tower::service_fn;

pub const TESTS: &[Test] = &[
    ("privileged_a_front_end_image_is_asked_by_syntax", by_syntax),
    ("privileged_a42_front_end_images_can_be_switched_off", a42_switched_off),
    ("privileged_a42_front_ends_that_misbehave_end_with_their_build", a42_misbehaving),
];

/// Becomes the front end if this process was started as one.
pub fn run_if_requested() {
    if std::env::args().nth(1).as_deref() == Some("front-end") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let code = runtime.block_on(answer());
        // A thread may wait for standard input for ever.
        std::process::exit(code);
    }
}

fn option(name: &str) -> Option<String> {
    let options = std::env::vars().filter(|(key, _)| key.starts_with("BUILDKIT_FRONTEND_OPT_"));
    options
        .filter_map(|(_, value)| value.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

/// Builds what the file `Real` says, and says that it did.
async fn answer() -> i32 {
    match option("what").as_deref() {
        Some("garbage") => {
            std::io::Write::write_all(&mut std::io::stdout(), &[b'x'; 4096]).unwrap();
            std::future::pending::<()>().await;
        }
        // It reads nothing and says nothing.
        Some("silence") => std::future::pending::<()>().await,
        _ => {}
    }
    let own = std::fs::read("/run/config/buildkit/metadata/frontend.bin").unwrap();
    assert!(String::from_utf8_lossy(&own).contains("docker-image://"));
    let [input, output] =
        [std::io::stdin().as_fd(), std::io::stdout().as_fd()].map(|end| end.try_clone_to_owned().unwrap());
    for end in [&input, &output] {
        let flags = rustix::fs::fcntl_getfl(end).unwrap();
        rustix::fs::fcntl_setfl(end, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    }
    let (input, output) =
        (Receiver::from_owned_fd_unchecked(input).unwrap(), Sender::from_owned_fd_unchecked(output).unwrap());
    let streams = Mutex::new(Some(tokio::io::join(input, output)));
    let connect = service_fn(move |_: Uri| {
        let streams = streams.lock().unwrap().take();
        async move { streams.map(TokioIo::new).ok_or_else(|| std::io::Error::other("there is one connection")) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
    let mut bridge = LlbBridgeClient::new(channel);
    let pong = bridge.ping(PingRequest {}).await.unwrap().into_inner();
    assert!(pong.frontend_api_caps.iter().any(|cap| cap.id == "solve.base") && pong.workers.len() == 1);
    assert!(
        std::env::var("BUILDKIT_EXPORTEDPRODUCT").is_ok()
            && std::env::var("BUILDKIT_WORKERS").unwrap().contains("linux")
    );
    assert!(std::env::var("BUILDKIT_SESSION_ID").unwrap().starts_with("session-"));
    assert!(bridge.inputs(InputsRequest {}).await.unwrap().into_inner().definitions.is_empty());
    let returned = match option("what").as_deref() {
        Some("exit") => {
            std::io::Write::write_all(&mut std::io::stderr(), b"last words\n").unwrap();
            return 5;
        }
        Some("nothing") => return 0,
        // Its last request is under way.
        Some("hang") => return std::future::pending().await,
        Some("oversized") => {
            let data = vec![0; 80 << 20];
            let metadata = HashMap::from([("much".to_owned(), data)]);
            let result = Some(wire::Result { metadata, ..wire::Result::default() });
            let mut large = bridge.clone().max_encoding_message_size(usize::MAX);
            let failed = large.r#return(ReturnRequest { result, error: None }).await.unwrap_err();
            let error = rpc::Status { code: 2, message: failed.message().to_owned(), details: Vec::new() };
            ReturnRequest { error: Some(error), ..ReturnRequest::default() }
        }
        Some("fail") => {
            let error = rpc::Status { code: 3, message: "said no".into(), details: Vec::new() };
            ReturnRequest { error: Some(error), ..ReturnRequest::default() }
        }
        Some("itself") => {
            let options = [("what", "itself".to_owned()), ("source", option("source").unwrap())];
            let options = options.map(|(name, value)| (name.to_owned(), value)).into();
            let again =
                SolveRequest { frontend: "gateway.v0".into(), frontend_opt: options, ..SolveRequest::default() };
            let failed = bridge.solve(again).await.unwrap_err();
            let error = rpc::Status { code: 2, message: failed.message().to_owned(), details: Vec::new() };
            ReturnRequest { error: Some(error), ..ReturnRequest::default() }
        }
        _ => built(&mut bridge).await,
    };
    bridge.r#return(returned).await.unwrap();
    0
}

async fn built(bridge: &mut LlbBridgeClient<Channel>) -> ReturnRequest {
    let request = SolveRequest {
        frontend: "dockerfile.v0".into(),
        frontend_opt: HashMap::from([("filename".to_owned(), "Real".to_owned())]),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..SolveRequest::default()
    };
    let mut result = bridge.solve(request).await.unwrap().into_inner().result.unwrap();
    let Some(result::Result::Ref(named)) = &result.result else { panic!("{result:?}") };
    let read = ReadFileRequest { r#ref: named.id.clone(), file_path: "/made".into(), ..ReadFileRequest::default() };
    let made = bridge.read_file(read).await.unwrap().into_inner().data;
    result.metadata.insert("frontend.made".into(), made);
    result.metadata.insert("frontend.cmdline".into(), option("cmdline").unwrap_or_default().into());
    ReturnRequest { result: Some(result), error: None }
}

/// Pushes an image of this program, with the libraries that it needs; gives its name.
async fn pushed(client: &Client, registry: &TestRegistry) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    let mut files: Vec<String> = libraries.map(str::to_owned).collect();
    files.extend(["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(str::to_owned));
    files.sort();
    files.dedup();
    files.retain(|path| Path::new(path).exists());
    let mut context = BTreeMap::from([("front".to_owned(), std::fs::read(std::env::current_exe().unwrap()).unwrap())]);
    let mut dockerfile = "FROM scratch\nENTRYPOINT [\"/front\", \"front-end\"]\n\
        LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,known\nCOPY --chmod=755 front /\n"
        .to_owned();
    for (number, path) in files.iter().enumerate() {
        context.insert(format!("l{number}"), std::fs::read(path).unwrap());
        dockerfile += &format!("COPY --chmod=755 l{number} {path}\n");
    }
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

/// Seen to fail with `check` of the options left out: the image was looked for.
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
