//! Tokens of registries that clients fetch themselves, so that their credentials stay with them.

use super::ClientSession;
use forge_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use forge_buildkit_proto::moby::filesync::v1::{
    FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use forge_session::{Redacted, RegistryToken, TokenRequest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, UnparsedPublicKey};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// What clients know whoever asks by.
const CLIENT_ID: &str = "forge";

/// How long a token is good of which its server does not say so.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// As many are kept. A client can ask for any number of scopes.
const MOST: usize = 1000;

/// Bytes of a signature (RFC 8032): in what a client signed it comes before the text.
const SIGNATURE: usize = 64;

/// An Ed25519 key, which a client has of its credentials.
type Authority = [u8; 32];

/// Tokens that clients fetched, for clients that show that they have the same credentials.
#[derive(Default)]
pub(crate) struct Tokens {
    salt: OnceLock<[u8; 32]>,
    kept: Mutex<HashMap<Key, Kept>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    authority: Authority,
    registry: String,
    realm: String,
    service: String,
    scopes: Vec<String>,
}

struct Kept {
    token: Redacted,
    until: Instant,
}

/// What a client says of itself.
enum Standing {
    /// Whoever has this key may have its tokens.
    Known(Authority),
    /// Its tokens are for itself.
    Unknown,
    /// It would rather be asked for credentials.
    Unwilling,
}

impl Tokens {
    /// A token of the client, or one of another client that has the same credentials. `None`: the client fetches none.
    pub(crate) async fn token(
        &self,
        client: &ClientSession,
        wanted: &TokenRequest<'_>,
    ) -> Result<Option<RegistryToken>, Status> {
        if !client.supports("/moby.filesync.v1.Auth/FetchToken") {
            return Ok(None);
        }
        let mut auth = AuthClient::new(client.channel.clone());
        let key = match self.standing(client, &mut auth, wanted.registry).await? {
            Standing::Unwilling => return Ok(None),
            Standing::Unknown => None,
            Standing::Known(authority) => Some(key(authority, wanted)),
        };
        if let Some(key) = &key
            && let Some(kept) = self.find(key, wanted.refused)
            && self.is_proven(&mut auth, key).await?
        {
            return Ok(Some(kept));
        }
        let asked = FetchTokenRequest {
            client_id: CLIENT_ID.to_owned(),
            host: wanted.registry.to_owned(),
            realm: wanted.realm.to_owned(),
            service: wanted.service.unwrap_or_default().to_owned(),
            scopes: wanted.scopes.to_vec(),
        };
        let token = match auth.fetch_token(asked).await {
            Ok(fetched) => read(fetched.into_inner(), SystemTime::now()),
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(status),
        };
        if let Some(key) = key {
            self.keep(key, &token);
        }
        Ok(Some(token))
    }

    async fn standing(
        &self,
        client: &ClientSession,
        auth: &mut AuthClient<Channel>,
        registry: &str,
    ) -> Result<Standing, Status> {
        if !client.supports("/moby.filesync.v1.Auth/GetTokenAuthority") {
            return Ok(Standing::Unknown);
        }
        let asked = GetTokenAuthorityRequest { host: registry.to_owned(), salt: self.salt()?.to_vec() };
        match auth.get_token_authority(asked).await {
            Ok(told) => match Authority::try_from(told.into_inner().public_key) {
                Ok(authority) => Ok(Standing::Known(authority)),
                Err(other) => Err(Status::invalid_argument(format!("invalid pubkey length {}", other.len()))),
            },
            Err(status) if status.code() == Code::Unimplemented => Ok(Standing::Unknown),
            Err(status) if status.code() == Code::Unavailable => Ok(Standing::Unwilling),
            Err(status) => Err(status),
        }
    }

    /// Whether the client can sign with the key that it named.
    async fn is_proven(&self, auth: &mut AuthClient<Channel>, key: &Key) -> Result<bool, Status> {
        let payload = random()?;
        let asked = VerifyTokenAuthorityRequest {
            host: key.registry.clone(),
            payload: payload.to_vec(),
            salt: self.salt()?.to_vec(),
        };
        match auth.verify_token_authority(asked).await {
            Ok(answer) => Ok(is_signed(&answer.into_inner().signed, &payload, &key.authority)),
            Err(status) if status.code() == Code::Unimplemented => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Part of the keys of clients, so that those of one daemon are of no use to another.
    fn salt(&self) -> Result<&[u8; 32], Status> {
        if self.salt.get().is_none() {
            // Whoever was first wins.
            let _ = self.salt.set(random()?);
        }
        self.salt.get().ok_or_else(|| Status::internal("there is no salt"))
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key, refused: Option<&Redacted>) -> Option<RegistryToken> {
        let kept = self.kept();
        let found = kept.get(key).filter(|kept| Some(&kept.token) != refused)?;
        let life = found.until.checked_duration_since(Instant::now())?;
        Some(RegistryToken { token: found.token.clone(), life })
    }

    fn keep(&self, key: Key, token: &RegistryToken) {
        let (now, mut kept) = (Instant::now(), self.kept());
        kept.retain(|_, kept| kept.until > now);
        if kept.len() >= MOST {
            kept.clear();
        }
        // Not to its very end: the next client needs some time, too.
        kept.insert(key, Kept { token: token.token.clone(), until: now + token.life - token.life / 10 });
    }
}

fn key(authority: Authority, wanted: &TokenRequest<'_>) -> Key {
    Key {
        authority,
        registry: wanted.registry.to_owned(),
        realm: wanted.realm.to_owned(),
        service: wanted.service.unwrap_or_default().to_owned(),
        scopes: wanted.scopes.to_vec(),
    }
}

fn random() -> Result<[u8; 32], Status> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Status::internal("the system has no random numbers"))?;
    Ok(bytes)
}

/// Whether `signed` is a signature of `payload`, and `payload` after it (NaCl's `crypto_sign`).
fn is_signed(signed: &[u8], payload: &[u8], key: &Authority) -> bool {
    let Some((signature, text)) = signed.split_at_checked(SIGNATURE) else { return false };
    text == payload && UnparsedPublicKey::new(&ED25519, key).verify(text, signature).is_ok()
}

fn read(fetched: FetchTokenResponse, now: SystemTime) -> RegistryToken {
    let seconds = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0).map(Duration::from_secs);
    let issued = seconds(fetched.issued_at).and_then(|time| SystemTime::UNIX_EPOCH.checked_add(time));
    let age = issued.and_then(|issued| now.duration_since(issued).ok()).unwrap_or_default();
    let life = seconds(fetched.expires_in).unwrap_or(DEFAULT_LIFE).min(Duration::from_secs(86_400));
    RegistryToken { token: Redacted::new(fetched.token), life: life.saturating_sub(age) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    // Seen to fail with the signature not looked at, and with the text not compared.
    #[test]
    fn who_can_sign_has_the_key() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key = Authority::try_from(pair.public_key().as_ref()).unwrap();
        let signed = |text: &[u8]| [pair.sign(text).as_ref(), text].concat();
        assert!(is_signed(&signed(b"this"), b"this", &key));
        assert!(!is_signed(&signed(b"that"), b"this", &key));
        assert!(!is_signed(&[&[0; SIGNATURE][..], b"this"].concat(), b"this", &key));
        assert!(!is_signed(&signed(b"this"), b"this", &[1; 32]));
        for short in [&b""[..], b"this", &[0; SIGNATURE]] {
            assert!(!is_signed(short, b"this", &key));
        }
    }

    #[test]
    fn a_token_ages_on_its_way() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let life = |issued_at, expires_in| {
            read(FetchTokenResponse { token: "t".into(), expires_in, issued_at }, now).life.as_secs()
        };
        assert_eq!(life(0, 0), 60);
        assert_eq!(life(0, 300), 300);
        assert_eq!(life(900, 300), 200);
        assert_eq!(life(100, 300), 0);
        assert_eq!(life(2000, -5), 60);
        assert_eq!(life(i64::MAX, i64::MAX), 86_400);
    }

    #[test]
    fn refused_and_old_tokens_are_not_given_again() {
        let tokens = Tokens::default();
        let scopes = ["repository:a:pull".to_owned()];
        let wanted = TokenRequest {
            registry: "r.test",
            realm: "https://r.test/t",
            service: None,
            scopes: &scopes,
            refused: None,
        };
        let of = |authority| key([authority; 32], &wanted);
        let token = |text: &str, life| RegistryToken { token: Redacted::new(text), life };
        tokens.keep(of(1), &token("one", Duration::from_secs(100)));
        tokens.keep(of(2), &token("two", Duration::ZERO));
        let found = tokens.find(&of(1), None).unwrap();
        assert!(found.token.reveal() == "one" && found.life <= Duration::from_secs(90));
        assert!(tokens.find(&of(1), Some(&Redacted::new("one"))).is_none());
        assert!(tokens.find(&of(2), None).is_none() && tokens.find(&of(3), None).is_none());
        (0..2 * MOST).for_each(|number| {
            let key = Key { realm: number.to_string(), ..of(4) };
            tokens.keep(key, &token("t", Duration::from_secs(100)));
        });
        assert!(tokens.kept().len() <= MOST);
    }
}
