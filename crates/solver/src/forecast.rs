use crate::MissCause;
use forge_llb::VertexDigest;

/// What a build would do with a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepForecast {
    /// The vertex.
    pub digest: VertexDigest,
    /// Its name.
    pub name: String,
    /// Whether it brings something in from elsewhere, and runs nothing.
    pub is_source: bool,
    /// What would become of it.
    pub forecast: Forecast,
    /// For what is unknown: the first of the steps that would run and that it depends on.
    pub after: Option<String>,
    /// What it took the last time; `None` where nothing like it was built before.
    pub expected: Option<Expected>,
}

/// What would become of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forecast {
    /// The cache has its result, or that of everything that needs it.
    Cached,
    /// It would run.
    Runs(MissCause),
    /// An earlier step would run: it depends on what that one makes. Where it comes out as before, this one is cached.
    Unknown,
}

/// What a step took when it, or what it was in the last build, last ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Milliseconds.
    pub wall_ms: u64,
    /// Bytes of the layers that it made.
    pub bytes: u64,
}
