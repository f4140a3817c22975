use crate::answer::Answer;
use crate::endpoint::options_for;
use crate::proxy::ProxyRules;
use crate::resolver::{AllNames, PublicNames};
use crate::upload_body::UploadBody;
use crate::{HostOptions, RegistryError, RegistryOptions, tls};
use bytes::Bytes;
use forge_session::Redacted;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Method, StatusCode, Url};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A request that can be sent again: over another connection, or after a redirect.
#[derive(Clone)]
pub(crate) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Body,
    /// The value of `Authorization`. Goes to the origin of `url` and nowhere else (A75).
    pub authorization: Option<Redacted>,
}

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    /// Holds a secret, so it is never sent on by a redirect to another origin.
    Form(Redacted),
    Upload(UploadBody),
}

impl Request {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Body::Empty, authorization: None }
    }

    pub(crate) fn header(mut self, name: reqwest::header::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(crate) fn body(self, body: Body) -> Self {
        Self { body, ..self }
    }
}

/// Sends single requests: connections, TLS, proxies, redirects, limits. Knows nothing of the registry's protocol.
pub(crate) struct Transport {
    options: RegistryOptions,
    proxy: Arc<ProxyRules>,
    /// One client for each set of TLS options, made when first needed: reading certificates takes milliseconds.
    clients: Mutex<HashMap<(Profile, Reach), Client>>,
    names: PublicNames,
    /// The slots of each host.
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Which TLS options a connection has.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Profile {
    Plain,
    Usual,
    Host(String),
}

/// Where a connection may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    /// Wherever names lead.
    Everything,
    /// Not into private networks (A112).
    Public,
}

const MOST_REDIRECTS: usize = 10;

/// Headers that one answer may have (A79); their bytes are bounded by hyper.
const MOST_HEADERS: usize = 200;

impl Transport {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let proxy = Arc::new(ProxyRules::new(&options.proxy)?);
        let (clients, gates) = Default::default();
        Ok(Self { options, proxy, clients, names: PublicNames::default(), gates })
    }

    pub(crate) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    pub(crate) fn proxy(&self) -> &ProxyRules {
        &self.proxy
    }

    pub(crate) fn public_names(&self) -> &PublicNames {
        &self.names
    }

    /// Sends a request and follows redirects (A75): ten at most, never from https to http, never to link-local addresses;
    /// from the first change of origin on without `Authorization`, even back at the first origin.
    pub(crate) async fn send(&self, request: &Request) -> Result<Answer, RegistryError> {
        let mut hop = request.clone();
        let mut stayed = true;
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.exchange(&hop, Reach::Everything).await?;
            let Some(target) = redirect_target(&hop, &answer)? else { return Ok(answer.with_origin(stayed)) };
            stayed &= target.origin() == request.url.origin();
            hop = redirected(hop, target)?;
        }
        Err(RegistryError::Protocol {
            url: shown(&request.url),
            reason: format!("more than {MOST_REDIRECTS} redirects"),
        })
    }

    /// Sends a request once, and follows nothing.
    pub(crate) async fn exchange(&self, request: &Request, reach: Reach) -> Result<Answer, RegistryError> {
        let permit = self.permit(&request.url).await;
        let client = self.client(&request.url, reach)?;
        let mut builder = client.request(request.method.clone(), request.url.clone()).headers(request.headers.clone());
        if let Some(authorization) = &request.authorization {
            builder = builder.header(AUTHORIZATION, secret_header(authorization, &request.url)?);
        }
        let (builder, sent) = match &request.body {
            Body::Empty => (builder, None),
            Body::Bytes(bytes) => (builder.body(bytes.clone()), None),
            Body::Form(form) => (builder.body(form.reveal().to_owned()), None),
            Body::Upload(upload) => (upload.attach(builder), Some(upload.watch())),
        };
        let timeouts = self.options.timeouts;
        let response = match sent {
            None => tokio::time::timeout(timeouts.stall, builder.send()).await.ok(),
            Some(watch) => watch.until_answered(builder.send(), timeouts).await,
        };
        let response = response.ok_or_else(|| stalled(request, timeouts.stall))?;
        let response = response.map_err(|error| connection_error(&request.method, &request.url, error))?;
        Ok(Answer::new(response, request.method.clone(), timeouts, permit))
    }

    async fn permit(&self, url: &Url) -> OwnedSemaphorePermit {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = self.options.max_concurrency.clamp(1, 1024);
            Arc::clone(gates.entry(url.authority().to_owned()).or_insert_with(|| Arc::new(Semaphore::new(slots))))
        };
        gate.acquire_owned().await.expect("the gates are never closed")
    }

    fn client(&self, url: &Url, reach: Reach) -> Result<Client, RegistryError> {
        let found = options_for(&self.options, url);
        let own_tls = |host: &HostOptions| host.insecure || !host.ca.is_empty() || !host.keypair.is_empty();
        let (profile, host) = match found {
            _ if url.scheme() == "http" => (Profile::Plain, None),
            Some((name, host)) if own_tls(host) => (Profile::Host(name.to_owned()), Some(host)),
            _ => (Profile::Usual, None),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&(profile.clone(), reach)) {
            return Ok(client.clone());
        }
        let client = self.connect_options(url, &profile, host, reach)?;
        clients.insert((profile, reach), client.clone());
        Ok(client)
    }

    fn connect_options(
        &self,
        url: &Url,
        profile: &Profile,
        host: Option<&HostOptions>,
        reach: Reach,
    ) -> Result<Client, RegistryError> {
        let name = url.host_str().unwrap_or_default();
        let tls = match profile {
            Profile::Plain => tls::distrusting_config(),
            _ => tls::client_config(name, host.unwrap_or(&HostOptions::default()), &self.options.roots)?,
        };
        let rules = Arc::clone(&self.proxy);
        let builder = match reach {
            Reach::Everything => Client::builder().dns_resolver(Arc::new(AllNames(self.names.clone()))),
            Reach::Public => Client::builder().dns_resolver(Arc::new(self.names.clone())),
        };
        builder
            .tls_backend_preconfigured(tls)
            .http1_only()
            .http1_max_headers(MOST_HEADERS)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // The digest is that of the bytes on the wire; nothing may unpack them on the way.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .no_proxy()
            .proxy(reqwest::Proxy::custom(move |url| rules.proxy_for(url)))
            .user_agent(self.options.user_agent.as_str())
            .connect_timeout(self.options.timeouts.connect)
            .pool_idle_timeout(Duration::from_secs(30))
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| RegistryError::Options {
                host: name.to_owned(),
                option: "connection",
                reason: error.without_url().to_string(),
            })
    }
}

fn redirect_target(hop: &Request, answer: &Answer) -> Result<Option<Url>, RegistryError> {
    let keeps_method = matches!(answer.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let reads = matches!(hop.method, Method::GET | Method::HEAD);
    let for_readers =
        matches!(answer.status(), StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER);
    if !(keeps_method || (reads && for_readers)) {
        return Ok(None);
    }
    let Some(location) = answer.header(LOCATION) else { return Ok(None) };
    checked_target(&hop.url, location).map(Some)
}

/// Resolves a `Location` against the address that answered with it, and refuses where forge does not go: other schemes,
/// from https to http, with a user in it, to link-local addresses.
pub(crate) fn checked_target(from: &Url, location: &str) -> Result<Url, RegistryError> {
    let refused = |target: String, reason| RegistryError::Refused { registry: authority(from), target, reason };
    let target = from.join(location).map_err(|_| refused(crate::message::sanitise(location), "not an address"))?;
    let reason = match (from.scheme(), target.scheme()) {
        ("https", "http") => "from https to http",
        (_, "http" | "https") if !target.username().is_empty() || target.password().is_some() => {
            "the address holds a user name"
        }
        (_, "http" | "https") if is_link_local(&target) && !is_link_local(from) => "a link-local address",
        (_, "http" | "https") => return Ok(target),
        _ => "neither http nor https",
    };
    Err(refused(shown(&target), reason))
}

fn redirected(hop: Request, target: Url) -> Result<Request, RegistryError> {
    if target.origin() == hop.url.origin() {
        return Ok(Request { url: target, ..hop });
    }
    if matches!(hop.body, Body::Form(_)) {
        return Err(RegistryError::Refused {
            registry: authority(&hop.url),
            target: shown(&target),
            reason: "a secret would go to another server",
        });
    }
    Ok(Request { url: target, authorization: None, ..hop })
}

/// Addresses that answer on every cloud machine with that machine's own secrets; never a registry's business (A74).
pub(crate) fn is_link_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some_and(|address| address.is_link_local())
                || address.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
        Err(_) => host.eq_ignore_ascii_case("metadata.google.internal"),
    }
}

/// A URL as it may be shown: no user, no password, no query (signatures), no fragment.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // These fail only for URLs that cannot have such parts.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    crate::message::sanitise(url.as_str())
}

/// Host and port, for messages; Docker Hub by the name that users know.
pub(crate) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some("registry-1.docker.io"), None) => "docker.io".to_owned(),
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn secret_header(value: &Redacted, url: &Url) -> Result<HeaderValue, RegistryError> {
    let mut header = HeaderValue::from_str(value.reveal()).map_err(|_| RegistryError::Protocol {
        url: shown(url),
        reason: "the credentials hold characters that no header can carry".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

fn stalled(request: &Request, time: Duration) -> RegistryError {
    RegistryError::Stalled { method: request.method.to_string(), url: shown(&request.url), seconds: time.as_secs() }
}

/// The URL is taken out of the cause: it is shown in our own, cleaned, form.
pub(crate) fn connection_error(method: &Method, url: &Url, error: reqwest::Error) -> RegistryError {
    RegistryError::Connection { method: method.to_string(), url: shown(url), source: Box::new(error.without_url()) }
}
