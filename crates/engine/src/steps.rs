//! Steps of a build that are no vertices of its graph: reading the Dockerfile, resolving images, exporting.

use forge_image::Digest;
use forge_image::chain;
use forge_session::{Event, EventSink, VertexUpdate};
use std::error::Error;
use std::time::SystemTime;

/// A step that is shown to the user from its start to its end.
pub(crate) struct ShownStep<'a> {
    events: &'a dyn EventSink,
    update: VertexUpdate,
}

impl<'a> ShownStep<'a> {
    /// Shows the start of a step.
    pub(crate) fn start(events: &'a dyn EventSink, name: &str) -> Self {
        let update = VertexUpdate {
            digest: Self::digest_of(name),
            inputs: Vec::new(),
            name: name.to_owned(),
            started: Some(SystemTime::now()),
            completed: None,
            cached: false,
            error: None,
            progress_group: None,
        };
        events.emit(Event::Vertex(update.clone()));
        Self { events, update }
    }

    /// What identifies the step in events.
    pub(crate) fn digest_of(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    /// Shows how the step ended, and passes its result on.
    pub(crate) fn end<T, E: Error>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.update.completed = Some(SystemTime::now());
        self.update.error = result.as_ref().err().map(|error| chain(error));
        self.events.emit(Event::Vertex(self.update));
        result
    }
}
