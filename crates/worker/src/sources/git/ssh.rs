//! The session's SSH agent, for the ssh program in the sandbox.

use super::super::error::RemoteError;
use forge_session::Session;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// An agent that answers.
#[derive(Clone)]
pub(super) struct SshAgent {
    id: String,
    session: Arc<dyn Session>,
}

impl SshAgent {
    /// # Errors
    /// The session has no agent of that name.
    pub(super) async fn new(id: &str, session: &Arc<dyn Session>) -> Result<Self, RemoteError> {
        match session.ssh_agent(id).await? {
            Some(_) => Ok(Self { id: id.to_owned(), session: session.clone() }),
            None => Err(RemoteError::NoAgent { id: id.to_owned() }),
        }
    }

    /// Connects whoever comes to a socket with the agent, until the relay is dropped.
    pub(super) fn relay(&self, listener: OwnedFd) -> std::io::Result<Relay> {
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let (listener, agent) = (UnixListener::from_std(listener)?, self.clone());
        Ok(Relay(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let agent = agent.clone();
                tokio::spawn(async move { agent.serve(client).await });
            }
        })))
    }

    /// What fails here, the ssh program reports: it has no agent then.
    async fn serve(&self, mut client: UnixStream) {
        let Ok(Some(agent)) = self.session.ssh_agent(&self.id).await else { return };
        let agent = StdStream::from(agent);
        let Ok(mut agent) = agent.set_nonblocking(true).and_then(|()| UnixStream::from_std(agent)) else { return };
        let _ = tokio::io::copy_bidirectional(&mut client, &mut agent).await;
    }
}

/// Ends when it is dropped.
pub(super) struct Relay(JoinHandle<()>);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}
