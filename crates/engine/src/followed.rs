//! Which paths of a client's files the steps of a Dockerfile read: no more need be transferred.

use forge_frontend::LoweredImage;
use forge_llb::{CopyAction, FileInput, FileKind, Graph, Op, SourceOp, Vertex, VertexDigest};
use std::collections::{BTreeSet, HashMap, HashSet};

/// What is read of a tree.
enum Read {
    Everything,
    Paths(BTreeSet<String>),
}

/// The same image, whose contexts are asked for no more than its steps read of them. Vertices keep their names.
pub(crate) fn narrowed(image: LoweredImage) -> LoweredImage {
    let read = reads(&image);
    if read.values().all(|read| matches!(read, Read::Everything)) {
        return image;
    }
    match asking(&image, &read) {
        Some(graph) => LoweredImage { graph, ..image },
        // Everything is as good, and no reason to fail.
        None => image,
    }
}

fn asking(image: &LoweredImage, read: &HashMap<VertexDigest, Read>) -> Option<Graph> {
    let mut graph = Graph::new();
    for (digest, vertex) in image.graph.named() {
        let mut vertex = vertex.clone();
        if let (Op::Source(SourceOp::Local(local)), Some(Read::Paths(paths))) = (&mut vertex.op, read.get(digest)) {
            local.follow = paths.iter().cloned().collect();
        }
        graph.add_as(digest.clone(), vertex).ok()?;
    }
    graph.set_goal(image.graph.goal().cloned()).ok()?;
    Some(graph)
}

/// What is read of each local source.
fn reads(image: &LoweredImage) -> HashMap<VertexDigest, Read> {
    let is_local = |vertex: &Vertex| matches!(vertex.op, Op::Source(SourceOp::Local(_)));
    let locals = image.graph.named().filter(|(_, vertex)| is_local(vertex));
    let mut read: HashMap<VertexDigest, Read> =
        locals.map(|(digest, _)| (digest.clone(), Read::Paths(BTreeSet::new()))).collect();
    let whole: HashSet<&VertexDigest> =
        image.scanned.iter().map(|(_, edge)| edge).chain(image.graph.goal()).map(|edge| &edge.vertex).collect();
    for vertex in image.graph.vertices() {
        for (input, edge) in vertex.inputs.iter().enumerate() {
            let Some(known) = read.get_mut(&edge.vertex) else { continue };
            match (&mut *known, read_by(vertex, input)) {
                (Read::Everything, _) => {}
                (Read::Paths(paths), Some(more)) => paths.extend(more),
                (Read::Paths(_), None) => *known = Read::Everything,
            }
        }
    }
    for (digest, known) in &mut read {
        // What nobody reads is not asked for at all; no path at all means everything.
        let is_nothing = matches!(known, Read::Paths(paths) if paths.is_empty());
        if is_nothing || whole.contains(digest) {
            *known = Read::Everything;
        }
    }
    read
}

/// The paths that a step reads of an input; `None` for all of it.
fn read_by(vertex: &Vertex, input: usize) -> Option<Vec<String>> {
    match &vertex.op {
        Op::File(file) => {
            let mut paths = Vec::new();
            for action in &file.actions {
                if action.base == FileInput::Input(input) {
                    return None;
                }
                match &action.kind {
                    FileKind::Copy(copy) if copy.from == FileInput::Input(input) => paths.extend(copied(copy)?),
                    _ => {}
                }
            }
            Some(paths)
        }
        Op::Exec(exec) => {
            let mounts = exec.mounts.iter().filter(|mount| mount.input == Some(input));
            mounts.map(|mount| plain(&mount.selector)).collect()
        }
        Op::Source(_) | Op::Merge | Op::Diff(_) | Op::Passthrough(_) => None,
    }
}

fn copied(copy: &CopyAction) -> Option<Vec<String>> {
    // Patterns below a source: `COPY --parents` names everything as its source.
    if !copy.include.is_empty() || !copy.required.is_empty() {
        return None;
    }
    let path = |source: &String| if copy.allow_wildcard { cleaned(source) } else { plain(source) };
    copy.sources.iter().map(path).collect()
}

/// A path that is no pattern: clients would take some for one.
fn plain(path: &str) -> Option<String> {
    cleaned(path).filter(|path| !path.contains(['*', '?', '[', ']', '\\']))
}

/// `None` for the root, of which everything is read.
fn cleaned(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            // Only some clients know it.
            "**" => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_frontend::{LowerOptions, ResolvedImages};
    use forge_image::Platform;

    /// What is asked for of the main context of a Dockerfile.
    fn followed(dockerfile: &str) -> String {
        let parsed = forge_frontend::parse("Dockerfile", dockerfile.as_bytes()).unwrap();
        let options = LowerOptions::new(Platform::host());
        let lowered = forge_frontend::lower(&parsed, &options, &ResolvedImages::new()).unwrap();
        let forge_frontend::Lowered::Done(image) = lowered else { panic!("it needs images") };
        let image = narrowed(*image);
        let found = image.graph.vertices().iter().find_map(|vertex| match &vertex.op {
            Op::Source(SourceOp::Local(local)) => Some(local.follow.join(" ")),
            _ => None,
        });
        found.unwrap_or_else(|| "no context".to_owned())
    }

    #[test]
    fn steps_that_read_some_paths_are_sent_no_more() {
        assert_eq!(followed("FROM scratch\nCOPY b /\nCOPY a/../c ./d/ /x/\n"), "b c d");
        assert_eq!(followed("FROM scratch\nCOPY *.go go.? /src/\n"), "*.go go.?");
        assert_eq!(followed("FROM scratch\nRUN --mount=type=bind,source=a,target=/a x\nCOPY b /\n"), "a b");
        assert_eq!(followed("FROM scratch\nCOPY <<F /f\nF\n"), "no context");
    }

    #[test]
    fn steps_that_read_the_root_are_sent_everything() {
        for step in ["COPY . /", "COPY / /x", "RUN --mount=type=bind,target=/a x", "COPY a/.. /", "COPY a/**/b /"] {
            assert_eq!(followed(&format!("FROM scratch\nCOPY b /\n{step}\n")), "", "{step}");
        }
        assert_eq!(followed("FROM scratch\nCOPY --parents a/b /\n"), "");
    }
}
