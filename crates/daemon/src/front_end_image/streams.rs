//! A process's streams as a connection.

use rustix::fs::OFlags;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::unix::pipe::{Receiver, Sender};

/// How much of what a process complained about is kept.
const LAST_WORDS: usize = 2048;

/// Has a descriptor waited for without a thread.
fn unblock(end: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(end)?;
    Ok(rustix::fs::fcntl_setfl(end, flags | OFlags::NONBLOCK)?)
}

/// Carries a connection over two pipes until one of its ends is closed.
pub(super) async fn carry(connection: DuplexStream, input: OwnedFd, output: OwnedFd) -> io::Result<()> {
    unblock(&input)?;
    unblock(&output)?;
    let (mut to_process, mut from_process) =
        (Sender::from_owned_fd_unchecked(input)?, Receiver::from_owned_fd_unchecked(output)?);
    let (mut reader, mut writer) = tokio::io::split(connection);
    let answers = async {
        let carried = tokio::io::copy(&mut reader, &mut to_process).await;
        // A process that reads no more may still write.
        if carried.is_err() { std::future::pending().await } else { to_process.shutdown().await }
    };
    tokio::select! {
        asked = tokio::io::copy(&mut from_process, &mut writer) => asked.map(drop),
        answered = answers => answered,
    }
}

/// Reads to the end, and keeps the end of it.
pub(super) async fn last_words(complaints: OwnedFd) -> String {
    let mut kept = Vec::new();
    let read = async {
        unblock(&complaints)?;
        let mut complaints = Receiver::from_owned_fd_unchecked(complaints)?;
        let mut buffer = [0; 4096];
        loop {
            let count = complaints.read(&mut buffer).await?;
            if count == 0 {
                return Ok::<(), io::Error>(());
            }
            kept.extend_from_slice(&buffer[..count]);
            kept.drain(..kept.len().saturating_sub(LAST_WORDS));
        }
    };
    // What cannot be read is not repeated.
    let _ = read.await;
    String::from_utf8_lossy(&kept).into_owned()
}
