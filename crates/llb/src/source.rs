use forge_image::{Digest, Reference};

/// A vertex without inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOp {
    /// The file system of an image from a registry or the local store.
    Image(ImageSource),
    /// Files that the session hands over.
    Local(LocalSource),
    /// The file system of an image in an OCI layout folder.
    OciLayout(OciLayoutSource),
}

/// How an image's name becomes a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResolveMode {
    /// The local store first, then the registry.
    #[default]
    PreferLocal,
    /// Always ask the registry (`--pull`).
    ForcePull,
}

/// An image's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// The name.
    pub reference: Reference,
    /// The manifest that the name stood for when the graph was made; the name alone where it was not asked.
    pub pinned: Option<Digest>,
    /// How the name is resolved where it is not pinned.
    pub resolve: ResolveMode,
}

/// Files of a context of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalSource {
    /// The context's name, `context` for the main one.
    pub name: String,
    /// Patterns of the ignore file, in order (`!` re-includes; last match wins).
    pub exclude: Vec<String>,
}

/// An image in an OCI layout folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciLayoutSource {
    /// The named context that holds the layout.
    pub name: String,
    /// The tag (`org.opencontainers.image.ref.name`) within the layout, if one was given.
    pub tag: Option<String>,
    /// The manifest's or index's digest, if one was given or found.
    pub digest: Option<Digest>,
}
