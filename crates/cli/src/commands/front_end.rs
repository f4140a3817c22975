//! A build whose Dockerfile asks for a front end that is an image, where the configuration allows that. It is BuildKit's interface
//! that such a front end speaks, so a daemon serves it: in this process, to this process, and no longer than the build.

use super::Start;
use super::build::{Ends, remote_build};
use super::daemon::failure;
use crate::args::BuildArgs;
use crate::failure::Failure;
use anyhow::Context;
use forge_client::{Answered, Client};
use forge_daemon::{Daemon, DaemonOptions};
use forge_engine::{BuildContext, BuildOutcome, BuildRequest, Call, ContextStream, EngineError, PlatformPlan};
use forge_image::ErrorKind;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
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
    let build = remote_build(start, args, request, None, (&events, &token)).await?;
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
    let build = remote_build(start, args, request, None, (&events, &token)).await?;
    Box::pin(with_daemon(start, async |client| client.call(build, method, events, token).await)).await
}

/// What the front end's build would do; the front end itself runs.
pub async fn plan(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    (events, token): Ends,
) -> Result<Vec<PlatformPlan>, Failure> {
    let build = remote_build(start, args, request, None, (&events, &token)).await?;
    Box::pin(with_daemon(start, async |client| client.plan(build, events, token).await)).await
}

/// Works on a Dockerfile that is seen only once its context is there: when it turns out to ask for a front end that is an image,
/// `other` does.
pub async fn here_or_other<T>(
    start: &Start,
    mut request: BuildRequest,
    here: impl AsyncFnOnce(BuildRequest) -> Result<T, EngineError>,
    other: impl AsyncFnOnce(BuildRequest) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let BuildContext::Stream(stream) = &request.context {
        request.context = BuildContext::Stream(kept(stream, &start.options.root)?);
    }
    let second = request.clone();
    match here(request).await {
        Err(error) if asks_for_other(&error) => other(second).await,
        done => Ok(done?),
    }
}

fn asks_for_other(error: &EngineError) -> bool {
    error.kind() == ErrorKind::Unsupported
        && error.place().is_some_and(|place| forge_engine::other_front_end(&place.data).is_some())
}

/// A stream that can be read again, from a file without a name: whoever holds it last may end with the process.
fn kept(stream: &ContextStream, root: &Path) -> anyhow::Result<ContextStream> {
    let mut stream = stream.take().context("standard input was read already")?;
    let place = root.join("session-scratch");
    std::fs::create_dir_all(&place)?;
    let mut file = tempfile::tempfile_in(&place)?;
    std::io::copy(&mut stream, &mut file).context("cannot keep standard input")?;
    let file = Arc::new(file);
    Ok(ContextStream::again(move || Some(FromStart { file: file.clone(), offset: 0 })))
}

/// A file with a place in it of its own.
struct FromStart {
    file: Arc<File>,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
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
