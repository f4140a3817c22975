//! Builds within a definition: operations that stand for what another definition makes, which is a file of an input.

use crate::decode::{Fields, MOST_BYTES};
use crate::error::Refusal;
use crate::{DecodeError, pb};
use forge_image::Digest;
use prost::Message;
use std::collections::{HashMap, HashSet};

/// The only builder that there is: the file is a definition.
const LLB_BUILDER: i64 = -1;
/// The input that has the file.
const DEFINITION_INPUT: &str = "buildkit.llb.definition";
/// The attribute that names the file.
const FILE_NAME: &str = "llbbuild.filename";
/// Its name otherwise.
const DEFAULT_FILE: &str = "/buildkit.llb.definition";
/// What each of them needs is looked at.
const MOST_BUILDS: usize = 32;
/// The field of an op that makes it one.
const BUILD_FIELD: u64 = 5;
/// The field of an op with its inputs.
const INPUTS_FIELD: u64 = 1;

/// A build within a definition.
#[derive(Clone, Debug)]
pub struct NestedBuild {
    /// What has the file.
    pub input: pb::Definition,
    /// Where it is there.
    pub file: String,
    vertex: String,
}

/// An op of a definition, and its bytes.
struct Entry<'a> {
    bytes: &'a [u8],
    op: pb::Op,
}

type Entries<'a> = HashMap<String, Entry<'a>>;

/// A build within a definition that needs no other one first; `None` where there is none at all.
///
/// # Errors
/// The definition cannot be read, or a build is of a kind that there is not.
pub fn nested_build(definition: &pb::Definition) -> Result<Option<NestedBuild>, DecodeError> {
    if !definition.def.iter().any(|bytes| is_build(bytes)) {
        return Ok(None);
    }
    let entries = entries(definition)?;
    let builds: HashSet<&str> =
        entries.iter().filter(|(_, entry)| build(entry).is_some()).map(|(name, _)| name.as_str()).collect();
    if builds.len() > MOST_BUILDS {
        return Err(DecodeError::TooLarge { what: "nested builds", limit: MOST_BUILDS });
    }
    let is_first = |name: &str| {
        let needed = needed(&entries, &entries[name].op);
        needed.iter().all(|other| *other == name || !builds.contains(other))
    };
    let mut first: Vec<&str> = builds.iter().copied().filter(|name| is_first(name)).collect();
    // The same one each time.
    first.sort_unstable();
    match first.first() {
        Some(name) => of(definition, name, &entries[*name]).map(Some),
        None => Err(Refusal::Malformed("it needs itself".to_owned()).of("a nested build")),
    }
}

impl NestedBuild {
    /// The definition with what `by` makes in place of the build.
    ///
    /// # Errors
    /// `by` has no result, or either cannot be read.
    pub fn replace(&self, definition: &pb::Definition, by: &pb::Definition) -> Result<pb::Definition, DecodeError> {
        let empty = || Refusal::Malformed("its definition makes nothing".to_owned()).of(&self.vertex);
        let (goal, inner) = by.def.split_last().ok_or_else(empty)?;
        let goal = pb::Op::decode(goal.as_slice()).ok().and_then(|op| op.inputs.into_iter().next());
        let goal = goal.ok_or_else(empty)?;
        let mut rewriter = Rewriter { renamed: HashMap::from([(self.vertex.clone(), goal)]), def: inner.to_vec() };
        let entries = entries(definition)?;
        let last = definition.def.last().map(|bytes| Digest::sha256(bytes).to_string()).unwrap_or_default();
        for name in ordered(&entries, &last) {
            if *name != self.vertex {
                rewriter.add(name, &entries[name])?;
            }
        }
        let renamed = |name: &str| rewriter.renamed.get(name).map_or(name, |input| input.digest.as_str()).to_owned();
        let mut metadata = by.metadata.clone();
        metadata.extend(definition.metadata.iter().map(|(name, metadata)| (renamed(name), metadata.clone())));
        let mut source = definition.source.clone();
        if let Some(source) = &mut source {
            let locations = std::mem::take(&mut source.locations);
            source.locations = locations.into_iter().map(|(name, locations)| (renamed(&name), locations)).collect();
        }
        Ok(pb::Definition { def: rewriter.def, metadata, source })
    }
}

/// Writes a definition anew, some of whose entries have other names.
struct Rewriter {
    /// What is to be read in place of an entry.
    renamed: HashMap<String, pb::Input>,
    def: Vec<Vec<u8>>,
}

impl Rewriter {
    fn add(&mut self, name: &str, entry: &Entry<'_>) -> Result<(), DecodeError> {
        let is_same = entry.op.inputs.iter().all(|input| !self.renamed.contains_key(&input.digest));
        if is_same {
            self.def.push(entry.bytes.to_vec());
            return Ok(());
        }
        let input = |input: &pb::Input| match self.renamed.get(&input.digest) {
            None => input.clone(),
            // Of an entry that only has another name the same output is read, of a build the one that its definition names.
            Some(renamed) if renamed.index < 0 => pb::Input { digest: renamed.digest.clone(), index: input.index },
            Some(result) => result.clone(),
        };
        let inputs = entry.op.inputs.iter().map(input).collect();
        let bytes = with_inputs(entry.bytes, inputs)?;
        let digest = Digest::sha256(&bytes).to_string();
        self.renamed.insert(name.to_owned(), pb::Input { digest, index: -1 });
        self.def.push(bytes);
        Ok(())
    }
}

fn is_build(bytes: &[u8]) -> bool {
    let mut fields = Fields(bytes);
    // What cannot be read is refused by whoever reads it next.
    while let Ok(Some(field)) = fields.next() {
        if field.number == BUILD_FIELD {
            return true;
        }
    }
    false
}

fn entries(definition: &pb::Definition) -> Result<Entries<'_>, DecodeError> {
    let size: usize = definition.def.iter().map(Vec::len).sum();
    if size > MOST_BYTES {
        return Err(DecodeError::TooLarge { what: "bytes", limit: MOST_BYTES });
    }
    let entry = |bytes: &Vec<u8>| {
        let unreadable = |source| DecodeError::NotProtobuf { what: "an op".to_owned(), source: Some(source) };
        pb::Op::decode(bytes.as_slice()).map_err(unreadable)
    };
    definition
        .def
        .iter()
        .map(|bytes| Ok((Digest::sha256(bytes).to_string(), Entry { bytes, op: entry(bytes)? })))
        .collect()
}

fn build<'a>(entry: &'a Entry<'_>) -> Option<&'a pb::BuildOp> {
    match &entry.op.op {
        Some(pb::op::Op::Build(build)) => Some(build),
        _ => None,
    }
}

/// The entries that an op is made of.
fn needed<'a>(entries: &'a Entries<'_>, op: &'a pb::Op) -> HashSet<&'a str> {
    let (mut found, mut todo) = (HashSet::new(), vec![op]);
    while let Some(op) = todo.pop() {
        for input in &op.inputs {
            if found.insert(input.digest.as_str()) {
                todo.extend(entries.get(&input.digest).map(|entry| &entry.op));
            }
        }
    }
    found
}

/// What the last entry is made of, each after what it is made of itself, and the last entry itself.
fn ordered<'a>(entries: &'a Entries<'_>, last: &'a str) -> Vec<&'a String> {
    enum Step<'a> {
        Enter(&'a str),
        Leave(&'a String),
    }
    let (mut order, mut seen, mut todo) = (Vec::new(), HashSet::new(), vec![Step::Enter(last)]);
    while let Some(step) = todo.pop() {
        match step {
            Step::Leave(name) => order.push(name),
            Step::Enter(name) => {
                let Some((name, entry)) = entries.get_key_value(name).filter(|(name, _)| seen.insert(name.as_str()))
                else {
                    continue;
                };
                todo.push(Step::Leave(name));
                todo.extend(entry.op.inputs.iter().map(|input| Step::Enter(&input.digest)));
            }
        }
    }
    order
}

fn of(definition: &pb::Definition, name: &str, entry: &Entry<'_>) -> Result<NestedBuild, DecodeError> {
    let refused = |refusal: Refusal| refusal.of("a nested build");
    let malformed = |what: String| refused(Refusal::Malformed(what));
    let Some(build) = build(entry) else { return Err(malformed("it is none".to_owned())) };
    if build.builder != LLB_BUILDER {
        return Err(refused(Refusal::Unsupported(format!("the builder {}: only the LLB builder is", build.builder))));
    }
    let missing = || malformed(format!("no llb definition input {DEFINITION_INPUT} found"));
    let index = build.inputs.get(DEFINITION_INPUT).ok_or_else(missing)?.input;
    let input = usize::try_from(index).ok().and_then(|index| entry.op.inputs.get(index));
    let input = input.ok_or_else(|| malformed(format!("invalid index {index}")))?;
    let goal = pb::Op { inputs: vec![input.clone()], ..pb::Op::default() }.encode_to_vec();
    let def = definition.def.iter().cloned().chain([goal]).collect();
    Ok(NestedBuild {
        input: pb::Definition { def, ..definition.clone() },
        file: build.attrs.get(FILE_NAME).map_or(DEFAULT_FILE, String::as_str).to_owned(),
        vertex: name.to_owned(),
    })
}

/// An op with other inputs; what else it has stays byte for byte, known or not.
fn with_inputs(bytes: &[u8], inputs: Vec<pb::Input>) -> Result<Vec<u8>, DecodeError> {
    let mut written = pb::Op { inputs, ..pb::Op::default() }.encode_to_vec();
    let mut fields = Fields(bytes);
    loop {
        let before = fields.0;
        let Some(field) = fields.next()? else { return Ok(written) };
        if field.number != INPUTS_FIELD {
            written.extend(&before[..before.len() - fields.0.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn source(identifier: &str) -> Vec<u8> {
        let source = pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() };
        pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }.encode_to_vec()
    }

    fn input(of: &[u8]) -> pb::Input {
        pb::Input { digest: Digest::sha256(of).to_string(), index: 0 }
    }

    fn goal(of: &[u8]) -> Vec<u8> {
        pb::Op { inputs: vec![input(of)], ..pb::Op::default() }.encode_to_vec()
    }

    fn nested(of: &[u8], builder: i64) -> Vec<u8> {
        let inputs = BTreeMap::from([(DEFINITION_INPUT.to_owned(), pb::BuildInput { input: 0 })]);
        let op = Some(pb::op::Op::Build(pb::BuildOp { builder, inputs, ..pb::BuildOp::default() }));
        pb::Op { inputs: vec![input(of)], op, ..pb::Op::default() }.encode_to_vec()
    }

    fn merge(of: &[&[u8]]) -> Vec<u8> {
        let inputs = (0..of.len()).map(|input| pb::MergeInput { input: input as i64 }).collect();
        let op = Some(pb::op::Op::Merge(pb::MergeOp { inputs }));
        pb::Op { inputs: of.iter().map(|of| input(of)).collect(), op, ..pb::Op::default() }.encode_to_vec()
    }

    fn definition(def: Vec<Vec<u8>>) -> pb::Definition {
        pb::Definition { def, ..pb::Definition::default() }
    }

    fn identifiers(definition: &pb::Definition) -> Vec<String> {
        let graph = crate::decode(&definition.encode_to_vec()).unwrap().graph;
        graph.vertices().iter().map(|vertex| format!("{:?}", vertex.op).chars().take(6).collect()).collect()
    }

    #[test]
    fn a_nested_build_is_replaced_by_what_its_definition_makes() {
        let (file, inner) = (source("docker-image://docker.io/library/file:latest"), source("local://inner"));
        let build = nested(&file, LLB_BUILDER);
        let other = source("local://other");
        // Twice, so that names change along two ways.
        let (one, two) = (merge(&[&build, &other]), merge(&[&other, &build]));
        let top = merge(&[&one, &two]);
        let mut whole =
            definition(vec![file.clone(), build.clone(), other.clone(), one.clone(), two, top.clone(), goal(&top)]);
        let named = pb::OpMetadata { ignore_cache: true, ..pb::OpMetadata::default() };
        whole.metadata.insert(Digest::sha256(&one).to_string(), named);
        let found = nested_build(&whole).unwrap().unwrap();
        assert_eq!(found.file, "/buildkit.llb.definition");
        assert_eq!(found.input.def.last().unwrap(), &goal(&file));
        let by = definition(vec![inner.clone(), goal(&inner)]);
        let replaced = found.replace(&whole, &by).unwrap();
        assert!(nested_build(&replaced).unwrap().is_none());
        // The file's own source is needed no more.
        assert_eq!(identifiers(&replaced).len(), 5, "{:?}", identifiers(&replaced));
        let one = merge(&[&inner, &other]);
        assert!(replaced.def.contains(&one));
        assert!(replaced.metadata[&Digest::sha256(&one).to_string()].ignore_cache);
    }

    #[test]
    fn what_is_no_nested_build_is_refused() {
        let file = source("local://file");
        let of = |build: Vec<u8>| {
            let whole = definition(vec![file.clone(), build.clone(), goal(&build)]);
            nested_build(&whole).unwrap_err().to_string()
        };
        assert!(of(nested(&file, 0)).contains("only the LLB builder"), "{}", of(nested(&file, 0)));
        let empty = pb::Op {
            op: Some(pb::op::Op::Build(pb::BuildOp { builder: -1, ..Default::default() })),
            ..Default::default()
        };
        assert!(of(empty.encode_to_vec()).contains("no llb definition input"));
        let build = nested(&file, -1);
        let whole = definition(vec![file.clone(), build.clone(), goal(&build)]);
        let found = nested_build(&whole).unwrap().unwrap();
        for by in [definition(Vec::new()), definition(vec![vec![0xff]]), definition(vec![file.clone()])] {
            assert!(found.replace(&whole, &by).is_err());
        }
    }
}
