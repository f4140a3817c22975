//! Folders of clients, kept between builds so that only what changed crosses the connection.

use super::{ClientSession, MOST_MESSAGE};
use forge_buildkit_proto::fsutil::types::Packet;
use forge_buildkit_proto::fsutil::types::packet::PacketType;
use forge_buildkit_proto::moby::filesync::packet::file_sync_client::FileSyncClient;
use forge_filesync::{Others, Owners, Receiver, Reply, Trust, request};
use forge_image::Digest;
use forge_session::PatternMatcher;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Request, Status, Streaming};

/// How many bytes come in between two reports.
const REPORT: u64 = 1 << 20;

/// Bytes of files that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    SoFar(u64),
    Complete(u64),
}

/// What is asked of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub name: String,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub follow: Vec<String>,
    /// Where set, files are only told of but for these.
    pub metadata_only: Option<Vec<String>>,
    /// Whether what looks the same as what came before is the same.
    pub is_compared: bool,
}

/// The folders of all clients.
///
/// ```text
/// <root>/session-files/<digest>/lock    held while a build reads the folder
/// <root>/session-files/<digest>/about   what it is, for people
/// <root>/session-files/<digest>/tree/   the files
/// ```
pub(crate) struct SessionFiles {
    folder: PathBuf,
    /// Folders that builds of this process read.
    used: Mutex<HashMap<PathBuf, usize>>,
}

/// A folder that a build reads. It stays as it is until this is dropped.
pub(super) struct Held {
    pub tree: PathBuf,
    /// What stays the same when the same tree is handed over again.
    pub identity: String,
    _lock: File,
    _scratch: Option<tempfile::TempDir>,
    release: (Arc<SessionFiles>, PathBuf),
}

impl Drop for Held {
    fn drop(&mut self) {
        let (files, folder) = &self.release;
        files.used.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
    }
}

/// A folder that is kept.
pub(crate) struct Kept {
    pub id: String,
    pub about: String,
    pub bytes: u64,
    pub in_use: bool,
    /// When it was first and last used.
    pub used: (SystemTime, SystemTime),
}

impl SessionFiles {
    /// In a folder of the daemon's own.
    pub(crate) fn new(root: &Path) -> Self {
        Self { folder: root.join("session-files"), used: Mutex::default() }
    }

    /// A folder for one build. Blocks.
    pub(crate) fn scratch(&self) -> io::Result<tempfile::TempDir> {
        let place = self.folder.parent().unwrap_or(&self.folder).join("session-scratch");
        fs::create_dir_all(&place)?;
        tempfile::tempdir_in(place)
    }

    /// Everything that is kept. Blocks.
    pub(crate) fn list(&self) -> io::Result<Vec<Kept>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut kept = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
            let about = fs::read_to_string(path.join("about")).unwrap_or_default();
            let (bytes, in_use) = (size(&path.join("tree")), used.contains_key(&path));
            let used = (modified(&path.join("lock")), modified(&path.join("about")));
            kept.push(Kept { id, about, bytes, in_use, used });
        }
        Ok(kept)
    }

    /// The bytes that the file system has left. Blocks.
    pub(crate) fn free(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(self.folder.parent().unwrap_or(&self.folder))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Removes a folder that nobody reads; `false` if somebody does. Blocks.
    pub(crate) fn remove(&self, id: &str) -> io::Result<bool> {
        let path = self.folder.join(id);
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains_key(&path) {
            return Ok(false);
        }
        let lock = File::open(path.join("lock"))?;
        if lock.try_lock().is_err() {
            return Ok(false);
        }
        fs::remove_dir_all(path).map(|()| true)
    }

    /// The folder of a client's tree; one of its own for this build where another build reads the usual one. Blocks.
    fn hold(self: &Arc<Self>, session: &ClientSession, wanted: &Wanted) -> io::Result<Held> {
        let key = format!("{:?}", (&session.shared_key, wanted));
        let name = Digest::sha256(key.as_bytes());
        let path = self.folder.join(name.as_str().trim_start_matches("sha256:"));
        fs::create_dir_all(&path)?;
        let lock = File::options().create(true).truncate(false).write(true).read(true).open(path.join("lock"))?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let free = !used.contains_key(&path) && lock.try_lock().is_ok();
        if free {
            used.insert(path.clone(), 1);
            drop(used);
            fs::write(path.join("about"), format!("local source for {}", wanted.name))?;
            let tree = path.join("tree");
            fs::create_dir_all(&tree)?;
            let identity = format!("session:{}", name.as_str());
            return Ok(Held { tree, identity, _lock: lock, _scratch: None, release: (self.clone(), path) });
        }
        drop(used);
        let scratch = self.scratch()?;
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree)?;
        let own = scratch.path().to_owned();
        let identity = format!("session:{}", name.as_str());
        Ok(Held { tree, identity, _lock: lock, _scratch: Some(scratch), release: (self.clone(), own) })
    }

    /// Brings a client's tree up to date, and holds it. `told` hears of the bytes that came in.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        session: &Arc<ClientSession>,
        wanted: &Wanted,
        told: impl Fn(Incoming) + Send + 'static,
    ) -> Result<Held, Status> {
        if !session.supports("/moby.filesync.v1.FileSync/DiffCopy") {
            return Err(Status::unimplemented("no local sources enabled"));
        }
        let held = {
            let (files, session, wanted) = (self.clone(), session.clone(), wanted.clone());
            blocking(move || files.hold(&session, &wanted)).await?
        };
        let (sender, receiver) = mpsc::channel(64);
        let mut outgoing = Request::new(ReceiverStream::new(receiver));
        describe(wanted, outgoing.metadata_mut())?;
        let client = FileSyncClient::new(session.channel.clone());
        let mut client = client.max_decoding_message_size(MOST_MESSAGE);
        let incoming = client.diff_copy(outgoing).await?.into_inner();
        // Clients without a key of their own share folders, and may have quite different trees.
        let is_known = wanted.is_compared && !session.shared_key.is_empty();
        let trust = if is_known { Trust::Stamps } else { Trust::Nothing };
        let mut receiver = Receiver::new(held.tree.clone(), trust, Others::Removed, Owners::Sent);
        if let Some(except) = &wanted.metadata_only {
            let except = PatternMatcher::new(except).map_err(|error| Status::invalid_argument(error.to_string()))?;
            receiver = receiver.of_metadata(except);
        }
        blocking(move || receive(receiver, incoming, &sender, told)).await?;
        Ok(held)
    }
}

fn receive(
    mut receiver: Receiver,
    mut incoming: Streaming<Packet>,
    sender: &mpsc::Sender<Packet>,
    told: impl Fn(Incoming),
) -> io::Result<()> {
    let runtime = Handle::current();
    let mut next_report = REPORT;
    loop {
        let packet = match runtime.block_on(incoming.message()) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(status) => return Err(io::Error::other(status)),
        };
        let reply = receiver.take(packet).inspect_err(|error| {
            let message = error.to_string().into_bytes();
            // It may have gone; then there is nobody to be told.
            let _ = sender.try_send(forge_filesync::packet(PacketType::PacketErr, 0, message));
        })?;
        let answer = match reply {
            Reply::Nothing => None,
            Reply::Request(id) => Some(request(id)),
            Reply::Complete => Some(forge_filesync::packet(PacketType::PacketFin, 0, Vec::new())),
            Reply::End => {
                told(Incoming::Complete(receiver.received));
                return Ok(());
            }
        };
        if let Some(answer) = answer {
            runtime.block_on(sender.send(answer)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        if receiver.received >= next_report {
            told(Incoming::SoFar(receiver.received));
            next_report = receiver.received + REPORT;
        }
    }
}

/// Names and patterns go as metadata, which is ASCII: where one is not, all of its key are written as in addresses.
fn describe(wanted: &Wanted, metadata: &mut MetadataMap) -> Result<(), Status> {
    let name = [wanted.name.clone()];
    let keys: [(&'static str, &[String]); 4] = [
        ("dir-name", &name),
        ("include-patterns", &wanted.include),
        ("exclude-patterns", &wanted.exclude),
        ("followpaths", &wanted.follow),
    ];
    for (key, values) in keys {
        let plain = values.iter().all(|value| value.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        if !plain {
            let flag = format!("{key}-encoded");
            let flag = tonic::metadata::AsciiMetadataKey::from_bytes(flag.as_bytes());
            let flag = flag.map_err(|error| Status::internal(error.to_string()))?;
            metadata.insert(flag, AsciiMetadataValue::from_static("1"));
        }
        for value in values {
            let value = if plain { value.clone() } else { escaped(value) };
            let value = AsciiMetadataValue::try_from(value).map_err(|error| Status::internal(error.to_string()))?;
            metadata.append(key, value);
        }
    }
    Ok(())
}

/// As Go's `url.QueryEscape` writes it.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        b' ' => "+".to_owned(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| match error.downcast::<Status>() {
        Ok(status) => status,
        Err(error) => Status::new(Code::Unknown, error.to_string()),
    })
}

/// When a file was written; long ago where that cannot be known.
fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Bytes of all files below a folder; what cannot be read counts nothing.
fn size(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => todo.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_ascii_are_escaped_with_all_of_their_key() {
        let mut metadata = MetadataMap::new();
        let wanted = Wanted { name: "context".into(), exclude: vec!["a b".into(), "ä/*".into()], ..Wanted::default() };
        describe(&wanted, &mut metadata).unwrap();
        assert_eq!(metadata.get("dir-name").unwrap(), "context");
        assert!(metadata.get("dir-name-encoded").is_none());
        assert_eq!(metadata.get("exclude-patterns-encoded").unwrap(), "1");
        let values: Vec<&str> =
            metadata.get_all("exclude-patterns").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(values, ["a+b", "%C3%A4%2F%2A"]);
    }
}
