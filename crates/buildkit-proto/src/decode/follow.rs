//! Contexts that are narrowed by `local.followpaths`.
//!
//! BuildKit transfers only these paths, and what links lead to from them; forge reads contexts where they are and
//! sees everything. That is the same for a step that reads nothing else, as BuildKit's Dockerfile front end makes
//! them. Any other step would see too much, and is refused.

use crate::DecodeError;
use crate::error::Refusal;
use forge_llb::{FileInput, FileKind, Graph, Op, Vertex, VertexDigest};
use std::collections::HashMap;

/// The narrowed contexts with their paths, cleaned.
#[derive(Default)]
pub struct Narrowed(HashMap<VertexDigest, Vec<String>>);

impl Narrowed {
    pub fn note(&mut self, vertex: &VertexDigest, paths: Vec<String>) {
        let paths: Vec<String> = paths.iter().map(|path| clean(path)).collect();
        if !paths.is_empty() && !paths.iter().any(String::is_empty) {
            self.0.insert(vertex.clone(), paths);
        }
    }

    /// Refuses a graph in which something else is read than what the context was narrowed to.
    pub fn check(&self, graph: &Graph) -> Result<(), DecodeError> {
        let refuse = |vertex: &str| {
            let what = "a local source with local.followpaths that is read beside these paths".to_owned();
            Err(Refusal::Unsupported(what).of(vertex))
        };
        if graph.goal().is_some_and(|goal| self.0.contains_key(&goal.vertex)) {
            return refuse("the goal");
        }
        for vertex in graph.vertices() {
            for (index, edge) in vertex.inputs.iter().enumerate() {
                if let Some(paths) = self.0.get(&edge.vertex)
                    && !reads_only(vertex, index, paths)
                {
                    return refuse(&vertex.metadata.name);
                }
            }
        }
        Ok(())
    }
}

fn reads_only(vertex: &Vertex, input: usize, paths: &[String]) -> bool {
    let covered = |read: &str| {
        let read = clean(read);
        paths.iter().any(|path| read == *path || read.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    };
    match &vertex.op {
        Op::File(file) => file.actions.iter().all(|action| match &action.kind {
            _ if action.base == FileInput::Input(input) => false,
            FileKind::Copy(copy) if copy.from == FileInput::Input(input) => {
                let included = !copy.include.is_empty() && copy.include.iter().all(|pattern| covered(pattern));
                included || copy.sources.iter().all(|source| covered(source))
            }
            _ => true,
        }),
        Op::Exec(exec) => {
            exec.mounts.iter().filter(|mount| mount.input == Some(input)).all(|mount| covered(&mount.selector))
        }
        Op::Source(_) | Op::Merge | Op::Diff(_) | Op::Passthrough(_) => false,
    }
}

/// Without slashes at the ends and without empty parts and dots.
fn clean(path: &str) -> String {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}
