use forge_image::Digest;
use std::time::SystemTime;

/// Something that happened in a build. One stream of these stands beside every build; terminal output, plain
/// text, JSON and BuildKit's status stream are renderings of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A vertex was announced, started or ended. Later updates of the same digest replace earlier ones.
    Vertex(VertexUpdate),
    /// Progress of something within a vertex, e.g. one layer being fetched.
    Status(StatusUpdate),
    /// Bytes that a step wrote.
    Log {
        /// The vertex.
        vertex: Digest,
        /// Which of its streams.
        stream: LogStream,
        /// The bytes as they came; lines may be cut anywhere.
        data: Vec<u8>,
        /// When.
        timestamp: SystemTime,
    },
    /// A remark that does not fail the build.
    Warning(WarningNotice),
}

/// The state of a vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct VertexUpdate {
    /// Identifies the vertex within the build.
    pub digest: Digest,
    /// The vertices that it waits for.
    pub inputs: Vec<Digest>,
    /// What users see, `[build 2/5] RUN make`.
    pub name: String,
    /// When it started; `None` while it waits.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
    /// Whether its result came from the cache.
    pub cached: bool,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// The group that it is shown in.
    pub progress_group: Option<ProgressGroup>,
}

/// A group of vertices that is shown as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Identifies the group.
    pub id: String,
    /// What users see.
    pub name: String,
    /// Whether the group gives way to another one.
    pub weak: bool,
}

/// Progress within a vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusUpdate {
    /// What progresses, e.g. a blob's digest or `exporting layers`.
    pub id: String,
    /// The vertex it belongs to.
    pub vertex: Digest,
    /// What is being done, e.g. `extracting`.
    pub name: String,
    /// How much there is to do, in bytes; zero where unknown.
    pub total: u64,
    /// How much is done.
    pub current: u64,
    /// When this was reported.
    pub timestamp: SystemTime,
    /// When it started.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
}

/// Which stream of a step, numbered as file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output, 1.
    Stdout = 1,
    /// Standard error, 2.
    Stderr = 2,
}

/// A place in a source file: lines from 1, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpan {
    /// The file as the user named it.
    pub file: String,
    /// The first line.
    pub first_line: u32,
    /// The last line.
    pub last_line: u32,
}

/// A remark about the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarningNotice {
    /// The vertex it belongs to.
    pub vertex: Option<Digest>,
    /// From 1, the most important.
    pub level: u32,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// Where to read on.
    pub url: Option<String>,
    /// The place in the source.
    pub span: Option<SourceSpan>,
    /// The lines around that place, readable.
    pub excerpt: Option<String>,
}

/// Takes events. Must not block for long: it is called from the build's hot path.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: Event);
}
