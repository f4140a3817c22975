//! The shared caches that a client names.

use forge_buildkit_proto::moby::buildkit::v1::{CacheOptionsEntry, SolveRequest, VertexWarning};
use forge_engine::{EngineError, SharedCaches};
use tonic::Status;

/// Reads what a build asks and tells. An import that cannot be had is left out, as one that has nothing.
///
/// # Errors
/// An export that cannot be done, unless its failure is to be ignored.
pub(crate) fn read(request: &SolveRequest) -> Result<SharedCaches, Status> {
    let mut caches = SharedCaches::default();
    for entry in imports(request) {
        _ = add_import(&mut caches, entry);
    }
    for entry in exports(request) {
        match add_export(&mut caches, entry) {
            Err(error) if !is_optional(entry) => {
                return Err(Status::unimplemented(format!("cache export {error}")));
            }
            _ => {}
        }
    }
    Ok(caches)
}

/// What the user should know was left out.
pub(crate) fn remarks(request: &SolveRequest) -> Vec<VertexWarning> {
    let mut caches = SharedCaches::default();
    let mut remarks = Vec::new();
    for entry in imports(request) {
        let refused = add_import(&mut caches, entry).err();
        remarks.extend(refused.map(|error| format!("cache import {error}: its steps are run")));
    }
    for entry in exports(request) {
        remarks.extend(add_export(&mut caches, entry).err().map(|error| format!("cache export {error}")));
    }
    let warning = |short: String| VertexWarning { level: 1, short: short.into_bytes(), ..VertexWarning::default() };
    remarks.into_iter().map(warning).collect()
}

fn add_import(caches: &mut SharedCaches, entry: &CacheOptionsEntry) -> Result<(), EngineError> {
    of_service(entry)?;
    caches.add_import(&entry.r#type, attributes(entry))
}

fn add_export(caches: &mut SharedCaches, entry: &CacheOptionsEntry) -> Result<(), EngineError> {
    of_service(entry)?;
    caches.add_export(&entry.r#type, attributes(entry))
}

/// What names a file of the client's, which is not one of this machine.
fn of_service(entry: &CacheOptionsEntry) -> Result<(), EngineError> {
    let names_file = ["sign-key", "verify-key"].iter().find(|name| entry.attrs.contains_key(**name));
    let what = match (entry.r#type.as_str(), names_file) {
        ("local", _) => "type=local".to_owned(),
        (_, Some(name)) => (*name).to_owned(),
        _ => return Ok(()),
    };
    let why = "it is the client's, and not brought here";
    Err(EngineError::new(forge_image::ErrorKind::Unsupported, format!("{what} is not supported: {why}")))
}

/// In a fixed order, so that the same request has the same answer.
fn attributes(entry: &CacheOptionsEntry) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = entry.attrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    pairs.sort_unstable();
    pairs
}

fn imports(request: &SolveRequest) -> impl Iterator<Item = &CacheOptionsEntry> {
    request.cache.iter().flat_map(|cache| &cache.imports)
}

fn exports(request: &SolveRequest) -> impl Iterator<Item = &CacheOptionsEntry> {
    request.cache.iter().flat_map(|cache| &cache.exports)
}

fn is_optional(entry: &CacheOptionsEntry) -> bool {
    entry.attrs.get("ignore-error").is_some_and(|value| matches!(value.as_str(), "true" | "1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_buildkit_proto::moby::buildkit::v1::CacheOptions;

    fn request(kind: &str, attrs: &[(&str, &str)]) -> SolveRequest {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let entry = CacheOptionsEntry { r#type: kind.to_owned(), attrs };
        let cache = CacheOptions { exports: vec![entry.clone()], imports: vec![entry], ..CacheOptions::default() };
        SolveRequest { cache: Some(cache), ..SolveRequest::default() }
    }

    #[test]
    fn caches_of_services_are_read() {
        let caches = read(&request("registry", &[("ref", "r.test/app:cache")])).unwrap();
        assert_eq!((caches.from.len(), caches.to.len()), (1, 1));
        assert!(remarks(&request("registry", &[("ref", "r.test/app:cache")])).is_empty());
        assert!(read(&SolveRequest::default()).unwrap() == SharedCaches::default());
    }

    #[test]
    fn what_is_the_client_s_is_refused_or_left_out() {
        let refused =
            |kind: &str, attrs: &[(&str, &str)]| read(&request(kind, attrs)).unwrap_err().message().to_owned();
        assert!(refused("local", &[("dest", "/x")]).starts_with("cache export type=local is not supported"));
        assert!(refused("azblob", &[]).starts_with("cache export type=azblob is not supported"));
        let signed = [("ref", "r.test/x"), ("sign-key", "/etc/key")];
        assert!(refused("registry", &signed).starts_with("cache export sign-key is not supported"));
        let optional = request("azblob", &[("ignore-error", "true")]);
        assert_eq!(read(&optional).unwrap(), SharedCaches::default());
        assert_eq!(remarks(&optional).len(), 2);
    }
}
