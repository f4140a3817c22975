use super::Encoded;
use crate::{attributes as attr, capabilities as cap, pb};
use forge_image::Reference;
use forge_llb::{
    BlobSource, CompareFiles, GitForm, GitMtime, GitSource, HttpSource, ImageSource, LocalSource, OciLayoutSource,
    ResolveMode, SourceOp,
};
use std::collections::{BTreeMap, BTreeSet};

/// A source in the making.
struct Source {
    op: pb::SourceOp,
    needs: BTreeSet<&'static str>,
}

impl Source {
    fn new(identifier: String, need: &'static str) -> Self {
        Self { op: pb::SourceOp { identifier, attrs: BTreeMap::new() }, needs: [need].into() }
    }

    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.op.attrs.insert(name.to_owned(), value.into());
    }

    /// An attribute that needs a capability.
    fn need(&mut self, need: &'static str, name: &str, value: impl Into<String>) {
        self.needs.insert(need);
        self.set(name, value);
    }

    fn encoded(self) -> Encoded {
        Encoded { op: pb::op::Op::Source(self.op), needs: self.needs }
    }
}

pub fn encode(source: &SourceOp) -> Encoded {
    match source {
        SourceOp::Image(image) => encode_image(image),
        SourceOp::Local(local) => encode_local(local),
        SourceOp::OciLayout(layout) => encode_layout(layout),
        SourceOp::Git(git) => encode_git(git),
        SourceOp::Http(http) => encode_http(http),
        SourceOp::Blob(blob) => encode_blob(blob),
    }
}

fn encode_image(image: &ImageSource) -> Encoded {
    let mut name = image.reference.to_string();
    if let (Some(pinned), None) = (&image.pinned, image.reference.digest()) {
        name = format!("{name}@{pinned}");
    }
    let mut source = Source::new(format!("docker-image://{name}"), cap::SOURCE_IMAGE);
    if let (Some(pinned), Some(digest)) = (&image.pinned, image.reference.digest())
        && pinned != digest
    {
        source.need(cap::SOURCE_IMAGE_CHECKSUM, attr::IMAGE_CHECKSUM, pinned.to_string());
    }
    if let Some(checksum) = &image.checksum {
        source.need(cap::SOURCE_IMAGE_CHECKSUM, attr::IMAGE_CHECKSUM, checksum.to_string());
    }
    if let Some(limit) = image.layer_limit {
        source.need(cap::SOURCE_IMAGE_LAYER_LIMIT, attr::IMAGE_LAYER_LIMIT, limit.to_string());
    }
    if image.resolve == ResolveMode::ForcePull {
        source.need(cap::SOURCE_IMAGE_RESOLVE_MODE, attr::IMAGE_RESOLVE_MODE, "pull");
    }
    source.encoded()
}

fn encode_local(local: &LocalSource) -> Encoded {
    let mut source = Source::new(format!("local://{}", local.name), cap::SOURCE_LOCAL);
    if !local.include.is_empty() {
        source.need(cap::SOURCE_LOCAL_INCLUDE, attr::LOCAL_INCLUDE, json(&local.include));
    }
    if !local.exclude.is_empty() {
        source.need(cap::SOURCE_LOCAL_EXCLUDE, attr::LOCAL_EXCLUDE, json(&local.exclude));
    }
    if !local.follow.is_empty() {
        source.need(cap::SOURCE_LOCAL_FOLLOW, attr::LOCAL_FOLLOW, json(&local.follow));
    }
    if let Some(except) = &local.metadata_only {
        source.need(cap::SOURCE_LOCAL_METADATA, attr::LOCAL_METADATA, "true".to_owned());
        if !except.is_empty() {
            source.set(attr::LOCAL_METADATA_EXCEPT, json(except));
        }
    }
    if local.compare == CompareFiles::Never {
        source.need(cap::SOURCE_LOCAL_DIFFER, attr::LOCAL_DIFFER, "none".to_owned());
    }
    source.encoded()
}

fn json(patterns: &[String]) -> String {
    serde_json::Value::from(patterns).to_string()
}

/// BuildKit's identifiers are image names, of which only tag and digest say something; the layout is the store.
fn encode_layout(layout: &OciLayoutSource) -> Encoded {
    let named = layout.name.parse::<Reference>().map(|reference| reference.name());
    let mut name = named.unwrap_or_else(|_| "docker.io/library/layout".to_owned());
    if let Some(tag) = &layout.tag {
        name = format!("{name}:{tag}");
    }
    if let Some(digest) = &layout.digest {
        name = format!("{name}@{digest}");
    }
    let mut source = Source::new(format!("oci-layout://{name}"), cap::SOURCE_OCI_LAYOUT);
    source.set(attr::OCI_STORE, layout.name.clone());
    source.encoded()
}

fn encode_blob(blob: &BlobSource) -> Encoded {
    let scheme = if blob.layout.is_some() { "oci-layout+blob" } else { "docker-image+blob" };
    let mut source = Source::new(format!("{scheme}://{}", blob.reference), cap::SOURCE_IMAGE_BLOB);
    if let Some(layout) = &blob.layout {
        source.set(attr::OCI_STORE, layout.clone());
    }
    if let Some(filename) = &blob.filename {
        source.set(attr::HTTP_FILENAME, filename.clone());
    }
    if let Some(mode) = blob.mode {
        source.set(attr::HTTP_PERM, format!("0{mode:o}"));
    }
    if let Some((uid, gid)) = blob.owner {
        source.set(attr::HTTP_UID, uid.to_string());
        source.set(attr::HTTP_GID, gid.to_string());
    }
    source.encoded()
}

fn encode_git(git: &GitSource) -> Encoded {
    let mut source = Source::new(git_identifier(git), cap::SOURCE_GIT);
    source.need(cap::SOURCE_GIT_FULL_URL, attr::GIT_FULL_URL, git.remote.clone());
    if git.keep_git_dir {
        source.need(cap::SOURCE_GIT_KEEP_DIR, attr::GIT_KEEP_DIR, "true");
    }
    // As BuildKit's client: the names that are always tried need no capability.
    let secrets = [
        (attr::GIT_AUTH_TOKEN, &git.auth_token_secret, "GIT_AUTH_TOKEN"),
        (attr::GIT_AUTH_HEADER, &git.auth_header_secret, "GIT_AUTH_HEADER"),
    ];
    for (name, secret, usual) in secrets {
        match secret {
            Some(secret) if secret == usual => source.set(name, secret),
            Some(secret) => source.need(cap::SOURCE_GIT_HTTP_AUTH, name, secret),
            None => {}
        }
    }
    let texts = [
        (cap::SOURCE_GIT_KNOWN_HOSTS, attr::GIT_KNOWN_HOSTS, &git.known_hosts),
        (cap::SOURCE_GIT_SSH, attr::GIT_SSH, &git.ssh),
        (cap::SOURCE_GIT_CHECKSUM, attr::GIT_CHECKSUM, &git.checksum),
    ];
    for (need, name, value) in texts {
        if let Some(value) = value {
            source.need(need, name, value);
        }
    }
    if git.skip_submodules {
        source.need(cap::SOURCE_GIT_SKIP_SUBMODULES, attr::GIT_SKIP_SUBMODULES, "true");
    }
    if git.mtime == GitMtime::Commit {
        source.need(cap::SOURCE_GIT_MTIME, attr::GIT_MTIME, "commit");
    }
    if git.form == GitForm::Bundle {
        source.need(cap::SOURCE_GIT_CHECKOUT_BUNDLE, attr::GIT_CHECKOUT_BUNDLE, "true");
    }
    if let Some(bundle) = &git.bundle {
        let scheme = if bundle.layout.is_some() { "oci-layout+blob" } else { "docker-image+blob" };
        source.need(cap::SOURCE_GIT_BUNDLE, attr::GIT_BUNDLE, format!("{scheme}://{}", bundle.reference));
        if let Some(layout) = &bundle.layout {
            source.set(attr::OCI_STORE, layout.clone());
        }
    }
    if git.fetch_by_commit {
        source.need(cap::SOURCE_GIT_FETCH_BY_COMMIT, attr::GIT_FETCH_BY_COMMIT, "true");
    }
    source.encoded()
}

/// Host and path alone, so that an address has one name whatever transport it is reached by.
fn git_identifier(git: &GitSource) -> String {
    let place = match git.remote.split_once("://") {
        Some((_, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{}{path}", authority.rsplit('@').next().unwrap_or_default())
        }
        None => {
            let place = git.remote.split_once('@').map_or(git.remote.as_str(), |(_, place)| place);
            let (host, path) = place.split_once(':').unwrap_or((place, ""));
            format!("{host}/{}", path.trim_start_matches('/'))
        }
    };
    match (&git.reference, git.subdir.as_str()) {
        (None, "") => format!("git://{place}"),
        (reference, "") => format!("git://{place}#{}", reference.as_deref().unwrap_or_default()),
        (reference, subdir) => format!("git://{place}#{}:{subdir}", reference.as_deref().unwrap_or_default()),
    }
}

fn encode_http(http: &HttpSource) -> Encoded {
    let mut source = Source::new(http.url.clone(), cap::SOURCE_HTTP);
    if let Some(checksum) = &http.checksum {
        source.need(cap::SOURCE_HTTP_CHECKSUM, attr::HTTP_CHECKSUM, checksum.to_string());
    }
    if let Some(filename) = &http.filename {
        source.set(attr::HTTP_FILENAME, filename);
    }
    if let Some(mode) = http.mode {
        source.need(cap::SOURCE_HTTP_PERM, attr::HTTP_PERM, format!("0{mode:o}"));
    }
    if let Some((uid, gid)) = http.owner {
        source.need(cap::SOURCE_HTTP_OWNER, attr::HTTP_UID, uid.to_string());
        source.need(cap::SOURCE_HTTP_OWNER, attr::HTTP_GID, gid.to_string());
    }
    if let Some(secret) = &http.auth_header_secret {
        source.need(cap::SOURCE_HTTP_AUTH, attr::HTTP_AUTH_HEADER, secret);
    }
    for (name, value) in &http.headers {
        source.need(cap::SOURCE_HTTP_HEADER, &format!("{}{name}", attr::HTTP_HEADER), value);
    }
    source.encoded()
}
