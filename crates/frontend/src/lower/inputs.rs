use forge_llb::Edge;
use std::collections::HashMap;

/// The inputs of a vertex, each once.
#[derive(Default)]
pub(super) struct Inputs {
    edges: Vec<Edge>,
    positions: HashMap<Edge, usize>,
}

impl Inputs {
    /// Where an edge stands among them; it is added if it does not.
    pub fn index(&mut self, edge: Edge) -> usize {
        let next = self.edges.len();
        *self.positions.entry(edge).or_insert_with_key(|edge| {
            self.edges.push(edge.clone());
            next
        })
    }

    /// All of them in order.
    pub fn into_edges(self) -> Vec<Edge> {
        self.edges
    }
}
