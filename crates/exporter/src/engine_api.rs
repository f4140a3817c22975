//! As much HTTP as docker's engine API takes: single requests over a Unix socket, each on a connection of its own.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Unpacking what was sent may take an engine minutes, in which it says nothing.
const PATIENCE: Duration = Duration::from_secs(1800);
/// No answer that is read is longer.
const MOST_ANSWER: u64 = 64 << 20;

/// An engine that listens on a socket of this machine.
#[derive(Clone, Debug)]
pub(crate) struct EngineApi {
    socket: PathBuf,
}

/// What an engine answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl EngineApi {
    pub(crate) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    pub(crate) fn get(&self, path: &str) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")?;
        answer(stream)
    }

    /// Sends what `write` writes. An engine that refuses may do so before it has read everything: what it says then counts for
    /// more than the broken connection.
    pub(crate) fn post<E>(
        &self,
        path: &str,
        cancel: &CancellationToken,
        write: impl FnOnce(Box<dyn Write + Send>) -> Result<(), E>,
    ) -> io::Result<(Result<(), E>, Answer)> {
        let mut stream = self.connect()?;
        let head =
            "Host: engine\r\nConnection: close\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n";
        write!(stream, "POST {path} HTTP/1.1\r\n{head}\r\n")?;
        let written = write(Box::new(Chunked { stream: stream.try_clone()?, cancel: cancel.clone() }));
        if written.is_ok() {
            stream.write_all(b"0\r\n\r\n")?;
        } else {
            stream.shutdown(std::net::Shutdown::Write)?;
        }
        Ok((written, answer(stream)?))
    }
}

/// The chunked coding (RFC 9112, 7.1).
struct Chunked {
    stream: UnixStream,
    cancel: CancellationToken,
}

impl Write for Chunked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        // A chunk of no bytes would end the body.
        if !bytes.is_empty() {
            write!(self.stream, "{:x}\r\n", bytes.len())?;
            self.stream.write_all(bytes)?;
            self.stream.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn answer(stream: UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    match stream.take(MOST_ANSWER).read_to_end(&mut bytes) {
        Err(error) if bytes.is_empty() => return Err(error),
        _ => {}
    }
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what answers there does not speak HTTP"))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = |line: &str| {
        let line = line.to_ascii_lowercase();
        line.starts_with("transfer-encoding:") && line.ends_with("chunked")
    };
    let body = if lines.any(is_chunked) { unchunked(body)? } else { body.to_vec() };
    Some(Answer { status, body })
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_both_codings() {
        let plain = parse(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!(plain, Answer { status: 404, body: b"no".to_vec() });
        let chunked =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n").unwrap();
        assert_eq!(chunked, Answer { status: 200, body: b"abcd".to_vec() });
        for broken in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc\r\n"] {
            assert_eq!(parse(broken.as_bytes()), None, "{broken:?}");
        }
    }
}
