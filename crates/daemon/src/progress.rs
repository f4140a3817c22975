//! What happens in one build, kept for everybody who asks for it, however late.

use crate::timestamp::rfc3339;
use crate::traces::TraceContext;
use forge_buildkit_proto::google::protobuf::Timestamp;
use forge_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use forge_buildkit_proto::pb;
use forge_image::Digest;
use forge_session::{Event, EventSink, StatusUpdate, VertexUpdate, WarningNotice};
use prost::Message as _;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Items of one message: messages have a limit, and logs come in pieces of at most 32 KiB.
const ITEMS: usize = 64;

/// BuildKit's own bound of what one step's log may take.
const MOST_LOG: usize = 2 << 20;

/// The events of a build in the words of the status stream.
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    items: Vec<Item>,
    vertices: HashMap<Digest, Known>,
    /// The files that remarks point into, by name.
    sources: HashMap<String, Vec<u8>>,
    closed: bool,
}

#[derive(Clone)]
enum Item {
    Vertex(Vertex),
    Status(VertexStatus),
    Log(VertexLog),
    Warning(VertexWarning),
}

/// What was told of a vertex.
#[derive(Default)]
struct Known {
    started: bool,
    completed: bool,
    cached: bool,
    log_bytes: usize,
}

/// How many steps there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub cached: i32,
    pub total: i32,
    pub completed: i32,
    pub warnings: i32,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// What a build said that ended earlier, from its log.
    pub(crate) fn ended(log: &[u8]) -> Self {
        let progress = Self::new();
        {
            let mut state = progress.state();
            let mut rest = log;
            while let Some((length, after)) = rest.split_first_chunk::<4>()
                && let Some((frame, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize)
                && let Ok(message) = StatusResponse::decode(frame)
            {
                state.take(message);
                rest = after;
            }
            state.closed = true;
        }
        progress
    }

    /// All that was said, as BuildKit keeps it: messages of the status stream, each behind its length in four bytes, lowest
    /// first.
    pub(crate) fn log(&self) -> Vec<u8> {
        let state = self.state();
        let mut log = Vec::new();
        for items in state.items.chunks(ITEMS) {
            let frame = message(items).encode_to_vec();
            // A message is far smaller than what it may be.
            log.extend(u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
            log.extend(frame);
        }
        log
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.send_replace(());
    }

    /// The items from `position` on, as one message; `None` when there will never be one.
    pub(crate) async fn next(&self, position: &mut usize) -> Option<StatusResponse> {
        let mut changes = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                if *position < state.items.len() {
                    let end = state.items.len().min(*position + ITEMS);
                    let message = message(&state.items[*position..end]);
                    *position = end;
                    return Some(message);
                }
                if state.closed {
                    return None;
                }
            }
            // The sender lives as long as this does.
            changes.changed().await.ok()?;
        }
    }

    /// The steps that ran, as spans of the client's trace, or of one of the build's own.
    pub(crate) fn spans(&self, build: &str, traced: Option<&TraceContext>) -> Vec<Value> {
        let state = self.state();
        let own = || Digest::sha256(build.as_bytes()).hex()[..32].to_owned();
        let id = traced.map_or_else(own, |traced| traced.trace.clone());
        let mut spans: HashMap<String, Value> = HashMap::new();
        for item in &state.items {
            let Item::Vertex(vertex) = item else { continue };
            let (Some(started), Some(completed)) = (&vertex.started, &vertex.completed) else { continue };
            let digest = vertex.digest.rsplit(':').next().unwrap_or_default();
            let context = json!({ "TraceID": id, "SpanID": digest.get(..16).unwrap_or(digest) });
            let (started, completed) = (rfc3339(moment(started)), rfc3339(moment(completed)));
            let failed = if vertex.error.is_empty() {
                json!({ "Code": "Unset" })
            } else {
                json!({ "Code": "Error", "Description": vertex.error })
            };
            let attributes = json!([
                { "Key": "vertex", "Value": { "Type": "STRING", "Value": vertex.digest } },
                { "Key": "cached", "Value": { "Type": "BOOL", "Value": vertex.cached } },
            ]);
            let mut span = json!({
                "Name": vertex.name, "SpanContext": context, "StartTime": started, "EndTime": completed,
                "Attributes": attributes, "Status": failed,
            });
            if let Some(traced) = traced {
                span["Parent"] = json!({ "TraceID": id, "SpanID": traced.span });
            }
            spans.insert(vertex.digest.clone(), span);
        }
        spans.into_values().collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        let count = |matches: fn(&Known) -> bool| {
            i32::try_from(state.vertices.values().filter(|known| matches(known)).count()).unwrap_or(i32::MAX)
        };
        let warnings = state.items.iter().filter(|item| matches!(item, Item::Warning(_))).count();
        Counts {
            cached: count(|known| known.cached),
            total: count(|_| true),
            completed: count(|known| known.completed),
            warnings: i32::try_from(warnings).unwrap_or(i32::MAX),
        }
    }

    /// The text of a file that remarks will point into.
    pub(crate) fn know_source(&self, name: &str, data: Vec<u8>) {
        self.state().sources.insert(name.to_owned(), data);
    }

    /// Adds a remark as clients hand it in.
    pub(crate) fn warn(&self, warning: VertexWarning) {
        self.state().items.push(Item::Warning(warning));
        self.changed.send_replace(());
    }
}

impl EventSink for Progress {
    fn emit(&self, event: Event) {
        let mut state = self.state();
        match event {
            Event::Vertex(update) => state.vertex(update),
            Event::Status(update) => state.items.push(Item::Status(status(update))),
            Event::Log { vertex, stream, data, timestamp } => {
                let message = VertexLog {
                    vertex: vertex.to_string(),
                    timestamp: Some(time(timestamp)),
                    stream: stream as i64,
                    msg: data,
                };
                state.log(vertex, message);
            }
            Event::Warning(notice) => {
                let warning = state.warning(notice);
                state.items.push(Item::Warning(warning));
            }
        }
        drop(state);
        self.changed.send_replace(());
    }
}

impl State {
    /// Takes in what was told before.
    fn take(&mut self, message: StatusResponse) {
        for vertex in &message.vertexes {
            let Ok(digest) = vertex.digest.parse() else { continue };
            let known: &mut Known = self.vertices.entry(digest).or_default();
            known.started |= vertex.started.is_some();
            known.completed |= vertex.completed.is_some();
            known.cached |= vertex.cached;
        }
        self.items.extend(message.vertexes.into_iter().map(Item::Vertex));
        self.items.extend(message.statuses.into_iter().map(Item::Status));
        self.items.extend(message.logs.into_iter().map(Item::Log));
        self.items.extend(message.warnings.into_iter().map(Item::Warning));
    }

    /// One build solves several graphs that share vertices: what was completed once stays as it was told.
    fn vertex(&mut self, update: VertexUpdate) {
        let known = self.vertices.entry(update.digest.clone()).or_default();
        let announced = update.started.is_none() && update.completed.is_none();
        if known.completed || (known.started && announced) {
            return;
        }
        known.started |= update.started.is_some();
        known.completed |= update.completed.is_some();
        known.cached |= update.cached;
        self.items.push(Item::Vertex(vertex(update)));
    }

    fn warning(&self, notice: WarningNotice) -> VertexWarning {
        let range = notice.span.as_ref().map(|span| range(span.first_line, span.last_line));
        let info = notice.span.map(|span| pb::SourceInfo {
            data: self.sources.get(&span.file).cloned().unwrap_or_default(),
            filename: span.file,
            definition: None,
            language: "Dockerfile".to_owned(),
        });
        VertexWarning {
            vertex: notice.vertex.map(|vertex| vertex.to_string()).unwrap_or_default(),
            level: notice.level.into(),
            short: notice.short.into_bytes(),
            detail: notice.detail.into_iter().map(String::into_bytes).collect(),
            url: notice.url.unwrap_or_default(),
            info,
            ranges: range.into_iter().collect(),
        }
    }

    fn log(&mut self, vertex: Digest, message: VertexLog) {
        let known = self.vertices.entry(vertex).or_default();
        let before = known.log_bytes;
        known.log_bytes += message.msg.len();
        if known.log_bytes <= MOST_LOG {
            self.items.push(Item::Log(message));
        } else if before <= MOST_LOG {
            let msg = format!("[output clipped, log limit {}MiB reached]", MOST_LOG >> 20).into_bytes();
            self.items.push(Item::Log(VertexLog { msg, ..message }));
        }
    }
}

fn message(items: &[Item]) -> StatusResponse {
    let mut message = StatusResponse::default();
    for item in items {
        match item.clone() {
            Item::Vertex(vertex) => message.vertexes.push(vertex),
            Item::Status(status) => message.statuses.push(status),
            Item::Log(log) => message.logs.push(log),
            Item::Warning(warning) => message.warnings.push(warning),
        }
    }
    message
}

fn vertex(update: VertexUpdate) -> Vertex {
    Vertex {
        digest: update.digest.to_string(),
        inputs: update.inputs.iter().map(Digest::to_string).collect(),
        name: update.name,
        cached: update.cached,
        started: update.started.map(time),
        completed: update.completed.map(time),
        error: update.error.unwrap_or_default(),
        progress_group: update.progress_group.map(|group| pb::ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
    }
}

fn status(update: StatusUpdate) -> VertexStatus {
    VertexStatus {
        id: update.id,
        vertex: update.vertex.to_string(),
        name: update.name,
        current: i64::try_from(update.current).unwrap_or(i64::MAX),
        total: i64::try_from(update.total).unwrap_or(i64::MAX),
        timestamp: Some(time(update.timestamp)),
        started: update.started.map(time),
        completed: update.completed.map(time),
    }
}

/// Lines, both ends included.
pub(crate) fn range(first: u32, last: u32) -> pb::Range {
    let position =
        |line: u32| pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), ..pb::Position::default() };
    pb::Range { start: Some(position(first)), end: Some(position(last)) }
}

/// A time as it crosses the wire.
/// The moment that a message tells.
fn moment(timestamp: &Timestamp) -> SystemTime {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or_default();
    UNIX_EPOCH + Duration::new(seconds, u32::try_from(timestamp.nanos).unwrap_or_default().min(999_999_999))
}

pub(crate) fn time(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}
