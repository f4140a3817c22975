//! Who answers a question about a Dockerfile: this process, a daemon, or the front end that the Dockerfile asks for.

use super::build::{Ends, remote_build};
use super::{Start, front_end};
use crate::args::BuildArgs;
use crate::failure::Failure;
use crate::host::Host;
use crate::interrupt::Interrupts;
use crate::progress::{Display, Mode};
use forge_engine::{BuildRequest, Call, CallOutcome};

/// An answer of whoever was asked.
pub enum Answered {
    /// As the engine gives it.
    Known(CallOutcome),
    /// Of a front end with documents of its own.
    Foreign(forge_client::Answered),
}

/// Asks.
pub async fn ask(
    start: &Start,
    args: &BuildArgs,
    request: BuildRequest,
    method: Call,
    mode: Mode,
) -> Result<Answered, Failure> {
    let is_for_other = start.front_ends.enabled && start.host.is_none() && request.other_front_end()?.is_some();
    let interrupts = Interrupts::watch()?;
    let display = Display::start(mode, start.style());
    let ends = (display.events(), interrupts.token());
    let known = |answered: forge_client::Answered| match answered.outcome(method) {
        Some(outcome) => Answered::Known(outcome),
        None => Answered::Foreign(answered),
    };
    let outcome = match &start.host {
        Some(host) => there(start, host, args, request, method, ends).await.map(known),
        None if is_for_other => Box::pin(front_end::call(start, args, request, method, ends)).await.map(known),
        None if start.front_ends.enabled => {
            let (engine, (events, token)) = (start.engine()?, &ends);
            let here =
                async |request| engine.call(request, method, events.clone(), token.clone()).await.map(Answered::Known);
            let other = async |request| {
                front_end::call(start, args, request, method, (events.clone(), token.clone())).await.map(known)
            };
            front_end::here_or_other(start, request, here, other).await
        }
        None => here(start, request, method, ends).await.map(Answered::Known),
    };
    display.finish();
    outcome.map_err(|failure| match interrupts.exit_code() {
        Some(code) => failure.with_code(code),
        None => failure,
    })
}

async fn here(
    start: &Start,
    request: BuildRequest,
    method: Call,
    (events, token): Ends,
) -> Result<CallOutcome, Failure> {
    start.engine()?.call(request, method, events, token).await.map_err(Failure::from)
}

async fn there(
    start: &Start,
    host: &Host,
    args: &BuildArgs,
    request: BuildRequest,
    method: Call,
    (events, token): Ends,
) -> Result<forge_client::Answered, Failure> {
    let build = remote_build(start, args, request, None, (&events, &token)).await?;
    let client = host.connect_until(&token).await?;
    Ok(client.call(build, method, events, token).await?)
}
