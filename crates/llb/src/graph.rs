use crate::{DiffOp, ExecOp, FileInput, FileKind, FileOp, PassthroughOp, SourceOp, StepResources};
use forge_image::{Digest, Platform};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Identifies a vertex: the SHA-256 of its canonical bytes, or of the bytes that it arrived as.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexDigest(Digest);

impl VertexDigest {
    /// Names a digest as that of a vertex.
    pub fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest itself, as events carry it.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One output of a vertex.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexDigest,
    /// Which of its outputs, from 0.
    pub output: usize,
}

/// What a vertex does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Brings files in.
    Source(SourceOp),
    /// Runs a process.
    Exec(ExecOp),
    /// Changes files.
    File(FileOp),
    /// Puts its inputs on top of each other, the first one lowest. None at all is the empty file system.
    Merge,
    /// What turns one tree into another.
    Diff(DiffOp),
    /// Inputs as they are, behind others that must have run.
    Passthrough(PassthroughOp),
}

impl Op {
    /// How many outputs the op has.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Source(_) | Self::File(_) | Self::Merge | Self::Diff(_) => 1,
            Self::Passthrough(passthrough) => passthrough.outputs.len(),
            Self::Exec(exec) => exec.mounts.iter().filter_map(|mount| mount.output).max().map_or(0, |max| max + 1),
        }
    }
}

/// Where in a source file an instruction stands. Lines count from 1, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstructionSpan {
    /// The file as the user named it.
    pub file: String,
    /// The first line.
    pub first_line: u32,
    /// The last line.
    pub last_line: u32,
    /// The instruction's text as it stands there.
    pub text: String,
}

/// What is known of a vertex besides what it does. Not part of its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// What users see, `[build 2/5] RUN make`.
    pub name: String,
    /// Whether the cache is not asked (it is still fed).
    pub ignore_cache: bool,
    /// The instruction that it comes from.
    pub span: Option<InstructionSpan>,
    /// What its processes may take from the machine, which changes nothing of what they make.
    pub resources: Option<Arc<StepResources>>,
}

/// A step of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// What it does it to.
    pub inputs: Vec<Edge>,
    /// The platform it is done for; `None` where it makes no difference.
    pub platform: Option<Platform>,
    /// Everything that is not part of its identity.
    pub metadata: Metadata,
}

impl Vertex {
    /// The vertex's own identity. In a graph it may be known by another one: [`Graph::add_as`].
    pub fn digest(&self) -> VertexDigest {
        VertexDigest(Digest::sha256(&self.canonical_bytes()))
    }
}

/// Why a graph is refused (A27).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A vertex or the goal names a vertex that is not there before it.
    #[error("{vertex} needs {input}, which does not come before it in the graph")]
    UnknownInput {
        /// The vertex, or `the goal`.
        vertex: String,
        /// What it names.
        input: VertexDigest,
    },
    /// A vertex or the goal names an output that its vertex does not have.
    #[error("{vertex} needs output {output} of {input}, which has {outputs}")]
    UnknownOutput {
        /// The vertex, or `the goal`.
        vertex: String,
        /// What it names.
        input: VertexDigest,
        /// The output it wants.
        output: usize,
        /// How many there are.
        outputs: usize,
    },
    /// An op refers to an input, or to an earlier action, that it does not have.
    #[error("{vertex} refers to input or action {index}, which it does not have")]
    BadIndex {
        /// The vertex.
        vertex: String,
        /// The index.
        index: usize,
    },
}

/// A graph without cycles: every vertex stands behind its inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    vertices: Vec<Vertex>,
    /// What each vertex is known by.
    digests: Vec<VertexDigest>,
    positions: HashMap<VertexDigest, usize>,
    goal: Option<Edge>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a vertex, or finds an equal one, and returns its first output. Of two equal vertices the first
    /// one's metadata stay, except that one which must ignore the cache makes both do so.
    ///
    /// # Errors
    /// The vertex refers to something that is not in the graph.
    pub fn add(&mut self, vertex: Vertex) -> Result<Edge, GraphError> {
        let digest = vertex.digest();
        self.add_as(digest, vertex)
    }

    /// Adds a vertex that is known by another digest than its own, as [`Graph::add`] does otherwise: one that came
    /// from elsewhere as serialised bytes is known by the SHA-256 of these, since that is what its maker calls it.
    ///
    /// # Errors
    /// The vertex refers to something that is not in the graph.
    pub fn add_as(&mut self, digest: VertexDigest, vertex: Vertex) -> Result<Edge, GraphError> {
        self.check_inputs(&vertex)?;
        match self.positions.get(&digest) {
            Some(&position) => self.vertices[position].metadata.ignore_cache |= vertex.metadata.ignore_cache,
            None => {
                self.positions.insert(digest.clone(), self.vertices.len());
                self.digests.push(digest.clone());
                self.vertices.push(vertex);
            }
        }
        Ok(Edge { vertex: digest, output: 0 })
    }

    /// Says what is wanted. `None` is the empty file system (`FROM scratch` and nothing else).
    ///
    /// # Errors
    /// The edge is not in the graph.
    pub fn set_goal(&mut self, goal: Option<Edge>) -> Result<(), GraphError> {
        if let Some(edge) = &goal {
            self.check_edge("the goal", edge)?;
        }
        self.goal = goal;
        Ok(())
    }

    /// What is wanted.
    pub fn goal(&self) -> Option<&Edge> {
        self.goal.as_ref()
    }

    /// All vertices, each behind its inputs.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// All vertices with what they are known by, each behind its inputs.
    pub fn named(&self) -> impl Iterator<Item = (&VertexDigest, &Vertex)> {
        self.digests.iter().zip(&self.vertices)
    }

    /// The vertex of that digest.
    pub fn get(&self, digest: &VertexDigest) -> Option<&Vertex> {
        Some(&self.vertices[*self.positions.get(digest)?])
    }

    /// The vertices that the goal needs, each behind its inputs. What is not among them must never run.
    pub fn needed(&self) -> Vec<(VertexDigest, &Vertex)> {
        let mut wanted: Vec<&VertexDigest> = self.goal.iter().map(|edge| &edge.vertex).collect();
        let mut needed = vec![None; self.vertices.len()];
        while let Some(digest) = wanted.pop() {
            let position = self.positions[digest];
            if needed[position].replace(digest).is_none() {
                wanted.extend(self.vertices[position].inputs.iter().map(|edge| &edge.vertex));
            }
        }
        let pairs = needed.into_iter().zip(&self.vertices);
        pairs.filter_map(|(digest, vertex)| Some((digest?.clone(), vertex))).collect()
    }

    fn check_inputs(&self, vertex: &Vertex) -> Result<(), GraphError> {
        let name = &vertex.metadata.name;
        for edge in &vertex.inputs {
            self.check_edge(name, edge)?;
        }
        match bad_index(&vertex.op, vertex.inputs.len()) {
            Some(index) => Err(GraphError::BadIndex { vertex: name.clone(), index }),
            None => Ok(()),
        }
    }

    fn check_edge(&self, vertex: &str, edge: &Edge) -> Result<(), GraphError> {
        let input = edge.vertex.clone();
        let Some(found) = self.get(&edge.vertex) else {
            return Err(GraphError::UnknownInput { vertex: vertex.to_owned(), input });
        };
        let outputs = found.op.outputs();
        match edge.output < outputs {
            true => Ok(()),
            false => Err(GraphError::UnknownOutput { vertex: vertex.to_owned(), input, output: edge.output, outputs }),
        }
    }
}

/// The first index in an op that points at nothing.
fn bad_index(op: &Op, inputs: usize) -> Option<usize> {
    match op {
        Op::Source(_) | Op::Merge => None,
        Op::Diff(diff) => [diff.lower, diff.upper].into_iter().flatten().find(|index| *index >= inputs),
        Op::Exec(exec) => exec.mounts.iter().filter_map(|mount| mount.input).find(|index| *index >= inputs),
        Op::File(file) => bad_action_index(file, inputs),
        Op::Passthrough(passthrough) => passthrough.outputs.iter().copied().find(|index| *index >= inputs),
    }
}

fn bad_action_index(file: &FileOp, inputs: usize) -> Option<usize> {
    if file.actions.is_empty() {
        return Some(0);
    }
    let bad = |input: FileInput, position: usize| match input {
        FileInput::Input(index) if index >= inputs => Some(index),
        FileInput::Action(index) if index >= position => Some(index),
        _ => None,
    };
    file.actions.iter().enumerate().find_map(|(position, action)| {
        let from = match &action.kind {
            FileKind::Copy(copy) => bad(copy.from, position),
            _ => None,
        };
        bad(action.base, position).or(from)
    })
}
