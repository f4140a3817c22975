//! Ctrl-C: the first one asks the engine to stop and clean up, the second one ends forge at once.

use crate::output;
use rustix::process::Signal as Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Watches for signals that end forge.
pub struct Interrupts {
    token: CancellationToken,
    caught: Arc<AtomicU8>,
}

impl Interrupts {
    /// Starts to watch; needs a running runtime.
    pub fn watch() -> std::io::Result<Self> {
        let token = CancellationToken::new();
        let caught = Arc::new(AtomicU8::new(0));
        let watched = |kind: SignalKind| Ok::<_, std::io::Error>((signal(kind)?, kind.as_raw_value()));
        let signals =
            [watched(SignalKind::interrupt())?, watched(SignalKind::terminate())?, watched(SignalKind::hangup())?];
        // One task for all: each would wake a thread.
        tokio::spawn(stop(signals, token.clone(), Arc::clone(&caught)));
        // Once somebody listens, a file that grows too large for a limit is an error of its writer instead of the end of the
        // process (F11). It stays so when nobody listens any more, and is as ever for other programs that are started.
        drop(signal(SignalKind::from_raw(Signals::XFSZ.as_raw()))?);
        Ok(Self { token, caught })
    }

    /// What the engine watches.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// The exit code that stands for the first signal, if one came.
    pub fn exit_code(&self) -> Option<u8> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(128 + signal),
        }
    }
}

async fn stop(signals: [(Signal, i32); 3], token: CancellationToken, caught: Arc<AtomicU8>) {
    let [mut interrupt, mut terminate, mut hangup] = signals;
    loop {
        let number = tokio::select! {
            Some(()) = interrupt.0.recv() => interrupt.1,
            Some(()) = terminate.0.recv() => terminate.1,
            Some(()) = hangup.0.recv() => hangup.1,
            else => return,
        };
        let number = u8::try_from(number).unwrap_or(0);
        if caught.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            std::process::exit(i32::from(128 + number));
        }
        token.cancel();
        output::note("forge: stopping; once more to stop without cleaning up");
    }
}
