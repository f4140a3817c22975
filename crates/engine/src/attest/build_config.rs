//! The steps of a build, as provenance tells them.

use crate::dockerfile::DockerfileText;
use crate::{EngineError, attest::predicate::Steps};
use forge_buildkit_proto::{EncodedGraph, SourceFile, encode_named, step_list};
use forge_image::{Descriptor, ErrorKind};
use forge_llb::{Graph, LocalSource, Metadata, Op, SourceOp, Vertex};
use forge_solver::Solved;
use forge_store::LayerId;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Where the file that steps come from was found.
#[derive(Clone, Debug)]
pub(crate) enum FileOrigin {
    /// In a context of whoever asked for the build.
    Context(String),
    /// Somewhere that has no step of its own.
    Other,
}

/// The steps of a graph, their files and what is known of where in these they come from.
pub(crate) fn steps(graph: &Graph, files: &[SourceFile], origin: &FileOrigin) -> Result<Steps, EngineError> {
    let EncodedGraph { definition, digests } = encode_named(graph, files).map_err(unwritable)?;
    let list = step_list(&definition).map_err(|error| EngineError::caused(ErrorKind::Internal, error))?;
    let numbers: BTreeMap<&str, usize> =
        list.digests.iter().enumerate().map(|(number, digest)| (digest.as_str(), number)).collect();
    let source = definition.source.clone().unwrap_or_default();
    let mut locations = Map::new();
    for (digest, places) in &source.locations {
        let Some(number) = numbers.get(digest.as_str()) else { continue };
        let place = |location: &forge_buildkit_proto::pb::Location| {
            let position = |position: &Option<forge_buildkit_proto::pb::Position>| json!({ "line": position.as_ref().map_or(0, |position| position.line) });
            let ranges: Vec<Value> = location
                .ranges
                .iter()
                .map(|range| json!({ "start": position(&range.start), "end": position(&range.end) }))
                .collect();
            let mut value = json!({ "ranges": ranges });
            if location.source_index != 0 {
                value["sourceIndex"] = location.source_index.into();
            }
            value
        };
        let places: Vec<Value> = places.locations.iter().map(place).collect();
        locations.insert(format!("step{number}"), json!({ "locations": places }));
    }
    let infos: Vec<Value> = source.infos.iter().map(|info| source_info(info, origin)).collect::<Result<_, _>>()?;
    let numbered = graph.needed().into_iter().filter_map(|(vertex, _)| {
        let named = digests.get(&vertex)?;
        Some((vertex, *numbers.get(named.as_str())?))
    });
    let numbered = numbered.collect();
    let mapping = config(&list.digests);
    let source = (!infos.is_empty()).then(|| json!({ "locations": locations, "infos": infos }));
    Ok(Steps { config: json!({ "llbDefinition": list.steps, "digestMapping": mapping }), source, numbered })
}

fn config(digests: &[forge_image::Digest]) -> Map<String, Value> {
    let named = digests.iter().enumerate().map(|(number, digest)| (digest.to_string(), format!("step{number}").into()));
    named.collect()
}

fn unwritable(error: forge_buildkit_proto::EncodeError) -> EngineError {
    EngineError::caused(ErrorKind::UserInput, error)
}

/// A file with the step that brought it in.
fn source_info(info: &forge_buildkit_proto::pb::SourceInfo, origin: &FileOrigin) -> Result<Value, EngineError> {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(&info.data);
    let mut value = json!({ "filename": info.filename, "language": info.language, "data": data });
    if let FileOrigin::Context(name) = origin {
        let list = local_file(name, &info.filename)?;
        value["llbDefinition"] = list.steps.into();
        value["digestMapping"] = config(&list.digests).into();
    }
    Ok(value)
}

fn local_file(context: &str, file: &str) -> Result<forge_buildkit_proto::StepList, EngineError> {
    let failed = |error| EngineError::caused(ErrorKind::Internal, error);
    let source = LocalSource { include: vec![file.to_owned()], ..LocalSource::new(context) };
    let metadata = Metadata { name: format!("load build definition from {file}"), ..Metadata::default() };
    let op = Op::Source(SourceOp::Local(source));
    let mut graph = Graph::new();
    let edge = graph.add(Vertex { op, inputs: Vec::new(), platform: None, metadata }).map_err(failed)?;
    graph.set_goal(Some(edge)).map_err(failed)?;
    let EncodedGraph { definition, .. } = encode_named(&graph, &[]).map_err(unwritable)?;
    step_list(&definition).map_err(|error| EngineError::caused(ErrorKind::Internal, error))
}

/// The blobs of each step's results, by the blobs of the image's layers.
pub(crate) fn layers(steps: &Steps, solved: &Solved, blobs: &BTreeMap<LayerId, Descriptor>) -> Map<String, Value> {
    let mut layers = Map::new();
    for outcome in &solved.steps {
        let Some((_, number)) = steps.numbered.iter().find(|(vertex, _)| *vertex == outcome.digest) else { continue };
        for (output, result) in outcome.result.iter().enumerate() {
            let found: Option<Vec<&Descriptor>> = result.layers().iter().map(|layer| blobs.get(layer)).collect();
            if let Some(found) = found.filter(|found| !found.is_empty()) {
                layers.insert(format!("step{number}:{output}"), json!([found]));
            }
        }
    }
    layers
}

/// A Dockerfile as a file of a definition.
pub(crate) fn dockerfile(text: &DockerfileText) -> SourceFile {
    SourceFile {
        name: text.name.clone(),
        data: text.text.clone(),
        language: "Dockerfile".to_owned(),
        definition: Vec::new(),
    }
}
