use crate::plan::PlannedStep;
use forge_session::{Event, EventSink, VertexUpdate};
use std::time::SystemTime;

/// How a step ended, for those who watch.
pub(crate) enum Ending {
    /// It ran, from then on.
    Ran { started: SystemTime },
    /// It did not have to run.
    Cached,
    /// It failed; `started` is `None` if it did so before it ran.
    Failed { started: Option<SystemTime>, error: String },
}

/// Tells that a step is part of the build.
pub(crate) fn announce(events: &dyn EventSink, step: &PlannedStep) {
    events.emit(Event::Vertex(update(step)));
}

/// Tells that a step runs.
pub(crate) fn start(events: &dyn EventSink, step: &PlannedStep, at: SystemTime) {
    events.emit(Event::Vertex(VertexUpdate { started: Some(at), ..update(step) }));
}

/// Tells that a step is over.
pub(crate) fn end(events: &dyn EventSink, step: &PlannedStep, ending: Ending) {
    let now = SystemTime::now();
    let over = VertexUpdate { completed: Some(now), started: Some(now), ..update(step) };
    let over = match ending {
        Ending::Ran { started } => VertexUpdate { started: Some(started), ..over },
        Ending::Cached => VertexUpdate { cached: true, ..over },
        Ending::Failed { started, error } => {
            VertexUpdate { started: Some(started.unwrap_or(now)), error: Some(error), ..over }
        }
    };
    events.emit(Event::Vertex(over));
}

fn update(step: &PlannedStep) -> VertexUpdate {
    VertexUpdate {
        digest: step.digest.digest().clone(),
        inputs: step.needs_digests.clone(),
        name: step.vertex.metadata.name.clone(),
        started: None,
        completed: None,
        cached: false,
        error: None,
        progress_group: None,
    }
}
