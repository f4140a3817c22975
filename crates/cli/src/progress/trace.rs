use super::lines::LineSplitter;
use forge_image::Digest;
use forge_session::{Event, LogStream, StatusUpdate, VertexUpdate, WarningNotice};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// What is known of a build from its events so far: the state behind every rendering.
#[derive(Default)]
pub struct Trace {
    vertices: Vec<VertexTrace>,
    by_digest: HashMap<Digest, usize>,
}

/// What is known of one vertex.
pub struct VertexTrace {
    pub update: VertexUpdate,
    pub statuses: Vec<StatusUpdate>,
    pub warnings: Vec<WarningNotice>,
    last_output: Duration,
    splitters: [LineSplitter; 2],
}

/// One complete line that a step wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Time since the step started.
    pub after: Duration,
    /// The bytes without their line end.
    pub bytes: Vec<u8>,
}

/// What an event changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The vertex has a new state.
    State(usize),
    /// One of the vertex's statuses, by its place, has a new state.
    Status(usize, usize),
    /// The vertex wrote lines.
    Lines(usize, Vec<LogLine>),
    /// The vertex got a remark.
    Warning(usize),
    /// Nothing that belongs to a vertex.
    None,
}

impl Trace {
    /// Takes one event in.
    pub fn apply(&mut self, event: &Event) -> Change {
        match event {
            Event::Vertex(update) => Change::State(self.update(update)),
            Event::Status(status) => match self.by_digest.get(&status.vertex) {
                Some(&place) => Change::Status(place, self.vertices[place].set_status(status)),
                None => Change::None,
            },
            Event::Log { vertex, stream, data, timestamp } => match self.by_digest.get(vertex) {
                Some(&place) => Change::Lines(place, self.vertices[place].log(*stream, data, *timestamp)),
                None => Change::None,
            },
            Event::Warning(notice) => match notice.vertex.as_ref().and_then(|vertex| self.by_digest.get(vertex)) {
                Some(&place) => {
                    self.vertices[place].warnings.push(notice.clone());
                    Change::Warning(place)
                }
                None => Change::None,
            },
        }
    }

    fn update(&mut self, update: &VertexUpdate) -> usize {
        if let Some(&place) = self.by_digest.get(&update.digest) {
            self.vertices[place].update = update.clone();
            return place;
        }
        self.by_digest.insert(update.digest.clone(), self.vertices.len());
        self.vertices.push(VertexTrace::new(update.clone()));
        self.vertices.len() - 1
    }

    /// The vertices in the order of their announcement.
    pub fn vertices(&self) -> &[VertexTrace] {
        &self.vertices
    }

    /// The vertex at a place.
    pub fn vertex(&self, place: usize) -> &VertexTrace {
        &self.vertices[place]
    }

    /// Takes what is left of unfinished lines of a vertex.
    pub fn drain(&mut self, place: usize) -> Vec<LogLine> {
        self.vertices[place].drain()
    }

    /// Whether a step failed of itself.
    pub fn has_failure(&self) -> bool {
        self.vertices.iter().any(|vertex| vertex.state() == State::Failed)
    }
}

/// The states of a vertex, as users see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    Running,
    Done,
    Cached,
    Failed,
    Cancelled,
}

impl VertexTrace {
    fn new(update: VertexUpdate) -> Self {
        Self {
            update,
            statuses: Vec::new(),
            warnings: Vec::new(),
            last_output: Duration::ZERO,
            splitters: Default::default(),
        }
    }

    /// Where the vertex stands.
    pub fn state(&self) -> State {
        match (&self.update.error, self.update.completed, self.update.started) {
            (Some(error), ..) if is_cancellation(error) => State::Cancelled,
            (Some(_), ..) => State::Failed,
            (None, Some(_), _) if self.update.cached => State::Cached,
            (None, Some(_), _) => State::Done,
            (None, None, Some(_)) => State::Running,
            (None, None, None) => State::Waiting,
        }
    }

    /// Whether nothing more will come of it.
    pub fn is_over(&self) -> bool {
        !matches!(self.state(), State::Waiting | State::Running)
    }

    /// How long it ran, until `now` where it still does.
    pub fn elapsed(&self, now: SystemTime) -> Duration {
        let Some(started) = self.update.started else { return Duration::ZERO };
        self.update.completed.unwrap_or(now).duration_since(started).unwrap_or_default()
    }

    fn set_status(&mut self, status: &StatusUpdate) -> usize {
        match self.statuses.iter().position(|old| old.id == status.id) {
            Some(place) => {
                self.statuses[place] = status.clone();
                place
            }
            None => {
                self.statuses.push(status.clone());
                self.statuses.len() - 1
            }
        }
    }

    fn log(&mut self, stream: LogStream, data: &[u8], timestamp: SystemTime) -> Vec<LogLine> {
        let after = self.update.started.and_then(|started| timestamp.duration_since(started).ok()).unwrap_or_default();
        self.last_output = after;
        let lines = self.splitters[stream as usize - 1].push(data);
        lines.into_iter().map(|bytes| LogLine { after, bytes }).collect()
    }

    fn drain(&mut self) -> Vec<LogLine> {
        let after = self.last_output;
        let rest = self.splitters.iter_mut().filter_map(LineSplitter::finish);
        rest.map(|bytes| LogLine { after, bytes }).collect()
    }
}

/// Whether a vertex's error says that it was stopped because the build was.
fn is_cancellation(error: &str) -> bool {
    let error = error.to_ascii_lowercase();
    error.ends_with("canceled") || error.ends_with("cancelled")
}
