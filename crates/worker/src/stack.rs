//! Merging stacks of layers, and what leads from one to another.

use crate::context_files::ContextFiles;
use crate::error::WorkError;
use crate::file::{self, difference};
use crate::results::source_tree;
use crate::source_tree::Stop;
use forge_cache::ResultRef;
use forge_llb::DiffOp;
use forge_session::Session;
use forge_store::{LayerId, Lease, Store};
use std::sync::Arc;

/// Where layers are made, and for whom.
#[derive(Clone)]
pub(crate) struct Place {
    pub store: Store,
    pub lease: Arc<Lease>,
    pub session: Arc<dyn Session>,
    pub contexts: Arc<ContextFiles>,
}

impl Place {
    /// Puts trees on top of each other: the layers of each, one after the other, as if each were written over what is
    /// below it. What a layer deletes is deleted below it too: by name, so that an opaque folder hides nothing that was not
    /// below it where it was made.
    pub(crate) fn merge(&self, inputs: &[ResultRef]) -> Result<ResultRef, WorkError> {
        let mut stack: Vec<LayerId> = Vec::new();
        for input in inputs {
            let layers = self.layers(input)?;
            // A tree over itself, or over what it was made on, is that tree.
            if layers.starts_with(&stack) {
                stack = layers;
                continue;
            }
            for (place, layer) in layers.iter().enumerate() {
                let alone = self.store.layers().detach(&layers[..place], layer, &self.lease)?;
                let fitted = self.store.layers().restack(&stack, &alone, &self.lease)?;
                stack.push(fitted);
            }
        }
        Ok(ResultRef::Layers(stack))
    }

    /// What leads from one tree to another: the layers that one has on the other where that is so, else one new layer.
    pub(crate) fn diff(&self, op: &DiffOp, inputs: &[ResultRef]) -> Result<ResultRef, WorkError> {
        let side = |index: Option<usize>| index.map_or(Ok(Vec::new()), |index| self.layers(&inputs[index]));
        let (lower, upper) = (side(op.lower)?, side(op.upper)?);
        if upper.starts_with(&lower) {
            let alone = |place: usize| self.store.layers().detach(&upper[..place], &upper[place], &self.lease);
            let above = (lower.len()..upper.len()).map(alone).collect::<Result<_, _>>()?;
            return Ok(ResultRef::Layers(above));
        }
        let made = difference::between(&self.store, &lower, &upper, &self.stop())?;
        let record = made.commit(&self.store, &self.lease)?;
        // Nothing differs: a layer that says nothing would only be one more to carry.
        let layers = if record.entries == 0 { Vec::new() } else { vec![record.id] };
        Ok(ResultRef::Layers(layers))
    }

    /// The layers of a result; the files of a context become one.
    pub(crate) fn layers(&self, result: &ResultRef) -> Result<Vec<LayerId>, WorkError> {
        match result {
            ResultRef::Layers(layers) => Ok(layers.clone()),
            ResultRef::Context { .. } => {
                let tree = source_tree(&self.store, result, &self.session)?;
                let source = file::Source::Context { files: &self.contexts, context: result, tree: &tree };
                let made = file::materialise(&self.store, source)?;
                Ok(vec![made.commit(&self.store, &self.lease)?.id])
            }
        }
    }

    fn stop(&self) -> Stop {
        Stop(self.session.clone())
    }
}
