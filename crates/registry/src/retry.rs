use crate::{RegistryError, RetryPolicy};
use forge_image::Digest;
use forge_session::{Event, Session, VertexUpdate};
use std::error::Error;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::time::{Duration, SystemTime};

/// How a try ended that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The error, should it be the last try.
    pub error: RegistryError,
    /// Whether another try may end otherwise.
    pub again: Again,
}

/// Whether another try may end otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// No: the answer is an answer.
    Never,
    /// Yes, after the policy's wait.
    Later,
    /// Yes, and the server said when.
    After(Duration),
}

impl Failure {
    pub(crate) fn last(error: RegistryError) -> Self {
        Self { error, again: Again::Never }
    }

    /// Whether another try may end otherwise.
    pub(crate) fn is_passing(&self) -> bool {
        self.again != Again::Never
    }

    pub(crate) fn passing(error: RegistryError) -> Self {
        Self { error, again: Again::Later }
    }
}

impl From<RegistryError> for Failure {
    /// Broken connections and silence pass; a certificate that does not fit stays as it is, and so does an answer.
    fn from(error: RegistryError) -> Self {
        match &error {
            RegistryError::Connection { source, .. } if !is_tls(source.as_ref()) => Self::passing(error),
            RegistryError::Stalled { .. } => Self::passing(error),
            _ => Self::last(error),
        }
    }
}

/// Whether TLS itself failed. The HTTP library wraps the cause in I/O errors, whose `source` skips what they hold.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let here = error.downcast_ref::<rustls::Error>().is_some_and(|error| !matches!(error, rustls::Error::General(_)));
    here || held.is_some_and(|held| is_tls(held)) || error.source().is_some_and(is_tls)
}

/// A shorter wait is over before anybody asks what is going on.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// Counts the tries of one operation.
pub(crate) struct Tries<'a> {
    policy: RetryPolicy,
    made: u32,
    /// Who is told of long waits (F32).
    session: Option<&'a dyn Session>,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self { policy, made: 0, session: None }
    }

    /// Has the user told of long waits.
    pub(crate) fn telling(self, session: &'a dyn Session) -> Self {
        Self { session: Some(session), ..self }
    }

    /// Progress was made: the count begins anew, so that a long download over a bad line ends.
    pub(crate) fn progressed(&mut self) {
        self.made = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure's error, when there is no next try.
    pub(crate) async fn wait(&mut self, failure: Failure) -> Result<(), RegistryError> {
        self.made += 1;
        if failure.again == Again::Never || self.made >= self.policy.attempts {
            return Err(failure.error);
        }
        let pause = self.pause(failure.again);
        match self.session.filter(|_| pause >= WORTH_TELLING) {
            Some(session) => tell_while(session, &failure.error, pause).await,
            None => tokio::time::sleep(pause).await,
        }
        Ok(())
    }

    fn pause(&self, again: Again) -> Duration {
        match again {
            Again::After(time) => time.min(self.policy.longest),
            _ => {
                let doubled = self.policy.base.saturating_mul(1 << (self.made - 1).min(16));
                let full = doubled.min(self.policy.longest);
                // Many clients that failed together shall not come back together.
                full - full.mul_f64(f64::from((random() % 1000) as u32) / 2000.0)
            }
        }
    }
}

/// Waits, and shows the wait as a step with its reason.
async fn tell_while(session: &dyn Session, error: &RegistryError, pause: Duration) {
    let name = format!("waiting {} s before the next try: {error}", pause.as_secs());
    let mut update = VertexUpdate {
        digest: Digest::sha256(name.as_bytes()),
        inputs: Vec::new(),
        name,
        started: Some(SystemTime::now()),
        completed: None,
        cached: false,
        error: None,
        progress_group: None,
    };
    session.events().emit(Event::Vertex(update.clone()));
    tokio::time::sleep(pause).await;
    update.completed = Some(SystemTime::now());
    session.events().emit(Event::Vertex(update));
}

/// Whether a status says "not now" rather than "no".
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let then = crate::http_date::parse(value)?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// A number that is not the same in two processes; not for secrets. The standard library seeds its hash maps so.
pub(crate) fn random() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u128(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(retry_after(text, now), expect.map(Duration::from_secs), "{text}")
        };
        check("7", Some(7));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:49:27 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }

    #[test]
    fn waits_double_within_bounds() {
        let policy = RetryPolicy { attempts: 10, base: Duration::from_secs(1), longest: Duration::from_secs(5) };
        let mut tries = Tries::new(policy);
        for (made, low, high) in [(1, 500, 1000), (2, 1000, 2000), (3, 2000, 4000), (4, 2500, 5000), (9, 2500, 5000)] {
            tries.made = made;
            let pause = tries.pause(Again::Later).as_millis();
            assert!((low..=high).contains(&pause), "{made}: {pause}");
        }
        assert_eq!(tries.pause(Again::After(Duration::from_secs(3600))), Duration::from_secs(5));
    }
}
