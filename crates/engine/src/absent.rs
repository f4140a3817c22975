//! Layers that a build did not have to read: they lie in a registry until somebody does.

use crate::EngineError;
use crate::engine::{Engine, briefly};
use crate::handed::Handed;
use crate::steps::ShownStep;
use forge_image::ImageId;
use forge_registry::{TransferContext, bring_layers};
use forge_session::EventSink;
use forge_store::{Image, LayerId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

impl Engine {
    /// Fetches what of some layers is not here.
    pub(crate) async fn bring(&self, context: &TransferContext, layers: Vec<LayerId>) -> Result<(), EngineError> {
        let engine = self.clone();
        let (absent, layers) = briefly(move || Ok((engine.store().layers().absent(&layers)?, layers))).await?;
        if absent.is_empty() {
            return Ok(());
        }
        let registry = self.blocking(Self::registry).await?;
        Ok(bring_layers(context, &registry, &layers).await?)
    }

    /// The same for images of the store.
    pub(crate) async fn bring_images(
        &self,
        context: &TransferContext,
        images: Vec<ImageId>,
    ) -> Result<(), EngineError> {
        let layers = self.blocking(move |engine| {
            let mut layers = Vec::new();
            for id in &images {
                layers.extend(engine.store().images().get(id)?.map(|image| image.layers).unwrap_or_default());
            }
            Ok(layers)
        });
        self.bring(context, layers.await?).await
    }

    /// The same for an image that is about to run. The store holds what was fetched from then on.
    pub(crate) async fn bring_to_run(
        &self,
        image: &Image,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<(), EngineError> {
        let layers = image.layers.clone();
        let looked = self.blocking(move |engine| Ok((engine.store().layers().absent(&layers)?, layers)));
        let (absent, layers) = looked.await?;
        let Some(first) = absent.first() else { return Ok(()) };
        let step = format!("fetching layers of {}", first.repository.familiar_name());
        let session = self.session(BTreeMap::new(), Handed::default(), events.clone(), cancel);
        let context = self.transfer(session, &step).await?;
        let shown = ShownStep::start(&*events, &step);
        shown.end(self.bring(&context, layers).await)
    }
}
