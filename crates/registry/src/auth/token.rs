use super::{Challenge, Realm, Scope, Trust, basic, untrusted};
use crate::answer::LARGEST_ERROR;
use crate::endpoint::Endpoint;
use crate::retry::{Failure, Tries};
use crate::transport::{Body, Request, Transport};
use crate::{RegistryError, ServerMessage};
use forge_session::{Credentials, Redacted, RegistryToken, Session, TokenRequest};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What shows a registry who asks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proof {
    /// The value of `Authorization`.
    pub authorization: Redacted,
    /// Whether credentials stand behind it, rather than a token for everyone.
    pub personal: bool,
    /// Whether the session gave it as it is.
    pub lent: bool,
}

/// What a registry takes as proof.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// What to show.
    pub proof: Proof,
    /// A refresh token that came along, where one was asked for.
    pub refresh_token: Option<Redacted>,
    expires: Option<Instant>,
}

/// Who forge says it is, where a token server asks (RFC 6749, 2.2).
const CLIENT_ID: &str = "forge";

/// "If omitted, this defaults to 60 seconds" (distribution specification, "Token Authentication").
pub(crate) const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// Nothing is kept for longer, whatever a server says.
const LONGEST_LIFE: Duration = Duration::from_secs(86_400);

impl Proof {
    fn token(&self) -> Redacted {
        let value = self.authorization.reveal();
        Redacted::new(value.strip_prefix("Bearer ").unwrap_or(value))
    }
}

impl Grant {
    fn lasting(authorization: Redacted) -> Self {
        Self { proof: Proof { authorization, personal: true, lent: false }, refresh_token: None, expires: None }
    }

    /// A token that somebody else fetched.
    fn given(given: &RegistryToken) -> Result<Self, &'static str> {
        let grant = Self::expiring(given.token.reveal(), given.life, true)?;
        Ok(Self { proof: Proof { lent: true, ..grant.proof }, ..grant })
    }

    fn expiring(token: &str, life: Duration, personal: bool) -> Result<Self, &'static str> {
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token holds characters that no header can carry");
        }
        let life = life.min(LONGEST_LIFE);
        // Renewed a little before the end, so that it does not end on the way.
        let expires = Some(Instant::now() + (life - life / 10));
        let proof = Proof { authorization: Redacted::new(format!("Bearer {token}")), personal, lent: false };
        Ok(Self { proof, refresh_token: None, expires })
    }

    /// What another one may show the registry.
    pub(crate) fn into_token(self) -> Option<RegistryToken> {
        let life = self.expires?.saturating_duration_since(Instant::now());
        Some(RegistryToken { token: self.proof.token(), life })
    }

    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// Answers challenges with what the session has: a token, or credentials. `None`: nothing fits.
pub(crate) async fn obtain(
    transport: &Transport,
    endpoint: &Endpoint,
    scope: &Scope,
    challenges: &[Challenge],
    refused: Option<&Proof>,
    session: &dyn Session,
) -> Result<Option<Grant>, Failure> {
    let demand = challenges.iter().find_map(|challenge| Demand::of(challenge, endpoint, scope));
    let no_credentials = |source| RegistryError::Credentials { registry: endpoint.name.clone(), source };
    if let Some(Ok(demand)) = &demand
        && demand.realm.trust == Trust::Credentials
    {
        let refused = refused.map(Proof::token);
        let wanted = TokenRequest {
            registry: &endpoint.name,
            realm: demand.realm.url.as_str(),
            service: demand.service.as_deref(),
            scopes: &demand.scopes,
            refused: refused.as_ref(),
        };
        if let Some(given) = session.token(&wanted).await.map_err(no_credentials)? {
            return Ok(Some(Grant::given(&given).map_err(|reason| broken(&demand.realm.url, reason))?));
        }
    }
    let credentials = session.credentials(&endpoint.name).await.map_err(no_credentials)?;
    match (demand, credentials.as_ref()) {
        (Some(_), Some(Credentials::Bearer(token))) => {
            Ok(Some(Grant::lasting(Redacted::new(format!("Bearer {}", token.reveal())))))
        }
        (Some(demand), credentials) => demand?.fetch(transport, endpoint, credentials).await.map(Some),
        (None, Some(Credentials::Basic { username, password })) if challenges.contains(&Challenge::Basic) => {
            Ok(Some(Grant::lasting(basic(username, password))))
        }
        _ => Ok(None),
    }
}

/// What forge wants, and what the registry says it wants for another name than forge's: registries behind proxies know
/// their repositories by other names.
fn scopes(own: &Scope, asked: Option<&str>) -> Vec<String> {
    let mut scopes = own.words().to_vec();
    let resource = |scope: &str| scope.rsplit_once(':').map(|(resource, _)| resource.to_owned());
    for word in asked.unwrap_or_default().split_ascii_whitespace().take(4) {
        if !scopes.iter().any(|scope| resource(scope) == resource(word)) {
            scopes.push(word.to_owned());
        }
    }
    scopes
}

/// A token that is to be fetched.
pub(crate) struct Demand {
    pub realm: Realm,
    pub service: Option<String>,
    pub scopes: Vec<String>,
    /// Whether a refresh token is wanted too (`docker login`).
    pub offline: bool,
}

impl Demand {
    /// What a challenge asks for; `None` if that is no token.
    fn of(challenge: &Challenge, endpoint: &Endpoint, scope: &Scope) -> Option<Result<Self, RegistryError>> {
        let Challenge::Bearer { realm, service, scope: asked } = challenge else { return None };
        Some(Realm::judge(endpoint, realm).map(|realm| {
            let (service, scopes) = (service.clone(), scopes(scope, asked.as_deref()));
            Self { realm, service, scopes, offline: false }
        }))
    }

    /// Fetches the token: with a refresh token by POST (OAuth 2), else by GET, with user and password where there are some
    /// and the realm is trusted with them.
    pub(crate) async fn fetch(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
    ) -> Result<Grant, Failure> {
        let request = self.request(credentials);
        let mut tries = Tries::new(transport.options().retry);
        loop {
            match self.attempt(transport, endpoint, &request, credentials).await {
                Ok(grant) => return Ok(grant),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }

    fn request(&self, credentials: Option<&Credentials>) -> Request {
        match (self.realm.trust, credentials) {
            (Trust::Credentials, Some(Credentials::RefreshToken(token))) => self.refresh(token),
            (Trust::Credentials, Some(Credentials::Basic { username, password })) => {
                let request = Request::new(Method::GET, self.query(Some(username)));
                Request { authorization: Some(basic(username, password)), ..request }
            }
            _ => Request::new(Method::GET, self.query(None)),
        }
    }

    fn query(&self, account: Option<&str>) -> Url {
        let mut url = self.realm.url.clone();
        let mut query = url.query_pairs_mut();
        let service = self.service.as_deref().map(|service| ("service", service));
        query.extend_pairs(service);
        query.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope.as_str())));
        query.extend_pairs(account.map(|account| ("account", account)));
        if self.offline {
            query.extend_pairs([("offline_token", "true"), ("client_id", CLIENT_ID)]);
        }
        drop(query);
        url
    }

    fn refresh(&self, token: &Redacted) -> Request {
        let scope = self.scopes.join(" ");
        let service = self.service.as_deref().unwrap_or_default();
        // `Url` is the form encoder at hand.
        let mut form = Url::parse("form:").expect("a constant address");
        form.query_pairs_mut().extend_pairs([
            ("grant_type", "refresh_token"),
            ("service", service),
            ("client_id", CLIENT_ID),
            ("scope", &scope),
            ("refresh_token", token.reveal()),
        ]);
        Request::new(Method::POST, self.realm.url.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::Form(Redacted::new(form.query().unwrap_or_default())))
    }

    async fn attempt(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        request: &Request,
        credentials: Option<&Credentials>,
    ) -> Result<Grant, Failure> {
        let answer = transport.send(request).await?;
        let url = answer.url().clone();
        match answer.status() {
            StatusCode::OK => {
                let body = answer.bytes(LARGEST_ERROR, "token").await?;
                let personal = credentials.is_some() && self.realm.trust == Trust::Credentials;
                read_token(&body, &url, personal).map_err(Failure::last)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let body = answer.bytes(LARGEST_ERROR, "error").await.unwrap_or_default();
                Err(Failure::last(untrusted(endpoint, &self.realm, ServerMessage::from_body(&body), credentials)))
            }
            _ => Err(answer.into_failure("a token").await),
        }
    }
}

/// Reads `{"token": …, "access_token": …, "expires_in": seconds, "refresh_token": …}`.
fn read_token(body: &[u8], url: &Url, personal: bool) -> Result<Grant, RegistryError> {
    // The parser's message could quote the token.
    let broken = |reason| broken(url, reason);
    let document: Value = serde_json::from_slice(body).map_err(|_| broken("the token is not JSON"))?;
    let text = |name: &str| document[name].as_str().filter(|text| !text.is_empty());
    let token = text("token").or_else(|| text("access_token")).ok_or_else(|| broken("there is no token"))?;
    let life = document["expires_in"].as_u64().filter(|life| *life > 0).map_or(DEFAULT_LIFE, Duration::from_secs);
    let grant = Grant::expiring(token, life, personal).map_err(broken)?;
    Ok(Grant { refresh_token: text("refresh_token").map(Redacted::new), ..grant })
}

fn broken(url: &Url, reason: &str) -> RegistryError {
    RegistryError::Protocol { url: crate::transport::shown(url), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Grant, RegistryError> {
        read_token(body.as_bytes(), &"https://auth.test/token?sig=geheim".parse().unwrap(), true)
    }

    #[test]
    fn tokens_are_read_in_either_spelling() {
        assert_eq!(read(r#"{"token":"a"}"#).unwrap().proof.authorization.reveal(), "Bearer a");
        assert_eq!(read(r#"{"token":"","access_token":"b"}"#).unwrap().proof.authorization.reveal(), "Bearer b");
        let grant = read(r#"{"token":"a","expires_in":100}"#).unwrap();
        assert!(grant.is_valid(Instant::now() + Duration::from_secs(85)));
        assert!(!grant.is_valid(Instant::now() + Duration::from_secs(95)));
    }

    #[test]
    fn a74_broken_tokens_are_refused_without_being_shown() {
        for body in ["", "[]", "{}", r#"{"token":1}"#, r#"{"token":"geheim\r\nX: y"}"#, r#"{"token":"geheim""#] {
            let error = read(body).unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn a_registrys_other_name_is_added() {
        let own = Scope::push("a/b", &["c"]);
        let asked = "repository:a/b:pull repository:inner/a:pull";
        assert_eq!(
            scopes(&own, Some(asked)),
            ["repository:a/b:pull,push", "repository:c:pull", "repository:inner/a:pull"]
        );
    }
}
