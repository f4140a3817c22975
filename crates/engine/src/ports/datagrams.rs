//! Packets have no connections: who sent one is remembered for a while, so that the answer finds its way back.

use super::Way;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

/// How long a sender is remembered after the last answer; docker's proxy has the same.
const MEMORY: Duration = Duration::from_secs(90);
/// Senders beyond this many have their packets dropped, as a full table of the kernel's would.
const SENDERS: usize = 4096;
/// More than any packet holds.
const PACKET: usize = 65536;

/// What one sender has.
struct Sender {
    inside: Arc<UdpSocket>,
    answers: AbortHandle,
}

/// Hands packets on until it is aborted.
pub(super) async fn serve(outside: UdpSocket, way: Arc<dyn Way>, port: u16) {
    let outside = Arc::new(outside);
    let (mut senders, mut tasks) = (HashMap::<SocketAddr, Sender>::new(), JoinSet::new());
    let mut packet = vec![0; PACKET];
    loop {
        // An error is an earlier packet's, which nobody waits for.
        let Ok((length, sender)) = outside.recv_from(&mut packet).await else { continue };
        while tasks.try_join_next().is_some() {}
        senders.retain(|_, known| !known.answers.is_finished());
        if !senders.contains_key(&sender) {
            if senders.len() >= SENDERS {
                continue;
            }
            let Ok(inside) = way.packets(port).await.map(Arc::new) else { continue };
            let answers = tasks.spawn(answer(inside.clone(), outside.clone(), sender));
            senders.insert(sender, Sender { inside, answers });
        }
        if let Some(known) = senders.get(&sender) {
            // A packet may be lost.
            let _ = known.inside.send(&packet[..length]).await;
        }
    }
}

/// Ends when the container has been silent for a while.
async fn answer(inside: Arc<UdpSocket>, outside: Arc<UdpSocket>, sender: SocketAddr) {
    let mut packet = vec![0; PACKET];
    while let Ok(received) = tokio::time::timeout(MEMORY, inside.recv(&mut packet)).await {
        match received {
            Ok(length) => _ = outside.send_to(&packet[..length], sender).await,
            // Nobody listens in the container yet, or any more.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}
