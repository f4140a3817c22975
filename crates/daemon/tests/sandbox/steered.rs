//! A build that the test steers, with a busybox to run.

use crate::client::{Client, Served, TestDaemon};
use forge_buildkit_proto::moby::buildkit::v1::frontend::exec_message::Input;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    self as wire, ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReleaseContainerRequest, ReturnRequest,
    result,
};
use forge_buildkit_proto::moby::buildkit::v1::{SolveRequest, SolveResponse};
use forge_buildkit_proto::pb;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::DropGuard;
use tonic::{Request, Status, Streaming};

/// A base with a shell, from what the client sends.
pub const BASE: &str = "FROM scratch AS base\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// A Dockerfile, and the busybox that it copies.
pub fn served(dockerfile: &str) -> Served {
    let mut served = Served::context("dockerfile", &[("Dockerfile", dockerfile)]);
    let busybox = std::fs::read("/bin/busybox").or_else(|_| std::fs::read("/usr/bin/busybox")).unwrap();
    served.files.insert("context".to_owned(), BTreeMap::from([("busybox".to_owned(), busybox)]));
    served
}

/// A build whose client says what is done.
pub struct Steered {
    pub client: Client,
    pub reference: String,
    pub solve: JoinHandle<Result<SolveResponse, Status>>,
    _session: DropGuard,
}

impl Steered {
    pub async fn begin(daemon: &TestDaemon, reference: &str) -> Self {
        Self::begin_with(daemon, reference, BASE).await
    }

    /// The same with a Dockerfile.
    pub async fn begin_with(daemon: &TestDaemon, reference: &str, dockerfile: &str) -> Self {
        let client = daemon.client().await;
        let session = client.session(&format!("session-{reference}"), "key", served(dockerfile)).await;
        let request = SolveRequest {
            r#ref: reference.to_owned(),
            session: format!("session-{reference}"),
            ..SolveRequest::default()
        };
        let solving = client.clone();
        let solve = tokio::spawn(async move { Ok(solving.control().solve(request).await?.into_inner()) });
        Self { client, reference: reference.to_owned(), solve, _session: session }
    }

    /// A message of this build.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("buildkit-controlapi-buildid", self.reference.parse().unwrap());
        request
    }

    /// The base; gives the name of the result.
    pub async fn base(&self) -> String {
        self.stage("base").await.unwrap()
    }

    /// A stage of the Dockerfile; gives the name of the result.
    pub async fn stage(&self, target: &str) -> Result<String, Status> {
        Ok(self.result(target).await?.id)
    }

    /// What makes a stage of the Dockerfile.
    pub async fn definition(&self, target: &str) -> pb::Definition {
        self.result(target).await.unwrap().def.unwrap()
    }

    async fn result(&self, target: &str) -> Result<wire::Ref, Status> {
        let request = wire::SolveRequest {
            frontend_opt: [("target".to_owned(), target.to_owned())].into(),
            frontend: "dockerfile.v0".to_owned(),
            allow_result_return: true,
            allow_result_array_ref: true,
            evaluate: true,
            ..wire::SolveRequest::default()
        };
        let response = self.client.gateway().solve(self.request(request)).await?.into_inner();
        match response.result.unwrap().result {
            Some(result::Result::Ref(named)) => Ok(named),
            other => panic!("{other:?}"),
        }
    }

    /// A container on a result.
    pub async fn container(&self, id: &str, result: &str) -> Result<(), Status> {
        self.container_with(NewContainerRequest {
            container_id: id.to_owned(),
            mounts: vec![root(result)],
            ..NewContainerRequest::default()
        })
        .await
    }

    pub async fn container_with(&self, request: NewContainerRequest) -> Result<(), Status> {
        self.client.gateway().new_container(self.request(request)).await.map(drop)
    }

    pub async fn release(&self, id: &str) -> Result<(), Status> {
        let request = ReleaseContainerRequest { container_id: id.to_owned() };
        self.client.gateway().release_container(self.request(request)).await.map(drop)
    }

    /// Ends the build without a result.
    pub async fn finish(self) -> Result<SolveResponse, Status> {
        let result = Some(wire::Result::default());
        let request = ReturnRequest { result, error: None };
        self.client.gateway().r#return(self.request(request)).await.unwrap();
        self.solve.await.unwrap()
    }

    /// Opens the stream of processes.
    pub async fn processes(&self) -> Processes {
        let (sender, receiver) = mpsc::channel(16);
        let answers = self.client.gateway().exec_process(self.request(ReceiverStream::new(receiver))).await;
        Processes { sender, answers: answers.unwrap().into_inner() }
    }
}

pub fn root(result: &str) -> pb::Mount {
    pb::Mount { dest: "/".to_owned(), result_id: result.to_owned(), ..pb::Mount::default() }
}

/// The stream of processes.
pub struct Processes {
    sender: mpsc::Sender<ExecMessage>,
    answers: Streaming<ExecMessage>,
}

/// How a process ended, and what it wrote.
#[derive(Debug, Default, PartialEq)]
pub struct Ended {
    pub code: u32,
    pub error: String,
    pub output: String,
}

/// A process of a shell script.
pub fn shell(container: &str, script: &str) -> InitMessage {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let env = vec!["PATH=/bin".to_owned()];
    let meta = Some(pb::Meta { args, env, cwd: "/".to_owned(), ..pb::Meta::default() });
    InitMessage { container_id: container.to_owned(), meta, fds: vec![1, 2], ..InitMessage::default() }
}

impl Processes {
    pub async fn send(&self, id: &str, input: Input) {
        self.sender.send(ExecMessage { process_id: id.to_owned(), input: Some(input) }).await.unwrap();
    }

    pub async fn write(&self, id: &str, text: &str, eof: bool) {
        self.send(id, Input::File(FdMessage { fd: 0, eof, data: text.as_bytes().to_vec() })).await;
    }

    /// Starts a process, and waits until the daemon says so.
    pub async fn start(&mut self, id: &str, init: InitMessage) {
        self.send(id, Input::Init(init)).await;
        let told = self.answers.message().await.unwrap().unwrap();
        assert!(told.process_id == id && matches!(told.input, Some(Input::Started(_))), "{told:?}");
    }

    /// Waits for the end of a process; what others tell meanwhile is dropped.
    pub async fn end(&mut self, id: &str) -> Result<Ended, Status> {
        let mut ended = Ended::default();
        loop {
            let message = self.answers.message().await?.expect("the end of a process comes before that of the stream");
            if message.process_id != id {
                continue;
            }
            match message.input.unwrap() {
                Input::File(file) => ended.output += &String::from_utf8_lossy(&file.data),
                Input::Exit(exit) => {
                    ended.code = exit.code;
                    ended.error = exit.error.map(|error| error.message).unwrap_or_default();
                }
                Input::Done(_) => return Ok(ended),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs a process to its end.
    pub async fn run(&mut self, id: &str, init: InitMessage) -> Ended {
        self.start(id, init).await;
        self.end(id).await.unwrap()
    }
}
