use crate::{FileInput, Graph, Op, VertexDigest};
use std::collections::HashSet;

impl Graph {
    /// The edges, as vertex and output, whose whole content lies under the goal's as it is: what stands in layers there is
    /// part of the goal's. Inputs that are only read, or that a difference is taken of, are not among them.
    pub fn contributing(&self) -> HashSet<(VertexDigest, usize)> {
        let mut found = HashSet::new();
        let mut open: Vec<_> = self.goal().map(|edge| (edge.vertex.clone(), edge.output)).into_iter().collect();
        while let Some((digest, output)) = open.pop() {
            let Some(vertex) = self.get(&digest) else { continue };
            if found.insert((digest, output)) {
                let below = below(&vertex.op, output, vertex.inputs.len()).into_iter();
                let edges = below.filter_map(|index| vertex.inputs.get(index));
                open.extend(edges.map(|edge| (edge.vertex.clone(), edge.output)));
            }
        }
        found
    }
}

/// The inputs that an output of an op begins with.
fn below(op: &Op, output: usize, inputs: usize) -> Vec<usize> {
    match op {
        Op::Source(_) | Op::Diff(_) => Vec::new(),
        Op::Merge => (0..inputs).collect(),
        Op::Passthrough(passthrough) => passthrough.outputs.get(output).copied().into_iter().collect(),
        Op::Exec(exec) => {
            let mounts = exec.mounts.iter().filter(|mount| mount.output == Some(output) && mount.selector == "/");
            mounts.filter_map(|mount| mount.input).collect()
        }
        Op::File(file) => {
            let mut base = file.actions.last().map(|action| action.base);
            loop {
                match base {
                    Some(FileInput::Action(earlier)) => base = file.actions.get(earlier).map(|action| action.base),
                    Some(FileInput::Input(index)) => return vec![index],
                    Some(FileInput::Scratch) | None => return Vec::new(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        CopyAction, Edge, ExecMount, ExecOp, FileAction, FileInput, FileKind, FileOp, Graph, HttpSource, Metadata, Op,
        SourceOp, Vertex,
    };

    fn add(graph: &mut Graph, name: &str, op: Op, inputs: Vec<Edge>) -> Edge {
        let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
        graph.add(Vertex { op, inputs, platform: None, metadata }).unwrap()
    }

    fn source(graph: &mut Graph, name: &str) -> Edge {
        add(graph, name, Op::Source(SourceOp::Http(HttpSource::new(name))), Vec::new())
    }

    fn copy(graph: &mut Graph, name: &str, base: Option<Edge>, from: Edge) -> Edge {
        let input = if base.is_some() { FileInput::Input(1) } else { FileInput::Scratch };
        let action = CopyAction::new(FileInput::Input(0), vec![name.to_owned()], "/");
        let actions = vec![
            FileAction { base: input, kind: FileKind::Copy(action.clone()) },
            FileAction { base: FileInput::Action(0), kind: FileKind::Copy(action) },
        ];
        add(graph, name, Op::File(FileOp { actions }), [from].into_iter().chain(base).collect())
    }

    fn run(graph: &mut Graph, name: &str, root: Edge, read: Edge) -> Edge {
        let shown = ExecMount { target: "/read".to_owned(), input: Some(1), output: None, ..ExecMount::root() };
        let exec = ExecOp { mounts: vec![ExecMount::root(), shown], ..ExecOp::new(vec![name.to_owned()]) };
        add(graph, name, Op::Exec(exec), vec![root, read])
    }

    // Fails with the inputs taken that a step only reads.
    #[test]
    fn what_is_under_the_result_is_part_of_it_and_what_is_read_is_not() {
        let mut graph = Graph::new();
        let (base, files, other) =
            (source(&mut graph, "base"), source(&mut graph, "files"), source(&mut graph, "other"));
        let first = copy(&mut graph, "first", Some(base), files.clone());
        let read = copy(&mut graph, "read", Some(other), files.clone());
        let second = run(&mut graph, "second", first, read);
        let linked = copy(&mut graph, "linked", None, files);
        let goal = add(&mut graph, "goal", Op::Merge, vec![second, linked]);
        assert!(graph.contributing().is_empty(), "nothing is wanted yet");
        graph.set_goal(Some(goal)).unwrap();
        let mut names: Vec<_> =
            graph.contributing().iter().map(|(digest, _)| graph.get(digest).unwrap().metadata.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["base", "first", "goal", "linked", "second"]);
    }
}
