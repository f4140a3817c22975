//! Where the steps of a build come from, as its clients said: a step may come from several places, in files of any
//! language, which may be results of other steps.

use crate::reply;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_buildkit_proto::pb;
use forge_image::Digest;
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Status;

/// A front end may solve thousands of definitions, each with the text of a file.
const MOST: usize = 256;

/// The places of all definitions of a build, the last ones where there are many.
#[derive(Default)]
pub(crate) struct Places(Mutex<Vec<Arc<pb::Source>>>);

impl Places {
    /// Notes where the steps of a definition come from.
    pub(crate) fn note(&self, definition: &pb::Definition) {
        let Some(source) = definition.source.as_ref().filter(|source| !source.locations.is_empty()) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|known| **known == *source) {
            return;
        }
        if known.len() == MOST {
            known.remove(0);
        }
        known.push(Arc::new(source.clone()));
    }

    /// Says in a definition of results where its steps come from, as their makers said: `names` are what these called them, and
    /// what they are called there.
    pub(crate) fn carry_over(&self, definition: &mut pb::Definition, names: &[(Digest, Digest)]) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = definition.source.get_or_insert_default();
        for (before, now) in names {
            let found = known.iter().find_map(|source| Some((source, source.locations.get(before.as_str())?)));
            let Some((source, locations)) = found else { continue };
            let place = |location: &pb::Location| {
                let info = source.infos.get(usize::try_from(location.source_index).ok()?)?;
                let position = told.infos.iter().position(|known| known == info).unwrap_or_else(|| {
                    told.infos.push(info.clone());
                    told.infos.len() - 1
                });
                let source_index = i32::try_from(position).ok()?;
                Some(pb::Location { source_index, ranges: location.ranges.clone() })
            };
            let locations = locations.locations.iter().filter_map(place).collect();
            told.locations.insert(now.to_string(), pb::Locations { locations });
        }
    }

    /// A failure with all places of the step that failed, the last first; as it is where none are known.
    pub(crate) fn complete(&self, failed: Status) -> Status {
        let mut details = reply::details(&failed);
        let Some(vertex) = reply::vertex_of(&details) else { return failed };
        let found = {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A result that is handed on is written anew, with less than its maker said of it.
            known.iter().find(|source| source.locations.contains_key(&vertex)).cloned()
        };
        let Some(source) = found else { return failed };
        let locations = source.locations.get(&vertex).map(|all| all.locations.as_slice()).unwrap_or_default();
        let places: Vec<Value> = locations.iter().rev().filter_map(|location| place(&source, location)).collect();
        if places.is_empty() {
            return failed;
        }
        details.retain(|detail| detail.type_url != reply::type_url("Source"));
        details.extend(places.iter().map(|place| reply::detail("Source", place)));
        reply::with_details(failed.code(), failed.message().to_owned(), details)
    }
}

/// A place as BuildKit encodes it.
fn place(source: &pb::Source, location: &pb::Location) -> Option<Value> {
    let info = source.infos.get(usize::try_from(location.source_index).ok()?)?;
    let mut told = Map::new();
    told.insert("filename".to_owned(), json!(info.filename));
    told.insert("data".to_owned(), json!(STANDARD.encode(&info.data)));
    if !info.language.is_empty() {
        told.insert("language".to_owned(), json!(info.language));
    }
    if let Some(definition) = &info.definition {
        told.insert("definition".to_owned(), self::definition(definition));
    }
    let ranges: Vec<Value> = location.ranges.iter().map(range).collect();
    Some(json!({ "info": told, "ranges": ranges }))
}

fn range(range: &pb::Range) -> Value {
    let position = |position: &Option<pb::Position>| {
        position.as_ref().map(|position| json!({ "line": position.line, "character": position.character }))
    };
    json!({ "start": position(&range.start), "end": position(&range.end) })
}

fn definition(definition: &pb::Definition) -> Value {
    let steps: Vec<String> = definition.def.iter().map(|bytes| STANDARD.encode(bytes)).collect();
    let metadata = definition.metadata.iter().map(|(digest, metadata)| {
        let told = json!({
            "ignore_cache": metadata.ignore_cache,
            "description": metadata.description,
            "caps": metadata.caps,
        });
        (digest.clone(), told)
    });
    json!({ "def": steps, "metadata": metadata.collect::<Map<_, _>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_engine::EngineError;
    use tonic::Code;

    fn definition_with(vertex: &str, lines: &[i32]) -> pb::Definition {
        let location = |(index, line): (usize, &i32)| pb::Location {
            source_index: index as i32,
            ranges: vec![pb::Range { start: Some(pb::Position { line: *line, character: 1 }), end: None }],
        };
        let info =
            |line: &i32| pb::SourceInfo { filename: format!("f{line}"), data: b"x".to_vec(), ..Default::default() };
        let locations = pb::Locations { locations: lines.iter().enumerate().map(location).collect() };
        let source =
            pb::Source { infos: lines.iter().map(info).collect(), locations: [(vertex.to_owned(), locations)].into() };
        pb::Definition { source: Some(source), ..Default::default() }
    }

    /// The files and lines of a failure's places, in order.
    fn told(status: &Status) -> Vec<(String, i64)> {
        let details = reply::details(status);
        let sources = details.iter().filter(|detail| detail.type_url == reply::type_url("Source"));
        let read = |detail: &forge_buildkit_proto::google::protobuf::Any| {
            let value: Value = serde_json::from_slice(&detail.value).unwrap();
            let file = value["info"]["filename"].as_str().unwrap().to_owned();
            (file, value["ranges"][0]["start"]["line"].as_i64().unwrap())
        };
        sources.map(read).collect()
    }

    #[test]
    fn a_step_has_all_its_places_the_last_first() {
        let places = Places::default();
        places.note(&definition_with("sha256:a", &[7, 8, 9]));
        let detail = reply::detail("Vertex", &json!({ "digest": "sha256:a" }));
        let failed = reply::with_details(Code::Unknown, "failed".into(), vec![detail]);
        let completed = places.complete(failed);
        assert_eq!(told(&completed), [("f9".to_owned(), 9), ("f8".to_owned(), 8), ("f7".to_owned(), 7)]);
        assert_eq!(told(&places.complete(completed)).len(), 3, "once more says nothing new");
    }

    #[test]
    fn a_result_that_is_handed_on_keeps_its_places() {
        let places = Places::default();
        let (before, now, other) = (Digest::sha256(b"a"), Digest::sha256(b"b"), Digest::sha256(b"c"));
        places.note(&definition_with(before.as_str(), &[7, 8]));
        let mut definition = definition_with(other.as_str(), &[3]);
        places.carry_over(&mut definition, &[(before.clone(), now.clone()), (other.clone(), other.clone())]);
        let source = definition.source.unwrap();
        let lines = |digest: &Digest| {
            let all = source.locations[digest.as_str()].locations.iter();
            let told = all.map(|location| {
                let start = location.ranges[0].start.unwrap();
                (source.infos[location.source_index as usize].filename.as_str(), start.line, start.character)
            });
            told.collect::<Vec<_>>()
        };
        assert_eq!(lines(&now), [("f7", 7, 1), ("f8", 8, 1)]);
        assert_eq!(lines(&other), [("f3", 3, 1)]);
    }

    #[test]
    fn what_is_not_known_stays_as_it_is() {
        let places = Places::default();
        places.note(&definition_with("sha256:a", &[7]));
        let other = reply::detail("Vertex", &json!({ "digest": "sha256:b" }));
        let failed = reply::with_details(Code::Unknown, "failed".into(), vec![other]);
        assert_eq!(places.complete(failed.clone()).details(), failed.details());
        let plain = reply::status(&EngineError::new(forge_image::ErrorKind::UserInput, "no step"));
        assert!(places.complete(plain).details().is_empty());
    }
}
