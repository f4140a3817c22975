//! A store in a temporary folder, and images made in it as a build makes them.

use forge_exporter::{AssembledImage, BuiltImage, ExportSettings, ImageSet, assemble};
use forge_image::{Digest, HistoryEntry, ImageConfig, Platform, Reference};
use forge_registry::TransferContext;
use forge_store::{LayerId, Store, Target};
use forge_testkit::TestSession;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

pub struct Site {
    pub folder: tempfile::TempDir,
    pub context: TransferContext,
    pub session: Arc<TestSession>,
}

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let lease = Arc::new(store.lease("test").unwrap());
        let session = Arc::new(TestSession::new());
        let vertex = Digest::sha256(b"test");
        let context = TransferContext { store, lease, session: session.clone(), vertex };
        Self { folder, context, session }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a layer by writing into the upper folder, as a step does.
    pub fn layer(&self, parents: &[LayerId], fill: impl FnOnce(&Path)) -> LayerId {
        let layers = self.context.store.layers();
        let active = layers.prepare(parents).unwrap();
        fill(active.upper());
        layers.commit(active, &self.context.lease).unwrap().id
    }

    /// Three steps: files, nothing, more files; and an `ENV` that makes no layer.
    pub fn built(&self) -> BuiltImage {
        let base = self.layer(&[], |upper| {
            std::fs::create_dir_all(upper.join("usr/bin")).unwrap();
            std::fs::write(upper.join("usr/bin/tool"), "#!/bin/sh\necho tool\n").unwrap();
            std::fs::hard_link(upper.join("usr/bin/tool"), upper.join("usr/bin/alias")).unwrap();
            std::os::unix::fs::symlink("usr/bin", upper.join("bin")).unwrap();
            std::fs::write(upper.join("data"), vec![7_u8; 300_000]).unwrap();
        });
        let empty = self.layer(std::slice::from_ref(&base), |_| {});
        let top = self.layer(&[base, empty], |upper| {
            std::fs::write(upper.join("hello"), "hello\n").unwrap();
        });
        let platform = Platform::new("linux", "amd64", None);
        let mut config = ImageConfig::new(&platform);
        config.config.env = vec!["PATH=/usr/bin".to_owned()];
        config.config.cmd = Some(vec!["/hello".to_owned()]);
        config.history = [("COPY base /", false), ("ENV A=1", true), ("RUN true", false), ("COPY hello /", false)]
            .map(|(created_by, empty_layer)| HistoryEntry {
                created_by: Some(created_by.to_owned()),
                empty_layer,
                ..HistoryEntry::default()
            })
            .to_vec();
        BuiltImage { platform, layers: vec![base, empty, top], config, missing_history: Default::default() }
    }

    pub async fn assembled(&self, settings: &ExportSettings) -> AssembledImage {
        assemble(&self.context, &self.built(), settings).await.unwrap()
    }

    pub async fn image(&self, settings: &ExportSettings) -> ImageSet {
        ImageSet::new(vec![self.assembled(settings).await]).unwrap()
    }

    /// The same files for two platforms.
    pub async fn two_platforms(&self, settings: &ExportSettings) -> ImageSet {
        let mut images: Vec<AssembledImage> = Vec::new();
        for platform in ["linux/arm64", "linux/amd64"] {
            let platform: Platform = platform.parse().unwrap();
            let built = self.built();
            let config = ImageConfig { architecture: platform.architecture.clone(), ..built.config.clone() };
            images.push(assemble(&self.context, &BuiltImage { platform, config, ..built }, settings).await.unwrap());
        }
        ImageSet::new(images).unwrap()
    }

    pub fn target(&self, name: &str) -> Target {
        self.context.store.images().target(&reference(name)).unwrap().unwrap()
    }
}

pub fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

pub fn settings(names: &[&str]) -> ExportSettings {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    ExportSettings { names: names.iter().map(|name| reference(name)).collect(), ..ExportSettings::new(now) }
}

/// A stream whose bytes stay readable.
#[derive(Clone, Default)]
pub struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(self.clone())
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The names and contents of a tar, read with another library than the writer's.
pub fn tar_files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut data = Vec::new();
        io::Read::read_to_end(&mut entry, &mut data).unwrap();
        files.push((String::from_utf8_lossy(&entry.path_bytes()).into_owned(), data));
    }
    files
}

/// Runs a program and hands back its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
