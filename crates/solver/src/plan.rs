use forge_llb::{Edge, Graph, Vertex, VertexDigest};
use petgraph::Direction::{Incoming, Outgoing};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::HashMap;
use std::sync::Arc;

/// The part of a graph that its goal needs. Steps are numbered so that each stands behind the steps it needs.
pub(crate) struct Plan {
    /// One edge to a step from each step among its inputs, however often it is there.
    pub graph: DiGraph<PlannedStep, ()>,
    /// `None` for the empty file system.
    pub goal: Option<Input>,
}

/// A vertex and what it reads.
pub(crate) struct PlannedStep {
    pub vertex: Arc<Vertex>,
    pub digest: VertexDigest,
    /// In the order of the vertex's inputs.
    pub inputs: Vec<Input>,
}

/// One output of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Input {
    pub step: usize,
    pub output: usize,
}

impl Plan {
    pub fn new(graph: &Graph) -> Self {
        let needed = graph.needed();
        let positions: HashMap<&VertexDigest, usize> =
            needed.iter().enumerate().map(|(position, (digest, _))| (digest, position)).collect();
        // `Graph` admits no edge to what it does not hold, and `needed` follows every edge.
        let find = |edge: &Edge| Input { step: positions[&edge.vertex], output: edge.output };
        let mut steps = DiGraph::with_capacity(needed.len(), needed.len());
        for (digest, vertex) in &needed {
            let inputs = vertex.inputs.iter().map(find).collect();
            steps.add_node(PlannedStep { vertex: Arc::new((*vertex).clone()), digest: digest.clone(), inputs });
        }
        // A node's newest edge comes first: made from the last step to the first, both ways ascend.
        for consumer in steps.node_indices().rev() {
            let mut needs: Vec<usize> = steps[consumer].inputs.iter().map(|input| input.step).collect();
            needs.sort_unstable();
            needs.dedup();
            for step in needs.into_iter().rev() {
                steps.add_edge(NodeIndex::new(step), consumer, ());
            }
        }
        Self { graph: steps, goal: graph.goal().map(find) }
    }

    pub fn step(&self, step: usize) -> &PlannedStep {
        &self.graph[NodeIndex::new(step)]
    }

    /// Whether an output is read by a step, or is the goal.
    pub fn reads(&self, output: Input) -> bool {
        let mut inputs = self.consumers(output.step).flat_map(|consumer| &self.step(consumer).inputs);
        self.goal == Some(output) || inputs.any(|input| *input == output)
    }

    /// The steps among the inputs, each once, ascending.
    pub fn needs(&self, step: usize) -> impl Iterator<Item = usize> {
        self.graph.neighbors_directed(NodeIndex::new(step), Incoming).map(NodeIndex::index)
    }

    /// The steps that need this one, each once, ascending.
    pub fn consumers(&self, step: usize) -> impl Iterator<Item = usize> {
        self.graph.neighbors_directed(NodeIndex::new(step), Outgoing).map(NodeIndex::index)
    }
}
