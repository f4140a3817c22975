//! What an image is made of before it is exported: files, config, and what is said of it.

use super::result::{JobResult, Lazy, SourceTexts};
use crate::attest::{Extras, GivenAttestation, Invocation};
use crate::build::Build;
use crate::dockerfile::DockerfileText;
use forge_exporter::{Attestation, MissingHistory};
use forge_frontend::LoweredImage;
use forge_image::{Digest, ImageConfig, Platform, Reference};
use forge_solver::Remembered;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// The result for one platform.
#[derive(Clone)]
pub struct JobImage {
    /// What it runs on.
    pub platform: Platform,
    /// Its files; `None` for the empty file system.
    pub result: Option<JobResult>,
    /// Its config.
    pub config: ImageConfig,
    /// `SOURCE_DATE_EPOCH` as it came to hold.
    pub source_date_epoch: Option<i64>,
    /// Statements that the client made of it.
    pub given: Vec<GivenAttestation>,
    /// What was asked of the front end that it comes from.
    pub invocation: Option<Arc<Invocation>>,
    /// The images that made it as front ends.
    pub front_ends: Vec<(Reference, Digest)>,
    /// What is said of it: what [`Job::attest`] made.
    pub said: Vec<Attestation>,
    /// Folders besides it that scanners are shown, by name.
    pub(crate) scanned: Extras,
    /// What the config's history may lack.
    pub(super) missing_history: MissingHistory,
}

impl JobImage {
    /// A result of which nothing is said.
    pub fn new(platform: Platform, result: Option<JobResult>, config: ImageConfig) -> Self {
        Self {
            platform,
            result,
            config,
            source_date_epoch: None,
            given: Vec::new(),
            invocation: None,
            front_ends: Vec::new(),
            said: Vec::new(),
            scanned: Extras::new(),
            missing_history: MissingHistory::Uppermost,
        }
    }

    /// Gives it a config of the client's.
    pub fn set_config(&mut self, config: ImageConfig) {
        self.config = config;
        self.missing_history = MissingHistory::Uppermost;
    }
}

impl JobImage {
    pub(super) fn lazy(
        build: &Arc<Build>,
        (platform, image): (Platform, LoweredImage),
        text: &DockerfileText,
        remembered: Option<Remembered>,
    ) -> Self {
        let (source_date_epoch, scanned) = (image.source_date_epoch, image.scanned.clone());
        let config = match source_date_epoch {
            Some(epoch) => forge_exporter::dated(image.config.clone(), epoch),
            None => image.config.clone(),
        };
        let result = image.graph.goal().is_some().then(|| {
            let text = DockerfileText { name: text.name.clone(), text: text.text.clone() };
            let (build, text, solved) = (build.clone(), SourceTexts::Dockerfile(text), OnceCell::new());
            JobResult(Arc::new(Lazy { build, image, text, remembered, solved }))
        });
        let missing_history = MissingHistory::Lowest;
        Self { source_date_epoch, scanned, missing_history, ..Self::new(platform, result, config) }
    }
}
