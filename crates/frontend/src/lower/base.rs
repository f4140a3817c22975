//! The vertices of what stages are built on and copy from, and the words that users see of them.

use super::plan::Base;
use super::{Lowering, Progress};
use crate::lint::Lint;
use crate::{FrontendError, ImageKey, ImageKeySource, ResolvedImage, Rule, Span};
use forge_image::{ImageConfig, Platform};
use forge_llb::{Edge, ImageSource, LocalSource, Metadata, OciLayoutSource, Op, ResolveMode, SourceOp};

impl Lowering<'_> {
    /// Adds the vertex of a base; `None` for the empty file system. `name` says what users see.
    pub fn base_edge(&mut self, base: &Base, span: Span, name: &str) -> Result<Option<Edge>, FrontendError> {
        match base {
            Base::Scratch => Ok(None),
            Base::Stage(stage) => match &self.done[*stage] {
                Progress::Done(state) => Ok(state.edge.clone()),
                _ => Ok(None),
            },
            Base::Local { name: session, exclude, context } => {
                let title = format!("[context {context}] load from client");
                self.local_edge(session, exclude, title, span).map(Some)
            }
            Base::Image { key, .. } => {
                let image = self.image(key);
                match has_layers(&image.config) {
                    true => self.image_edge(key, span, name).map(Some),
                    false => Ok(None),
                }
            }
        }
    }

    pub fn image(&self, key: &ImageKey) -> &ResolvedImage {
        self.images.get(key).expect("a stage is lowered only when its images are known")
    }

    fn image_edge(&mut self, key: &ImageKey, span: Span, name: &str) -> Result<Edge, FrontendError> {
        let digest = self.image(key).digest.clone();
        let (source, shown) = match &key.source {
            ImageKeySource::Image(reference) => {
                let resolve = if self.options.pull { ResolveMode::ForcePull } else { ResolveMode::PreferLocal };
                let shown = match reference.digest() {
                    Some(_) => reference.to_string(),
                    None => format!("{reference}@{digest}"),
                };
                (SourceOp::Image(ImageSource { reference: reference.clone(), pinned: Some(digest), resolve }), shown)
            }
            ImageKeySource::OciLayout { name, tag, .. } => {
                let shown = format!("oci-layout://{name}@{digest}");
                let layout = OciLayoutSource { name: name.clone(), tag: tag.clone(), digest: Some(digest) };
                self.contexts.insert(name.clone());
                (SourceOp::OciLayout(layout), shown)
            }
        };
        let metadata = Metadata { name: format!("{name}{shown}"), ignore_cache: false, span: Some(self.span(span)) };
        self.add(Op::Source(source), Vec::new(), Some(key.platform.clone()), metadata)
    }

    /// The main context.
    pub fn context_edge(&mut self, span: Span) -> Result<Edge, FrontendError> {
        let patterns = &self.options.ignore_patterns;
        self.local_edge("context", patterns, "[internal] load build context".to_owned(), span)
    }

    fn local_edge(
        &mut self,
        session: &str,
        exclude: &[String],
        title: String,
        span: Span,
    ) -> Result<Edge, FrontendError> {
        if let Some(edge) = self.folders.get(session) {
            return Ok(edge.clone());
        }
        self.contexts.insert(session.to_owned());
        let local = LocalSource { name: session.to_owned(), include: Vec::new(), exclude: exclude.to_vec() };
        let metadata = Metadata { name: title, ignore_cache: false, span: Some(self.span(span)) };
        let edge = self.add(Op::Source(SourceOp::Local(local)), Vec::new(), None, metadata)?;
        self.folders.insert(session.to_owned(), edge.clone());
        Ok(edge)
    }
}

/// An image without layers is nothing to fetch.
fn has_layers(image: &ImageConfig) -> bool {
    !image.rootfs.diff_ids.is_empty() || image.history.iter().any(|entry| !entry.empty_layer)
}

/// What users see while an image is looked up.
pub(super) fn request_step(key: &ImageKey, context: Option<&str>, multi_platform: bool) -> String {
    let place = match context {
        Some(context) => format!("context {context}"),
        None => "internal".to_owned(),
    };
    let platform = if multi_platform { format!("{} ", key.platform) } else { String::new() };
    let name = match &key.source {
        ImageKeySource::Image(reference) => reference.to_string(),
        ImageKeySource::OciLayout { name, tag, digest } => {
            let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
            let digest = digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
            format!("oci-layout://{name}{tag}{digest}")
        }
    };
    format!("[{platform}{place}] load metadata for {name}")
}

/// A warning where an image is not for the platform that was asked for.
pub(super) fn check_platform(lint: &Lint, written: &str, expected: &Platform, image: &ImageConfig, span: Span) {
    let actual = image.platform();
    if !image.os.is_empty() && (expected.os != actual.os || expected.architecture != actual.architecture) {
        let words = [written, &expected.to_string(), &actual.to_string()];
        lint.report(Rule::InvalidBaseImagePlatform, span, &words, &[]);
    }
}
