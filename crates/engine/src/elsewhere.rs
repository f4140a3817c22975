//! A build that runs on another machine: what it is handed from this one.

use crate::build::unsolved;
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
use std::path::{Path, PathBuf};
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
            _ => MainContext::of_files(Arc::new(GivenFiles::of(BTreeMap::new()))),
        };
        let files = self.context_modes.of(main.files.clone());
        let identity = files.identity();
        contexts.insert(MAIN_CONTEXT.to_owned(), files);
        let dockerfile = self.own_dockerfile(&main).map_err(unsolved)?;
        let name = dockerfile.as_ref().map(|(text, _)| text.name.clone());
        if let Some((DockerfileText { name, text }, ignore)) = dockerfile {
            let ignore = ignore.map(|text| (format!("{name}.dockerignore"), text));
            let given = [(name, text)].into_iter().chain(ignore).collect();
            // Front ends of other languages may read what lies beside it.
            let beside = self.dockerfile_is_in_context().then(|| main.files.clone());
            contexts.insert(DOCKERFILE_CONTEXT.to_owned(), Arc::new(GivenFiles { given, beside }));
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

    /// The front end that the build asks for, where that is an image, and what it is told: by its Dockerfile, as far as that is
    /// this machine's, or by the build argument that replaces it. Blocks.
    ///
    /// # Errors
    /// There is no Dockerfile.
    pub fn other_front_end(&self) -> Result<Option<String>, EngineError> {
        if let Some(asked) = self.build_args.get("BUILDKIT_SYNTAX") {
            let directive = format!("# syntax={asked}\n");
            return Ok(forge_frontend::other_front_end(directive.as_bytes()));
        }
        if let DockerfileSource::Remote(_) = self.dockerfile {
            return Ok(None);
        }
        let main = match &self.context {
            BuildContext::Directory(folder) => MainContext::folder(folder)?,
            _ => MainContext::of_files(Arc::new(GivenFiles::of(BTreeMap::new()))),
        };
        let dockerfile = self.own_dockerfile(&main).map_err(unsolved)?;
        Ok(dockerfile.and_then(|(text, _)| forge_frontend::other_front_end(&text.text)))
    }

    fn dockerfile_is_in_context(&self) -> bool {
        match (&self.dockerfile, &self.context) {
            (DockerfileSource::Default, BuildContext::Directory(_)) => true,
            (DockerfileSource::File(path), BuildContext::Directory(folder)) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                matches!((parent.canonicalize(), folder.canonicalize()), (Ok(parent), Ok(folder)) if parent == folder)
            }
            _ => false,
        }
    }

    /// The Dockerfile, and the ignore file beside it, where they are this machine's.
    fn own_dockerfile(&self, main: &MainContext) -> Result<Option<OwnDockerfile>, EngineError> {
        match (&self.dockerfile, &self.context) {
            (DockerfileSource::Remote(_), _) => {
                let message =
                    "a Dockerfile by its address is not supported for a build by a daemon or a front end image";
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

/// Files that are in memory, and perhaps a folder that they lie in.
struct GivenFiles {
    given: BTreeMap<String, Vec<u8>>,
    beside: Option<Arc<dyn Context>>,
}

impl GivenFiles {
    fn of(given: BTreeMap<String, Vec<u8>>) -> Self {
        Self { given, beside: None }
    }

    fn find(&self, path: &ContextPath) -> Option<&Vec<u8>> {
        self.given.get(path.display().as_ref())
    }

    fn entry(name: &str, text: &[u8]) -> ContextEntry {
        let digest = Digest::sha256(text);
        // As if every text had been written at a time of its own: by that it is told from what was there before.
        let time = u32::from_str_radix(&digest.hex()[..7], 16).unwrap_or_default();
        let stamp = FileStamp { mtime_ns: i128::from(time) * 1_000_000_000, ..FileStamp::default() };
        let kind = EntryKind::File { size: text.len() as u64 };
        ContextEntry { path: ContextPath::clean(name), kind, mode: 0o644, uid: 0, gid: 0, stamp, is_linked: false }
    }
}

impl Context for GivenFiles {
    fn identity(&self) -> String {
        self.beside.as_ref().map_or_else(|| "given".to_owned(), |beside| beside.identity())
    }

    fn stat(&self, path: &ContextPath) -> Result<Option<ContextEntry>, ContextError> {
        match (self.find(path), &self.beside) {
            (Some(text), _) => Ok(Some(Self::entry(&path.display(), text))),
            (None, Some(beside)) => beside.stat(path),
            (None, None) if path.is_root() => {
                let entry = Self::entry("", b"");
                Ok(Some(ContextEntry { kind: EntryKind::Directory, mode: 0o755, ..entry }))
            }
            (None, None) => Ok(None),
        }
    }

    fn children(&self, path: &ContextPath) -> Result<Vec<ContextEntry>, ContextError> {
        let mut children = self.beside.as_ref().map(|beside| beside.children(path)).transpose()?.unwrap_or_default();
        if path.is_root() {
            children.retain(|entry| self.find(&entry.path).is_none());
            children.extend(self.given.iter().map(|(name, text)| Self::entry(name, text)));
            children.sort_by(|left, right| left.path.cmp(&right.path));
        }
        Ok(children)
    }

    fn open(&self, path: &ContextPath) -> Result<File, ContextError> {
        let failed = |source| ContextError::Read { path: path.display().into_owned(), source };
        let text = match (self.find(path), &self.beside) {
            (Some(text), _) => text,
            (None, Some(beside)) => return beside.open(path),
            (None, None) => return Err(failed(std::io::ErrorKind::NotFound.into())),
        };
        let write = || {
            let mut file = File::from(rustix::fs::memfd_create("forge", MemfdFlags::CLOEXEC)?);
            file.write_all(text)?;
            file.rewind()?;
            Ok(file)
        };
        write().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_session::LocalContext;
    use std::io::Read;

    #[test]
    fn files_in_memory_lie_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("Dockerfile", "old"), ("beside", "text")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let beside = Arc::new(LocalContext::open(folder.path()).unwrap());
        let given = BTreeMap::from([("Dockerfile".to_owned(), b"new".to_vec()), ("z".to_owned(), Vec::new())]);
        let files = GivenFiles { given, beside: Some(beside) };
        let root = ContextPath::default();
        let names: Vec<_> =
            files.children(&root).unwrap().iter().map(|entry| entry.path.display().into_owned()).collect();
        assert_eq!(names, ["Dockerfile", "beside", "z"]);
        for (name, expected) in [("Dockerfile", "new"), ("beside", "text")] {
            let mut text = String::new();
            files.open(&ContextPath::clean(name)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
        assert!(files.stat(&ContextPath::clean("none")).unwrap().is_none());
        let alone = GivenFiles::of(BTreeMap::new());
        assert!(alone.stat(&root).unwrap().is_some() && alone.children(&root).unwrap().is_empty());
    }
}
