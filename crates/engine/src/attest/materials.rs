//! What a build was made of.

use crate::EngineError;
use crate::build::Build;
use forge_exporter::{package_url, with_qualifier};
use forge_image::{Digest, Platform, Reference};
use forge_llb::{GitSource, Graph, MountKind, NetworkMode, Op, SourceOp, UrlCredentials, Vertex};
use forge_worker::SourceState;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What went into a result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Materials {
    /// By name and platform.
    images: BTreeMap<(Reference, Option<Platform>), Image>,
    /// By address.
    git: BTreeMap<String, String>,
    /// By address; blobs of images are among them.
    http: BTreeMap<String, Digest>,
    /// Contexts of whoever asked for the build.
    pub locals: BTreeSet<String>,
    /// By id: whether the steps do without.
    pub secrets: BTreeMap<String, bool>,
    pub ssh: BTreeMap<String, bool>,
    /// Whether a step could reach a network.
    pub network: bool,
}

#[derive(Clone, Debug)]
struct Image {
    digest: Digest,
    /// Whether it is from an OCI layout of the client.
    is_local: bool,
}

impl Materials {
    /// Whether all that went in is known.
    pub(crate) fn are_complete(&self) -> bool {
        self.locals.is_empty()
    }

    /// Address and digest of each, as provenance lists them.
    pub(crate) fn list(&self) -> Vec<Value> {
        let tagged: BTreeSet<String> =
            self.images.keys().filter(|(name, _)| name.digest().is_none()).map(|(name, _)| tag_of(name)).collect();
        let mut list = Vec::new();
        for ((name, platform), image) in &self.images {
            // The same image by its digest says less.
            if name.digest().is_some() && tagged.contains(&tag_of(name)) {
                continue;
            }
            let kind = if image.is_local { "oci" } else { "docker" };
            let digest = json!({ image.digest.algorithm(): image.digest.hex() });
            list.push(json!({ "uri": package_url(kind, name, platform.as_ref()), "digest": digest }));
        }
        list.extend(self.git.iter().map(|(url, commit)| json!({ "uri": url, "digest": commit_digest(commit) })));
        let file =
            |(url, digest): (&String, &Digest)| json!({ "uri": url, "digest": { digest.algorithm(): digest.hex() } });
        list.extend(self.http.iter().map(file));
        list
    }

    /// The digest of what an address (without the folder of a repository) stood for.
    pub(crate) fn digest_of(&self, url: &str) -> Option<Value> {
        if let Some(commit) = self.git.get(url) {
            return Some(commit_digest(commit));
        }
        self.http.get(url).map(|digest| json!({ digest.algorithm(): digest.hex() }))
    }

    /// Adds the images that front ends are. They run here.
    pub(crate) fn add_front_ends(&mut self, images: Vec<(Reference, Digest)>) {
        for (reference, digest) in images {
            self.add_image(reference, Some(Platform::host()), digest, false);
        }
    }

    fn add_image(&mut self, name: Reference, platform: Option<Platform>, digest: Digest, is_local: bool) {
        self.images.entry((name, platform)).or_insert(Image { digest, is_local });
    }

    /// Notes a secret, and that it is needed if any step needs it.
    fn add_secret(secrets: &mut BTreeMap<String, bool>, id: &str, optional: bool) {
        let known = secrets.entry(id.to_owned()).or_insert(true);
        *known &= optional;
    }

    fn add_exec(&mut self, exec: &forge_llb::ExecOp) {
        for mount in &exec.mounts {
            match &mount.kind {
                MountKind::Secret(secret) => Self::add_secret(&mut self.secrets, &secret.id, secret.optional),
                MountKind::Ssh(agent) => {
                    let id = if agent.id.is_empty() { "default" } else { &agent.id };
                    Self::add_secret(&mut self.ssh, id, agent.optional);
                }
                _ => {}
            }
        }
        for secret in &exec.secret_env {
            Self::add_secret(&mut self.secrets, &secret.id, secret.optional);
        }
        self.network |= exec.network != NetworkMode::None;
    }
}

fn tag_of(name: &Reference) -> String {
    format!("{}:{}", name.name(), name.tag().unwrap_or("latest"))
}

fn commit_digest(commit: &str) -> Value {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    json!({ algorithm: commit })
}

/// An address with the place of its user information, not with it.
pub(crate) fn redacted(url: &str, credentials: Option<&UrlCredentials>) -> String {
    let Some(credentials) = credentials else { return url.to_owned() };
    let shown = if credentials.reveal_password().is_empty() { "xxxxx" } else { "xxxxx:xxxxx" };
    match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{shown}@{rest}"),
        None => url.to_owned(),
    }
}

/// The address of a repository with its reference.
pub(crate) fn git_url(git: &GitSource) -> String {
    let url = redacted(&git.remote, git.credentials.as_ref());
    match git.reference.as_deref().filter(|reference| !reference.is_empty()) {
        Some(reference) => format!("{url}#{reference}"),
        None => url,
    }
}

impl Build {
    /// Finds out what the goal of a graph was made of. The sources are what the steps saw of them.
    pub(crate) async fn materials(&self, graph: &Graph) -> Result<Materials, EngineError> {
        let mut materials = Materials { locals: self.locals_read(), ..Materials::default() };
        for (_, vertex) in graph.needed() {
            match &vertex.op {
                Op::Source(source) => self.add_source(&mut materials, source, vertex).await?,
                Op::Exec(exec) => materials.add_exec(exec),
                Op::File(_) | Op::Merge | Op::Diff(_) | Op::Passthrough(_) => {}
            }
        }
        Ok(materials)
    }

    async fn add_source(
        &self,
        materials: &mut Materials,
        source: &SourceOp,
        vertex: &Vertex,
    ) -> Result<(), EngineError> {
        let platform = vertex.platform.as_ref();
        let state = self.local_worker().await?.source_state(source, platform, &self.session).await;
        let state = state.map_err(|error| EngineError::caused(error.kind(), error))?;
        match (source, state) {
            (SourceOp::Image(image), SourceState::Image(digest)) => {
                let platform = platform.cloned().unwrap_or_else(Platform::host);
                materials.add_image(image.reference.clone(), Some(platform), digest, false);
            }
            (SourceOp::OciLayout(layout), SourceState::Image(digest)) => {
                let name = self.layout_context(&layout.name).unwrap_or(&layout.name).parse::<Reference>();
                let name = name.map(|name| match &layout.digest {
                    Some(digest) => name.with_digest(digest.clone()),
                    None => name,
                });
                if let Ok(name) = name {
                    materials.add_image(name, platform.cloned(), digest, true);
                }
            }
            (SourceOp::Git(git), SourceState::Commit(commit)) => {
                if let Some(bundle) = &git.bundle {
                    let kind = if bundle.layout.is_some() { "oci" } else { "docker" };
                    let url = format!("{}&ref_type=bundle", package_url(kind, &bundle.reference, None));
                    let url = with_qualifier(url, "vcs_url", &git_url(git));
                    materials.http.insert(url, bundle.digest.clone());
                }
                materials.git.insert(git_url(git), commit);
                let tokens = git.auth_token_secret.iter().chain(&git.auth_header_secret);
                tokens.for_each(|id| Materials::add_secret(&mut materials.secrets, id, true));
                git.ssh.iter().for_each(|id| Materials::add_secret(&mut materials.ssh, id, true));
            }
            (SourceOp::Http(http), SourceState::File(digest)) => {
                materials.http.insert(redacted(&http.url, http.credentials.as_ref()), digest);
            }
            (SourceOp::Blob(blob), SourceState::File(digest)) => {
                let kind = if blob.layout.is_some() { "oci" } else { "docker" };
                let url = format!("{}&ref_type=blob", package_url(kind, &blob.reference, None));
                materials.http.insert(url, digest);
            }
            (SourceOp::Local(local), _) => _ = materials.locals.insert(local.name.clone()),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_llb::HttpSource;

    #[test]
    fn addresses_show_that_there_are_credentials_and_not_which() {
        let http = HttpSource::new("https://user:pass@host.test/a");
        assert_eq!(redacted(&http.url, http.credentials.as_ref()), "https://xxxxx:xxxxx@host.test/a");
        assert_eq!(redacted("https://h/a", None), "https://h/a");
        let mut git = GitSource::new("https://h/a.git");
        assert_eq!(git_url(&git), "https://h/a.git");
        git.reference = Some("v1".to_owned());
        assert_eq!(git_url(&git), "https://h/a.git#v1");
    }

    #[test]
    fn an_image_known_by_its_tag_is_not_told_by_its_digest_too() {
        let (digest, mut materials) = (Digest::sha256(b"x"), Materials::default());
        let name: Reference = "busybox".parse().unwrap();
        materials.add_image(name.clone(), None, digest.clone(), false);
        materials.add_image(name.with_digest(digest.clone()), None, digest, false);
        assert_eq!(materials.list().len(), 1);
    }
}
