use crate::auth::{Challenge, DEFAULT_LIFE, Demand, Realm, basic, challenges};
use crate::endpoint::Endpoint;
use crate::retry::{Failure, Tries};
use crate::transport::{Request, authority};
use crate::{Registry, RegistryError, ServerMessage};
use forge_session::{Credentials, Redacted, RegistryToken, Session, TokenRequest};
use reqwest::{Method, StatusCode};

/// What a registry said to credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginOutcome {
    /// The registry took them. Where it gave a refresh token for them, that is to be kept instead of the password.
    Accepted {
        /// docker's `identitytoken`.
        identity_token: Option<Redacted>,
    },
    /// The registry lets everyone in without asking.
    NotRequired,
}

impl Registry {
    /// Tries credentials at a registry's front door, `/v2/`. Keeps nothing.
    ///
    /// # Errors
    /// [`RegistryError::Unauthorized`] when they are refused; or the registry cannot be reached, or sends forge to a token
    /// server that is not to have them (A74).
    pub async fn login(&self, registry: &str, credentials: &Credentials) -> Result<LoginOutcome, RegistryError> {
        let endpoint = Endpoint::origin(self.transport.options(), registry, "")?;
        let mut tries = Tries::new(self.transport.options().retry);
        loop {
            match self.try_login(&endpoint, credentials).await {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }

    /// Fetches a token with the session's credentials for somebody who need not know these, and who says what the registry
    /// asked for; `None` where there are none. The realm is judged as if the registry itself had named it.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a realm that is not to have the credentials (A74); or they are refused, or cannot be read.
    pub async fn token(
        &self,
        wanted: &TokenRequest<'_>,
        session: &dyn Session,
    ) -> Result<Option<RegistryToken>, RegistryError> {
        let endpoint = Endpoint::origin(self.transport.options(), wanted.registry, "")?;
        let found = session.credentials(&endpoint.name).await;
        let found = found.map_err(|source| RegistryError::Credentials { registry: endpoint.name.clone(), source })?;
        let credentials = match found {
            None => return Ok(None),
            Some(Credentials::Bearer(token)) => return Ok(Some(RegistryToken { token, life: DEFAULT_LIFE })),
            Some(credentials) => credentials,
        };
        let realm = Realm::judge(&endpoint, wanted.realm)?;
        realm.check_trusted(&endpoint)?;
        let (service, scopes) = (wanted.service.map(str::to_owned), wanted.scopes.to_vec());
        let demand = Demand { realm, service, scopes, offline: false };
        let fetched = demand.fetch(&self.transport, &endpoint, Some(&credentials)).await;
        Ok(fetched.map_err(|failure| failure.error)?.into_token())
    }

    async fn try_login(&self, endpoint: &Endpoint, credentials: &Credentials) -> Result<LoginOutcome, Failure> {
        let door = Request::new(Method::GET, endpoint.base.clone());
        let answer = self.transport.send(&door).await?;
        let asked = match answer.status() {
            StatusCode::OK => return Ok(LoginOutcome::NotRequired),
            StatusCode::UNAUTHORIZED => challenges(&answer),
            _ => return Err(answer.into_failure("login").await),
        };
        let (authorization, identity_token) = self.proof(endpoint, &asked, credentials).await?;
        let answer = self.transport.send(&Request { authorization: Some(authorization), ..door }).await?;
        match answer.status() {
            StatusCode::OK => Ok(LoginOutcome::Accepted { identity_token }),
            _ => Err(answer.with_proof(true).into_failure("login").await),
        }
    }

    async fn proof(
        &self,
        endpoint: &Endpoint,
        asked: &[Challenge],
        credentials: &Credentials,
    ) -> Result<(Redacted, Option<Redacted>), Failure> {
        let bearer = asked.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match (bearer, credentials) {
            (Some(_), Credentials::Bearer(token)) => Ok((Redacted::new(format!("Bearer {}", token.reveal())), None)),
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let realm = Realm::judge(endpoint, realm)?;
                realm.check_trusted(endpoint)?;
                let scopes = scope.as_deref().unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
                let demand = Demand { realm, service: service.clone(), scopes, offline: true };
                let grant = demand.fetch(&self.transport, endpoint, Some(credentials)).await?;
                Ok((grant.proof.authorization, grant.refresh_token))
            }
            (_, Credentials::Basic { username, password }) if asked.contains(&Challenge::Basic) => {
                Ok((basic(username, password), None))
            }
            _ => Err(Failure::last(RegistryError::Unauthorized {
                registry: authority(&endpoint.base),
                what: "login".to_owned(),
                authenticated: true,
                message: ServerMessage::default(),
            })),
        }
    }
}
