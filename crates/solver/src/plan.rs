use forge_image::Digest;
use forge_llb::{Edge, Graph, Vertex, VertexDigest};
use std::collections::HashMap;
use std::sync::Arc;

/// The part of a graph that its goal needs, as a list: every step stands behind the steps it needs.
pub(crate) struct Plan {
    pub steps: Vec<PlannedStep>,
    /// `None` for the empty file system.
    pub goal: Option<Input>,
}

/// A vertex and its place in the list.
pub(crate) struct PlannedStep {
    pub vertex: Arc<Vertex>,
    pub digest: VertexDigest,
    /// In the order of the vertex's inputs.
    pub inputs: Vec<Input>,
    /// The steps among the inputs, each once, ascending.
    pub needs: Vec<usize>,
    /// The digests of `needs`.
    pub needs_digests: Vec<Digest>,
    /// The steps that need this one, each once, ascending.
    pub consumers: Vec<usize>,
}

/// One output of a step.
#[derive(Clone, Copy)]
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
        let plan = |(digest, vertex): &(VertexDigest, &Vertex)| {
            let inputs: Vec<Input> = vertex.inputs.iter().map(find).collect();
            let needs = distinct(&inputs);
            let needs_digests = needs.iter().map(|step| needed[*step].0.digest().clone()).collect();
            let vertex = Arc::new((*vertex).clone());
            PlannedStep { vertex, digest: digest.clone(), inputs, needs, needs_digests, consumers: Vec::new() }
        };
        let mut steps: Vec<PlannedStep> = needed.iter().map(plan).collect();
        let goal = graph.goal().map(find);
        link_consumers(&mut steps);
        Self { steps, goal }
    }
}

fn distinct(inputs: &[Input]) -> Vec<usize> {
    let mut steps: Vec<usize> = inputs.iter().map(|input| input.step).collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

fn link_consumers(steps: &mut [PlannedStep]) {
    for consumer in 0..steps.len() {
        for position in 0..steps[consumer].needs.len() {
            let needed = steps[consumer].needs[position];
            steps[needed].consumers.push(consumer);
        }
    }
}
