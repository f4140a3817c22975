//! The vertices of what stages are built on and copy from, and the words that users see of them.

use super::epoch::named_download;
use super::plan::Base;
use super::{Lowering, Progress};
use crate::lint::Lint;
use crate::{FrontendError, GraphInput, ImageKey, ImageKeySource, Problem, ResolvedImage, Rule, Span};
use forge_image::{ImageConfig, Platform};
use forge_llb::{
    CopyAction, Edge, FileAction, FileInput, FileKind, FileOp, ImageSource, LocalSource, Metadata, OciLayoutSource, Op,
    ResolveMode, SourceOp,
};

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
                let title = match context.as_str() {
                    "" => "[internal] load build context".to_owned(),
                    context => format!("[context {context}] load from client"),
                };
                self.local_edge(session, exclude, title, span).map(Some)
            }
            Base::Input(input) => self.input_edge(input),
            Base::Remote { source, context } => self.remote_edge(source, context, span).map(Some),
            Base::Image { key, .. } => {
                let image = self.image(key);
                match has_layers(&image.config) || image.replaced.is_some() {
                    true => self.image_edge(key, span, name).map(Some),
                    false => Ok(None),
                }
            }
        }
    }

    /// Adds the vertex of what an instruction takes files from.
    pub fn source_edge(&mut self, base: &Base, span: Span) -> Result<Option<Edge>, FrontendError> {
        let name = match base {
            Base::Image { context: Some(context), .. } => format!("[context {context}] "),
            _ => "FROM ".to_owned(),
        };
        self.base_edge(base, span, &name)
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
                let image = ImageSource { pinned: Some(digest), resolve, ..ImageSource::new(reference.clone()) };
                (SourceOp::Image(image), shown)
            }
            ImageKeySource::OciLayout { name, tag, .. } => {
                let shown = format!("oci-layout://{name}@{digest}");
                let layout = OciLayoutSource { name: name.clone(), tag: tag.clone(), digest: Some(digest) };
                (SourceOp::OciLayout(layout), shown)
            }
        };
        let source = self.image(key).replaced.clone().unwrap_or(source);
        if let SourceOp::Local(LocalSource { name, .. }) | SourceOp::OciLayout(OciLayoutSource { name, .. }) = &source {
            self.contexts.insert(name.clone());
        }
        let metadata = Metadata { name: format!("{name}{shown}"), span: Some(self.span(span)), ..Metadata::default() };
        self.add(Op::Source(source), Vec::new(), Some(key.platform.clone()), metadata)
    }

    /// A repository as it is; a download with its archive unpacked, where it is one.
    fn remote_edge(&mut self, source: &SourceOp, context: &str, span: Span) -> Result<Edge, FrontendError> {
        let name = remote_title(source, context);
        let metadata = Metadata { name: name.clone(), span: Some(self.span(span)), ..Metadata::default() };
        let SourceOp::Http(http) = source else {
            return self.add(Op::Source(source.clone()), Vec::new(), None, metadata);
        };
        let http = named_download(http);
        let filename = http.filename.clone().unwrap_or_default();
        let file = self.add(Op::Source(SourceOp::Http(http)), Vec::new(), None, metadata)?;
        let copy = CopyAction {
            unpack_archives: true,
            allow_wildcard: false,
            ..CopyAction::new(FileInput::Input(0), vec![format!("/{filename}")], "/")
        };
        let action = FileAction { base: FileInput::Scratch, kind: FileKind::Copy(copy) };
        let metadata = Metadata { name, span: Some(self.span(span)), ..Metadata::default() };
        self.add(Op::File(FileOp { actions: vec![action] }), vec![file], None, metadata)
    }

    /// Takes in the steps of another graph.
    fn input_edge(&mut self, input: &GraphInput) -> Result<Option<Edge>, FrontendError> {
        for (digest, vertex) in input.graph().named() {
            let added = self.graph.add_as(digest.clone(), vertex.clone());
            added.map_err(|error| Problem::value(format!("an input of the build is refused: {error}")))?;
        }
        Ok(input.graph().goal().cloned())
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
        let local = LocalSource { exclude: exclude.to_vec(), ..LocalSource::new(session) };
        let metadata = Metadata { name: title, span: Some(self.span(span)), ..Metadata::default() };
        let edge = self.add(Op::Source(SourceOp::Local(local)), Vec::new(), None, metadata)?;
        self.folders.insert(session.to_owned(), edge.clone());
        Ok(edge)
    }
}

/// What users see of files from elsewhere.
fn remote_title(source: &SourceOp, context: &str) -> String {
    match (source, context) {
        (SourceOp::Git(git), _) => {
            let reference = git.reference.as_ref().map(|reference| format!("#{reference}")).unwrap_or_default();
            format!("[internal] load git source {}{reference}", git.remote)
        }
        (_, "") => "[internal] load remote build context".to_owned(),
        (SourceOp::Http(http), context) => format!("[context {context}] {}", http.url),
        (_, context) => format!("[context {context}]"),
    }
}

/// An image without layers is nothing to fetch.
fn has_layers(image: &ImageConfig) -> bool {
    !image.rootfs.diff_ids.is_empty() || image.history.iter().any(|entry| !entry.empty_layer)
}

/// What users see while an image is looked up.
pub(super) fn request_step(key: &ImageKey, context: Option<&str>, multi_platform: bool) -> String {
    let place = match context {
        Some("") | None => "internal".to_owned(),
        Some(context) => format!("context {context}"),
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
