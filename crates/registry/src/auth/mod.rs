//! Who forge is to a registry: challenges, tokens, and what may be sent where.

mod challenge;
mod realm;
mod token;

use crate::endpoint::Endpoint;
use crate::retry::Failure;
use crate::transport::{Transport, authority};
use crate::{RegistryError, ServerMessage};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub(crate) use challenge::Challenge;
use forge_session::{Credentials, Redacted, Session};
pub(crate) use realm::{Realm, Trust};
use reqwest::header::WWW_AUTHENTICATE;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use token::Grant;
pub(crate) use token::Proof;
pub(crate) use token::{DEFAULT_LIFE, Demand};

/// What a request needs a token for, as the token specification writes it: `repository:library/alpine:pull`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scope(Vec<String>);

impl Scope {
    pub(crate) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    /// Push to one repository, and read others of the same registry, to mount blobs from.
    pub(crate) fn push(repository: &str, mount_from: &[&str]) -> Self {
        let others = mount_from.iter().map(|other| format!("repository:{other}:pull"));
        Self(std::iter::once(format!("repository:{repository}:pull,push")).chain(others).collect())
    }

    pub(crate) fn words(&self) -> &[String] {
        &self.0
    }
}

/// Keeps what registries granted, apart for each owner of sessions.
#[derive(Default)]
pub(crate) struct Authenticator {
    slots: Mutex<HashMap<Key, (Slot, Instant)>>,
}

/// The owner, the registry's address and what is allowed.
type Key = (String, String, Scope);

/// What was not looked for in so long is forgotten: owners come and go.
const IDLE: Duration = Duration::from_secs(600);

/// What was granted for one registry and scope. The lock is held while a token is fetched, so that a dozen blobs that
/// are asked for at once fetch one token.
type Slot = Arc<tokio::sync::Mutex<Option<Grant>>>;

impl Authenticator {
    /// What is known to be granted.
    pub(crate) async fn known(&self, endpoint: &Endpoint, scope: &Scope, session: &dyn Session) -> Option<Proof> {
        let slot = self.slot(endpoint, scope, session);
        let grant = slot.lock().await;
        grant.as_ref().filter(|grant| grant.is_valid(Instant::now())).map(|grant| grant.proof.clone())
    }

    /// Answers a 401: fetches a token, or takes the credentials as they are. `refused` is what the registry has just refused.
    /// `None`: there is nothing (else) to offer.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scope: &Scope,
        challenges: &[Challenge],
        refused: Option<&Proof>,
        session: &dyn Session,
    ) -> Result<Option<Proof>, Failure> {
        let slot = self.slot(endpoint, scope, session);
        let mut grant = slot.lock().await;
        let now = Instant::now();
        // Another request may have fetched one while this one waited for the slot.
        if let Some(grant) = grant.as_ref().filter(|grant| grant.is_valid(now) && Some(&grant.proof) != refused) {
            return Ok(Some(grant.proof.clone()));
        }
        *grant = None;
        *grant = token::obtain(transport, endpoint, scope, challenges, refused, session).await?;
        Ok(grant.as_ref().map(|grant| grant.proof.clone()).filter(|new| Some(new) != refused))
    }

    fn slot(&self, endpoint: &Endpoint, scope: &Scope, session: &dyn Session) -> Slot {
        let (now, mut slots) = (Instant::now(), self.slots.lock().unwrap_or_else(PoisonError::into_inner));
        let key = (session.owner().to_owned(), endpoint.base.to_string(), scope.clone());
        if let Some((slot, used)) = slots.get_mut(&key) {
            *used = now;
            return slot.clone();
        }
        slots.retain(|_, (_, used)| now.duration_since(*used) < IDLE);
        slots.entry(key).or_insert_with(|| (Slot::default(), now)).0.clone()
    }
}

/// The challenges of a 401. Only the registry itself may pose them, not where it redirects to.
pub(crate) fn challenges(answer: &crate::answer::Answer) -> Vec<Challenge> {
    match answer.is_from_origin() {
        true => Challenge::parse_all(&answer.headers(WWW_AUTHENTICATE)),
        false => Vec::new(),
    }
}

pub(crate) fn basic(username: &str, password: &Redacted) -> Redacted {
    Redacted::new(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal()))))
}

/// The error for an untrusted token server that did not give a token to someone unknown.
fn untrusted(
    endpoint: &Endpoint,
    realm: &Realm,
    message: ServerMessage,
    credentials: Option<&Credentials>,
) -> RegistryError {
    match (realm.check_trusted(endpoint), credentials) {
        (Err(refused), Some(_)) => refused,
        _ => RegistryError::Unauthorized {
            registry: authority(&endpoint.base),
            what: "tokens".to_owned(),
            authenticated: credentials.is_some(),
            message,
        },
    }
}
