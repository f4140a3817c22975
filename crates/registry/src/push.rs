use crate::auth::Scope;
use crate::exchange::Exchange;
use crate::registry::until_cancelled;
use crate::retry::Failure;
use crate::transport::{Request, checked_target};
use crate::upload::Upload;
use crate::{Registry, RegistryError};
use forge_image::{Descriptor, Reference};
use forge_session::Session;
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode, Url};
use std::fs::File;
use std::sync::Arc;

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// Each costs a round trip; the best candidates come first.
const MOST_MOUNTS: usize = 4;

impl Registry {
    /// Brings a blob into a repository: it is there already, or the registry takes it from another of its repositories, or
    /// its bytes are sent.
    ///
    /// `mount_from` are repositories of the same registry that may have it, likeliest first; that a mount fails is not an
    /// error. `source` is read by position from its beginning. `progress` is told how many bytes have been sent so far.
    ///
    /// # Errors
    /// The file is not as long as the descriptor says, or cannot be read; the registry refuses the blob.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: File,
        mount_from: &[String],
        session: &dyn Session,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, RegistryError> {
        check_source(&source, descriptor)?;
        let endpoint = self.origin(reference)?;
        let scope = Scope::push(&endpoint.repository, &[]);
        let exchange = self.exchange(&endpoint, &scope, session);
        until_cancelled(session, async {
            let begun = match self.offer(&exchange, reference, descriptor, mount_from).await? {
                Offer::Taken(pushed) => return Ok(pushed),
                Offer::Wanted(begun) => begun,
            };
            let file = Arc::new(source);
            Upload { exchange, descriptor, file, progress }.run(begun).await?;
            Ok(Pushed::Uploaded)
        })
        .await
    }

    /// Brings a blob into a repository without having it: it is there already, or the registry takes it from another of its
    /// repositories. `None`: its bytes would have to be sent.
    ///
    /// # Errors
    /// The registry refuses.
    pub async fn offer_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        mount_from: &[String],
        session: &dyn Session,
    ) -> Result<Option<Pushed>, RegistryError> {
        let endpoint = self.origin(reference)?;
        let scope = Scope::push(&endpoint.repository, &[]);
        let exchange = self.exchange(&endpoint, &scope, session);
        until_cancelled(session, async {
            Ok(match self.offer(&exchange, reference, descriptor, mount_from).await? {
                Offer::Taken(pushed) => Some(pushed),
                Offer::Wanted(_) => None,
            })
        })
        .await
    }

    async fn offer(
        &self,
        exchange: &Exchange<'_>,
        reference: &Reference,
        descriptor: &Descriptor,
        mount_from: &[String],
    ) -> Result<Offer, RegistryError> {
        if exists(exchange, descriptor).await? {
            return Ok(Offer::Taken(Pushed::Existed));
        }
        let mut begun = None;
        for from in candidates(reference, mount_from) {
            let scope = Scope::push(&exchange.endpoint.repository, &[from]);
            // A refused mount leaves the blob to be sent; whatever else is wrong shows there.
            match mount(&self.exchange(exchange.endpoint, &scope, exchange.session), descriptor, from).await {
                Ok(Mount::Done) => return Ok(Offer::Taken(Pushed::Mounted)),
                Ok(Mount::Begun(location)) => begun = Some(location),
                Err(_) => {}
            }
        }
        Ok(Offer::Wanted(begun))
    }
}

/// What a registry makes of a blob that it is offered.
enum Offer {
    Taken(Pushed),
    /// It wants the bytes, perhaps in an upload that it has begun.
    Wanted(Option<Url>),
}

fn check_source(source: &File, descriptor: &Descriptor) -> Result<(), RegistryError> {
    let digest = || descriptor.digest.clone();
    let length = source.metadata().map_err(|source| RegistryError::Read { digest: digest(), source })?.len();
    match length == descriptor.size {
        true => Ok(()),
        false => {
            let reason = format!("its file has {length} bytes, declared are {}", descriptor.size);
            Err(RegistryError::Source { digest: digest(), reason })
        }
    }
}

/// Other repositories of the registry, without doubles and without what is no repository's name.
fn candidates<'a>(reference: &Reference, mount_from: &'a [String]) -> Vec<&'a str> {
    let mut candidates: Vec<&str> = Vec::new();
    for from in mount_from {
        let named = format!("{}/{from}", reference.registry()).parse::<Reference>();
        let valid = named.is_ok_and(|named| named.repository() == from && named.repository() != reference.repository());
        if valid && !candidates.contains(&from.as_str()) && candidates.len() < MOST_MOUNTS {
            candidates.push(from);
        }
    }
    candidates
}

async fn exists(exchange: &Exchange<'_>, descriptor: &Descriptor) -> Result<bool, RegistryError> {
    let request = Request::new(Method::HEAD, exchange.endpoint.url(&format!("blobs/{}", descriptor.digest)));
    let what = format!("pushing to {}", exchange.endpoint.repository);
    let ask = || async {
        let answer = exchange.once(&request, &what).await?;
        match answer.status() {
            // Should the registry have other bytes under this name, sending the right ones tells.
            StatusCode::OK => Ok(answer.content_length().is_none_or(|length| length == descriptor.size)),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(answer.into_failure(&what).await),
        }
    };
    exchange.repeat(ask).await
}

enum Mount {
    Done,
    /// The registry began an upload instead, at this address.
    Begun(Url),
}

async fn mount(exchange: &Exchange<'_>, descriptor: &Descriptor, from: &str) -> Result<Mount, Failure> {
    let mut url = exchange.endpoint.url("blobs/uploads/");
    url.query_pairs_mut().append_pair("mount", descriptor.digest.as_str()).append_pair("from", from);
    let what = format!("mounting from {from}");
    let answer = exchange.once(&Request::new(Method::POST, url), &what).await?;
    match answer.status() {
        StatusCode::CREATED => Ok(Mount::Done),
        StatusCode::ACCEPTED => match answer.header(LOCATION) {
            Some(location) => Ok(Mount::Begun(checked_target(answer.url(), location)?)),
            None => Err(Failure::last(answer.protocol_error("an upload was begun without a Location"))),
        },
        _ => Err(answer.into_failure(&what).await),
    }
}
