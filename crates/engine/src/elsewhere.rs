//! A build that runs on another machine: what it is handed from this one.

use crate::context::{MAIN_CONTEXT, MainContext, open_folder};
use crate::dockerfile::{DockerfileText, read_dockerfile, read_ignore_file};
use crate::handed::Handed;
use crate::job::DOCKERFILE_CONTEXT;
use crate::plausible;
use crate::session::LocalSession;
use crate::{BuildContext, BuildRequest, DockerfileSource, EngineError, NamedContext};
use forge_image::{Digest, ErrorKind};
use forge_session::{Context, ContextEntry, ContextError, ContextPath, EntryKind, EventSink, FileStamp, Session};
use rustix::fs::MemfdFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a build elsewhere is handed.
pub struct Handover {
    /// Files, secrets, agents and credentials. The contexts are `context`, `dockerfile` and those of the request by their names.
    pub session: Arc<dyn Session>,
    /// The name of the Dockerfile within the context `dockerfile`; `None` where it lies in a context that is not handed over.
    pub dockerfile: Option<String>,
    /// What stays the same when the same files are handed over again.
    pub identity: String,
}

/// A Dockerfile of this machine, and the ignore file beside it.
type OwnDockerfile = (DockerfileText, Option<Vec<u8>>);

impl BuildRequest {
    /// Opens everything of this machine that the build may read. Blocks.
    ///
    /// # Errors
    /// As a build here fails: the context is not there, there is no Dockerfile in it, an output can be seen to fail.
    pub fn hand_over(
        &self,
        docker_config: PathBuf,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Handover, EngineError> {
        plausible::check(self)?;
        let mut contexts: BTreeMap<String, Arc<dyn Context>> = BTreeMap::new();
        let main = match &self.context {
            BuildContext::Directory(folder) => MainContext::folder(folder)?,
            _ => MainContext::of_files(Arc::new(GivenFiles::default())),
        };
        let files = self.context_modes.of(main.files.clone());
        let identity = files.identity();
        contexts.insert(MAIN_CONTEXT.to_owned(), files);
        let dockerfile = self.own_dockerfile(&main)?;
        let name = dockerfile.as_ref().map(|(text, _)| text.name.clone());
        if let Some((DockerfileText { name, text }, ignore)) = dockerfile {
            let ignore = ignore.map(|text| (format!("{name}.dockerignore"), text));
            let files = [(name, text)].into_iter().chain(ignore).collect();
            contexts.insert(DOCKERFILE_CONTEXT.to_owned(), Arc::new(GivenFiles(files)));
        }
        for (name, context) in &self.named_contexts {
            if let NamedContext::Directory(folder) = context {
                contexts.insert(name.clone(), self.context_modes.of(open_folder(folder)?));
            }
        }
        let handed = Handed::new(self.secrets.clone(), &self.ssh)?;
        let session = Arc::new(LocalSession { contexts, docker_config, events, cancel, handed });
        Ok(Handover { session, dockerfile: name, identity })
    }

    /// The Dockerfile, and the ignore file beside it, where they are this machine's.
    fn own_dockerfile(&self, main: &MainContext) -> Result<Option<OwnDockerfile>, EngineError> {
        match (&self.dockerfile, &self.context) {
            (DockerfileSource::Remote(_), _) => {
                let message = "a Dockerfile by its address is not supported for a build elsewhere";
                Err(EngineError::new(ErrorKind::Unsupported, message)
                    .with_hint("download it, or name it in a repository"))
            }
            (
                DockerfileSource::Default | DockerfileSource::InContext(_),
                BuildContext::Stream(_) | BuildContext::Remote(_),
            ) => Ok(None),
            (source, _) => {
                let dockerfile = read_dockerfile(source, main)?;
                let ignore = read_ignore_file(source, main)?;
                let is_beside = ignore.name.ends_with(".dockerignore") && ignore.name != ".dockerignore";
                Ok(Some((dockerfile, is_beside.then_some(ignore.text))))
            }
        }
    }
}

/// Files that are in memory.
#[derive(Default)]
struct GivenFiles(BTreeMap<String, Vec<u8>>);

impl GivenFiles {
    fn entry(name: &str, text: &[u8]) -> ContextEntry {
        let digest = Digest::sha256(text);
        // As if every text had been written at a time of its own: by that it is told from what was there before.
        let time = u32::from_str_radix(&digest.hex()[..7], 16).unwrap_or_default();
        let stamp = FileStamp { mtime_ns: i128::from(time) * 1_000_000_000, ..FileStamp::default() };
        let kind = EntryKind::File { size: text.len() as u64 };
        ContextEntry { path: ContextPath::clean(name), kind, mode: 0o644, uid: 0, gid: 0, stamp }
    }
}

impl Context for GivenFiles {
    fn identity(&self) -> String {
        "given".to_owned()
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        if path.is_root() {
            let entry = Self::entry("", b"");
            return Ok(Some(ContextEntry { kind: EntryKind::Directory, mode: 0o755, ..entry }));
        }
        Ok(self.0.get(path.display().as_ref()).map(|text| Self::entry(&path.display(), text)))
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        let files = self.0.iter().filter(|_| path.is_root());
        Ok(files.map(|(name, text)| Self::entry(name, text)).collect())
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        let failed = |source| ContextError::Read { path: path.display().into_owned(), source };
        let text = self.0.get(path.display().as_ref()).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let write = || {
            let mut file = File::from(rustix::fs::memfd_create("forge", MemfdFlags::CLOEXEC)?);
            file.write_all(text)?;
            file.rewind()?;
            Ok(file)
        };
        write().map_err(failed)
    }
}
