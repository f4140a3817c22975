use crate::answer::Answer;
use crate::auth::{self, Authenticator, Proof, Scope};
use crate::endpoint::Endpoint;
use crate::retry::{Failure, Tries};
use crate::transport::{Request, Transport};
use forge_session::Session;
use futures_util::future::BoxFuture;
use reqwest::StatusCode;

/// Requests to one server about one repository: adds what proves who forge is, and answers challenges.
#[derive(Clone, Copy)]
pub(crate) struct Exchange<'a> {
    pub transport: &'a Transport,
    pub authenticator: &'a Authenticator,
    pub endpoint: &'a Endpoint,
    pub scope: &'a Scope,
    pub session: &'a dyn Session,
}

impl Exchange<'_> {
    /// Sends once, and once more with fresh proof after a 401. Any status but a final 401 is the caller's to judge.
    /// `what` says what is asked for, in errors.
    ///
    /// Requests to other servers than the endpoint (a foreign upload location) carry no proof, and cannot ask for any.
    ///
    /// On the heap: else the futures of all that might ask a registry, builds that ask none among them, would have room for it.
    pub(crate) fn once<'a>(&'a self, request: &'a Request, what: &'a str) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(self.send_with_proof(request, what))
    }

    async fn send_with_proof(&self, request: &Request, what: &str) -> Result<Answer, Failure> {
        let home = request.url.origin() == self.endpoint.base.origin();
        let known = if home { self.authenticator.known(self.endpoint, self.scope, self.session).await } else { None };
        let answer = self.send(request, known.clone()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = if home { auth::challenges(&answer) } else { Vec::new() };
        if challenges.is_empty() {
            return Err(answer.into_failure(what).await);
        }
        let (mut refusal, mut refused) = (answer.into_failure(what).await, known);
        let (transport, endpoint, scope) = (self.transport, self.endpoint, self.scope);
        loop {
            let proof =
                self.authenticator.answer(transport, endpoint, scope, &challenges, refused.as_ref(), self.session);
            let Some(proof) = proof.await? else { return Err(refusal) };
            let answer = self.send(request, Some(proof.clone())).await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            let is_first = refused.as_ref().is_none_or(|refused| !refused.lent);
            refusal = answer.into_failure(what).await;
            // What others fetched may have been good for something else, or until a while ago.
            match proof.lent && is_first {
                true => refused = Some(proof),
                false => return Err(refusal),
            }
        }
    }

    async fn send(&self, request: &Request, proof: Option<Proof>) -> Result<Answer, Failure> {
        let personal = proof.as_ref().is_some_and(|proof| proof.personal);
        let request = Request { authorization: proof.map(|proof| proof.authorization), ..request.clone() };
        Ok(self.transport.send(&request).await?.with_proof(personal))
    }

    /// Sends until an attempt succeeds or none is left.
    ///
    /// A closure that makes futures, not an async closure: the compiler cannot yet prove that the latter's futures may
    /// move between threads, and every caller of the registry needs that.
    pub(crate) async fn repeat<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, crate::RegistryError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut tries = Tries::new(self.transport.options().retry).telling(self.session);
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(failure) => tries.wait(failure).await?,
            }
        }
    }
}
