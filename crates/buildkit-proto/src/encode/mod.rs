//! The graph as a definition.

mod exec;
mod file;
mod source;

use crate::{SourceFile, capabilities as cap, pb, resources};
use forge_image::{Digest, Platform};
use forge_llb::{Edge, Graph, InstructionSpan, Op, SourceOp, Vertex, VertexDigest};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Why a graph cannot be written as a definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A time is too far from 1970 to be counted in nanoseconds.
    #[error("{vertex}: the time {seconds} is outside the years 1678 to 2262, which a definition can hold")]
    Time {
        /// The vertex.
        vertex: String,
        /// The seconds since 1970.
        seconds: i64,
    },
    /// An operation that hands on its inputs, for which the wire types have no word.
    #[error("{vertex}: a passthrough operation cannot be written")]
    Passthrough {
        /// The vertex.
        vertex: String,
    },
    /// A copy of nothing, which a definition cannot hold.
    #[error("{vertex}: a copy has no source")]
    NoSource {
        /// The vertex.
        vertex: String,
    },
}

/// An op and the capabilities that it needs.
struct Encoded {
    op: pb::op::Op,
    needs: BTreeSet<&'static str>,
}

/// Writes what the graph's goal needs. The same graph gives the same bytes. `sources` are the files that spans of
/// the graph point into; one that is not among them is named without its text. A goal of the empty file system is
/// the empty definition, as BuildKit's client writes it.
///
/// # Errors
/// A value does not fit into the wire format.
pub fn encode(graph: &Graph, sources: &[SourceFile]) -> Result<pb::Definition, EncodeError> {
    encode_named(graph, sources).map(|encoded| encoded.definition)
}

/// A graph as a definition, and what its vertices are called there.
#[derive(Clone, Debug, Default)]
pub struct EncodedGraph {
    /// The definition.
    pub definition: pb::Definition,
    /// The digest of the op of each vertex; the last one where a vertex is a chain of ops.
    pub digests: HashMap<VertexDigest, Digest>,
}

/// As [`encode`], with what each vertex is called.
///
/// # Errors
/// As [`encode`].
pub fn encode_named(graph: &Graph, sources: &[SourceFile]) -> Result<EncodedGraph, EncodeError> {
    let mut writer = Writer { sources: SourceWriter::new(sources), ..Writer::default() };
    let Some(goal) = graph.goal() else { return Ok(EncodedGraph::default()) };
    for (digest, vertex) in graph.needed() {
        writer.vertex(digest, vertex)?;
    }
    let goal = writer.input(goal);
    let digests = std::mem::take(&mut writer.digests);
    Ok(EncodedGraph { definition: writer.finish(goal), digests })
}

/// The op of one vertex as a definition of the whole graph has it; `None` where the format has no words for it.
pub fn encode_vertex(graph: &Graph, vertex: &VertexDigest) -> Option<pb::Op> {
    let encoded = encode_named(graph, &[]).ok()?;
    let digest = encoded.digests.get(vertex)?;
    let bytes = encoded.definition.def.iter().find(|bytes| Digest::sha256(bytes) == *digest)?;
    pb::Op::decode(bytes.as_slice()).ok()
}

#[derive(Default)]
struct Writer {
    definition: pb::Definition,
    /// What each vertex is called in the definition.
    digests: HashMap<VertexDigest, Digest>,
    sources: SourceWriter,
}

impl Writer {
    fn vertex(&mut self, digest: VertexDigest, vertex: &Vertex) -> Result<(), EncodeError> {
        let Encoded { op, needs } = encode_op(vertex)?;
        let message = pb::Op {
            inputs: vertex.inputs.iter().map(|edge| self.input(edge)).collect(),
            platform: vertex.platform.as_ref().map(encode_platform),
            // BuildKit's client always writes it, and so bytes and digests agree.
            constraints: Some(pb::WorkerConstraints::default()),
            op: Some(op),
        };
        let bytes = message.encode_to_vec();
        let named = Digest::sha256(&bytes);
        self.digests.insert(digest, named.clone());
        let is_new = !self.definition.metadata.contains_key(named.as_str());
        self.metadata(&named, vertex, needs);
        if let Some(span) = &vertex.metadata.span {
            self.sources.add(&named, span);
        }
        // What differs here may be equal there: proxies, or names that lead to one digest.
        if is_new {
            self.definition.def.push(bytes);
        }
        Ok(())
    }

    fn metadata(&mut self, digest: &Digest, vertex: &Vertex, needs: BTreeSet<&'static str>) {
        let metadata = self.definition.metadata.entry(digest.to_string()).or_default();
        metadata.ignore_cache |= vertex.metadata.ignore_cache;
        if let Some(limits) = &vertex.metadata.resources {
            resources::describe(limits, metadata);
            metadata.caps.insert(cap::EXEC_RESOURCES.to_owned(), true);
        }
        metadata.caps.extend(needs.into_iter().map(|name| (name.to_owned(), true)));
        if !vertex.metadata.name.is_empty() {
            let name = vertex.metadata.name.clone();
            metadata.description.entry(CUSTOM_NAME.to_owned()).or_insert(name);
        }
    }

    fn input(&self, edge: &Edge) -> pb::Input {
        // Vertices come behind their inputs.
        pb::Input { digest: self.digests[&edge.vertex].to_string(), index: edge.output as i64 }
    }

    /// Adds the op that does nothing and names the result.
    fn finish(mut self, goal: pb::Input) -> pb::Definition {
        let bytes = pb::Op { inputs: vec![goal], ..pb::Op::default() }.encode_to_vec();
        let mut caps: BTreeMap<String, bool> = [cap::CONSTRAINTS, cap::PLATFORM].map(|name| (name.into(), true)).into();
        for metadata in self.definition.metadata.values() {
            if metadata.ignore_cache {
                caps.insert(cap::META_IGNORE_CACHE.to_owned(), true);
            }
            if !metadata.description.is_empty() {
                caps.insert(cap::META_DESCRIPTION.to_owned(), true);
            }
        }
        let metadata = pb::OpMetadata { caps, ..pb::OpMetadata::default() };
        self.definition.metadata.insert(Digest::sha256(&bytes).to_string(), metadata);
        self.definition.def.push(bytes);
        self.definition.source = Some(self.sources.source);
        self.definition
    }
}

/// The key of a vertex's name among its descriptions.
pub(crate) const CUSTOM_NAME: &str = "llb.customname";

/// Collects where steps stand in their files.
#[derive(Default)]
struct SourceWriter {
    source: pb::Source,
    indices: HashMap<String, i32>,
}

impl SourceWriter {
    fn new(files: &[SourceFile]) -> Self {
        let mut writer = Self::default();
        for file in files {
            writer.file(file.clone());
        }
        writer
    }

    fn file(&mut self, file: SourceFile) -> i32 {
        let index = self.source.infos.len() as i32;
        self.indices.entry(file.name.clone()).or_insert(index);
        let SourceFile { name: filename, data, language, definition } = file;
        let definition = match definition.as_slice() {
            [] => None,
            bytes => pb::Definition::decode(bytes).ok(),
        };
        self.source.infos.push(pb::SourceInfo { filename, data, definition, language });
        index
    }

    fn add(&mut self, vertex: &Digest, span: &InstructionSpan) {
        let source_index = match self.indices.get(&span.file) {
            Some(index) => *index,
            None => self.file(SourceFile { name: span.file.clone(), ..SourceFile::default() }),
        };
        let position = |line: u32| Some(pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
        let range = pb::Range { start: position(span.first_line), end: position(span.last_line) };
        let location = pb::Location { source_index, ranges: vec![range] };
        let locations = self.source.locations.entry(vertex.to_string()).or_default();
        if !locations.locations.contains(&location) {
            locations.locations.push(location);
        }
    }
}

/// A source in BuildKit's words.
pub fn encode_source(source: &SourceOp) -> pb::SourceOp {
    match source::encode(source).op {
        pb::op::Op::Source(source) => source,
        _ => unreachable!("a source is encoded as one"),
    }
}

/// A platform in BuildKit's words.
pub fn encode_platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        os_version: platform.os_version.clone().unwrap_or_default(),
        os_features: platform.os_features.clone(),
    }
}

fn encode_op(vertex: &Vertex) -> Result<Encoded, EncodeError> {
    match &vertex.op {
        Op::Source(source) => Ok(source::encode(source)),
        Op::Exec(exec) => Ok(exec::encode(exec)),
        Op::File(file) => file::encode(file, vertex),
        Op::Passthrough(_) => Err(EncodeError::Passthrough { vertex: vertex.metadata.name.clone() }),
        Op::Merge => {
            let inputs = (0..vertex.inputs.len()).map(|index| pb::MergeInput { input: index as i64 }).collect();
            Ok(Encoded { op: pb::op::Op::Merge(pb::MergeOp { inputs }), needs: [cap::MERGE].into() })
        }
        Op::Diff(diff) => {
            let lower = Some(pb::LowerDiffInput { input: optional_index(diff.lower) });
            let upper = Some(pb::UpperDiffInput { input: optional_index(diff.upper) });
            Ok(Encoded { op: pb::op::Op::Diff(pb::DiffOp { lower, upper }), needs: [cap::DIFF].into() })
        }
    }
}

/// An index, or -1 for nothing.
fn optional_index(index: Option<usize>) -> i64 {
    index.map_or(-1, |index| index as i64)
}
