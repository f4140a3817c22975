//! Events for tests, on a fixed clock.

use forge_image::Digest;
use forge_session::{Event, LogStream, StatusUpdate, VertexUpdate};
use std::time::{Duration, SystemTime};

/// A time in milliseconds after the start.
pub fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(milliseconds)
}

/// A list of events with the times at which they come.
#[derive(Default)]
pub struct Script {
    pub events: Vec<(SystemTime, Event)>,
}

impl Script {
    pub fn wait(self, ms: u64, id: &str, name: &str) -> Self {
        self.vertex(ms, vertex(id, name))
    }

    pub fn start(self, ms: u64, id: &str, name: &str) -> Self {
        self.vertex(ms, VertexUpdate { started: Some(at(ms)), ..vertex(id, name) })
    }

    pub fn done(self, ms: u64, id: &str) -> Self {
        let last = self.last(id);
        self.vertex(ms, VertexUpdate { completed: Some(at(ms)), ..last })
    }

    pub fn cached(self, ms: u64, id: &str) -> Self {
        let last = self.last(id);
        self.vertex(ms, VertexUpdate { started: Some(at(ms)), completed: Some(at(ms)), cached: true, ..last })
    }

    pub fn fail(self, ms: u64, id: &str, error: &str) -> Self {
        let last = self.last(id);
        self.vertex(ms, VertexUpdate { completed: Some(at(ms)), error: Some(error.to_owned()), ..last })
    }

    pub fn log(mut self, ms: u64, id: &str, text: &str) -> Self {
        let data = text.as_bytes().to_vec();
        let event = Event::Log { vertex: digest(id), stream: LogStream::Stdout, data, timestamp: at(ms) };
        self.events.push((at(ms), event));
        self
    }

    pub fn status(mut self, ms: u64, id: &str, what: &str, bytes: u64, completed: Option<u64>) -> Self {
        let status = StatusUpdate {
            id: what.to_owned(),
            vertex: digest(id),
            name: String::new(),
            total: 0,
            current: bytes,
            timestamp: at(ms),
            started: Some(at(ms)),
            completed: completed.map(at),
        };
        self.events.push((at(ms), Event::Status(status)));
        self
    }

    fn vertex(mut self, ms: u64, update: VertexUpdate) -> Self {
        self.events.push((at(ms), Event::Vertex(update)));
        self
    }

    fn last(&self, id: &str) -> VertexUpdate {
        let updates = self.events.iter().rev().filter_map(|(_, event)| match event {
            Event::Vertex(update) if update.digest == digest(id) => Some(update.clone()),
            _ => None,
        });
        updates.into_iter().next().expect("the script announces a vertex before it goes on with it")
    }
}

fn digest(id: &str) -> Digest {
    Digest::sha256(id.as_bytes())
}

fn vertex(id: &str, name: &str) -> VertexUpdate {
    VertexUpdate {
        digest: digest(id),
        inputs: Vec::new(),
        name: name.to_owned(),
        started: None,
        completed: None,
        cached: false,
        error: None,
        progress_group: None,
    }
}
