use crate::document::{Document, LARGEST_DOCUMENT};
use crate::exchange::Exchange;
use crate::registry::until_cancelled;
use crate::retry::Failure;
use crate::transport::{Body, Request, shown};
use crate::{Registry, RegistryError, select_platform};
use bytes::Bytes;
use forge_image::{Descriptor, Digest, Index, MediaType, Platform, Reference};
use forge_session::Session;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use reqwest::{Method, StatusCode};

/// The kinds that forge reads, those with several platforms first.
const ACCEPTED: [MediaType; 4] =
    [MediaType::OciIndex, MediaType::DockerManifestList, MediaType::OciManifest, MediaType::DockerManifest];

/// How deep indexes may lie within indexes (A70).
const DEEPEST: usize = 4;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Which document is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The one that a reference names.
    Named(&'a Reference),
    /// The one that a descriptor names.
    Described(&'a Descriptor),
}

impl Wanted<'_> {
    /// Asks one source for it.
    pub(crate) async fn fetch(self, exchange: &Exchange<'_>) -> Result<Document, RegistryError> {
        let descriptor = match self {
            Self::Named(reference) => return fetch(exchange, reference.digest(), &name_in_url(reference)).await,
            Self::Described(descriptor) => descriptor,
        };
        let digest = &descriptor.digest;
        let url = shown(&exchange.endpoint.url(&format!("manifests/{digest}")));
        if descriptor.size > LARGEST_DOCUMENT {
            return Err(RegistryError::TooLarge { url, what: "manifest", limit: LARGEST_DOCUMENT });
        }
        let document = fetch(exchange, Some(digest), digest.as_str()).await?;
        agree(&document, descriptor, url)?;
        Ok(document)
    }
}

impl Registry {
    /// Fetches what a reference names, by digest if it has one, else by tag: a manifest or an index.
    ///
    /// The digest is computed here; what the server says about it is not believed (A68).
    ///
    /// # Errors
    /// No source has it, lets forge in, or sends an acceptable document.
    pub async fn resolve(&self, reference: &Reference, session: &dyn Session) -> Result<Document, RegistryError> {
        until_cancelled(session, self.first_source(reference, session, Wanted::Named(reference))).await
    }

    /// Fetches the manifest or index that a descriptor names. Its `urls` are never followed (A73).
    ///
    /// # Errors
    /// As [`Registry::resolve`], and when media type or size are not the descriptor's.
    pub async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        session: &dyn Session,
    ) -> Result<Document, RegistryError> {
        until_cancelled(session, self.first_source(reference, session, Wanted::Described(descriptor))).await
    }

    /// Fetches the manifest for one platform, going down through indexes.
    ///
    /// Returns the outermost index, where there is one, and the manifest. A manifest that is not in an index is taken
    /// as it is: what it is for stands in its config.
    ///
    /// # Errors
    /// As [`Registry::resolve`]; an index has nothing for the platform, or indexes are nested too deep (A70).
    pub async fn resolve_platform(
        &self,
        reference: &Reference,
        platform: &Platform,
        session: &dyn Session,
    ) -> Result<(Option<Document>, Document), RegistryError> {
        let mut document = self.resolve(reference, session).await?;
        let mut outermost = None;
        for _ in 0..DEEPEST {
            if !document.is_index() {
                return Ok((outermost, document));
            }
            let index = Index::from_json(&document.bytes, Some(&document.descriptor.media_type))
                .map_err(|source| RegistryError::Document { url: reference.to_string(), source })?;
            let entry = select_platform(&index, platform)?;
            let inner = self.manifest(reference, entry, session).await?;
            let outer = std::mem::replace(&mut document, inner);
            outermost.get_or_insert(outer);
        }
        match document.is_index() {
            true => Err(RegistryError::TooDeep { limit: DEEPEST }),
            false => Ok((outermost, document)),
        }
    }

    /// Puts a manifest or an index under a reference's tag or digest. Everything it refers to must be there already.
    ///
    /// # Errors
    /// The reference has a digest that is not that of the bytes; the registry refuses it, or reports another digest.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &MediaType,
        bytes: &[u8],
        session: &dyn Session,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::sha256(bytes);
        if let Some(wanted) = reference.digest().filter(|wanted| **wanted != digest) {
            let reason = format!("the bytes have the digest {digest}");
            return Err(RegistryError::Source { digest: wanted.clone(), reason });
        }
        let endpoint = self.origin(reference)?;
        let scope = crate::auth::Scope::push(&endpoint.repository, &[]);
        let exchange = self.exchange(&endpoint, &scope, session);
        let request = Request::new(Method::PUT, endpoint.url(&format!("manifests/{}", name_in_url(reference))))
            .header(CONTENT_TYPE, media_type.as_str())
            .body(Body::Bytes(Bytes::copy_from_slice(bytes)));
        until_cancelled(session, exchange.repeat(|| put(&exchange, &request, &digest))).await?;
        Ok(digest)
    }
}

/// Digest or tag, whichever pins more.
fn name_in_url(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}

async fn fetch(exchange: &Exchange<'_>, digest: Option<&Digest>, name: &str) -> Result<Document, RegistryError> {
    let accepted = ACCEPTED.map(|kind| kind.as_str().to_owned()).join(", ");
    let request =
        Request::new(Method::GET, exchange.endpoint.url(&format!("manifests/{name}"))).header(ACCEPT, &accepted);
    exchange.repeat(|| get(exchange, &request, digest, name)).await
}

async fn get(
    exchange: &Exchange<'_>,
    request: &Request,
    digest: Option<&Digest>,
    name: &str,
) -> Result<Document, Failure> {
    let what = format!("manifest {name} of {}", exchange.endpoint.repository);
    let answer = exchange.once(request, &what).await?;
    if answer.status() != StatusCode::OK {
        return Err(answer.into_failure(&what).await);
    }
    answer.check_encoding()?;
    let (url, announced) = (shown(answer.url()), answer.header(CONTENT_TYPE).map(str::to_owned));
    let bytes = answer.bytes(LARGEST_DOCUMENT, "manifest").await?;
    Document::accept(&url, bytes, announced.as_deref(), digest).map_err(Failure::last)
}

fn agree(document: &Document, descriptor: &Descriptor, url: String) -> Result<(), RegistryError> {
    let found = &document.descriptor;
    if found.media_type != descriptor.media_type {
        let (announced, found) = (descriptor.media_type.clone(), found.media_type.clone());
        let source = forge_image::DocumentError::MediaType { announced, found };
        return Err(RegistryError::Document { url, source });
    }
    if found.size != descriptor.size {
        let (digest, expected) = (descriptor.digest.clone(), descriptor.size);
        return Err(RegistryError::SizeMismatch { url, digest, expected, found: found.size });
    }
    Ok(())
}

async fn put(exchange: &Exchange<'_>, request: &Request, digest: &Digest) -> Result<(), Failure> {
    let what = format!("pushing to {}", exchange.endpoint.repository);
    let answer = exchange.once(request, &what).await?;
    if !matches!(answer.status(), StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT)
    {
        return Err(answer.into_failure(&what).await);
    }
    // A registry that rewrites what it is given would serve something else under the tag.
    match answer.header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok()) {
        Some(found) if found != *digest && found.algorithm() == digest.algorithm() => {
            let url = shown(answer.url());
            Err(Failure::last(RegistryError::DigestMismatch { url, expected: digest.clone(), found }))
        }
        _ => Ok(()),
    }
}
