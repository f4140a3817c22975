//! Contexts as a daemon asks for them: it is told what there is, and asks for the files that it lacks.

use crate::session::Handed;
use forge_buildkit_proto::fsutil::types::Packet;
use forge_buildkit_proto::fsutil::types::packet::PacketType;
use forge_buildkit_proto::moby::filesync::packet::file_sync_server::FileSync;
use forge_filesync::{Selected, list, packet, stat_packet};
use forge_session::{Context, ContextPath, EntryKind};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a message of a file.
const CHUNK: usize = 128 << 10;

/// How many files are read at the same time.
const READERS: usize = 4;

/// The files that were listed, by their numbers; what is no file has no path.
type Listed = Arc<Mutex<Vec<Option<ContextPath>>>>;

type Answers = mpsc::Sender<Result<Packet, Status>>;

#[tonic::async_trait]
impl FileSync for Handed {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let wanted = request.metadata();
        let name = values(wanted, "dir-name")?.pop().unwrap_or_default();
        let selected = Selected::new(&values(wanted, "include-patterns")?, &values(wanted, "exclude-patterns")?);
        let selected = selected.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let context = self.session().context(&name);
        let context = context.ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let (answers, receiver) = mpsc::channel(128);
        let listed = Listed::default();
        let listing = (context.clone(), listed.clone(), answers.clone());
        tokio::task::spawn_blocking(move || tell(&*listing.0, &selected, &listing.1, &listing.2));
        tokio::spawn(serve(context, listed, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TarStreamStream = ReceiverStream<Result<Packet, Status>>;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("files are sent one by one"))
    }
}

/// Tells the daemon everything that there is. Blocks.
fn tell(context: &dyn Context, selected: &Selected, listed: &Listed, answers: &Answers) {
    let send = |packet| answers.blocking_send(Ok(packet)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    let told = list(context, selected, &mut |stat, entry| {
        let file = matches!(entry.kind, EntryKind::File { .. }).then(|| entry.path.clone());
        listed.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        send(stat_packet(Some(stat)))
    });
    // A daemon that has gone need not be told.
    let _ = match told {
        Ok(()) => send(stat_packet(None)),
        Err(error) => send(packet(PacketType::PacketErr, 0, error.to_string().into_bytes())),
    };
}

/// Sends what the daemon asks for until it has everything.
async fn serve(context: Arc<dyn Context>, listed: Listed, mut incoming: Streaming<Packet>, answers: Answers) {
    let readers = Arc::new(Semaphore::new(READERS));
    while let Ok(Some(asked)) = incoming.message().await {
        match asked.r#type() {
            PacketType::PacketReq => {
                let path = {
                    let listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
                    usize::try_from(asked.id).ok().and_then(|id| listed.get(id).cloned().flatten())
                };
                let Some(path) = path else {
                    let _ = answers.send(Err(Status::invalid_argument(format!("invalid file id {}", asked.id)))).await;
                    return;
                };
                let Ok(permit) = readers.clone().acquire_owned().await else { return };
                let (context, answers) = (context.clone(), answers.clone());
                tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    if let Err(error) = send(&*context, &path, asked.id, &answers) {
                        let _ = answers.blocking_send(Ok(packet(PacketType::PacketErr, 0, error.to_string().into())));
                    }
                });
            }
            PacketType::PacketFin => {
                let _ = answers.send(Ok(packet(PacketType::PacketFin, 0, Vec::new()))).await;
                return;
            }
            PacketType::PacketErr => return,
            PacketType::PacketStat | PacketType::PacketData => {}
        }
    }
}

/// Sends a file. Blocks.
fn send(context: &dyn Context, path: &ContextPath, id: u32, answers: &Answers) -> io::Result<()> {
    let mut file = context.open(path).map_err(io::Error::other)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer)?;
        let piece = packet(PacketType::PacketData, id, buffer[..count].to_vec());
        answers.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        // Nothing ends the file.
        if count == 0 {
            return Ok(());
        }
    }
}

/// The values of a key; one that is not plain text was written as in addresses, and a further key says so.
fn values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>, Status> {
    let is_escaped = metadata.get(format!("{key}-encoded")).is_some();
    let read = |value: &tonic::metadata::MetadataValue<tonic::metadata::Ascii>| {
        let text = value.to_str().map_err(|error| Status::invalid_argument(error.to_string()))?;
        match is_escaped {
            true => unescaped(text).ok_or_else(|| Status::invalid_argument(format!("invalid escape in {key}"))),
            false => Ok(text.to_owned()),
        }
    };
    metadata.get_all(key).iter().map(read).collect()
}

/// As Go's `url.QueryUnescape` reads it.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        rest = others;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, others) = rest.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = others;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_not_plain_are_escaped() {
        assert_eq!(unescaped("a%2Fb+c%C3%A9").unwrap(), "a/b cé");
        assert_eq!(unescaped("a%2"), None);
        assert_eq!(unescaped("%zz"), None);
        let mut metadata = MetadataMap::new();
        metadata.insert("dir-name", "a%2Fb".parse().unwrap());
        assert_eq!(values(&metadata, "dir-name").unwrap(), ["a%2Fb"]);
        metadata.insert("dir-name-encoded", "1".parse().unwrap());
        assert_eq!(values(&metadata, "dir-name").unwrap(), ["a/b"]);
    }
}
