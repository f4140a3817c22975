//! Builds that run and ran, for whoever watches them.

use super::Answers;
use crate::builds::Builds;
use crate::filter;
use forge_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, UpdateBuildHistoryRequest,
};
use futures_util::stream::{self, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

/// What there is, and unless the client wants no more than that, what happens.
pub(super) fn listen(builds: &Builds, request: BuildHistoryRequest) -> Result<Answers<BuildHistoryEvent>, Status> {
    let (known, changes) = builds.listen();
    let events: Vec<BuildHistoryEvent> = known.iter().map(|build| Builds::event_of(build)).collect();
    let mut wanted = Vec::new();
    for event in events {
        if is_wanted(&event, &request)? {
            wanted.push(event);
        }
    }
    if let Ok(limit @ 1..) = usize::try_from(request.limit) {
        wanted.reverse();
        wanted.truncate(limit);
    }
    let known = stream::iter(wanted.into_iter().map(Ok));
    if request.early_exit {
        return Ok(known.boxed());
    }
    let changes = stream::unfold((changes, request), |(mut changes, request)| async move {
        loop {
            match changes.recv().await {
                Ok(event) => match is_wanted(&event, &request) {
                    Ok(true) => return Some((Ok(event), (changes, request))),
                    Ok(false) => {}
                    Err(status) => return Some((Err(status), (changes, request))),
                },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Ok(known.chain(changes).boxed())
}

fn is_wanted(event: &BuildHistoryEvent, request: &BuildHistoryRequest) -> Result<bool, Status> {
    let Some(record) = &event.record else { return Ok(false) };
    if !request.r#ref.is_empty() && record.r#ref != request.r#ref {
        return Ok(false);
    }
    if request.active_only && event.r#type() == BuildHistoryEventType::Complete {
        return Ok(false);
    }
    filter::matches(&request.filter, |path| field(record, path))
}

fn field(record: &BuildHistoryRecord, path: &str) -> Option<String> {
    match path {
        "ref" => Some(record.r#ref.clone()),
        "status" => Some(
            match (&record.completed_at, &record.error) {
                (None, _) => "running",
                (Some(_), Some(error)) if error.code == 1 => "canceled",
                (Some(_), Some(_)) => "error",
                (Some(_), None) => "completed",
            }
            .to_owned(),
        ),
        "repository" => record.frontend_attrs.get("vcs:source").or(record.frontend_attrs.get("context")).cloned(),
        _ => None,
    }
}

/// Pins, forgets, or says when each step ran.
pub(super) fn update(builds: &Builds, request: &UpdateBuildHistoryRequest) -> Result<(), Status> {
    match (request.delete, request.finalize) {
        (true, _) => builds.forget(&request.r#ref),
        (false, true) => builds.finalize(&request.r#ref),
        (false, false) => builds.update(&request.r#ref, |record| record.pinned = request.pinned),
    }
}
