//! Clients that have credentials for a registry: some fetch tokens with them, others hand them out.

use forge_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use forge_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use forge_testkit::TestRegistry;
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

pub const USER: &str = "anna";
pub const PASSWORD: &str = "geheim-7f3a";

/// What a client does about tokens.
#[derive(Clone, Copy, Default)]
pub enum Tokens {
    /// It knows nothing of them.
    #[default]
    Never,
    /// It was told not to fetch any.
    Forbidden,
    /// It fetches them for itself.
    Own,
    /// It fetches them, and shows a key of its credentials; it signs with the second one.
    Shared(u8, u8),
    /// As that, with a password that the registry does not take.
    Refused(u8),
}

/// A client's account with a registry.
#[derive(Clone, Default)]
pub struct Account {
    pub registry: Option<Arc<TestRegistry>>,
    pub tokens: Tokens,
    /// What it was asked for.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Account {
    pub const METHODS: [&str; 4] = [
        "/moby.filesync.v1.Auth/Credentials",
        "/moby.filesync.v1.Auth/FetchToken",
        "/moby.filesync.v1.Auth/GetTokenAuthority",
        "/moby.filesync.v1.Auth/VerifyTokenAuthority",
    ];

    fn note(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }

    /// The key whose seed has that number, of that daemon.
    fn pair(number: u8, salt: &[u8]) -> Ed25519KeyPair {
        let mut seed = <[u8; 32]>::try_from(salt).unwrap();
        seed[0] = number;
        Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()
    }
}

#[tonic::async_trait]
impl Auth for Account {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        self.note(format!("credentials {}", request.into_inner().host));
        Ok(Response::new(CredentialsResponse { username: USER.to_owned(), secret: PASSWORD.to_owned() }))
    }

    async fn fetch_token(&self, request: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        let asked = request.into_inner();
        self.note(format!("token {} {} {}", asked.realm, asked.service, asked.scopes.join(" ")));
        match self.tokens {
            Tokens::Never | Tokens::Forbidden => Err(Status::unimplemented("no tokens")),
            Tokens::Refused(_) => Err(Status::unknown("failed to fetch oauth token: 401 Unauthorized")),
            Tokens::Own | Tokens::Shared(..) => {
                let token = self.registry.as_ref().unwrap().give_token(&asked.scopes);
                Ok(Response::new(FetchTokenResponse { token, expires_in: 300, issued_at: 0 }))
            }
        }
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let asked = request.into_inner();
        match self.tokens {
            Tokens::Never | Tokens::Own => Err(Status::unimplemented("no authority")),
            Tokens::Forbidden => Err(Status::unavailable("client side tokens disabled")),
            Tokens::Shared(shown, _) | Tokens::Refused(shown) => {
                let public_key = Self::pair(shown, &asked.salt).public_key().as_ref().to_vec();
                Ok(Response::new(GetTokenAuthorityResponse { public_key }))
            }
        }
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let asked = request.into_inner();
        self.note("signature");
        let (Tokens::Shared(_, own) | Tokens::Refused(own)) = self.tokens else {
            return Err(Status::unimplemented("no authority"));
        };
        let signature = Self::pair(own, &asked.salt).sign(&asked.payload);
        let signed = [signature.as_ref(), &asked.payload].concat();
        Ok(Response::new(VerifyTokenAuthorityResponse { signed }))
    }
}
