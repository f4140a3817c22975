//! The shared caches that a client names.

use crate::session::ClientSession;
use crate::session::content::ContentFolder;
use forge_buildkit_proto::moby::buildkit::v1::frontend;
use forge_buildkit_proto::moby::buildkit::v1::{CacheOptionsEntry, SolveRequest, VertexWarning};
use forge_engine::{CacheImport, CachePlace, ClientFolder, EngineError, SharedCaches};
use forge_image::{Digest, ErrorKind};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Status;

/// The caches of a build, and what the user should know of them.
pub(crate) struct Read {
    pub caches: SharedCaches,
    pub remarks: Vec<VertexWarning>,
}

/// Reads what a build asks and tells. An import that cannot be had is left out, as one that has nothing.
///
/// # Errors
/// An export that cannot be done, unless its failure is to be ignored.
pub(crate) fn read(request: &SolveRequest, client: Option<&Arc<ClientSession>>) -> Result<Read, Status> {
    let mut caches = SharedCaches { open_ended: is_steered(request), ..SharedCaches::default() };
    let mut remarks = Vec::new();
    let listed = request.cache.iter().flat_map(|cache| &cache.imports).map(Entry::of_client);
    // The library of Go's clients says the same twice: to the builder, and to the front end.
    for entry in listed.chain(of_options(&request.frontend_attrs)) {
        let refused = add_import(&mut caches, &entry, client).err();
        remarks.extend(refused.map(|error| format!("cache import {error}: its steps are run")));
    }
    for entry in request.cache.iter().flat_map(|cache| &cache.exports).map(Entry::of_client) {
        match add_export(&mut caches, &entry, client) {
            Err(error) if !entry.is_optional() => {
                return Err(Status::unimplemented(format!("cache export {error}")));
            }
            added => remarks.extend(added.err().map(|error| format!("cache export {error}"))),
        }
    }
    Ok(Read { caches, remarks: remarks.into_iter().map(warning).collect() })
}

/// Reads which caches a client names while it steers a build.
pub(crate) fn further(
    request: &frontend::SolveRequest,
    client: Option<&Arc<ClientSession>>,
) -> (Vec<CacheImport>, Vec<VertexWarning>) {
    let mut caches = SharedCaches::default();
    let mut remarks = Vec::new();
    let listed = request.cache_imports.iter().map(|entry| Entry::new(&entry.r#type, &entry.attrs));
    for entry in listed.chain(of_options(&request.frontend_opt)) {
        let refused = add_import(&mut caches, &entry, client).err();
        remarks.extend(refused.map(|error| warning(format!("cache import {error}: its steps are run"))));
    }
    (caches.from, remarks)
}

/// Whether the client itself asks for one result after the other.
fn is_steered(request: &SolveRequest) -> bool {
    request.frontend.is_empty() && request.definition.is_none()
}

fn warning(short: String) -> VertexWarning {
    VertexWarning { level: 1, short: short.into_bytes(), ..VertexWarning::default() }
}

/// A cache as a client names it.
struct Entry {
    kind: String,
    attributes: HashMap<String, String>,
}

impl Entry {
    fn new(kind: &str, attributes: &HashMap<String, String>) -> Self {
        Self { kind: kind.to_owned(), attributes: attributes.clone() }
    }

    fn of_client(entry: &CacheOptionsEntry) -> Self {
        Self::new(&entry.r#type, &entry.attrs)
    }

    fn is_optional(&self) -> bool {
        self.attributes.get("ignore-error").is_some_and(|value| matches!(value.as_str(), "true" | "1"))
    }

    /// In a fixed order, so that the same request has the same answer.
    fn pairs(&self) -> Vec<(String, String)> {
        let mut pairs: Vec<_> = self.attributes.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        pairs.sort_unstable();
        pairs
    }

    fn unsupported(&self, what: &str, why: &str) -> EngineError {
        let message = format!("type={}{what} is not supported: {why}", self.kind.escape_debug());
        EngineError::new(ErrorKind::Unsupported, message)
    }

    /// What names a file of the client's, which is not one of this machine.
    fn has_no_files(&self) -> Result<(), EngineError> {
        let files = ["sign-key", "verify-key", "tls_certificate", "tls_client_certificate", "tls_client_key"];
        match files.iter().find(|name| self.attributes.contains_key(**name)) {
            Some(name) => Err(self.unsupported(&format!(" {name}"), "it is the client's, and not brought here")),
            None => Ok(()),
        }
    }

    /// The store of the client that stands for one of its folders, taken out of what is said.
    fn folder(&mut self, key: &str, client: Option<&Arc<ClientSession>>) -> Result<ClientFolder, EngineError> {
        let name = self.attributes.remove(key).unwrap_or_default();
        // Which of the folder's names is meant is the client's business.
        self.attributes.remove("tag");
        self.attributes.remove("reset");
        let Some(client) = client else {
            return Err(self.unsupported("", "the build has no session that could have the folder"));
        };
        Ok(ClientFolder(Arc::new(ContentFolder::new(client.clone(), format!("local:{name}")))))
    }
}

/// What front ends are told of caches: a list of references, and a list of entries in JSON.
fn of_options(options: &HashMap<String, String>) -> Vec<Entry> {
    let listed = options.get("cache-imports").map(|text| serde_json::from_str::<Vec<Value>>(text));
    let entry = |entry: &Value| {
        let attributes = entry["Attrs"].as_object().into_iter().flatten();
        let attributes = attributes.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        Entry { kind: entry["Type"].as_str().unwrap_or_default().to_owned(), attributes: attributes.collect() }
    };
    // What cannot be read has no cache in it.
    let mut entries: Vec<Entry> = listed.and_then(Result::ok).into_iter().flatten().map(|one| entry(&one)).collect();
    let plain = options.get("cache-from").into_iter().flat_map(|text| text.split(','));
    for reference in plain.map(str::trim).filter(|reference| !reference.is_empty()) {
        entries.push(Entry::new("registry", &HashMap::from([("ref".to_owned(), reference.to_owned())])));
    }
    entries
}

fn add_import(
    caches: &mut SharedCaches,
    entry: &Entry,
    client: Option<&Arc<ClientSession>>,
) -> Result<(), EngineError> {
    entry.has_no_files()?;
    let before = caches.from.len();
    match entry.kind.as_str() {
        "local" => {
            let mut entry = Entry::new(&entry.kind, &entry.attributes);
            let digest = entry.attributes.remove("digest").unwrap_or_default();
            let digest: Digest = digest.parse().map_err(|_| entry.unsupported("", "the client gave no digest"))?;
            let place = CachePlace::Client(entry.folder("src", client)?, Some(digest));
            caches.from.push(CacheImport { place, verify_keys: Vec::new(), mounts: None });
        }
        kind => caches.add_import(kind, entry.pairs())?,
    }
    if caches.from[..before].iter().any(|known| caches.from.last().is_some_and(|new| new.place == known.place)) {
        caches.from.pop();
    }
    Ok(())
}

fn add_export(
    caches: &mut SharedCaches,
    entry: &Entry,
    client: Option<&Arc<ClientSession>>,
) -> Result<(), EngineError> {
    entry.has_no_files()?;
    let before = caches.to.len();
    match entry.kind.as_str() {
        "local" => {
            let mut entry = Entry::new(&entry.kind, &entry.attributes);
            let folder = entry.folder("dest", client)?;
            caches.add_export_into(CachePlace::Client(folder, None), "local", entry.pairs())?;
        }
        kind => caches.add_export(kind, entry.pairs())?,
    }
    for export in &mut caches.to[before..] {
        // As BuildKit has it: what fails fails the build, and the cache has a name.
        export.required = !entry.is_optional();
        if matches!(export.place, CachePlace::Registry(..) | CachePlace::Client(..)) {
            export.bundle.get_or_insert_default();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_buildkit_proto::moby::buildkit::v1::CacheOptions;

    fn request(kind: &str, attrs: &[(&str, &str)]) -> SolveRequest {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let entry = CacheOptionsEntry { r#type: kind.to_owned(), attrs };
        let cache = CacheOptions { exports: vec![entry.clone()], imports: vec![entry], ..CacheOptions::default() };
        SolveRequest { cache: Some(cache), frontend: "dockerfile.v0".to_owned(), ..SolveRequest::default() }
    }

    #[test]
    fn caches_of_services_are_read() {
        let found = read(&request("registry", &[("ref", "r.test/app:cache")]), None).unwrap();
        assert_eq!((found.caches.from.len(), found.caches.to.len()), (1, 1));
        assert!(found.caches.to[0].required && found.caches.to[0].bundle.is_some());
        assert!(found.remarks.is_empty());
        let nothing = SolveRequest { frontend: "dockerfile.v0".to_owned(), ..SolveRequest::default() };
        assert!(read(&nothing, None).unwrap().caches == SharedCaches::default());
        assert!(read(&SolveRequest::default(), None).unwrap().caches.open_ended);
    }

    #[test]
    fn what_front_ends_are_told_counts_once() {
        let mut twice = request("registry", &[("ref", "r.test/app:cache")]);
        let imports = r#"[{"Type":"registry","Attrs":{"ref":"r.test/app:cache"}}]"#;
        twice.frontend_attrs.insert("cache-imports".to_owned(), imports.to_owned());
        twice.frontend_attrs.insert("cache-from".to_owned(), "r.test/app:cache,r.test/other".to_owned());
        assert_eq!(read(&twice, None).unwrap().caches.from.len(), 2);
    }

    #[test]
    fn what_is_the_client_s_is_refused_or_left_out() {
        let refused =
            |kind: &str, attrs: &[(&str, &str)]| read(&request(kind, attrs), None).err().unwrap().message().to_owned();
        assert!(refused("local", &[("dest", "/x")]).starts_with("cache export type=local is not supported"));
        assert!(refused("azblob", &[]).starts_with("cache export type=azblob is not supported"));
        let signed = [("ref", "r.test/x"), ("sign-key", "/etc/key")];
        assert!(refused("registry", &signed).starts_with("cache export type=registry sign-key is not supported"));
        let certified = [("addr", "grpcs://x"), ("tls_client_key", "/etc/key")];
        assert!(refused("reapi", &certified).starts_with("cache export type=reapi tls_client_key is not supported"));
        let optional = request("azblob", &[("ignore-error", "true")]);
        let found = read(&optional, None).unwrap();
        assert_eq!((found.caches, found.remarks.len()), (SharedCaches::default(), 2));
    }
}
