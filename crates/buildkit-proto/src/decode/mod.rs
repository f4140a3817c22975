//! A definition as a graph.

mod exec;
mod file;
mod follow;
mod limits;
mod name;
mod source;
mod spans;

use crate::encode::CUSTOM_NAME;
use crate::error::Refusal;
use crate::{DecodeError, SourceFile, capabilities, pb, resources};
pub use follow::check_in_place;
use forge_image::{Digest, Platform};
use forge_llb::{DiffOp, Edge, ExecOp, Graph, Metadata, Op, PassthroughOp, SourceOp, Vertex, VertexDigest};
pub(crate) use limits::{Field, Fields, MOST_BYTES};
use prost::Message;
use spans::Spans;
use std::collections::HashMap;
use std::rc::Rc;

/// What a definition says.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The graph; its vertices are known by the digests that the definition has for them.
    pub graph: Graph,
    /// The files that the vertices' spans point into.
    pub sources: Vec<SourceFile>,
}

/// Reads a definition. The order of its entries does not matter, but for the last one, which names the result; what
/// the result does not need is not looked at. The empty definition is the empty file system.
///
/// # Errors
/// The bytes are no definition, are too large, refer to what is not there, or ask for what forge does not do.
pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let definition = definition(bytes)?;
    let Some((last, _)) = definition.def.split_last() else { return Ok(Decoded::default()) };
    let goal = goal(last)?;
    let mut reader = Reader::new(&definition);
    reader.load(&goal)?;
    let mut graph = reader.graph;
    graph.set_goal(Some(goal))?;
    Ok(Decoded { graph, sources: sources(definition.source) })
}

/// Reads the message alone, with what the wire types do not know of it.
///
/// # Errors
/// The bytes are no definition, or are too large.
pub fn definition(bytes: &[u8]) -> Result<pb::Definition, DecodeError> {
    limits::check(bytes)?;
    message(&resources::with_described_resources(bytes, resources::Holder::DEFINITION)?, "the definition")
}

fn message<T: Message + Default>(bytes: &[u8], what: &str) -> Result<T, DecodeError> {
    T::decode(bytes).map_err(|source| DecodeError::NotProtobuf { what: what.to_owned(), source: Some(source) })
}

/// The sources of a definition as it has them, by the digests of their vertices.
///
/// # Errors
/// The bytes are no definition, or are too large.
pub fn source_ops(bytes: &[u8]) -> Result<HashMap<Digest, pb::SourceOp>, DecodeError> {
    limits::check(bytes)?;
    let definition: pb::Definition = message(bytes, "the definition")?;
    let mut sources = HashMap::new();
    for bytes in &definition.def {
        let op: pb::Op = message(bytes, "an op")?;
        if let Some(pb::op::Op::Source(source)) = op.op {
            sources.insert(Digest::sha256(bytes), source);
        }
    }
    Ok(sources)
}

/// Reads one source by itself.
///
/// # Errors
/// It cannot be read, or is of a kind that forge does not know.
pub fn decode_source(source: &pb::SourceOp) -> Result<SourceOp, DecodeError> {
    source::decode(source).map_err(|refusal| refusal.of(&source.identifier))
}

/// Reads one process by itself, with as many inputs; `name` is what errors call it.
///
/// # Errors
/// It cannot be read, or asks for what forge does not do.
pub fn decode_exec(exec: pb::ExecOp, inputs: usize, name: &str) -> Result<ExecOp, DecodeError> {
    exec::decode(exec, inputs).map_err(|refusal| refusal.of(name))
}

/// The result that the last entry names.
fn goal(last: &[u8]) -> Result<Edge, DecodeError> {
    let op: pb::Op = message(last, "the last op")?;
    match (op.inputs.as_slice(), &op.op, unknown_kind(last)?) {
        ([input], None, None) => edge(input, "the goal"),
        _ => Err(DecodeError::NoResult),
    }
}

fn edge(input: &pb::Input, vertex: &str) -> Result<Edge, DecodeError> {
    let missing =
        || DecodeError::MissingInput { vertex: vertex.to_owned(), input: input.digest.chars().take(100).collect() };
    let digest = input.digest.parse::<Digest>().map_err(|_| missing())?;
    let wrong = |_| Refusal::Malformed(format!("output {} of {digest} cannot be", input.index)).of(vertex);
    let output = usize::try_from(input.index).map_err(wrong)?;
    Ok(Edge { vertex: VertexDigest::new(digest), output })
}

/// The field of an op that hands on its inputs: younger than the wire types.
const PASSTHROUGH: u64 = 8;

/// That field alone.
#[derive(Clone, PartialEq, Message)]
struct WithPassthrough {
    #[prost(message, optional, tag = "8")]
    passthrough: Option<Passthrough>,
}

#[derive(Clone, PartialEq, Message)]
struct Passthrough {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int64, repeated, tag = "2")]
    outputs: Vec<i64>,
}

/// The field of an op of a kind that these wire types do not know; such fields are dropped silently otherwise.
fn unknown_kind(bytes: &[u8]) -> Result<Option<u64>, DecodeError> {
    let mut fields = limits::Fields(bytes);
    while let Some(field) = fields.next()? {
        if !matches!(field.number, 1..=7 | 10 | 11) {
            return Ok(Some(field.number));
        }
    }
    Ok(None)
}

/// Where a vertex is on its way into the graph.
enum Visit {
    /// Its inputs are to be visited first.
    Open(Digest),
    /// All its inputs are in the graph.
    Close(Digest, Box<pb::Op>),
}

struct Reader<'a> {
    definition: &'a pb::Definition,
    /// The bytes of each op by their digest.
    ops: HashMap<Digest, &'a [u8]>,
    graph: Graph,
    spans: Spans<'a>,
}

impl<'a> Reader<'a> {
    fn new(definition: &'a pb::Definition) -> Self {
        let ops = definition.def.iter().map(|bytes| (Digest::sha256(bytes), bytes.as_slice())).collect();
        let spans = Spans::new(definition.source.as_ref());
        Self { definition, ops, graph: Graph::new(), spans }
    }

    /// Adds everything that an edge needs, in the order of the definition where that has inputs first.
    fn load(&mut self, goal: &Edge) -> Result<(), DecodeError> {
        let mut needed = self.needed(goal)?;
        for bytes in &self.definition.def {
            self.add_with_inputs(Digest::sha256(bytes), &mut needed)?;
        }
        Ok(())
    }

    /// The ops that an edge needs.
    fn needed(&self, goal: &Edge) -> Result<HashMap<Digest, pb::Op>, DecodeError> {
        let mut needed = HashMap::new();
        let mut wanted = vec![(goal.vertex.digest().clone(), Rc::from("the goal"))];
        while let Some((digest, needer)) = wanted.pop() {
            if needed.contains_key(&digest) {
                continue;
            }
            let op = self.op(&digest, &needer)?;
            // One for all inputs: both may be many bytes.
            let name: Rc<str> = self.name(&digest, &op).into();
            for input in &op.inputs {
                wanted.push((edge(input, &name)?.vertex.digest().clone(), name.clone()));
            }
            needed.insert(digest, op);
        }
        Ok(needed)
    }

    /// Adds a vertex behind those it needs. A stack of its own, since chains can be longer than the thread's stack
    /// allows. There are no cycles: no bytes hold their own SHA-256.
    fn add_with_inputs(&mut self, digest: Digest, needed: &mut HashMap<Digest, pb::Op>) -> Result<(), DecodeError> {
        let mut stack = vec![Visit::Open(digest)];
        while let Some(visit) = stack.pop() {
            match visit {
                Visit::Close(digest, op) => self.add(digest, *op)?,
                Visit::Open(digest) => {
                    let Some(op) = needed.remove(&digest) else { continue };
                    let inputs = op.inputs.iter().rev().filter_map(|input| input.digest.parse().ok());
                    let inputs: Vec<Visit> = inputs.map(Visit::Open).collect();
                    stack.push(Visit::Close(digest, Box::new(op)));
                    stack.extend(inputs);
                }
            }
        }
        Ok(())
    }

    fn op(&self, digest: &Digest, needer: &str) -> Result<pb::Op, DecodeError> {
        let missing = || DecodeError::MissingInput { vertex: needer.to_owned(), input: digest.to_string() };
        let bytes = self.ops.get(digest).ok_or_else(missing)?;
        let op: pb::Op = message(bytes, &format!("the op {digest}"))?;
        match unknown_kind(bytes)? {
            None => Ok(op),
            Some(PASSTHROUGH) if op.op.is_none() => Ok(op),
            Some(field) => {
                Err(Refusal::Unsupported(format!("an operation with field {field}")).of(&self.name(digest, &op)))
            }
        }
    }

    fn metadata(&self, digest: &Digest) -> Option<&'a pb::OpMetadata> {
        self.definition.metadata.get(digest.as_str())
    }

    /// What a vertex is called: as its maker says, else as BuildKit would.
    fn name(&self, digest: &Digest, op: &pb::Op) -> String {
        let custom = self.metadata(digest).and_then(|metadata| metadata.description.get(CUSTOM_NAME));
        custom.filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| name::name(op, &self.graph))
    }

    fn add(&mut self, digest: Digest, op: pb::Op) -> Result<(), DecodeError> {
        let name = self.name(&digest, &op);
        self.check_capabilities(&digest, &name)?;
        let inputs = op.inputs.iter().map(|input| edge(input, &name)).collect::<Result<_, _>>()?;
        let platform = decode_platform(&op);
        let refused = |refusal: Refusal| refusal.of(&name);
        let vertex = Vertex {
            platform: platform.map_err(refused)?,
            op: match &op.op {
                None => decode_untyped(self.ops.get(&digest).copied().unwrap_or_default(), op.inputs.len()),
                Some(_) => decode_op(op),
            }
            .map_err(refused)?,
            inputs,
            metadata: Metadata {
                ignore_cache: self.metadata(&digest).is_some_and(|metadata| metadata.ignore_cache),
                span: self.spans.of(&digest),
                name: name.clone(),
                resources: self.metadata(&digest).map_or(Ok(None), resources::decode).map_err(refused)?,
            },
        };
        self.graph.add_as(VertexDigest::new(digest), vertex)?;
        Ok(())
    }

    fn check_capabilities(&self, digest: &Digest, name: &str) -> Result<(), DecodeError> {
        let needed = self.metadata(digest).into_iter().flat_map(|metadata| metadata.caps.keys());
        match needed.into_iter().find(|capability| !capabilities::is_known(capability)) {
            None => Ok(()),
            Some(capability) => {
                Err(DecodeError::Capability { vertex: name.to_owned(), capability: capability.clone() })
            }
        }
    }
}

fn decode_platform(op: &pb::Op) -> Result<Option<Platform>, Refusal> {
    let Some(platform) = &op.platform else { return Ok(None) };
    let variant = (!platform.variant.is_empty()).then_some(platform.variant.as_str());
    let text = [platform.os.as_str(), &platform.architecture].into_iter().chain(variant).collect::<Vec<_>>().join("/");
    let parsed: Platform = text.parse().map_err(|error| Refusal::Malformed(format!("{error}")))?;
    Ok(Some(Platform {
        os_version: (!platform.os_version.is_empty()).then(|| platform.os_version.clone()),
        os_features: platform.os_features.clone(),
        ..parsed
    }))
}

fn decode_op(op: pb::Op) -> Result<Op, Refusal> {
    if op.constraints.as_ref().is_some_and(|constraints| !constraints.filter.is_empty()) {
        return Refusal::unsupported("a choice of workers (constraints)");
    }
    let inputs = op.inputs.len();
    match op.op {
        Some(pb::op::Op::Source(source)) => source::decode(&source).map(Op::Source),
        Some(pb::op::Op::Exec(exec)) => exec::decode(exec, inputs).map(Op::Exec),
        Some(pb::op::Op::File(file)) => file::decode(file, inputs).map(Op::File),
        Some(pb::op::Op::Merge(merge)) => decode_merge(&merge, inputs),
        Some(pb::op::Op::Diff(diff)) => decode_diff(diff, inputs).map(Op::Diff),
        Some(pb::op::Op::Build(_)) => Refusal::unsupported("a nested build in this place"),
        None => Refusal::malformed("the operation is of no kind"),
    }
}

/// An op of a kind that the wire types have no word for.
fn decode_untyped(bytes: &[u8], inputs: usize) -> Result<Op, Refusal> {
    let found = WithPassthrough::decode(bytes).ok().and_then(|op| op.passthrough);
    let Some(Passthrough { id, outputs }) = found else {
        return Refusal::malformed("the operation is of no kind");
    };
    let outputs = outputs.into_iter().map(|index| match usize::try_from(index) {
        Ok(found) if found < inputs => Ok(found),
        _ => Refusal::malformed(format!("invalid passthrough output input index {index}")),
    });
    Ok(Op::Passthrough(PassthroughOp { id, outputs: outputs.collect::<Result<_, _>>()? }))
}

/// Merges take all their inputs in order; BuildKit's clients write nothing else.
fn decode_merge(merge: &pb::MergeOp, inputs: usize) -> Result<Op, Refusal> {
    let in_order = merge.inputs.len() == inputs
        && merge.inputs.iter().enumerate().all(|(index, input)| usize::try_from(input.input) == Ok(index));
    match in_order {
        true => Ok(Op::Merge),
        false => Refusal::unsupported("a merge that does not take each of its inputs once and in order"),
    }
}

fn decode_diff(diff: pb::DiffOp, inputs: usize) -> Result<DiffOp, Refusal> {
    let (Some(lower), Some(upper)) = (diff.lower, diff.upper) else {
        return Refusal::malformed("a diff lacks its lower or upper side");
    };
    let (lower, upper) = (optional_index(lower.input, inputs)?, optional_index(upper.input, inputs)?);
    Ok(DiffOp { lower, upper })
}

/// The index of an input, or -1 for nothing.
fn optional_index(index: i64, inputs: usize) -> Result<Option<usize>, Refusal> {
    match usize::try_from(index) {
        Ok(found) if found < inputs => Ok(Some(found)),
        Err(_) if index == -1 => Ok(None),
        _ => Refusal::malformed(format!("it has no input {index}")),
    }
}

fn sources(source: Option<pb::Source>) -> Vec<SourceFile> {
    let infos = source.into_iter().flat_map(|source| source.infos);
    let file = |info: pb::SourceInfo| SourceFile {
        name: info.filename,
        data: info.data,
        language: info.language,
        definition: info.definition.map(|definition| definition.encode_to_vec()).unwrap_or_default(),
    };
    infos.map(file).collect()
}
