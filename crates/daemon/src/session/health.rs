//! Whether a client still answers: a connection may be open long after whoever was at its other end.

use super::ClientSession;
use forge_buildkit_proto::health::HealthCheckRequest;
use forge_buildkit_proto::health::health_client::HealthClient;
use std::sync::Arc;
use std::time::Duration;

/// How often, how patiently, and how many times in a row a client may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patience {
    interval: Duration,
    timeout: Duration,
    failures: u32,
}

impl Patience {
    /// BuildKit's; `custom` are milliseconds that a client asks for, at least a second.
    fn of(custom: &str) -> Self {
        match custom.parse::<u64>() {
            Ok(milliseconds) if milliseconds > 0 => {
                let time = Duration::from_millis(milliseconds).max(Duration::from_secs(1));
                Self { interval: time, timeout: time, failures: 1 }
            }
            _ => Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures: 2 },
        }
    }
}

/// Asks until the client has gone, and takes it for gone when it does not answer.
pub(super) fn watch(session: &Arc<ClientSession>, custom: &str) {
    let patience = Patience::of(custom);
    let (channel, gone) = (session.channel.clone(), session.gone.clone());
    tokio::spawn(async move {
        let mut client = HealthClient::new(channel);
        let mut failures = 0;
        while failures < patience.failures {
            tokio::select! {
                () = gone.cancelled() => return,
                () = tokio::time::sleep(patience.interval) => {}
            }
            let asked = client.check(HealthCheckRequest::default());
            let asked = tokio::select! {
                () = gone.cancelled() => return,
                asked = tokio::time::timeout(patience.timeout, asked) => asked,
            };
            failures = if matches!(asked, Ok(Ok(_))) { 0 } else { failures + 1 };
        }
        gone.cancel();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_may_ask_for_less_patience_but_not_for_none() {
        assert_eq!(Patience::of("").failures, 2);
        assert_eq!(Patience::of("0"), Patience::of("x"));
        assert_eq!(Patience::of("1").timeout, Duration::from_secs(1));
        assert_eq!(Patience::of("2500").interval, Duration::from_millis(2500));
    }
}
