//! What a build hands to its steps besides files: secrets and SSH agents.

use crate::EngineError;
use crate::key_agent::KeyAgent;
use crate::private_key::{KeyError, PrivateKey};
use forge_image::ErrorKind;
use forge_session::{Secret, SecretError};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, read when the first step asks.
    File(PathBuf),
    /// Itself.
    Value(Secret),
}

/// Where an SSH agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentSource {
    /// Behind a socket.
    Socket(PathBuf),
    /// In this process, with the private keys of these files. They have no passphrase.
    Keys(Vec<PathBuf>),
}

/// BuildKit's limit.
const KEY_BYTES: u64 = 100 << 10;

/// Secrets and agents by their ids.
#[derive(Default)]
pub(crate) struct Handed {
    secrets: BTreeMap<String, SecretSource>,
    /// A file that is a pipe can be read once only.
    read: tokio::sync::Mutex<BTreeMap<String, Secret>>,
    agents: BTreeMap<String, Agent>,
}

#[derive(Clone)]
enum Agent {
    Socket(PathBuf),
    Keys(KeyAgent),
}

impl Handed {
    /// Reads the keys of agents. Blocks.
    pub(crate) fn new(
        secrets: BTreeMap<String, SecretSource>,
        agents: &BTreeMap<String, AgentSource>,
    ) -> Result<Self, EngineError> {
        let agent = |(id, source): (&String, &AgentSource)| Ok((id.clone(), Agent::open(source)?));
        let agents = agents.iter().map(agent).collect::<Result<_, EngineError>>()?;
        Ok(Self { secrets, agents, ..Self::default() })
    }

    pub(crate) async fn secret(&self, id: &str) -> Result<Option<Secret>, SecretError> {
        let path = match self.secrets.get(id) {
            None => return Ok(None),
            Some(SecretSource::Value(value)) => return Ok(Some(value.clone())),
            Some(SecretSource::File(path)) => path.clone(),
        };
        let mut read = self.read.lock().await;
        if let Some(secret) = read.get(id) {
            return Ok(Some(secret.clone()));
        }
        let failed = |source: std::io::Error| SecretError::Read { id: id.to_owned(), source };
        let bytes = tokio::task::spawn_blocking(move || read_limited(&path)).await;
        let bytes = bytes.map_err(|error| failed(error.into()))?.map_err(failed)?;
        if bytes.len() > Secret::MAX_BYTES {
            return Err(SecretError::TooLarge { id: id.to_owned() });
        }
        let secret = Secret::new(bytes);
        read.insert(id.to_owned(), secret.clone());
        Ok(Some(secret))
    }

    pub(crate) async fn agent(&self, id: &str) -> Result<Option<OwnedFd>, SecretError> {
        let Some(agent) = self.agents.get(id).cloned() else { return Ok(None) };
        let failed = |source: std::io::Error| SecretError::Agent { id: id.to_owned(), source };
        // Blocks while the agent's queue is full.
        let connected = match agent {
            Agent::Keys(agent) => agent.connect(),
            Agent::Socket(path) => tokio::task::spawn_blocking(move || UnixStream::connect(path))
                .await
                .map_err(|error| failed(error.into()))?
                .map(OwnedFd::from),
        };
        connected.map(Some).map_err(failed)
    }
}

impl Agent {
    fn open(source: &AgentSource) -> Result<Self, EngineError> {
        match source {
            AgentSource::Socket(path) => Ok(Self::Socket(path.clone())),
            AgentSource::Keys(paths) => {
                let keys = paths.iter().map(|path| read_key(path)).collect::<Result<_, _>>()?;
                Ok(Self::Keys(KeyAgent::new(keys)))
            }
        }
    }
}

/// The first words are BuildKit's.
fn read_key(path: &Path) -> Result<PrivateKey, EngineError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(KEY_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| EngineError::io(error).context(&format!("failed to open {}", path.display())))?;
    PrivateKey::parse(&bytes).map_err(|error| {
        let kind = match error {
            KeyError::Unsupported { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::UserInput,
        };
        let failed = EngineError::new(kind, format!("failed to parse {}: {error}", path.display()));
        match error {
            KeyError::Passphrase | KeyError::Unsupported { .. } => {
                failed.with_hint("add the key to an agent with ssh-add, and name the agent with --ssh ID=SOCKET")
            }
            _ => failed,
        }
    })
}

/// One byte more than the limit tells that it is exceeded.
fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(Secret::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_are_read_once_and_have_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("s"), "one").unwrap();
        std::fs::write(path("large"), vec![0; Secret::MAX_BYTES + 1]).unwrap();
        std::fs::write(path("limit"), vec![0; Secret::MAX_BYTES]).unwrap();
        let secrets = ["s", "large", "limit", "none"].map(|id| (id.to_owned(), SecretSource::File(path(id))));
        let handed = Handed::new(secrets.into_iter().collect(), &BTreeMap::new()).unwrap();
        assert_eq!(handed.secret("s").await.unwrap().unwrap().reveal(), b"one");
        std::fs::write(path("s"), "two").unwrap();
        assert_eq!(handed.secret("s").await.unwrap().unwrap().reveal(), b"one");
        assert_eq!(handed.secret("limit").await.unwrap().unwrap().reveal().len(), Secret::MAX_BYTES);
        assert!(matches!(handed.secret("large").await, Err(SecretError::TooLarge { .. })));
        assert!(matches!(handed.secret("none").await, Err(SecretError::Read { .. })));
        assert!(handed.secret("other").await.unwrap().is_none());
        assert!(handed.agent("default").await.unwrap().is_none());
    }
}
