//! Folders of this machine whose blobs a daemon reads and writes: OCI layouts that are contexts, and shared caches.

use crate::CacheEntry;
use crate::outputs::unsupported;
use forge_engine::{BuildRequest, EngineError, FolderCache, NamedContext, layout_digest};
use forge_image::{Descriptor, Digest};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What a daemon may do with a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The folders, by the names that calls have for them.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    folders: HashMap<String, (PathBuf, Access)>,
    /// The contexts that are layouts, as the daemon is told of them.
    layouts: BTreeMap<String, String>,
    /// The caches that get a name when the build has ended.
    written: Vec<FolderCache>,
}

/// The caches of a build as the daemon is told of them.
#[derive(Debug, Default)]
pub(crate) struct ToldCaches {
    pub imports: Vec<CacheEntry>,
    pub exports: Vec<CacheEntry>,
    /// What the user should know.
    pub notices: Vec<String>,
}

impl Stores {
    /// Looks at the folders. Blocks.
    ///
    /// # Errors
    /// A layout has no such image; a cache is named without its folder.
    pub(crate) fn open(
        request: &BuildRequest,
        imports: &[CacheEntry],
        exports: &[CacheEntry],
    ) -> Result<(Self, ToldCaches), EngineError> {
        let (mut stores, mut caches) = (Self::default(), ToldCaches::default());
        for (name, context) in &request.named_contexts {
            if let NamedContext::OciLayout { path, tag, digest } = context {
                let digest = layout_digest(path, tag.as_deref(), digest.as_ref())?;
                stores.add_layout(name, path, &digest);
            }
        }
        for entry in imports {
            match entry.kind.as_str() {
                "local" => match stores.import(entry)? {
                    Some(entry) => caches.imports.push(entry),
                    None => caches.notices.push(format!(
                        "the cache in {} has nothing that a daemon could read: its steps are run",
                        entry.attributes.get("src").map_or("", String::as_str)
                    )),
                },
                _ => caches.imports.push(entry.clone()),
            }
        }
        for entry in exports {
            match entry.kind.as_str() {
                "local" => caches.exports.push(stores.export(entry)?),
                _ => caches.exports.push(entry.clone()),
            }
        }
        Ok((stores, caches))
    }

    /// What the daemon finds a context by that is a layout.
    pub(crate) fn layout(&self, context: &str) -> Option<&str> {
        self.layouts.get(context).map(String::as_str)
    }

    /// The folder that is meant by a call.
    pub(crate) fn folder(&self, store: &str, access: Access) -> Option<&Path> {
        let (folder, most) = self.folders.get(store)?;
        (access <= *most).then_some(folder)
    }

    /// Gives what was written its names.
    ///
    /// # Errors
    /// A folder cannot be written.
    pub(crate) fn name_caches(&self, bundle: &Descriptor) -> Result<(), EngineError> {
        self.written.iter().try_for_each(|cache| cache.name(bundle))
    }

    pub(crate) fn add_layout(&mut self, context: &str, path: &Path, digest: &Digest) {
        let name = name_of(path);
        self.layouts.insert(context.to_owned(), format!("oci-layout://{name}@{digest}"));
        self.folders.insert(format!("oci:{name}"), (path.to_owned(), Access::Read));
    }

    /// The folder of a cache; `None` where there is nothing to read.
    fn import(&mut self, entry: &CacheEntry) -> Result<Option<CacheEntry>, EngineError> {
        let cache = of_entry(entry, "src")?;
        let digest = match entry.attributes.get("digest") {
            Some(digest) => Some(digest.clone()),
            None => cache.digest().map(|digest| digest.to_string()),
        };
        let Some(digest) = digest else { return Ok(None) };
        let mut told = self.told(entry, "src", &cache, Access::Read);
        told.attributes.insert("digest".to_owned(), digest);
        Ok(Some(told))
    }

    pub(crate) fn export(&mut self, entry: &CacheEntry) -> Result<CacheEntry, EngineError> {
        let cache = of_entry(entry, "dest")?;
        let told = self.told(entry, "dest", &cache, Access::Write);
        self.written.push(cache);
        Ok(told)
    }

    fn told(&mut self, entry: &CacheEntry, key: &str, cache: &FolderCache, access: Access) -> CacheEntry {
        let name = name_of(&cache.folder);
        let store = self.folders.entry(format!("local:{name}")).or_insert_with(|| (cache.folder.clone(), access));
        store.1 = store.1.max(access);
        let mut told = entry.clone();
        told.attributes.insert(key.to_owned(), name);
        told
    }
}

fn of_entry(entry: &CacheEntry, key: &str) -> Result<FolderCache, EngineError> {
    let Some(folder) = entry.attributes.get(key) else {
        return Err(unsupported(format!("type=local without {key}"), "nothing says where the cache is"));
    };
    let tag = entry.attributes.get("tag").map_or("latest", String::as_str);
    Ok(FolderCache { folder: folder.into(), tag: tag.to_owned() })
}

/// A name that a daemon can say, the same for the same folder.
fn name_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    // It is found before an `@`, and sent in a header.
    match text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'@') {
        true => text.into_owned(),
        false => Digest::sha256(text.as_bytes()).hex()[..32].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(attributes: &[(&str, &str)]) -> CacheEntry {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        CacheEntry { kind: "local".to_owned(), attributes }
    }

    // Seen to fail with the access not compared.
    #[test]
    fn what_is_read_is_not_written() {
        let mut stores = Stores::default();
        stores.add_layout("base", Path::new("/images/one"), &Digest::sha256(b"x"));
        assert!(stores.layout("base").unwrap().starts_with("oci-layout:///images/one@sha256:"));
        let told = stores.export(&entry(&[("dest", "cache"), ("mode", "max")])).unwrap();
        assert_eq!((&*told.attributes["dest"], &*told.attributes["mode"]), ("cache", "max"));
        let given = Digest::sha256(b"y");
        stores.import(&entry(&[("src", "from"), ("digest", given.as_str())])).unwrap().unwrap();
        for (name, read, write) in [
            ("oci:/images/one", true, false),
            ("local:cache", true, true),
            ("local:from", true, false),
            ("local:/images/one", false, false),
            ("", false, false),
        ] {
            assert_eq!(stores.folder(name, Access::Read).is_some(), read, "{name}");
            assert_eq!(stores.folder(name, Access::Write).is_some(), write, "{name}");
        }
        assert!(stores.import(&entry(&[("src", "/nowhere/at/all")])).unwrap().is_none());
        assert!(stores.export(&entry(&[])).is_err());
    }

    #[test]
    fn names_can_be_said() {
        assert_eq!(name_of(Path::new("a/b")), "a/b");
        for odd in ["a@b", "ä", "a b"] {
            assert_eq!(name_of(Path::new(odd)).len(), 32, "{odd}");
        }
    }
}
