use crate::auth::{Authenticator, Scope};
use crate::endpoint::Endpoint;
use crate::exchange::Exchange;
use crate::manifests::Wanted;
use crate::transport::Transport;
use crate::{Document, HostOptions, RegistryError, RegistryOptions, tls};
use forge_image::Reference;
use forge_session::Session;

/// Talks to registries: connections, tokens and slots are shared by everything that goes through one value.
///
/// It keeps the tokens that it was given, for each owner of sessions apart. All methods
/// end soon with [`RegistryError::Cancelled`] when the session's cancellation fires; dropping their future also stops
/// them. They need a tokio runtime with time and network.
pub struct Registry {
    pub(crate) transport: Transport,
    pub(crate) authenticator: Authenticator,
}

impl Registry {
    /// Prepares a client. Makes no connection; certificates are read when a host first needs them.
    ///
    /// # Errors
    /// A proxy's address is none.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        Ok(Self { transport: Transport::new(options)?, authenticator: Authenticator::default() })
    }

    /// How TLS is spoken to a service that is no registry, `host:port`: with its options among those of registries, where there
    /// are any, and with these certificates too. The first client certificate counts, of these before those.
    ///
    /// # Errors
    /// A file of certificates cannot be read or holds none.
    pub fn tls(&self, authority: &str, own: &HostOptions) -> Result<rustls::ClientConfig, RegistryError> {
        let of_host = self.transport.options().hosts.get(authority).cloned().unwrap_or_default();
        let options = HostOptions {
            ca: [own.ca.clone(), of_host.ca].concat(),
            keypair: [own.keypair.clone(), of_host.keypair].concat(),
            insecure: own.insecure || of_host.insecure,
            ..HostOptions::default()
        };
        tls::client_config(authority, &options, &self.transport.options().roots)
    }

    pub(crate) fn exchange<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        scope: &'a Scope,
        session: &'a dyn Session,
    ) -> Exchange<'a> {
        Exchange { transport: &self.transport, authenticator: &self.authenticator, endpoint, scope, session }
    }

    /// Where a reference is pushed to: the host itself, never a mirror.
    pub(crate) fn origin(&self, reference: &Reference) -> Result<Endpoint, RegistryError> {
        Endpoint::origin(self.transport.options(), reference.registry(), reference.repository())
    }

    /// Asks the sources of a reference in order: mirrors as listed, then the host. The first that answers well is taken;
    /// when none does, the host's own error counts.
    pub(crate) async fn first_source(
        &self,
        reference: &Reference,
        session: &dyn Session,
        wanted: Wanted<'_>,
    ) -> Result<Document, RegistryError> {
        let sources = Endpoint::sources(self.transport.options(), reference)?;
        let last = sources.len() - 1;
        for (number, endpoint) in sources.iter().enumerate() {
            let scope = Scope::pull(&endpoint.repository);
            match wanted.fetch(&self.exchange(endpoint, &scope, session)).await {
                Err(error) if number < last && error.next_source_may_help() => {}
                result => return result,
            }
        }
        unreachable!("the host itself is always the last source")
    }
}

/// Runs until the session is cancelled. The work is on the heap: else the future had room for it twice.
pub(crate) fn until_cancelled<T, E: From<RegistryError>>(
    session: &dyn Session,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    let work = Box::pin(work);
    async move {
        tokio::select! {
            biased;
            () = session.cancellation().cancelled() => Err(RegistryError::Cancelled.into()),
            result = work => result,
        }
    }
}
