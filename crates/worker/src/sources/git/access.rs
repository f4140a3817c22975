//! How a repository is reached: where redirects lead, what proves who asks, through which proxy.

use super::super::auth;
use super::super::error::{KNOWN_HOSTS_SECRET, RemoteError};
use super::super::{Asked, Sources};
use super::program::{Network, Program};
use super::ssh::SshAgent;
use forge_executor::Hidden;
use forge_llb::{GitRemote, GitSource, GitTransport, UrlCredentials};
use forge_registry::WebRequest;
use forge_session::Redacted;

/// Everything that is needed to talk to one repository's server.
pub(super) struct Access<'a> {
    sources: &'a Sources,
    pub remote: GitRemote,
    /// The address that git is given: the remote's, or where it redirects to.
    address: String,
    /// `KEY=VALUE` of git's configuration, some of it secret.
    settings: Vec<(String, Redacted)>,
    environment: Vec<String>,
    secret_environment: Vec<Hidden>,
    /// Texts that must not show up in messages.
    secrets: Vec<String>,
    known_hosts: Option<Vec<u8>>,
    agent: Option<SshAgent>,
}

/// Which secrets a repository's server may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// All that the source names: the user wrote this address.
    Named,
    /// Those for its host: somebody else wrote it, as that of a submodule.
    Nested,
    /// None: somebody else wrote it, and everybody on the way could read them.
    Unencrypted,
}

/// What a Git server answers first; the address without it is the repository's.
const DISCOVERY: &str = "/info/refs?service=git-upload-pack";

impl<'a> Access<'a> {
    /// Prepares to reach the repository of a source.
    ///
    /// # Errors
    /// Forge is offline; a secret cannot be had; the server redirects to where forge does not go (A112).
    pub(super) async fn new(
        sources: &'a Sources,
        op: &GitSource,
        remote: &GitRemote,
        whose: Whose,
        asked: &Asked<'_>,
    ) -> Result<Self, RemoteError> {
        let registry = sources.images.registry();
        if registry.is_offline() {
            return Err(RemoteError::Offline { remote: remote.to_string() });
        }
        let mut access = Self::nowhere(sources, remote);
        match remote.transport() {
            GitTransport::Https | GitTransport::Http => access.prepare_http(op, whose, asked).await?,
            GitTransport::Ssh => access.prepare_ssh(op, asked).await?,
            GitTransport::Git => {}
        }
        Ok(access)
    }

    /// Reaches nobody: what a repository has comes from elsewhere.
    pub(super) fn nowhere(sources: &'a Sources, remote: &GitRemote) -> Self {
        Self {
            sources,
            remote: remote.clone(),
            address: remote.as_str().to_owned(),
            settings: Vec::new(),
            environment: Vec::new(),
            secret_environment: Vec::new(),
            secrets: Vec::new(),
            known_hosts: None,
            agent: None,
        }
    }

    /// The address that git is given.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A program that may reach the server, or nothing at all.
    pub(super) fn program(&self, network: Network) -> Result<Program<'_>, RemoteError> {
        let mut program = Program::new(self.sources, self.remote.to_string(), network)?;
        if network == Network::Reached {
            program.settings.extend(self.settings.iter().cloned());
            program.environment.extend(self.environment.iter().cloned());
            program.secret_environment.extend(self.secret_environment.iter().cloned());
            program.secrets.extend(self.secrets.iter().cloned());
            program.known_hosts = self.known_hosts.clone();
            program.agent = self.agent.clone();
            program.certificates = certificates(self.sources)?;
        }
        Ok(program)
    }

    async fn prepare_http(&mut self, op: &GitSource, whose: Whose, asked: &Asked<'_>) -> Result<(), RemoteError> {
        let authorization = authorization(op, &self.remote, whose, asked).await?;
        let registry = self.sources.images.registry();
        let request = WebRequest {
            url: format!("{}{DISCOVERY}", self.remote),
            authorization: authorization.clone(),
            ..WebRequest::default()
        };
        let end = registry.final_address(&request, &**asked.session).await?;
        // Where something else is redirected to, git is left to find out what the server says.
        if let Some(address) = end.strip_suffix(DISCOVERY) {
            self.address = GitRemote::parse(address)?.0.as_str().to_owned();
        }
        if let Some(proxy) = registry.proxy_for(&self.address) {
            self.secrets.push(proxy.reveal().to_owned());
            self.secret_environment.push(Hidden::new(format!("https_proxy={}", proxy.reveal())));
            self.secret_environment.push(Hidden::new(format!("http_proxy={}", proxy.reveal())));
        }
        if let Some(header) = authorization.filter(|_| origin(&self.address) == origin(self.remote.as_str())) {
            let words = header.reveal().split_whitespace().filter(|word| word.len() > 6);
            self.secrets.extend(words.map(str::to_owned));
            let value = Redacted::new(format!("Authorization: {}", header.reveal()));
            self.settings.push((format!("http.{}.extraheader", self.address), value));
        }
        Ok(())
    }

    async fn prepare_ssh(&mut self, op: &GitSource, asked: &Asked<'_>) -> Result<(), RemoteError> {
        self.known_hosts = match &op.known_hosts {
            Some(hosts) => Some(hosts.clone().into_bytes()),
            None => asked.session.secret(KNOWN_HOSTS_SECRET).await?.map(|secret| secret.reveal().to_vec()),
        };
        if let Some(id) = &op.ssh {
            self.agent = Some(SshAgent::new(id, asked.session).await?);
        }
        Ok(())
    }
}

/// The certificates that the user named besides the machine's own.
fn certificates(sources: &Sources) -> Result<Option<Vec<u8>>, RemoteError> {
    let roots = sources.images.registry().roots();
    let mut all = Vec::new();
    for path in roots {
        let what = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| RemoteError::Read { what, source })?;
        all.extend(bytes);
        all.push(b'\n');
    }
    Ok((!roots.is_empty()).then_some(all))
}

/// The first that there is of: secrets for the host, secrets for any host, the user and password of the address.
async fn authorization(
    op: &GitSource,
    remote: &GitRemote,
    whose: Whose,
    asked: &Asked<'_>,
) -> Result<Option<Redacted>, RemoteError> {
    let host = remote.host();
    let (header, token) = (&op.auth_header_secret, &op.auth_token_secret);
    let names = [
        header.as_ref().map(|name| (format!("{name}.{host}"), false)),
        token.as_ref().map(|name| (format!("{name}.{host}"), true)),
        header.as_ref().map(|name| (name.clone(), false)),
        token.as_ref().map(|name| (name.clone(), true)),
    ];
    let allowed = match whose {
        Whose::Named => 4,
        Whose::Nested => 2,
        Whose::Unencrypted => 0,
    };
    for (id, is_token) in names.into_iter().take(allowed).flatten() {
        if let Some(secret) = asked.session.secret(&id).await? {
            let text = auth::text(&id, &secret)?;
            return Ok(Some(match is_token {
                true => auth::basic(b"x-access-token", text.as_bytes()),
                false => Redacted::new(text),
            }));
        }
    }
    Ok(op.credentials.as_ref().map(of_address))
}

fn of_address(credentials: &UrlCredentials) -> Redacted {
    auth::basic(&credentials.user(), &credentials.reveal_password())
}

/// Scheme, host and port.
fn origin(address: &str) -> Option<&str> {
    let start = address.find("://")? + 3;
    let end = address[start..].find('/').map_or(address.len(), |at| start + at);
    Some(&address[..end])
}
