//! Containers of a build that its client steers: opened and released by calls, filled with processes by a stream.

use crate::bridge::{self, Bridge};
use crate::reply;
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    ExitMessage, InitMessage, NewContainerRequest, ReadDirRequest, ReadDirResponse, ReadFileRequest, ReadFileResponse,
    StatFileRequest, StatFileResponse,
};
use forge_buildkit_proto::pb;
use forge_engine::{BuildProcess, ExitStatus, JobContainer, MergedTree, ProcessRequest, SecretEnv, SecurityMode};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

/// What a process ends with whose code is not known; BuildKit's own number.
const UNKNOWN_EXIT: u32 = 255;

/// The program search path of images for Windows.
const WINDOWS_PATH: &str = "PATH=c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0";

/// How many processes a container may have at once.
const MOST_PROCESSES: usize = 128;

/// The containers of one build by the names that the client gave them.
#[derive(Default)]
pub(crate) struct Containers(Mutex<State>);

#[derive(Default)]
struct State {
    open: HashMap<String, Arc<OpenContainer>>,
    /// The build is over.
    is_closed: bool,
}

/// A container, and what is known of its processes.
pub(crate) struct OpenContainer {
    container: JobContainer,
    /// The variable that processes get where they have none.
    path: Option<&'static str>,
    /// Cancelled when it is released.
    released: CancellationToken,
    /// Why the first process failed that did.
    failure: Mutex<Option<Status>>,
    /// Processes, and whoever hands their output on.
    pub(crate) processes: TaskTracker,
}

impl Containers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container by its name.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<OpenContainer>> {
        self.state().open.get(id).cloned()
    }

    /// Takes one in.
    fn add(&self, id: &str, container: &Arc<OpenContainer>) -> Result<(), Status> {
        let mut state = self.state();
        if state.is_closed {
            return Err(Status::unavailable("the build has ended"));
        }
        if state.open.contains_key(id) {
            return Err(Status::already_exists(format!("Container {id} already exists")));
        }
        state.open.insert(id.to_owned(), container.clone());
        Ok(())
    }

    /// Ends a container, and everything in it; an error if one of its processes failed.
    pub(crate) async fn release(&self, id: &str) -> Result<(), Status> {
        let found = self.state().open.remove(id);
        let container = found.ok_or_else(|| Status::unknown(format!("container details for {id} not found")))?;
        container.release().await
    }

    /// Ends all of them; no more are taken in.
    pub(crate) async fn close(&self) {
        let open = {
            let mut state = self.state();
            state.is_closed = true;
            std::mem::take(&mut state.open)
        };
        for container in open.into_values() {
            // Nobody waits for how its processes ended.
            let _ = container.release().await;
        }
    }
}

impl Bridge {
    /// Makes a container with the mounts that a client wants; nothing runs in it yet.
    pub(crate) async fn new_container(&self, request: NewContainerRequest) -> Result<(), Status> {
        let id = request.container_id.clone();
        let mut inputs = Vec::new();
        let mut mounts = Vec::new();
        for mut mount in request.mounts {
            let result = std::mem::take(&mut mount.result_id);
            let found = self.find(&result).map_err(|status| {
                let message = format!("failed to find ref {result} for {:?} mount: {}", mount.dest, status.message());
                Status::new(status.code(), message)
            })?;
            (mount.input, mount.output) = (-1, -1);
            if let Some(found) = found {
                mount.input = i64::try_from(inputs.len()).unwrap_or(i64::MAX);
                inputs.push(found.result);
            }
            mounts.push(mount);
        }
        let meta = pb::Meta {
            // Each process brings its own.
            args: vec!["-".to_owned()],
            cwd: "/".to_owned(),
            hostname: request.hostname,
            extra_hosts: request.extra_hosts,
            ..pb::Meta::default()
        };
        let exec = pb::ExecOp { meta: Some(meta), mounts, network: request.network, ..pb::ExecOp::default() };
        let container = self.job().container(&id, exec, inputs).await.map_err(|error| reply::status(&error))?;
        let is_windows = request.platform.is_some_and(|platform| platform.os == "windows");
        let container = Arc::new(OpenContainer {
            container,
            path: is_windows.then_some(WINDOWS_PATH),
            released: CancellationToken::new(),
            failure: Mutex::default(),
            processes: TaskTracker::new(),
        });
        let added = self.containers.add(&id, &container);
        if added.is_err() {
            // It has no processes, and what could not be removed goes with its last owner.
            let _ = container.release().await;
        }
        added
    }

    /// Reads a file of a container as it is now.
    pub(crate) async fn read_container_file(&self, request: ReadFileRequest) -> Result<ReadFileResponse, Status> {
        let tree = self.container_tree(&request.r#ref, request.mount_index)?;
        bridge::blocking(move || bridge::read_file(&tree, &request)).await
    }

    /// Lists a folder of a container as it is now.
    pub(crate) async fn read_container_dir(&self, request: ReadDirRequest) -> Result<ReadDirResponse, Status> {
        let tree = self.container_tree(&request.r#ref, request.mount_index)?;
        bridge::blocking(move || bridge::read_dir(&tree, &request)).await
    }

    /// Looks at a file of a container as it is now.
    pub(crate) async fn stat_container_file(&self, request: StatFileRequest) -> Result<StatFileResponse, Status> {
        let tree = self.container_tree(&request.r#ref, request.mount_index)?;
        bridge::blocking(move || bridge::stat_file(&tree, &request.path)).await
    }

    fn container_tree(&self, id: &str, mount: i32) -> Result<MergedTree, Status> {
        let missing = || Status::unknown(format!("container details for {id}@{mount} not found"));
        let container = self.containers.find(id).ok_or_else(missing)?;
        // What is negative is out of bounds too.
        let mount = usize::try_from(mount).unwrap_or(usize::MAX);
        container.container.tree(mount).map_err(|error| reply::status(&error))
    }
}

impl OpenContainer {
    /// Starts a process as a client describes it.
    pub(crate) async fn start(&self, init: &InitMessage) -> Result<BuildProcess, Status> {
        if self.processes.len() >= MOST_PROCESSES {
            return Err(Status::resource_exhausted(format!("a container has {MOST_PROCESSES} processes at most")));
        }
        let request = self.request(init)?;
        let started = self.container.start(&request).await;
        started.map_err(|error| match error.exit_code().and_then(|code| u32::try_from(code).ok()) {
            Some(code) => exited(Code::Unknown, code, error.to_string()),
            None => reply::status(&error),
        })
    }

    fn request(&self, init: &InitMessage) -> Result<ProcessRequest, Status> {
        let meta = init.meta.clone().unwrap_or_default();
        if meta.args.is_empty() {
            return Err(Status::invalid_argument("a process without arguments"));
        }
        let security = match pb::SecurityMode::try_from(init.security) {
            Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
            Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
            Err(_) => return Err(Status::unknown(format!("invalid security mode {}", init.security))),
        };
        let mut env = meta.env;
        if let Some(path) = self.path.filter(|_| !env.iter().any(|pair| pair.starts_with("PATH="))) {
            env.push(path.to_owned());
        }
        let secrets = init.secretenv.iter().cloned();
        Ok(ProcessRequest {
            args: meta.args,
            env,
            secret_env: secrets.map(|s| SecretEnv { id: s.id, name: s.name, optional: s.optional }).collect(),
            cwd: meta.cwd,
            user: meta.user,
            security,
            terminal: init.tty,
            streams: [0, 1, 2].map(|number| init.fds.contains(&number)),
            remove_mount_stubs: meta.remove_mount_stubs_recursive,
        })
    }

    /// What is told of a process that has ended.
    pub(crate) async fn ended(&self, process: &BuildProcess) -> ExitMessage {
        match process.wait().await {
            Ok(status) => self.told(status),
            Err(error) => self.failed(Status::unknown(error.to_string())),
        }
    }

    fn told(&self, status: ExitStatus) -> ExitMessage {
        let code = u32::try_from(status.code()).unwrap_or(UNKNOWN_EXIT);
        match (code, self.released.is_cancelled()) {
            (0, _) => ExitMessage { code, error: None },
            (_, true) => self.failed(exited(Code::Cancelled, code, format!("exit code: {code}: context canceled"))),
            (_, false) => self.failed(exited(Code::Unknown, code, format!("exit code: {code}"))),
        }
    }

    /// What is told of a process that failed, or could not be started.
    pub(crate) fn failed(&self, status: Status) -> ExitMessage {
        let details = reply::details(&status);
        let code = details.iter().find_map(exit_code).unwrap_or(UNKNOWN_EXIT);
        let error = rpc::Status { code: status.code() as i32, message: status.message().to_owned(), details };
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(status);
        ExitMessage { code, error: Some(error) }
    }

    /// Ends everything in it; an error if one of its processes failed, now or before.
    async fn release(&self) -> Result<(), Status> {
        self.released.cancel();
        let released = self.container.release().await.map_err(|error| reply::status(&error));
        self.processes.close();
        self.processes.wait().await;
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failure {
            Some(failure) => Err(failure),
            None => released,
        }
    }
}

const EXIT_DETAIL: &str = "github.com/moby/buildkit/gatewayapi.ExitMessage+json";

/// A failure of a process, with its code in the words of BuildKit's clients.
fn exited(kind: Code, code: u32, message: String) -> Status {
    let value = json!({ "Code": code }).to_string().into_bytes();
    let detail = forge_buildkit_proto::google::protobuf::Any { type_url: EXIT_DETAIL.to_owned(), value };
    reply::with_details(kind, message, vec![detail])
}

fn exit_code(detail: &forge_buildkit_proto::google::protobuf::Any) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(&detail.value).ok()?;
    value.get("Code").filter(|_| detail.type_url == EXIT_DETAIL)?.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_process_travels_with_its_failure() {
        let failed = exited(Code::Unknown, 99, "exit code: 99".to_owned());
        assert_eq!(reply::details(&failed).iter().find_map(exit_code), Some(99));
        assert_eq!(failed.message(), "exit code: 99");
    }
}
