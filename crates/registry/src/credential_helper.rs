use crate::message::sanitise;
use forge_session::{CredentialError, Credentials, Redacted};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A program `docker-credential-NAME`, run as `get`, `store` and `erase` (docker-credential-helpers' protocol):
/// the request stands on its standard input, the answer on its standard output.
#[derive(Debug)]
pub(crate) struct CredentialHelper {
    name: String,
    program: OsString,
}

/// What a helper keeps: a user and a password, or `<token>` and a refresh token.
pub(crate) struct Secret {
    username: String,
    secret: Redacted,
}

/// Helpers may ask the user for a passphrase.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What a helper says, exit status 1, when it has no such entry.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The user name that marks a refresh token.
const TOKEN_USER: &str = "<token>";

impl CredentialHelper {
    /// Names a helper; looks for it along `PATH` unless a folder is given.
    ///
    /// # Errors
    /// The name is not a plain word: it would be a path to any program.
    pub(crate) fn new(name: &str, directory: Option<&Path>) -> Result<Self, CredentialError> {
        let program = format!("docker-credential-{name}");
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain {
            let message = "its name may hold letters, digits, '.', '_' and '-' only".to_owned();
            return Err(CredentialError::Helper { helper: sanitise(&program), message });
        }
        let path = directory.map(|directory| directory.join(&program).into_os_string());
        Ok(Self { program: path.unwrap_or_else(|| OsString::from(&program)), name: program })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Asks for the entry of a server; `None` where there is none.
    pub(crate) async fn get(&self, server: &str) -> Result<Option<Secret>, CredentialError> {
        let output = self.run("get", server.as_bytes()).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() && said.contains(NOT_FOUND) {
            return Ok(None);
        }
        self.check(&output)?;
        // The parser's own message could quote the secret.
        let answer: Value =
            serde_json::from_slice(&output.stdout).map_err(|_| self.error("its answer is not JSON".to_owned()))?;
        match (answer["Username"].as_str(), answer["Secret"].as_str()) {
            (Some(username), Some(secret)) if !secret.is_empty() => {
                Ok(Some(Secret { username: username.to_owned(), secret: Redacted::new(secret) }))
            }
            _ => Ok(None),
        }
    }

    /// Keeps an entry.
    pub(crate) async fn store(&self, server: &str, secret: &Secret) -> Result<(), CredentialError> {
        let request = json!({"ServerURL": server, "Username": secret.username, "Secret": secret.secret.reveal()});
        let output = self.run("store", request.to_string().as_bytes()).await?;
        self.check(&output)
    }

    /// Forgets an entry.
    pub(crate) async fn erase(&self, server: &str) -> Result<(), CredentialError> {
        let output = self.run("erase", server.as_bytes()).await?;
        self.check(&output)
    }

    async fn run(&self, action: &str, input: &[u8]) -> Result<Output, CredentialError> {
        let limit = tokio::time::timeout(TIMEOUT, self.exchange(action, input)).await;
        match limit {
            Ok(result) => result.map_err(|error| self.error(error.to_string())),
            Err(_) => Err(self.error(format!("no answer to {action} within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn exchange(&self, action: &str, input: &[u8]) -> std::io::Result<Output> {
        let mut child = Command::new(&self.program)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().expect("standard input was asked to be a pipe");
        match stdin.write_all(input).await {
            // A helper that does not read its input says why on its output.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
            _ => drop(stdin),
        }
        child.wait_with_output().await
    }

    fn check(&self, output: &Output) -> Result<(), CredentialError> {
        if output.status.success() {
            return Ok(());
        }
        // Helpers report errors on standard output; on standard error some print what they were given.
        let said = sanitise(&String::from_utf8_lossy(&output.stdout));
        match said.is_empty() {
            true => Err(self.error(output.status.to_string())),
            false => Err(self.error(format!("{said} ({})", output.status))),
        }
    }

    fn error(&self, message: String) -> CredentialError {
        CredentialError::Helper { helper: self.name.clone(), message }
    }
}

impl Secret {
    pub(crate) fn into_credentials(self) -> Credentials {
        match self.username == TOKEN_USER {
            true => Credentials::RefreshToken(self.secret),
            false => Credentials::Basic { username: self.username, password: self.secret },
        }
    }

    /// # Errors
    /// Bearer tokens have no place in the protocol.
    pub(crate) fn from_credentials(credentials: &Credentials, helper: &str) -> Result<Self, CredentialError> {
        match credentials {
            Credentials::Basic { username, password } => {
                Ok(Self { username: username.clone(), secret: password.clone() })
            }
            Credentials::RefreshToken(token) => Ok(Self { username: TOKEN_USER.to_owned(), secret: token.clone() }),
            Credentials::Bearer(_) => Err(CredentialError::Helper {
                helper: helper.to_owned(),
                message: "credential helpers cannot keep bearer tokens".to_owned(),
            }),
        }
    }
}
