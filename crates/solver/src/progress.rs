use crate::plan::Plan;
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
pub(crate) fn announce(events: &dyn EventSink, plan: &Plan, step: usize) {
    events.emit(Event::Vertex(update(plan, step)));
}

/// Tells that a step runs.
pub(crate) fn start(events: &dyn EventSink, plan: &Plan, step: usize, at: SystemTime) {
    events.emit(Event::Vertex(VertexUpdate { started: Some(at), ..update(plan, step) }));
}

/// Tells that a step is over.
pub(crate) fn end(events: &dyn EventSink, plan: &Plan, step: usize, ending: Ending) {
    let now = SystemTime::now();
    let over = VertexUpdate { completed: Some(now), started: Some(now), ..update(plan, step) };
    let over = match ending {
        Ending::Ran { started } => VertexUpdate { started: Some(started), ..over },
        Ending::Cached => VertexUpdate { cached: true, ..over },
        Ending::Failed { started, error } => {
            VertexUpdate { started: Some(started.unwrap_or(now)), error: Some(error), ..over }
        }
    };
    events.emit(Event::Vertex(over));
}

fn update(plan: &Plan, step: usize) -> VertexUpdate {
    let planned = plan.step(step);
    VertexUpdate {
        digest: planned.digest.digest().clone(),
        inputs: plan.needs(step).map(|input| plan.step(input).digest.digest().clone()).collect(),
        name: planned.vertex.metadata.name.clone(),
        started: None,
        completed: None,
        cached: false,
        error: None,
        progress_group: None,
    }
}
