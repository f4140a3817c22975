//! Contexts that are narrowed by `local.followpaths`, where they are read in place.
//!
//! BuildKit transfers only these paths, and what links lead to from them; a context that forge reads where it lies shows
//! everything. That is the same for a step that reads nothing else, as BuildKit's Dockerfile front end makes
//! them. Any other step would see too much, and is refused.

use crate::DecodeError;
use crate::error::Refusal;
use forge_llb::{FileInput, FileKind, Graph, Op, SourceOp, Vertex, VertexDigest};
use std::collections::HashMap;

/// Refuses a graph that cannot be built from contexts that are read where they lie, of which no client transfers a part: one in
/// which something else is read than what a context was narrowed to, or in which only metadata of files is wanted.
///
/// # Errors
/// There is such a step.
pub fn check_in_place(graph: &Graph) -> Result<(), DecodeError> {
    let mut narrowed: HashMap<&VertexDigest, Vec<String>> = HashMap::new();
    for (digest, vertex) in graph.named() {
        let Op::Source(SourceOp::Local(local)) = &vertex.op else { continue };
        if local.metadata_only.is_some() {
            let what = "a local source of which only metadata is wanted".to_owned();
            return Err(Refusal::Unsupported(what).of(&vertex.metadata.name));
        }
        let paths: Vec<String> = local.follow.iter().map(|path| clean(path)).collect();
        if !paths.is_empty() && !paths.iter().any(String::is_empty) {
            narrowed.insert(digest, paths);
        }
    }
    let refuse = |vertex: &str| {
        let what = "a local source with local.followpaths that is read beside these paths".to_owned();
        Err(Refusal::Unsupported(what).of(vertex))
    };
    if graph.goal().is_some_and(|goal| narrowed.contains_key(&goal.vertex)) {
        return refuse("the goal");
    }
    for vertex in graph.vertices() {
        for (index, edge) in vertex.inputs.iter().enumerate() {
            if let Some(paths) = narrowed.get(&edge.vertex)
                && !reads_only(vertex, index, paths)
            {
                return refuse(&vertex.metadata.name);
            }
        }
    }
    Ok(())
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
