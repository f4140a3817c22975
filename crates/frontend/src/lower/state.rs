use super::environment::{DeclaredArgs, Environment};
use crate::ImageKey;
use forge_image::{ContainerConfig, HistoryEntry, ImageConfig, Platform};
use forge_llb::{Edge, without_credentials};
use std::rc::Rc;

/// The search path of images that set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What clients know history entries of Dockerfile builds by.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage while its instructions are gone through, and after the last one. Cheap to clone: a stage that is
/// built on another starts from a clone.
#[derive(Clone)]
pub(super) struct StageState {
    /// The file system; `None` is the empty one.
    pub edge: Option<Edge>,
    pub platform: Platform,
    /// What RUN and expansions see: ENV and ARG.
    pub env: Rc<Environment>,
    /// What the image keeps: ENV alone.
    pub image_env: Rc<Environment>,
    /// The config, its `env` and `history` left empty.
    pub image: Rc<ImageConfig>,
    pub history: HistoryTip,
    /// The ARGs so far.
    pub args: Rc<DeclaredArgs>,
    /// The image at the bottom.
    pub base: Option<ImageKey>,
    /// How many entries of the history that image brought.
    pub base_history: usize,
    /// Whether FROM asked for the platform, so that it is not the target's.
    pub platform_was_chosen: bool,
    /// Whether a WORKDIR, its own or one of a stage below it, said what its folder is.
    pub workdir_was_set: bool,
}

/// The newest entry of a history; `None` before the first.
pub(super) type HistoryTip = Option<usize>;

/// The histories of all stages: entries that point at those before them, since stages share beginnings.
#[derive(Default)]
pub(super) struct History {
    entries: Vec<(HistoryTip, HistoryEntry)>,
}

impl History {
    fn push(&mut self, tip: HistoryTip, entry: HistoryEntry) -> HistoryTip {
        self.entries.push((tip, entry));
        Some(self.entries.len() - 1)
    }

    /// The entries up to a tip, oldest first.
    pub fn up_to(&self, mut tip: HistoryTip) -> Vec<HistoryEntry> {
        let mut entries = Vec::new();
        while let Some(position) = tip {
            let (before, entry) = &self.entries[position];
            entries.push(entry.clone());
            tip = *before;
        }
        entries.reverse();
        entries
    }
}

/// Whether a history entry stands for a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Made,
    None,
}

impl StageState {
    /// Starts from an image.
    pub fn from_image(mut image: ImageConfig, edge: Option<Edge>, platform: Platform, history: &mut History) -> Self {
        let mut env = Environment::from_entries(&std::mem::take(&mut image.config.env));
        if platform.os != "windows" && !env.contains("PATH") {
            env.set("PATH", DEFAULT_PATH.to_owned());
        }
        let entries = std::mem::take(&mut image.history);
        let base_history = entries.len();
        let tip = entries.into_iter().fold(None, |tip, entry| history.push(tip, entry));
        // What other tools noted of the base image is not true of this one.
        image.unknown.clear();
        image.config.unknown.clear();
        image.created = None;
        image.rootfs.diff_ids.clear();
        let env = Rc::new(env);
        Self {
            edge,
            platform,
            image_env: Rc::clone(&env),
            env,
            image: Rc::new(image),
            history: tip,
            args: Rc::default(),
            base: None,
            base_history,
            platform_was_chosen: false,
            workdir_was_set: false,
        }
    }

    /// Starts from nothing.
    pub fn empty(platform: Platform, history: &mut History) -> Self {
        let mut image = ImageConfig::new(&platform);
        image.config.working_dir = "/".to_owned();
        Self::from_image(image, None, platform, history)
    }

    /// The config to be changed.
    pub fn config(&mut self) -> &mut ContainerConfig {
        &mut Rc::make_mut(&mut self.image).config
    }

    /// Adds a history entry.
    pub fn record(&mut self, history: &mut History, text: String, layer: Layer) {
        let entry = HistoryEntry {
            // Whoever gets the image reads this.
            created_by: Some(without_credentials(&text).into_owned()),
            comment: Some(HISTORY_COMMENT.to_owned()),
            empty_layer: layer == Layer::None,
            ..HistoryEntry::default()
        };
        self.history = history.push(self.history, entry);
    }

    /// The shell of shell-form instructions.
    pub fn shell(&self) -> Vec<String> {
        let own = &self.image.config.shell;
        match (own.is_empty(), self.platform.os.as_str()) {
            (false, _) => own.clone(),
            (true, "windows") => vec!["cmd".to_owned(), "/S".to_owned(), "/C".to_owned()],
            (true, _) => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        }
    }
}
