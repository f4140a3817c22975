use forge_image::Digest;
use forge_session::{Event, Session, StatusUpdate};
use forge_store::{Lease, Store};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// What every transfer of an image works with: where bytes are kept, what keeps them from being collected, and
/// who is told about progress. Cheap to clone.
#[derive(Clone)]
pub struct TransferContext {
    /// The store.
    pub store: Store,
    /// Holds everything that the transfer brings in or reads.
    pub lease: Arc<Lease>,
    /// Takes progress, hands out credentials, says when to stop.
    pub session: Arc<dyn Session>,
    /// The vertex that progress is reported under.
    pub vertex: Digest,
}

impl TransferContext {
    /// Reports the start of a piece of work; `total` is zero where unknown.
    pub fn begin(&self, id: impl Into<String>, name: impl Into<String>, total: u64) -> TransferProgress {
        let now = SystemTime::now();
        let status = StatusUpdate {
            id: id.into(),
            vertex: self.vertex.clone(),
            name: name.into(),
            total,
            current: 0,
            timestamp: now,
            started: Some(now),
            completed: None,
        };
        self.session.events().emit(Event::Status(status.clone()));
        TransferProgress {
            session: self.session.clone(),
            state: Mutex::new(State { status, reported: Instant::now() }),
        }
    }
}

/// One piece of work that reports how far it is, at most ten times a second.
pub struct TransferProgress {
    session: Arc<dyn Session>,
    state: Mutex<State>,
}

struct State {
    status: StatusUpdate,
    reported: Instant,
}

/// More reports than a terminal can draw only cost time.
const INTERVAL: Duration = Duration::from_millis(100);

impl TransferProgress {
    /// Says how much is done in all.
    pub fn set(&self, current: u64) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.status.current = current;
        if state.reported.elapsed() < INTERVAL {
            return;
        }
        state.reported = Instant::now();
        state.status.timestamp = SystemTime::now();
        self.session.events().emit(Event::Status(state.status.clone()));
    }

    /// Says that the work is done.
    pub fn complete(self) {
        let mut status = self.state.into_inner().expect("no holder of this lock panics").status;
        status.current = status.current.max(status.total);
        status.timestamp = SystemTime::now();
        status.completed = Some(status.timestamp);
        self.session.events().emit(Event::Status(status));
    }
}
