//! A folder as a shared cache: an OCI image layout, with a file for each key.

use super::bundle::{self, Bundle};
use super::{RecordStore, blocking, document, failed};
use crate::{CacheError, CacheKey};
use async_trait::async_trait;
use forge_image::{Descriptor, Digest, MediaType};
use forge_registry::{FetchError, ImageSource, MAX_MANIFEST, OciLayout, TransferContext};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Keys lie in `forge-cache/TAG/KEY`: each file holds the descriptor of its record.
const KEYS: &str = "forge-cache";
const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
/// How the index of a layout says what an entry is called.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const OF_OTHERS: &str = "it holds no records of forge; the keys of a cache of BuildKit are others";
/// No descriptor of ours is longer.
const LONGEST_KEY: u64 = 4096;

/// Records in a folder. Several processes may use one: files come into place whole.
#[derive(Clone, Debug)]
pub struct LayoutRecords {
    folder: PathBuf,
    tag: String,
    /// What the index names by the tag, where that is a cache; read when the first key is not found.
    bundle: Arc<OnceLock<Option<Bundle>>>,
}

impl LayoutRecords {
    /// The records of that tag in a folder. `None` where the tag is none: letters, digits, `_`, `.` and `-`, at most 63.
    pub fn new(folder: &Path, tag: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let is_tag = !tag.is_empty() && tag.len() <= 63 && tag.bytes().all(fits) && !tag.starts_with(['.', '-']);
        is_tag.then(|| Self { folder: folder.to_owned(), tag: tag.to_owned(), bundle: Arc::default() })
    }

    fn key_path(&self, key: &CacheKey) -> PathBuf {
        self.folder.join(KEYS).join(&self.tag).join(key.to_string())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    fn io<'a>(&'a self, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
        move |source| failed(path.display().to_string(), source)
    }

    fn open(&self) -> Result<OciLayout, CacheError> {
        OciLayout::open(&self.folder).map_err(|error: FetchError| failed(self.name(), error))
    }

    fn read(&self, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        self.open()?;
        let path = self.key_path(key);
        let text = match read_bounded(&path, LONGEST_KEY) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let bundle = self.bundle.get_or_init(|| self.bundle_of_index());
                let found = bundle.as_ref().and_then(|bundle| bundle.document(key));
                return found.map_or_else(|| self.nothing(), |found| Ok(Some(found)));
            }
            text => text.map_err(self.io(&path))?,
        };
        let refused = |reason: String| CacheError::RemoteRecord { place: self.name(), reason };
        let descriptor: Descriptor = serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
        let path = self.blob_path(&descriptor.digest);
        let bytes = match read_bounded(&path, MAX_MANIFEST) {
            // Removed by hand: as good as never written.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(self.io(&path))?,
        };
        let same = bytes.len() as u64 == descriptor.size && Digest::sha256(&bytes) == descriptor.digest;
        same.then_some(Some(bytes)).ok_or_else(|| refused(format!("{} is damaged", descriptor.digest)))
    }

    /// The document that the index names by the tag. Blocks.
    pub fn bundle_descriptor(&self) -> Option<Descriptor> {
        let index = read_bounded(&self.folder.join("index.json"), MAX_MANIFEST).ok()?;
        let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
        let is_it = |entry: &&serde_json::Value| entry["annotations"][REF_NAME] == self.tag;
        let entry = index["manifests"].as_array()?.iter().find(is_it)?;
        serde_json::from_value(entry.clone()).ok()
    }

    /// What the index names by the tag; `None` where that is no cache of forge, or is damaged.
    fn bundle_of_index(&self) -> Option<Bundle> {
        let named = self.bundle_descriptor()?;
        let verified = |descriptor: &Descriptor, limit: u64| {
            let bytes = read_bounded(&self.blob_path(&descriptor.digest), limit).ok()?;
            (Digest::sha256(&bytes) == descriptor.digest).then_some(bytes)
        };
        let (config, layers) = bundle::parts(&verified(&named, MAX_MANIFEST)?)?;
        Bundle::read(&verified(&config, bundle::MOST_CONFIG)?, layers)
    }

    /// Has the index name a document by the tag. Of two that write at once the last one counts.
    fn name_in_index(&self, media_type: &MediaType, document: &[u8]) -> Result<(), CacheError> {
        self.prepare()?;
        let descriptor = Descriptor::of(media_type.clone(), document);
        let mut bytes = document;
        self.place(&self.blob_path(&descriptor.digest), &mut bytes)?;
        self.name_bundle(&descriptor)
    }

    /// Has the index name a document that is in the folder by the tag. Blocks.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn name_bundle(&self, descriptor: &Descriptor) -> Result<(), CacheError> {
        self.prepare()?;
        let path = self.folder.join("index.json");
        let text = read_bounded(&path, MAX_MANIFEST).map_err(self.io(&path))?;
        let mut index: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let mut entry = serde_json::json!(descriptor);
        entry["annotations"] = serde_json::json!({ REF_NAME: self.tag });
        let mut entries = index["manifests"].as_array().cloned().unwrap_or_default();
        entries.retain(|other| other["annotations"][REF_NAME] != self.tag);
        entries.push(entry);
        index["manifests"] = entries.into();
        self.place(&path, &mut index.to_string().as_bytes())
    }

    /// What it means that there is no record: nothing, or that the folder is somebody else's.
    fn nothing(&self) -> Result<Option<Vec<u8>>, CacheError> {
        let is_others = !self.folder.join(KEYS).exists();
        let index = is_others.then(|| read_bounded(&self.folder.join("index.json"), MAX_MANIFEST).unwrap_or_default());
        let index: Option<serde_json::Value> = index.and_then(|text| serde_json::from_slice(&text).ok());
        match index.is_some_and(|index| index["manifests"].as_array().is_some_and(|listed| !listed.is_empty())) {
            true => Err(CacheError::RemoteRecord { place: self.name(), reason: OF_OTHERS.to_owned() }),
            false => Ok(None),
        }
    }

    /// Makes the folder a layout, which it may be already.
    fn prepare(&self) -> Result<(), CacheError> {
        for folder in [self.folder.join("blobs/sha256"), self.folder.join(KEYS).join(&self.tag)] {
            fs::create_dir_all(&folder).map_err(self.io(&folder))?;
        }
        for (name, text) in [("index.json", INDEX), ("oci-layout", MARKER)] {
            let path = self.folder.join(name);
            if !path.exists() {
                self.place(&path, &mut text.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Brings a file into place whole: written beside it, then renamed.
    fn place(&self, path: &Path, bytes: &mut dyn Read) -> Result<(), CacheError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let beside = path.with_file_name(format!(".new-{}-{number}", std::process::id()));
        let write = |bytes: &mut dyn Read| {
            let mut file = File::options().write(true).create_new(true).open(&beside)?;
            io::copy(bytes, &mut file)?;
            file.flush()?;
            fs::rename(&beside, path)
        };
        write(bytes).map_err(|error| {
            _ = fs::remove_file(&beside);
            failed(path.display().to_string(), error)
        })
    }

    fn is_there(&self, blob: &Descriptor) -> bool {
        fs::symlink_metadata(self.blob_path(&blob.digest))
            .is_ok_and(|found| found.is_file() && found.len() == blob.size)
    }

    fn write(&self, key: &CacheKey, document: &[u8]) -> Result<(), CacheError> {
        self.prepare()?;
        let descriptor = Descriptor::of(MediaType::OciManifest, document);
        for (blob, mut bytes) in [(document::config(), document::EMPTY), (descriptor.clone(), document)] {
            if !self.is_there(&blob) {
                self.place(&self.blob_path(&blob.digest), &mut bytes)?;
            }
        }
        let text = serde_json::to_vec(&descriptor).expect("a descriptor holds only JSON values");
        self.place(&self.key_path(key), &mut text.as_slice())
    }
}

/// Reads a regular file, and never waits for a pipe in its place (A14).
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file: File = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?.into();
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(ErrorKind::InvalidData, format!("larger than {limit} bytes"))),
        false => Ok(bytes),
    }
}

#[async_trait]
impl RecordStore for LayoutRecords {
    fn name(&self) -> String {
        self.folder.display().to_string()
    }

    async fn record(&self, _: &TransferContext, key: &CacheKey) -> Result<Option<Vec<u8>>, CacheError> {
        let (records, key) = (self.clone(), *key);
        blocking(move || records.read(&key)).await
    }

    fn blobs(&self) -> Result<Arc<dyn ImageSource>, CacheError> {
        Ok(Arc::new(self.open()?))
    }

    async fn put_blob(&self, context: &TransferContext, blob: &Descriptor) -> Result<(), CacheError> {
        let (records, store, blob) = (self.clone(), context.store.clone(), blob.clone());
        blocking(move || {
            records.prepare()?;
            if records.is_there(&blob) {
                return Ok(());
            }
            let mut file = store.blobs().open(&blob.digest).map_err(|error| failed("the store", error))?;
            records.place(&records.blob_path(&blob.digest), &mut file)
        })
        .await
    }

    async fn put_record(&self, _: &TransferContext, key: &CacheKey, document: &[u8]) -> Result<(), CacheError> {
        let (records, key, document) = (self.clone(), *key, document.to_vec());
        blocking(move || records.write(&key, &document)).await
    }

    async fn put_bundle(&self, _: &TransferContext, kind: &MediaType, document: &[u8]) -> Result<(), CacheError> {
        let (records, kind, document) = (self.clone(), kind.clone(), document.to_vec());
        blocking(move || records.name_in_index(&kind, &document)).await
    }
}
