use crate::WorkerError;
use async_trait::async_trait;
use forge_cache::{MadeLayer, OpKey, ResultRef, Selector, StepUsage};
use forge_llb::{Vertex, VertexDigest};
use forge_session::Session;
use std::sync::Arc;

/// Does what vertices say.
///
/// Both methods may be called for several vertices at once. When the session given to them is cancelled, they end
/// soon, with [`WorkerError::Cancelled`]; a build waits for every execution that it began. The session is not
/// the caller's own: its token is cancelled as well when another step of the build has failed.
#[async_trait]
pub trait Worker: Send + Sync {
    /// Says what a vertex is worth as a key. Cheap; may ask a registry to pin a source. Called once for every
    /// vertex that the goal needs, in no particular order. Its future may be dropped when the build ends early.
    ///
    /// # Errors
    /// A source is not to be found, or the op is not supported.
    async fn cache_map(&self, vertex: &Vertex, session: &Arc<dyn Session>) -> Result<CacheMap, WorkerError>;

    /// Looks for what a vertex would make among what is kept, and runs nothing: a layer that it made on another input may be
    /// what it makes on this one (leased for this build then). Asked where [`CacheMap::beneath`] says so and the same vertex
    /// ran with the same other inputs before.
    ///
    /// # Errors
    /// The inputs cannot be read.
    async fn find(
        &self,
        _request: ExecuteRequest,
        _session: &Arc<dyn Session>,
    ) -> Result<Option<Vec<ResultRef>>, WorkerError> {
        Ok(None)
    }

    /// Runs a vertex and keeps its results (leased for this build).
    ///
    /// # Errors
    /// The step failed. Nothing of it is kept then.
    async fn execute(&self, request: ExecuteRequest, session: &Arc<dyn Session>) -> Result<Execution, WorkerError>;
}

/// What a vertex is worth as a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMap {
    /// The op's part of keys. `None` for what has no key before it is read (a local context): it is always
    /// executed, and whoever uses it knows it by its content.
    pub op: Option<OpKey>,
    /// How each input takes part in the content key, in the order of the vertex's inputs.
    pub inputs: Vec<InputKey>,
    /// What the key is made of, for people: name and value, in order.
    pub readable: Vec<(String, String)>,
    /// The input that the result lies on, where the vertex may add the same to another one.
    pub beneath: Option<usize>,
    /// Whether results are found and kept in the cache. `false`: executed in every build that needs it.
    pub cacheable: bool,
}

/// How an input takes part in the content key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputKey {
    /// By the definition key of what makes it.
    Definition,
    /// By the digest of what the op sees of it.
    Content(Selector),
}

/// A step to be run.
#[derive(Clone, Debug)]
pub struct ExecuteRequest {
    /// The vertex.
    pub vertex: Arc<Vertex>,
    /// Its digest, as events carry it.
    pub digest: VertexDigest,
    /// The results of its inputs, in the order of `vertex.inputs`.
    pub inputs: Vec<ResultRef>,
}

/// What a step made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The results, one for each output of the vertex.
    pub outputs: Vec<ResultRef>,
    /// For each output what its top-most layer amounts to, where that was made now: a result of an earlier run that
    /// amounts to the same on the same layers takes its place.
    pub made: Vec<Option<MadeLayer>>,
    /// What its processes used, if it ran some.
    pub usage: Option<StepUsage>,
}

impl Execution {
    /// Results of which no more is known, of a step that ran no process.
    pub fn new(outputs: Vec<ResultRef>) -> Self {
        Self { made: vec![None; outputs.len()], outputs, usage: None }
    }

    /// Makes a result an output whose top-most layer was made now.
    pub fn set(&mut self, output: usize, result: ResultRef, made: MadeLayer) {
        self.outputs[output] = result;
        self.made[output] = Some(made);
    }
}
