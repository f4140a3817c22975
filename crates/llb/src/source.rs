use crate::UrlCredentials;
use forge_image::{Digest, Reference};
use std::collections::BTreeMap;

/// A vertex without inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOp {
    /// The file system of an image from a registry or the local store.
    Image(ImageSource),
    /// Files that the session hands over.
    Local(LocalSource),
    /// The file system of an image in an OCI layout folder.
    OciLayout(OciLayoutSource),
    /// A revision of a Git repository.
    Git(GitSource),
    /// A file from a web server.
    Http(HttpSource),
    /// A single blob of a registry or of an OCI layout.
    Blob(BlobSource),
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
    /// What the name must stand for when it is resolved: index or manifest.
    pub checksum: Option<Digest>,
    /// Only so many of its layers, from the lowest; all where `None`.
    pub layer_limit: Option<usize>,
}

impl ImageSource {
    /// All layers of whatever a name stands for.
    pub fn new(reference: Reference) -> Self {
        let (pinned, checksum, layer_limit) = Default::default();
        Self { reference, pinned, resolve: ResolveMode::default(), checksum, layer_limit }
    }
}

/// Files of a context of the session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalSource {
    /// The context's name, `context` for the main one.
    pub name: String,
    /// Patterns of what there is at all, as in an ignore file; none for everything.
    pub include: Vec<String>,
    /// Patterns of the ignore file, in order (`!` re-includes; last match wins).
    pub exclude: Vec<String>,
    /// Only these paths, which may be patterns, and what links among them lead to; all of it where empty.
    pub follow: Vec<String>,
    /// Where set, files are told of in one file, and only those that match come themselves.
    pub metadata_only: Option<Vec<String>>,
    /// How files are known that came before.
    pub compare: CompareFiles,
}

/// How files of a client are known that it sent for an earlier build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompareFiles {
    /// By size, mode and time.
    #[default]
    Metadata,
    /// Not at all: all of them come again.
    Never,
}

impl LocalSource {
    /// All files of a context.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
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

/// A revision of a Git repository, checked out as a file tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    /// The repository's address as [`GitRemote`](crate::GitRemote) allows it, without fragment and query. User
    /// information of HTTP is in `credentials`; the user of an SSH address is part of it.
    pub remote: String,
    /// The user and password for HTTP. Not part of the vertex's identity.
    pub credentials: Option<UrlCredentials>,
    /// The branch, tag, full reference name or commit; `None` for the remote's default branch.
    pub reference: Option<String>,
    /// The folder of the repository that becomes the root; empty for all of it.
    pub subdir: String,
    /// The commit that the reference must lead to, or its first digits.
    pub checksum: Option<String>,
    /// Whether `.git` is kept.
    pub keep_git_dir: bool,
    /// Whether submodules are left out.
    pub skip_submodules: bool,
    /// Which times the files get.
    pub mtime: GitMtime,
    /// Whether `checksum` is a whole commit that is fetched without asking what `reference` leads to.
    pub fetch_by_commit: bool,
    /// The secret with a token for HTTP, tried with the host's name behind it first; `GIT_AUTH_TOKEN`.
    pub auth_token_secret: Option<String>,
    /// The secret with an `Authorization` header for HTTP, tried likewise; `GIT_AUTH_HEADER`.
    pub auth_header_secret: Option<String>,
    /// The SSH agent of the session that is used for SSH.
    pub ssh: Option<String>,
    /// The known hosts for SSH, as in `known_hosts`; `None` accepts none but those the session knows.
    pub known_hosts: Option<String>,
    /// The git bundle that has the commit in `checksum`, and stands for the repository.
    pub bundle: Option<Box<BlobSource>>,
    /// What becomes of the commit.
    pub form: GitForm,
}

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GitForm {
    /// Its files.
    #[default]
    Files,
    /// A git bundle with its history, as the only file: `bundle`.
    Bundle,
}

impl GitSource {
    /// The default branch of a repository, with everything else as BuildKit's clients leave it.
    pub fn new(remote: impl Into<String>) -> Self {
        Self {
            remote: remote.into(),
            credentials: None,
            reference: None,
            subdir: String::new(),
            checksum: None,
            keep_git_dir: false,
            skip_submodules: false,
            mtime: GitMtime::default(),
            fetch_by_commit: false,
            auth_token_secret: Some("GIT_AUTH_TOKEN".to_owned()),
            auth_header_secret: Some("GIT_AUTH_HEADER".to_owned()),
            ssh: None,
            known_hosts: None,
            bundle: None,
            form: GitForm::default(),
        }
    }
}

/// The times of checked out files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GitMtime {
    /// When they were checked out.
    #[default]
    Checkout,
    /// When the commit was made.
    Commit,
}

/// A file from a web server, as the only entry of a file tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSource {
    /// The address, without user information.
    pub url: String,
    /// The user and password. Not part of the vertex's identity.
    pub credentials: Option<UrlCredentials>,
    /// What its bytes must hash to.
    pub checksum: Option<Digest>,
    /// The file's name; `None` takes the server's (`Content-Disposition`), else the address's.
    pub filename: Option<String>,
    /// Its permission bits; `None` for 0600.
    pub mode: Option<u32>,
    /// Its owner and group; `None` for root.
    pub owner: Option<(u32, u32)>,
    /// The secret with an `Authorization` header.
    pub auth_header_secret: Option<String>,
    /// What is sent for `Accept` and `User-Agent`, by these names in small letters.
    pub headers: BTreeMap<String, String>,
}

impl HttpSource {
    /// A plain download. User information in the address goes into `credentials`.
    pub fn new(url: impl AsRef<str>) -> Self {
        let (url, credentials) = UrlCredentials::split(url.as_ref());
        let (checksum, filename, mode, owner, auth_header_secret) = Default::default();
        Self { url, credentials, checksum, filename, mode, owner, auth_header_secret, headers: BTreeMap::new() }
    }
}

/// A blob, a layer for example, as the only entry of a file tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobSource {
    /// Its repository, with its digest.
    pub reference: Reference,
    /// Its digest.
    pub digest: Digest,
    /// The OCI layout that has it; `None` for the registry.
    pub layout: Option<String>,
    /// The file's name; `None` takes the hexadecimal digits of the digest.
    pub filename: Option<String>,
    /// Its permission bits; `None` for 0600.
    pub mode: Option<u32>,
    /// Its owner and group; `None` for root.
    pub owner: Option<(u32, u32)>,
}
