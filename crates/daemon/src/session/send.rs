//! Results on their way to a client: streams of bytes, and trees of files.

use super::ClientSession;
use forge_buildkit_proto::fsutil::types::packet::PacketType;
use forge_buildkit_proto::fsutil::types::{Packet, Stat};
use forge_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient as TreeClient;
use forge_buildkit_proto::moby::filesync::v1::BytesMessage;
use forge_buildkit_proto::moby::filesync::v1::file_send_client::FileSendClient as StreamClient;
use forge_engine::{MergedTree, StatementFile, TreeEntry, TreeKind};
use forge_filesync::{mode, packet, stat_packet};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::{Code, Request, Status};

const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// Bytes of a message of a stream.
const CHUNK: usize = 1 << 20;

/// Bytes of a message of a file: what the protocol's other implementations send.
const FILE_CHUNK: usize = 32 << 10;

/// How long a client has to end a transfer that failed here.
const PARTING: Duration = Duration::from_secs(2);

/// How many files are read at the same time.
const READERS: usize = 4;

/// A stream to a client. To be written to on a thread that may block.
pub(crate) struct StreamWriter(mpsc::Sender<BytesMessage>);

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK);
        let message = BytesMessage { data: bytes[..count].to_vec() };
        self.0.blocking_send(message).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a client took a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Whole,
    /// It has it already, and did not want it.
    Unwanted,
}

/// A stream of bytes to a client, and how the client took it, once it is closed.
type Sending = (BufWriter<StreamWriter>, JoinHandle<Result<Taken, Status>>);

/// Opens a stream to the client's output of that number, which is told what will come. The second part ends when the client
/// has everything, after the writer was dropped.
pub(crate) fn stream(
    session: &Arc<ClientSession>,
    output: usize,
    told: &HashMap<String, String>,
) -> Result<Sending, Status> {
    let (sender, receiver) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(receiver));
    address(session, output, request.metadata_mut())?;
    for (name, value) in told {
        // What has no place in a header is told when all is done.
        let name = format!("exporter-md-{name}").parse::<AsciiMetadataKey>();
        if let (Ok(name), Ok(value)) = (name, value.parse()) {
            request.metadata_mut().insert(name, value);
        }
    }
    let mut client = StreamClient::new(session.channel.clone());
    let taken = tokio::spawn(async move {
        let mut answers = match client.diff_copy(request).await {
            Err(status) if status.code() == Code::AlreadyExists => return Ok(Taken::Unwanted),
            answered => answered?.into_inner(),
        };
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Taken::Whole),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(Taken::Unwanted),
                Err(status) => return Err(status),
            }
        }
    });
    Ok((BufWriter::with_capacity(CHUNK, StreamWriter(sender)), taken))
}

fn address(session: &ClientSession, output: usize, metadata: &mut MetadataMap) -> Result<(), Status> {
    if !session.supports(METHOD) {
        return Err(Status::unimplemented(format!("method {METHOD} not supported by the client")));
    }
    let number = AsciiMetadataValue::from(output as u64);
    metadata.insert("buildkit-attachable-exporter-id", number);
    metadata.insert("buildkit-exporter-multi-platform", AsciiMetadataValue::from_static("1"));
    Ok(())
}

/// A tree that is sent, below a folder where there are several.
#[derive(Clone)]
pub(crate) struct SentTree {
    pub folder: Option<String>,
    /// What it is for, for messages.
    pub platform: String,
    pub tree: MergedTree,
    /// Files of ours beside those of the tree, in the order of names.
    pub statements: Vec<StatementFile>,
}

/// Sends trees to the client's output of that number. With an epoch all files have that time.
pub(crate) async fn trees(
    session: &Arc<ClientSession>,
    output: usize,
    trees: Vec<SentTree>,
    epoch: Option<i64>,
) -> Result<(), Status> {
    let (sender, receiver) = mpsc::channel::<Packet>(128);
    let mut request = Request::new(ReceiverStream::new(receiver));
    address(session, output, request.metadata_mut())?;
    let mut client = TreeClient::new(session.channel.clone()).max_decoding_message_size(super::MOST_MESSAGE);
    let listing = Listing {
        sender: sender.clone(),
        epoch: epoch.map(|seconds| seconds.saturating_mul(1_000_000_000)),
        files: Arc::default(),
        next: 0,
    };
    let files = listing.files.clone();
    let mut walking = tokio::task::spawn_blocking(move || listing.walk(&trees));
    let mut is_walked = false;
    let mut asking = std::pin::pin!(client.diff_copy(request));
    // A client that is sent nothing does not answer either.
    let mut incoming = loop {
        tokio::select! {
            answered = &mut asking => break answered?.into_inner(),
            walked = &mut walking, if !is_walked => {
                is_walked = true;
                if let Err(error) = walked.map_err(|error| Status::internal(error.to_string()))? {
                    return Err(part(&sender, &error, async { drop(asking.await) }).await);
                }
            }
        }
    };
    let readers = Arc::new(Semaphore::new(READERS));
    let mut reading: tokio::task::JoinSet<io::Result<()>> = tokio::task::JoinSet::new();
    loop {
        let message = tokio::select! {
            message = incoming.message() => message?,
            Some(read) = reading.join_next() => {
                read.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| failed(&error))?;
                continue;
            }
            walked = &mut walking, if !is_walked => {
                is_walked = true;
                if let Err(error) = walked.map_err(|error| Status::internal(error.to_string()))? {
                    let end = async { while let Ok(Some(_)) = incoming.message().await {} };
                    return Err(part(&sender, &error, end).await);
                }
                continue;
            }
        };
        let Some(message) = message else { break };
        match message.r#type() {
            PacketType::PacketErr => {
                let text = String::from_utf8_lossy(&message.data);
                return Err(Status::unknown(format!("error from receiver: {text}")));
            }
            PacketType::PacketReq => {
                let file = files.lock().unwrap_or_else(PoisonError::into_inner).remove(&message.id);
                let Some(file) = file else {
                    return Err(Status::invalid_argument(format!("invalid file id {}", message.id)));
                };
                let permit =
                    readers.clone().acquire_owned().await.map_err(|error| Status::internal(error.to_string()))?;
                let sender = sender.clone();
                reading.spawn_blocking(move || {
                    let _permit = permit;
                    send_file(&sender, message.id, &file)
                });
            }
            PacketType::PacketFin => {
                // The client may have hung up, content with what it has.
                let _ = sender.send(packet(PacketType::PacketFin, 0, Vec::new())).await;
            }
            PacketType::PacketStat | PacketType::PacketData => {}
        }
        if message.r#type() == PacketType::PacketFin {
            break;
        }
    }
    if !is_walked {
        walking.await.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| failed(&error))?;
    }
    drop(sender);
    while incoming.message().await?.is_some() {}
    Ok(())
}

/// Tells the client why nothing more comes, or it would know only that the stream ended, and waits a while for its end.
async fn part(sender: &mpsc::Sender<Packet>, error: &io::Error, end: impl Future<Output = ()>) -> Status {
    let _ = sender.send(packet(PacketType::PacketErr, 0, error.to_string().into_bytes())).await;
    let _ = tokio::time::timeout(PARTING, end).await;
    failed(error)
}

fn failed(error: &io::Error) -> Status {
    Status::unknown(error.to_string())
}

type Files = Arc<Mutex<HashMap<u32, Sent>>>;

/// A file that was listed.
enum Sent {
    Tree(MergedTree, PathBuf),
    Bytes(Vec<u8>),
}

/// Lists trees, entry by entry.
struct Listing {
    sender: mpsc::Sender<Packet>,
    epoch: Option<i64>,
    files: Files,
    next: u32,
}

impl Listing {
    fn walk(mut self, trees: &[SentTree]) -> io::Result<()> {
        let mut apart = trees.iter().filter(|tree| tree.folder.is_some()).peekable();
        if apart.peek().is_none() {
            self.merged(None, trees)?;
        }
        for tree in apart {
            if let Some(folder) = &tree.folder {
                let stat = Stat {
                    path: folder.clone(),
                    mode: mode::DIRECTORY | 0o755,
                    mod_time: self.epoch.unwrap_or_default(),
                    ..Stat::default()
                };
                self.send(stat)?;
            }
            self.merged(tree.folder.as_deref(), std::slice::from_ref(tree))?;
        }
        self.sender.blocking_send(stat_packet(None)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn statement(&mut self, folder: Option<&str>, file: &StatementFile) -> io::Result<()> {
        let name = &file.name;
        let path = folder.map_or_else(|| name.clone(), |folder| format!("{folder}/{name}"));
        let size = i64::try_from(file.bytes.len()).unwrap_or(i64::MAX);
        let stat = Stat { path, mode: 0o600, size, mod_time: self.epoch.unwrap_or_default(), ..Stat::default() };
        let sent = Sent::Bytes(file.bytes.clone());
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(self.next, sent);
        self.send(stat)
    }

    /// Trees that lie in one folder, in the order of names. Not recursive: a tree may be deeper than a stack. Statements come
    /// among the entries at the top; one of the same name stands for a tree's own file.
    fn merged(&mut self, folder: Option<&str>, trees: &[SentTree]) -> io::Result<()> {
        let mut statements: Vec<&StatementFile> = trees.iter().flat_map(|tree| &tree.statements).collect();
        statements.sort_by(|left, right| left.name.cmp(&right.name));
        let mut statements = statements.into_iter().peekable();
        let mut links: HashMap<(usize, (u64, u64)), String> = HashMap::new();
        let mut top = Vec::new();
        for (number, tree) in trees.iter().enumerate() {
            if tree.tree.lookup(Path::new("/")).map_err(io::Error::other)?.is_some() {
                top.push((number, PathBuf::from("/")));
            }
        }
        let mut todo = children(trees, &top)?;
        while let Some(same) = todo.pop() {
            let [(number, entry), others @ ..] = same.as_slice() else { continue };
            if matches!(entry.kind, TreeKind::Socket) {
                continue;
            }
            if let Some((other, _)) = others.iter().find(|(_, other)| !(entry.is_directory() && other.is_directory())) {
                return Err(overwritten(&entry.path, &trees[*number], &trees[*other]));
            }
            if entry.path.parent() == Some(Path::new("/")) {
                let name = entry.name.to_string_lossy();
                while let Some(file) = statements.next_if(|file| file.name.as_str() < name.as_ref()) {
                    self.statement(folder, file)?;
                }
                if statements.peek().is_some_and(|file| file.name == name) {
                    continue;
                }
            }
            let mut stat = stat_of(entry, folder);
            if let Some(epoch) = self.epoch {
                stat.mod_time = epoch;
            }
            let is_file = matches!(entry.kind, TreeKind::File { .. });
            if is_file && entry.links > 1 {
                match links.get(&(*number, entry.inode)) {
                    Some(first) => stat.linkname.clone_from(first),
                    None => _ = links.insert((*number, entry.inode), stat.path.clone()),
                }
            }
            if is_file {
                let file = Sent::Tree(trees[*number].tree.clone(), entry.path.clone());
                self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(self.next, file);
            }
            self.send(stat)?;
            if entry.is_directory() {
                let folders: Vec<_> = same.iter().map(|(number, entry)| (*number, entry.path.clone())).collect();
                todo.extend(children(trees, &folders)?);
            }
        }
        statements.try_for_each(|file| self.statement(folder, file))
    }

    fn send(&mut self, stat: Stat) -> io::Result<()> {
        self.next += 1;
        self.sender.blocking_send(stat_packet(Some(stat))).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What lies in a folder of several trees: the entries of each name together, the last name first.
fn children(trees: &[SentTree], folders: &[(usize, PathBuf)]) -> io::Result<Vec<Vec<(usize, TreeEntry)>>> {
    let mut found: BTreeMap<OsString, Vec<(usize, TreeEntry)>> = BTreeMap::new();
    for (number, folder) in folders {
        for entry in trees[*number].tree.children(folder).map_err(io::Error::other)? {
            found.entry(entry.name.clone()).or_default().push((*number, entry));
        }
    }
    Ok(found.into_values().rev().collect())
}

/// Two platforms have something of the same path that are not both folders.
fn overwritten(path: &Path, first: &SentTree, second: &SentTree) -> io::Error {
    let path = path.strip_prefix("/").unwrap_or(path).display();
    let (first, second) = (&first.platform, &second.platform);
    io::Error::other(format!("cannot overwrite {path} from {first} with {second} when split option is disabled"))
}

/// An entry of a tree in the protocol's words; its path is below `folder`.
pub(crate) fn stat_of(entry: &TreeEntry, folder: Option<&str>) -> Stat {
    let relative = entry.path.strip_prefix("/").unwrap_or(&entry.path).to_string_lossy();
    let path = match folder {
        Some(folder) => format!("{folder}/{relative}"),
        None => relative.into_owned(),
    };
    let (kind, size, linkname, device) = match &entry.kind {
        TreeKind::File { size } => (0, *size, String::new(), (0, 0)),
        TreeKind::Directory => (mode::DIRECTORY, 0, String::new(), (0, 0)),
        TreeKind::Symlink { target } => (mode::SYMLINK, 0, Path::new(target).to_string_lossy().into_owned(), (0, 0)),
        TreeKind::Fifo => (mode::FIFO, 0, String::new(), (0, 0)),
        TreeKind::Socket => (mode::SOCKET, 0, String::new(), (0, 0)),
        TreeKind::CharDevice { major, minor } => {
            (mode::DEVICE | mode::CHARACTER, 0, String::new(), (i64::from(*major), i64::from(*minor)))
        }
        TreeKind::BlockDevice { major, minor } => {
            (mode::DEVICE, 0, String::new(), (i64::from(*major), i64::from(*minor)))
        }
    };
    let permissions = if kind == mode::SYMLINK { 0o777 } else { mode::of_permissions(entry.mode) };
    let (seconds, nanos) = entry.mtime;
    Stat {
        path,
        mode: kind | permissions,
        uid: entry.uid,
        gid: entry.gid,
        size: i64::try_from(size).unwrap_or(i64::MAX),
        mod_time: seconds.saturating_mul(1_000_000_000).saturating_add(nanos.into()),
        linkname,
        devmajor: device.0,
        devminor: device.1,
        xattrs: entry.xattrs.iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value.clone())).collect(),
    }
}

fn send_file(sender: &mpsc::Sender<Packet>, id: u32, sent: &Sent) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut file: Box<dyn Read + '_> = match sent {
        Sent::Tree(tree, path) => Box::new(tree.open(path).map_err(io::Error::other)?),
        Sent::Bytes(bytes) => Box::new(bytes.as_slice()),
    };
    loop {
        let mut buffer = vec![0; FILE_CHUNK];
        let count = file.read(&mut buffer)?;
        buffer.truncate(count);
        sender.blocking_send(packet(PacketType::PacketData, id, buffer)).map_err(gone)?;
        if count == 0 {
            return Ok(());
        }
    }
}
