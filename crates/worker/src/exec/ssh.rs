//! The session's SSH agents as sockets of a step.
//!
//! What a step says to an agent is filtered (A101): it may list identities and have something signed. It may not add,
//! remove or lock keys, nor use extensions: forge answers those itself, with the failure that every client knows.
//! Messages are those of draft-miller-ssh-agent: a big-endian `u32` length, a type byte, the rest.

use super::ExecError;
use forge_llb::{ExecOp, MountKind, SecretMount};
use forge_session::Session;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// OpenSSH's own limit (`MAX_AGENT_REPLY_LEN`, `AGENT_MAX_LEN`).
const MESSAGE_BYTES: u32 = 256 << 10;
/// Connections of one step to one agent at the same time; more wait.
const CONNECTIONS: usize = 64;
/// How long nothing is accepted after that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;

/// The ids of the agents that a step's sockets lead to, in the order of its mounts.
pub(super) async fn available(op: &ExecOp, session: &dyn Session) -> Result<Vec<Option<String>>, ExecError> {
    let mut agents = Vec::new();
    for mount in &op.mounts {
        let MountKind::Ssh(SecretMount { id, optional, .. }) = &mount.kind else { continue };
        let there = match session.ssh_agent(id).await {
            Ok(connection) => connection.is_some(),
            Err(_) if *optional => false,
            Err(error) => return Err(error.into()),
        };
        match (there, optional) {
            (true, _) => agents.push(Some(id.clone())),
            (false, true) => agents.push(None),
            (false, false) => return Err(ExecError::NoAgent { id: id.clone() }),
        }
    }
    Ok(agents)
}

/// Serves a step's sockets until it is dropped, which closes every connection.
#[derive(Default)]
pub(super) struct Relays(JoinSet<()>);

impl Relays {
    /// Serves `listeners`, of which each leads to the agent of the same place in `agents`.
    pub(super) fn start(
        listeners: Vec<OwnedFd>,
        agents: &[String],
        session: &Arc<dyn Session>,
    ) -> Result<Self, ExecError> {
        let mut relays = JoinSet::new();
        for (listener, agent) in listeners.into_iter().zip(agents) {
            let listener = std::os::unix::net::UnixListener::from(listener);
            let listener = UnixListener::from_std(listener).map_err(ExecError::Socket)?;
            relays.spawn(serve(listener, agent.clone(), session.clone()));
        }
        Ok(Self(relays))
    }

    /// Closes every connection and waits until that is done.
    pub(super) async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

async fn serve(listener: UnixListener, agent: String, session: Arc<dyn Session>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Ends with the task: the set is dropped, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else {
            // A client that gave up, or no descriptor free: the step's next attempt may fare better.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (agent, session) = (agent.clone(), session.clone());
        connections.spawn(async move {
            let _place = place;
            // A connection that fails is the client's to notice: it reads the end of the stream.
            let _ = relay(client, &agent, &*session).await;
        });
    }
}

async fn relay(mut client: UnixStream, agent: &str, session: &dyn Session) -> std::io::Result<()> {
    let connection = session.ssh_agent(agent).await.ok().flatten().ok_or(std::io::ErrorKind::NotConnected)?;
    let connection = std::os::unix::net::UnixStream::from(connection);
    connection.set_nonblocking(true)?;
    let mut agent = UnixStream::from_std(connection)?;
    if session.has_raw_sockets() && !speaks_to_agent(&client, &agent).await? {
        tokio::io::copy_bidirectional(&mut client, &mut agent).await?;
        return Ok(());
    }
    while let Some(request) = read_message(&mut client).await? {
        let answer = match request.first() {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                write_message(&mut agent, &request).await?;
                read_message(&mut agent).await?.ok_or(std::io::ErrorKind::UnexpectedEof)?
            }
            _ => vec![FAILURE],
        };
        write_message(&mut client, &answer).await?;
    }
    Ok(())
}

/// Whether a step speaks first, and what an agent may understand. What begins otherwise is no message of any agent's: its
/// length would be beyond the limits of all of them, who end the connection then.
async fn speaks_to_agent(client: &UnixStream, agent: &UnixStream) -> std::io::Result<bool> {
    tokio::select! {
        biased;
        readable = client.readable() => readable?,
        readable = agent.readable() => {
            readable?;
            return Ok(false);
        }
    }
    // Readiness may be told without a byte to read, which is to be waited for then.
    let heard = client.async_io(Interest::READABLE, || {
        let mut first = [0];
        let (count, _) = rustix::net::recv(client, &mut first[..], rustix::net::RecvFlags::PEEK)?;
        Ok((count, first))
    });
    Ok(match heard.await? {
        // The highest byte of the length: Go's agents take up to 16 MiB, OpenSSH's 256 KiB.
        (1.., first) => first == [0],
        _ => true,
    })
}

/// The next message without its length; `None` at the end of the stream.
async fn read_message(from: &mut UnixStream) -> std::io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    if length == 0 || length > MESSAGE_BYTES {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length as usize];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(to: &mut UnixStream, message: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    to.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_testkit::TestSession;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
    use std::time::Duration;

    /// An agent that says which types of messages reached it.
    fn echo_agent(socket: &std::path::Path) {
        let listener = StdListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                std::thread::spawn(move || {
                    while let Ok(message) = receive(&mut client) {
                        send(&mut client, &[b"agent ".as_slice(), &message].concat());
                    }
                });
            }
        });
    }

    fn receive(stream: &mut StdStream) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut message)?;
        Ok(message)
    }

    fn send(stream: &mut StdStream, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, message].concat()).unwrap();
    }

    fn ask(stream: &mut StdStream, message: &[u8]) -> Vec<u8> {
        send(stream, message);
        receive(stream).unwrap()
    }

    /// Seen to fail with every message passed on.
    #[tokio::test(flavor = "multi_thread")]
    async fn a101_only_lists_and_signatures_reach_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        echo_agent(&path("agent"));
        let session: Arc<dyn Session> = Arc::new(TestSession::new().with_agent("default", path("agent")));
        let listener = StdListener::bind(path("relay")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let relays = Relays::start(vec![listener.into()], &["default".to_owned()], &session).unwrap();
        let connect = || {
            let stream = StdStream::connect(path("relay")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream
        };
        let mut client = connect();
        for kind in 0..=255u8 {
            let answer = ask(&mut client, &[kind, b'x']);
            match kind {
                REQUEST_IDENTITIES | SIGN_REQUEST => assert_eq!(answer, [b"agent ".as_slice(), &[kind, b'x']].concat()),
                _ => assert_eq!(answer, [FAILURE], "{kind}"),
            }
        }
        // What is no message ends the connection, not the relay.
        for bad in [[0, 0, 0, 0], [0, 4, 0, 1], [255; 4]] {
            let mut stream = connect();
            stream.write_all(&bad).unwrap();
            assert!(receive(&mut stream).is_err(), "{bad:?}");
        }
        // A message that never ends blocks nobody else.
        let mut slow = connect();
        slow.write_all(&[0, 0, 1, 0, SIGN_REQUEST]).unwrap();
        assert_eq!(ask(&mut connect(), &[REQUEST_IDENTITIES]), b"agent \x0b");
        relays.stop().await;
        assert!(receive(&mut client).is_err() && receive(&mut slow).is_err());
        assert!(StdStream::connect(path("relay")).is_err());
    }

    /// A session whose sockets need not lead to agents.
    struct Raw(TestSession);

    #[async_trait::async_trait]
    impl Session for Raw {
        fn context(&self, _: &str) -> Option<Arc<dyn forge_session::Context>> {
            None
        }

        async fn credentials(
            &self,
            _: &str,
        ) -> Result<Option<forge_session::Credentials>, forge_session::CredentialError> {
            Ok(None)
        }

        async fn secret(&self, _: &str) -> Result<Option<forge_session::Secret>, forge_session::SecretError> {
            Ok(None)
        }

        async fn ssh_agent(&self, id: &str) -> Result<Option<OwnedFd>, forge_session::SecretError> {
            self.0.ssh_agent(id).await
        }

        fn has_raw_sockets(&self) -> bool {
            true
        }

        fn events(&self) -> &dyn forge_session::EventSink {
            self.0.events()
        }

        fn cancellation(&self) -> &tokio_util::sync::CancellationToken {
            self.0.cancellation()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a101_a_raw_socket_hears_everything_but_what_agents_understand() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let server = StdListener::bind(path("server")).unwrap();
        std::thread::spawn(move || {
            for client in server.incoming() {
                let (mut client, mut heard) = (client.unwrap(), [0; 64]);
                let count = client.read(&mut heard).unwrap();
                // A connection that ended by then has nobody to answer.
                let _ = client.write_all(&[b"heard ".as_slice(), &heard[..count]].concat());
            }
        });
        let session: Arc<dyn Session> = Arc::new(Raw(TestSession::new().with_agent("default", path("server"))));
        let listener = StdListener::bind(path("relay")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let relays = Relays::start(vec![listener.into()], &["default".to_owned()], &session).unwrap();
        let connect = || {
            let stream = StdStream::connect(path("relay")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream
        };
        let mut client = connect();
        client.write_all(b"GET / HTTP/1.0").unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"heard GET / HTTP/1.0");
        assert_eq!(ask(&mut connect(), &[17, b'x']), [FAILURE], "no key is added");
        relays.stop().await;
    }
}
