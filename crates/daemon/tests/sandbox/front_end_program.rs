//! A front end: what this program is in an image of its own.

use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    self as wire, InputsRequest, PingRequest, ReadFileRequest, ReturnRequest, SolveRequest, result,
};
use forge_buildkit_proto::pb;
use hyper_util::rt::TokioIo;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;
use tokio::net::unix::pipe::{Receiver, Sender};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

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
    match option("what").or(option("build-arg:what")).as_deref() {
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
    assert!(std::env::var("BUILDKIT_SESSION_ID").unwrap().chars().all(|c| c.is_alphanumeric() || c == '-'));
    assert!(bridge.inputs(InputsRequest {}).await.unwrap().into_inner().definitions.is_empty());
    let returned = match option("what").or(option("build-arg:what")).as_deref() {
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
        _ if option("requestid").is_some() => {
            let metadata =
                [("result.txt", "of the front end"), ("result.json", "{\"own\": true}"), ("result.statuscode", "3")];
            let metadata = metadata.map(|(name, value)| (name.to_owned(), value.into())).into();
            let result = wire::Result { metadata, ..wire::Result::default() };
            ReturnRequest { result: Some(result), ..ReturnRequest::default() }
        }
        Some("layout") => {
            let image = of_layout(&mut bridge, &option("context:base").unwrap()).await;
            assert!(image.digest.starts_with("sha256:") && !image.config.is_empty(), "{image:?}");
            built(&mut bridge).await
        }
        Some("upload") => {
            assert!(uploaded(&mut bridge, &option("context").unwrap()).await.len() > 1024);
            built(&mut bridge).await
        }
        _ => built(&mut bridge).await,
    };
    bridge.r#return(returned).await.unwrap();
    0
}

/// What BuildKit's front end asks of a named context that is a layout of the client.
async fn of_layout(bridge: &mut LlbBridgeClient<Channel>, context: &str) -> wire::ResolveSourceImageResponse {
    let (store, digest) = context.strip_prefix("oci-layout://").unwrap().split_once('@').unwrap();
    let identifier = format!("oci-layout://docker.io/library/base@{digest}");
    let session = std::env::var("BUILDKIT_SESSION_ID").unwrap();
    let attrs = [("oci.store", store), ("oci.session", &session)];
    let attrs = attrs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let source = Some(pb::SourceOp { identifier, attrs });
    let asked = wire::ResolveSourceMetaRequest { source, ..wire::ResolveSourceMetaRequest::default() };
    bridge.resolve_source_meta(asked).await.unwrap().into_inner().image.unwrap()
}

/// A context that is a stream, as it reads it to find out what it is.
async fn uploaded(bridge: &mut LlbBridgeClient<Channel>, context: &str) -> Vec<u8> {
    let attrs = [("http.filename".to_owned(), "context".to_owned())].into();
    let op = pb::op::Op::Source(pb::SourceOp { identifier: context.to_owned(), attrs });
    let op = pb::Op { op: Some(op), ..pb::Op::default() }.encode_to_vec();
    let digest = forge_image::Digest::sha256(&op).to_string();
    let goal = pb::Op { inputs: vec![pb::Input { digest, index: 0 }], ..pb::Op::default() };
    let definition = pb::Definition { def: vec![op, goal.encode_to_vec()], ..pb::Definition::default() };
    let asked = SolveRequest { definition: Some(definition), allow_result_return: true, ..SolveRequest::default() };
    let result = bridge.solve(asked).await.unwrap().into_inner().result.unwrap();
    let Some(result::Result::RefDeprecated(id)) = result.result else { panic!("{result:?}") };
    let read = ReadFileRequest { r#ref: id, file_path: "/context".into(), ..ReadFileRequest::default() };
    bridge.read_file(read).await.unwrap().into_inner().data
}

async fn built(bridge: &mut LlbBridgeClient<Channel>) -> ReturnRequest {
    let mut options = HashMap::from([("filename".to_owned(), "Real".to_owned())]);
    options.extend(option("context").map(|context| ("context".to_owned(), context)));
    // Where the file `Real` is looked for.
    options.extend(option("build-arg:key").map(|key| ("dockerfilekey".to_owned(), key)));
    let request = SolveRequest {
        frontend: "dockerfile.v0".into(),
        frontend_opt: options,
        allow_result_return: true,
        allow_result_array_ref: true,
        ..SolveRequest::default()
    };
    let mut result = bridge.solve(request).await.unwrap().into_inner().result.unwrap();
    let Some(result::Result::Ref(named)) = &result.result else { panic!("{result:?}") };
    if option("build-arg:what").as_deref() == Some("lazy") {
        return ReturnRequest { result: Some(result), error: None };
    }
    let read = ReadFileRequest { r#ref: named.id.clone(), file_path: "/made".into(), ..ReadFileRequest::default() };
    let made = bridge.read_file(read).await.unwrap().into_inner().data;
    result.metadata.insert("frontend.made".into(), made);
    result.metadata.insert("frontend.cmdline".into(), option("cmdline").unwrap_or_default().into());
    ReturnRequest { result: Some(result), error: None }
}

/// The Dockerfile of an image of this program, with the libraries that it needs, and the files that it copies.
pub fn image() -> (String, BTreeMap<String, Vec<u8>>) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    let mut paths: Vec<String> = libraries.map(str::to_owned).collect();
    paths.extend(["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(str::to_owned));
    paths.sort();
    paths.dedup();
    paths.retain(|path| Path::new(path).exists());
    let mut files = BTreeMap::from([("front".to_owned(), std::fs::read(std::env::current_exe().unwrap()).unwrap())]);
    let mut dockerfile = "FROM scratch\nENTRYPOINT [\"/front\", \"front-end\"]\n\
        LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,known\nCOPY --chmod=755 front /\n"
        .to_owned();
    for (number, path) in paths.iter().enumerate() {
        files.insert(format!("l{number}"), std::fs::read(path).unwrap());
        dockerfile += &format!("COPY --chmod=755 l{number} {path}\n");
    }
    (dockerfile, files)
}
