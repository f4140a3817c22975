//! What becomes of the wanted stage.

use super::Lowering;
use super::state::StageState;
use crate::{FrontendError, LoweredImage, Problem};
use forge_image::{ImageConfig, Platform};

impl Lowering<'_> {
    /// The image that a stage comes to.
    pub(super) fn finish(mut self, state: StageState) -> Result<LoweredImage, FrontendError> {
        self.graph.set_goal(state.edge.clone()).map_err(Problem::Graph)?;
        let mut config = (*state.image).clone();
        config.config.env = state.image_env.to_entries();
        config.history = self.history.up_to(state.history);
        for (key, value) in &self.options.labels {
            config.config.labels.insert(key.clone(), value.clone().into());
        }
        // As Go writes its maps.
        config.config.exposed_ports.sort_keys();
        config.config.volumes.sort_keys();
        config.config.labels.sort_keys();
        if self.options.platform_requested || !state.platform_was_chosen {
            set_platform(&mut config, &self.options.platform);
        }
        Ok(LoweredImage {
            graph: self.graph,
            config,
            base_history: state.base_history,
            base: state.base,
            warnings: Vec::new(),
            unused_build_args: Vec::new(),
            context_names_used: self.contexts.into_iter().collect(),
            source_date_epoch: self.epoch.seconds,
            triggers: self.triggers,
            entitlements: self.entitlements,
            scanned: Vec::new(),
        })
    }
}

/// Makes an image one for a platform. What the platform leaves open stays as the base image has it.
fn set_platform(config: &mut ImageConfig, platform: &Platform) {
    let is_other = config.os != platform.os || config.architecture != platform.architecture;
    config.os.clone_from(&platform.os);
    config.architecture.clone_from(&platform.architecture);
    if is_other || platform.variant.is_some() {
        config.variant.clone_from(&platform.variant);
    }
    if is_other || platform.os_version.is_some() {
        config.os_version.clone_from(&platform.os_version);
    }
    if !platform.os_features.is_empty() {
        config.os_features.clone_from(&platform.os_features);
    }
    config.variant = config.platform().variant;
}
