//! Tokens of registries for a builder elsewhere, which then need not know the credentials.

use crate::engine::registry_options;
use crate::{EngineError, EngineOptions};
use forge_registry::{Registry, RegistryError};
use forge_session::{RegistryToken, Session, TokenRequest};

/// Fetches tokens with what registries are told here: their addresses, certificates and proxies.
pub struct TokenFetcher(Registry);

impl TokenFetcher {
    /// Makes no connection.
    ///
    /// # Errors
    /// A proxy's address is none.
    pub fn new(options: &EngineOptions) -> Result<Self, EngineError> {
        Ok(Self(Registry::new(registry_options(options))?))
    }

    /// Fetches one with the session's credentials. `None` where there are no credentials, or the token's server is none that
    /// they are sent to, or cannot be reached from here.
    ///
    /// # Errors
    /// The credentials are refused, or cannot be read.
    pub async fn fetch(
        &self,
        wanted: &TokenRequest<'_>,
        session: &dyn Session,
    ) -> Result<Option<RegistryToken>, EngineError> {
        match self.0.token(wanted, session).await {
            Ok(token) => Ok(token),
            Err(error @ (RegistryError::Unauthorized { .. } | RegistryError::Credentials { .. })) => Err(error.into()),
            // The builder may be nearer to it, and is told otherwise by its own configuration.
            Err(_) => Ok(None),
        }
    }
}
