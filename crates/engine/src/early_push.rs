//! Layers go out while later steps still run.

use crate::build::Build;
use crate::{EngineError, Output};
use forge_exporter::{ExportSettings, push_layer};
use forge_frontend::LoweredImage;
use forge_registry::Registry;
use forge_solver::{Completed, Remembered, SolveError, Solved, Solver};
use forge_store::LayerId;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, pin_mut};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How many layers go out at once beside the steps.
const CONCURRENT_LAYERS: usize = 2;

/// Where an image will be pushed, and what its layers look like there.
struct Destined {
    registry: Arc<Registry>,
    settings: ExportSettings,
}

impl Build {
    /// Solves, and sends the layers that will be part of what is pushed as soon as their steps are over. Manifests and names
    /// are written only when everything is there: of a build that fails a registry keeps blobs that nothing names.
    pub(crate) async fn solve_and_send(
        &self,
        solver: &Solver,
        image: &LoweredImage,
        remembered: Option<Remembered>,
    ) -> Result<Solved, SolveError> {
        let (told, completed) = unbounded_channel();
        let solving = solver.solve_telling(&image.graph, self.session.clone(), remembered, told);
        let sending = self.send_layers(image, completed);
        pin_mut!(solving, sending);
        match select(solving, sending).await {
            // What is on its way arrives; the push waits for it, instead of sending it once more.
            Either::Left((Ok(solved), sending)) => {
                sending.await;
                Ok(solved)
            }
            Either::Left((Err(error), _)) => Err(error),
            Either::Right(((), solving)) => solving.await,
        }
    }

    /// Ends with the channel, or with the first layer that cannot be sent: the push meets the same again, and says so.
    async fn send_layers(&self, image: &LoweredImage, mut completed: UnboundedReceiver<Completed>) {
        let Ok(destined) = self.destined(image).await else { return };
        if destined.is_empty() {
            return;
        }
        let (parts, goal) = (image.graph.contributing(), image.graph.goal());
        let is_part = |done: &Completed, output: usize| {
            let is_goal = goal.is_some_and(|goal| goal.vertex == done.digest);
            !is_goal && parts.contains(&(done.digest.clone(), output))
        };
        let (mut sent, gate, mut running) =
            (HashSet::<LayerId>::new(), Semaphore::new(CONCURRENT_LAYERS), FuturesUnordered::new());
        loop {
            tokio::select! {
                Some(done) = completed.recv() => {
                    let results = done.results.iter().enumerate();
                    let results = results.filter(|(output, _)| is_part(&done, *output));
                    for layer in results.flat_map(|(_, result)| result.layers()) {
                        if sent.insert(*layer) {
                            running.push(self.send_layer(*layer, &destined, &gate));
                        }
                    }
                }
                Some(result) = running.next() => if result.is_err() { return },
                else => return,
            }
        }
    }

    async fn send_layer(&self, layer: LayerId, destined: &[Destined], gate: &Semaphore) -> Result<(), EngineError> {
        let _turn = gate.acquire().await;
        for Destined { registry, settings } in destined {
            push_layer(&self.transfer, registry, &layer, settings).await?;
        }
        Ok(())
    }

    async fn destined(&self, image: &LoweredImage) -> Result<Vec<Destined>, EngineError> {
        let mut destined = Vec::new();
        for output in &self.request.outputs {
            let Output::Image(output) = output else { continue };
            let Some(transport) = output.push.transport() else { continue };
            let settings = self.leaving_settings(output, image);
            let registry = self.registry_for(transport, &settings.names).await?;
            destined.push(Destined { registry, settings });
        }
        Ok(destined)
    }
}
