//! Opens what a build reads from: folders, archives that come in on a stream, nothing at all.

use crate::steps::ShownStep;
use crate::{BuildContext, ContextStream, EngineError};
use forge_frontend::NamedContext;
use forge_image::ErrorKind;
use forge_session::{Context, EventSink, LocalContext};
use forge_store::{Extracted, ScratchDir, Store};
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;

/// What is looked at to tell an archive from a Dockerfile: one block of a tar.
const START: usize = 512;

/// The parser refuses larger Dockerfiles; one byte beyond is read so that it can say so.
const MOST_DOCKERFILE: u64 = (16 << 20) + 1;

/// The name of the main context in sessions and graphs.
pub(crate) const MAIN_CONTEXT: &str = "context";

/// The main context as it was opened.
pub(crate) struct MainContext {
    /// The files.
    pub files: Arc<dyn Context>,
    /// The Dockerfile, where one came in instead of files.
    pub dockerfile: Option<Vec<u8>>,
    /// Whether ignore files apply: as in BuildKit, to folders of this machine only.
    pub heeds_ignore_files: bool,
    /// What the graph reads instead of the files, where they were fetched.
    source: Option<NamedContext>,
    _held: Held,
}

/// What goes when the build has ended.
enum Held {
    Nothing,
    Empty(#[expect(dead_code, reason = "kept for its drop")] ScratchDir),
    Files(#[expect(dead_code, reason = "kept for its drop")] Extracted),
}

/// What came in on a stream.
enum Incoming {
    Files(Extracted),
    Dockerfile(Vec<u8>),
}

impl MainContext {
    /// Opens the context; what has to come in first is shown as a step. One that is elsewhere is empty until it was
    /// fetched.
    pub(crate) fn open(
        context: &BuildContext,
        store: &Store,
        events: &dyn EventSink,
        cancel: &CancellationToken,
    ) -> Result<Self, EngineError> {
        match context {
            BuildContext::Directory(folder) => Self::folder(folder),
            BuildContext::Empty | BuildContext::Remote(_) => Self::empty(store, None),
            BuildContext::Stream(stream) => {
                let shown = ShownStep::start(events, "[internal] load remote build context");
                shown.end(Self::incoming(stream, store, cancel))
            }
        }
    }

    /// Opens a folder of this machine.
    pub(crate) fn folder(folder: &Path) -> Result<Self, EngineError> {
        Ok(Self { heeds_ignore_files: true, ..Self::of(open_folder(folder)?, Held::Nothing) })
    }

    /// Nothing but perhaps a Dockerfile.
    pub(crate) fn empty(store: &Store, dockerfile: Option<Vec<u8>>) -> Result<Self, EngineError> {
        let folder = store.scratch("context")?;
        Ok(Self { dockerfile, ..Self::of(open_folder(folder.path())?, Held::Empty(folder)) })
    }

    /// What comes in on a stream. Blocks for as long as that takes.
    fn incoming(stream: &ContextStream, store: &Store, cancel: &CancellationToken) -> Result<Self, EngineError> {
        let Some(stream) = stream.take() else {
            return Err(EngineError::new(ErrorKind::Internal, "the stream of a build is read once only"));
        };
        match incoming(stream, store, cancel)? {
            Incoming::Files(files) => {
                let folder = files.folder().map_err(|error| EngineError::from(error).context(CANNOT_UNPACK))?;
                Ok(Self::of(open_folder(folder)?, Held::Files(files)))
            }
            Incoming::Dockerfile(text) => Self::empty(store, Some(text)),
        }
    }

    /// Files that were fetched, in a folder of the store that the build holds.
    pub(crate) fn fetched(source: NamedContext, folder: &Path) -> Result<Self, EngineError> {
        Ok(Self { source: Some(source), ..Self::of(open_folder(folder)?, Held::Nothing) })
    }

    /// A Dockerfile that was fetched; the download itself is all there is to copy.
    pub(crate) fn download(source: NamedContext, folder: &Path, dockerfile: Vec<u8>) -> Result<Self, EngineError> {
        Ok(Self { dockerfile: Some(dockerfile), ..Self::fetched(source, folder)? })
    }

    /// Files that somebody else holds.
    pub(crate) fn of_files(files: Arc<dyn Context>) -> Self {
        Self::of(files, Held::Nothing)
    }

    fn of(files: Arc<dyn Context>, held: Held) -> Self {
        Self { files, dockerfile: None, heeds_ignore_files: false, source: None, _held: held }
    }

    /// What the front end takes; `ignore` are the patterns of the ignore file.
    pub(crate) fn lowered(&self, ignore: &[String]) -> NamedContext {
        let local = || NamedContext::Local { name: MAIN_CONTEXT.to_owned(), exclude: ignore.to_vec() };
        self.source.clone().unwrap_or_else(local)
    }
}

/// Whether a download is an archive, as docker decides.
pub(crate) fn is_archive(file: &Path) -> Result<bool, EngineError> {
    let mut start = Vec::new();
    let file = std::fs::File::open(file).map_err(unreadable)?;
    file.take(START as u64).read_to_end(&mut start).map_err(unreadable)?;
    Ok(forge_worker::looks_like_archive(&start))
}

/// The text of a Dockerfile that was downloaded.
pub(crate) fn dockerfile_of(file: &Path) -> Result<Vec<u8>, EngineError> {
    let mut text = Vec::new();
    let file = std::fs::File::open(file).map_err(unreadable)?;
    file.take(MOST_DOCKERFILE).read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// Opens a folder of this machine.
pub(crate) fn open_folder(folder: &Path) -> Result<Arc<dyn Context>, EngineError> {
    let context = LocalContext::open(folder).map_err(|error| {
        EngineError::caused(ErrorKind::UserInput, error)
            .context(&format!("unable to prepare context: path {:?}", folder.display().to_string()))
    })?;
    Ok(Arc::new(context))
}

/// Unpacks a stream that is an archive, by its first bytes, and takes any other for a Dockerfile. An archive that turns
/// out to be damaged is an error and never read as something else (A33, A34).
fn incoming(
    mut stream: impl Read + Send + 'static,
    store: &Store,
    cancel: &CancellationToken,
) -> Result<Incoming, EngineError> {
    let mut start = Vec::new();
    stream.by_ref().take(START as u64).read_to_end(&mut start).map_err(unreadable)?;
    let is_archive = forge_worker::looks_like_archive(&start);
    let stream = Cursor::new(start).chain(stream);
    if is_archive {
        return unpack(stream, store, cancel).map(Incoming::Files);
    }
    let mut text = Vec::new();
    stream.take(MOST_DOCKERFILE).read_to_end(&mut text).map_err(unreadable)?;
    match text.iter().all(u8::is_ascii_whitespace) {
        true => Err(EngineError::new(ErrorKind::UserInput, "standard input holds no Dockerfile")),
        false => Ok(Incoming::Dockerfile(text)),
    }
}

fn unreadable(error: io::Error) -> EngineError {
    EngineError::io(error).context("cannot read the build context")
}

const CANNOT_UNPACK: &str = "cannot unpack the build context";

/// Unpacks an archive into a private folder by the rules for strangers' layers: nothing is written outside of it,
/// whatever it says, and nothing is left when it is refused.
fn unpack(
    archive: impl Read + Send + 'static,
    store: &Store,
    cancel: &CancellationToken,
) -> Result<Extracted, EngineError> {
    let packed = Arc::new(AtomicU64::new(0));
    let counted = Counted { stream: archive, count: packed.clone() };
    let tar = forge_worker::decompress(counted).map_err(unreadable)?;
    let mut tar = Cancellable { tar, cancel: cancel.clone() };
    store.layers().extract(&mut tar, &|| packed.load(Ordering::Relaxed)).map_err(|error| match cancel.is_cancelled() {
        true => EngineError::cancelled(),
        false => EngineError::from(error).context(CANNOT_UNPACK),
    })
}

struct Counted<R> {
    stream: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A tar that ends with an error when nobody wants it any more.
struct Cancellable<R> {
    tar: R,
    cancel: CancellationToken,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.cancel.is_cancelled() {
            true => Err(io::Error::other("cancelled")),
            false => self.tar.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_testkit::TarBuilder;
    use std::io::Write;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        (folder, store)
    }

    fn opened(bytes: Vec<u8>, store: &Store) -> Result<MainContext, EngineError> {
        let stream = crate::ContextStream::new(Cursor::new(bytes));
        MainContext::incoming(&stream, store, &CancellationToken::new())
    }

    fn packed(tar: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        vec![("plain", tar.to_vec()), ("gzip", gzip.finish().unwrap()), ("zstd", zstd::encode_all(tar, 1).unwrap())]
    }

    #[test]
    fn an_archive_is_told_by_its_content() {
        let (_folder, store) = store();
        let tar = TarBuilder::new().directory("d").file("d/Dockerfile", "FROM scratch\n").finish();
        for (name, bytes) in packed(&tar) {
            let context = opened(bytes, &store).unwrap();
            assert!(context.dockerfile.is_none() && !context.heeds_ignore_files, "{name}");
            assert!(context.files.stat(&forge_session::ContextPath::clean("d/Dockerfile")).unwrap().is_some());
        }
        let text = opened(b"FROM scratch\n".to_vec(), &store).unwrap();
        assert_eq!(text.dockerfile.as_deref(), Some(&b"FROM scratch\n"[..]));
        assert_eq!(text.files.children(&Default::default()).unwrap(), []);
        for nothing in [&b""[..], b" \n"] {
            assert!(opened(nothing.to_vec(), &store).err().unwrap().to_string().contains("holds no Dockerfile"));
        }
    }

    // Seen to fail when `incoming` reads what could not be unpacked as a Dockerfile.
    #[test]
    fn a34_a_damaged_archive_is_never_a_dockerfile() {
        let (_folder, store) = store();
        let mut tar = TarBuilder::new().symlink("Dockerfile", "/canary").file("big", vec![7; 4000]).finish();
        tar.truncate(3 * 512);
        for (name, bytes) in packed(&tar) {
            let error = opened(bytes, &store).err().unwrap();
            assert!(error.to_string().starts_with("cannot unpack the build context"), "{name}: {error}");
        }
        let gzip = packed(&TarBuilder::new().file("a", "a").finish()).remove(1).1;
        assert!(opened(gzip[..gzip.len() / 2].to_vec(), &store).is_err());
        assert!(opened(b"\x1f\x8b\x08FROM scratch\n".to_vec(), &store).is_err());
    }

    #[test]
    fn a59_an_archive_is_held_to_the_limits_of_the_store() {
        let (_folder, store) = store();
        let limits = forge_store::UnpackLimits { bytes: 10_000, ..Default::default() };
        let store = store.with_unpack_limits(limits);
        let of_size = |size: usize| TarBuilder::new().file("Dockerfile", vec![b'#'; size]).finish();
        for (name, bytes) in packed(&of_size(1000)) {
            assert!(opened(bytes, &store).is_ok(), "{name}");
        }
        for (name, bytes) in packed(&of_size(20_000)) {
            let error = opened(bytes, &store).err().unwrap().to_string();
            assert!(error.contains("uncompressed bytes"), "{name}: {error}");
        }
    }
}
