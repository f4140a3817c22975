//! A build whose Dockerfile asks for a front end that is an image, where the configuration allows that. It is BuildKit's interface
//! that such a front end speaks, so a daemon serves it: in this process, to this process, and no longer than the build.

use super::Start;
use super::build::{Ends, remote_build};
use super::daemon::failure;
use crate::args::BuildArgs;
use crate::failure::Failure;
use forge_client::{Answered, Client};
use forge_daemon::{Daemon, DaemonOptions};
use forge_engine::{BuildOutcome, BuildRequest, Call, EngineError};
use tokio_util::sync::CancellationToken;

/// Bytes on the way between the two.
const WINDOW: usize = 1 << 20;

/// What the user may ask for is for the build's own flags to say.
const ENTITLEMENTS: [&str; 3] = ["network.host", "security.insecure", "device"];

pub async fn build(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    (events, token): Ends,
) -> Result<BuildOutcome, Failure> {
    let build = remote_build(start, args, request, None)?;
    with_daemon(start, async |client| client.build(build, events, token).await).await
}

/// Asks the front end about what it would build.
pub async fn call(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    method: Call,
    (events, token): Ends,
) -> Result<Answered, Failure> {
    let build = remote_build(start, args, request, None)?;
    with_daemon(start, async |client| client.call(build, method, events, token).await).await
}

/// Works with a daemon that serves nobody else, and that ends with the work.
async fn with_daemon<T>(start: &Start, work: impl AsyncFnOnce(Client) -> Result<T, EngineError>) -> Result<T, Failure> {
    let engine = start.engine()?;
    // Copies of contexts are for this build alone.
    let place = start.options.root.join("session-scratch");
    std::fs::create_dir_all(&place)?;
    let scratch = tempfile::tempdir_in(&place)?;
    let options = DaemonOptions {
        entitlements: ENTITLEMENTS.map(str::to_owned).to_vec(),
        front_ends: start.front_ends.clone(),
        version: format!("v{}+forge", env!("CARGO_PKG_VERSION")),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::bind(engine, scratch.path(), options).await.map_err(failure)?;
    let (ours, theirs) = tokio::io::duplex(WINDOW);
    let end = CancellationToken::new();
    let serving = tokio::spawn(daemon.serve_one(theirs, end.clone()));
    let outcome = work(Client::over(ours)).await;
    end.cancel();
    // What the build left is cleaned up before this process ends.
    let _ = serving.await;
    Ok(outcome?)
}
