//! What runs now, and what ran lately.

use crate::bridge::Bridge;
use crate::history_files::{HistoryFiles, KeptBuild};
use crate::places::Places;
use crate::progress::Progress;
use crate::traces::{ClientTrace, TraceContext};
use bytes::Bytes;
use forge_buildkit_proto::google::rpc;
use forge_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildResultInfo, Descriptor,
};
use forge_buildkit_proto::telemetry::Span;
use forge_image::Digest;
use prost::Message as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long a call waits for a build that it names.
const WAIT: Duration = Duration::from_secs(3);

/// BuildKit's own spelling.
const STATUS: &str = "application/vnd.googeapis.google.rpc.status+proto";
const LOG: &str = "application/vnd.buildkit.status.v0";
const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
/// What is kept of statements is their predicate alone, as with BuildKit.
const STATEMENT: &str = "application/vnd.in-toto+json";
const PROVENANCE: &str = "https://slsa.dev/provenance/v1";

/// How many builds that ended are remembered; BuildKit's own number.
const REMEMBERED: usize = 50;

/// One build: from the call that asks for it until it is forgotten.
pub(crate) struct Build {
    /// The client's name for it.
    pub reference: String,
    pub progress: Arc<Progress>,
    /// Cancelled when it is to stop.
    pub cancel: CancellationToken,
    /// Where its steps come from.
    pub places: Places,
    /// What a client that steers the build itself talks to, while it runs.
    bridge: Mutex<Option<Arc<Bridge>>>,
    record: Mutex<BuildHistoryRecord>,
    /// What can be read of it, by digest.
    contents: Mutex<BTreeMap<String, Bytes>>,
    number: u64,
    /// Nothing for a build of an earlier life of the daemon: what is kept of its trace stays as it is.
    client_trace: Option<ClientTrace>,
}

impl Build {
    /// What there is to be told of it.
    pub(crate) fn record(&self) -> BuildHistoryRecord {
        let counts = self.progress.counts();
        BuildHistoryRecord {
            num_cached_steps: counts.cached,
            num_total_steps: counts.total,
            num_completed_steps: counts.completed,
            num_warnings: counts.warnings,
            ..self.locked().clone()
        }
    }

    /// What a client that steers the build itself talks to.
    pub(crate) fn bridge(&self) -> Option<Arc<Bridge>> {
        self.bridge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the client steer the build; `None` when that is over.
    pub(crate) fn set_bridge(&self, bridge: Option<Arc<Bridge>>) {
        *self.bridge.lock().unwrap_or_else(PoisonError::into_inner) = bridge;
    }

    fn contents(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps something for whoever looks at the build later.
    fn keep(&self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let (digest, size) = (Digest::sha256(&bytes).to_string(), i64::try_from(bytes.len()).unwrap_or(i64::MAX));
        self.contents().insert(digest.clone(), bytes.into());
        Descriptor { media_type: media_type.to_owned(), digest, size, ..Descriptor::default() }
    }

    /// Keeps why it failed, with all details.
    pub(crate) fn keep_error(&self, error: &rpc::Status) {
        let kept = self.keep(STATUS, error.encode_to_vec());
        self.locked().external_error = Some(kept);
    }

    /// Keeps all that it said.
    fn keep_log(&self) {
        let kept = self.keep(LOG, self.progress.log());
        self.locked().logs = Some(kept);
    }

    /// As its file has it.
    fn kept(&self) -> KeptBuild {
        let contents = self.contents().values().map(|bytes| bytes.to_vec()).collect();
        KeptBuild { record: Some(self.record()), contents, number: self.number }
    }

    /// Keeps when each of its steps ran, and what its client told of it so far.
    pub(crate) fn keep_trace(&self) {
        let Some(client) = &self.client_trace else { return };
        let mut spans = self.progress.spans(&self.reference, client.context.as_ref());
        spans.extend(client.shown());
        spans.sort_by_key(|span| span["StartTime"].as_str().unwrap_or_default().to_owned());
        let kept = self.keep(TRACE, Value::from(spans).to_string().into_bytes());
        let earlier = self.locked().trace.replace(kept.clone());
        if let Some(earlier) = earlier.filter(|earlier| earlier.digest != kept.digest) {
            self.contents().remove(&earlier.digest);
        }
    }

    /// Keeps how its results were made.
    pub(crate) fn keep_provenance(&self, predicates: Vec<Vec<u8>>) {
        let mut attestations = Vec::new();
        for predicate in predicates {
            let mut descriptor = self.keep(STATEMENT, predicate);
            descriptor.annotations.insert("in-toto.io/predicate-type".to_owned(), PROVENANCE.to_owned());
            attestations.push(descriptor);
        }
        self.locked().result = Some(BuildResultInfo { attestations, ..BuildResultInfo::default() });
    }

    /// Keeps what its outputs made: descriptors, in the order of those outputs that are images.
    pub(crate) fn keep_results(&self, results: Vec<Descriptor>) {
        let mut record = self.locked();
        let result = record.result.get_or_insert_default();
        result.result_deprecated = results.first().cloned();
        result.results = (0..).zip(results).collect();
    }

    fn locked(&self) -> MutexGuard<'_, BuildHistoryRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.locked().completed_at.is_some()
    }

    fn event(&self) -> BuildHistoryEvent {
        let kind = match self.has_ended() {
            true => BuildHistoryEventType::Complete,
            false => BuildHistoryEventType::Started,
        };
        BuildHistoryEvent { r#type: kind.into(), record: Some(self.record()) }
    }
}

/// All builds by their names.
pub(crate) struct Builds {
    builds: Mutex<BTreeMap<String, Arc<Build>>>,
    changed: watch::Sender<()>,
    events: broadcast::Sender<BuildHistoryEvent>,
    next: AtomicU64,
    files: HistoryFiles,
    /// Cancelled when the daemon ends.
    stop: CancellationToken,
}

impl Builds {
    /// Those that `files` has, and those that begin from now on. Blocks.
    pub(crate) fn open(stop: CancellationToken, files: HistoryFiles) -> Self {
        let (events, _) = broadcast::channel(256);
        let mut builds: BTreeMap<String, Arc<Build>> = BTreeMap::new();
        let mut next = 0;
        for kept in files.load() {
            next = next.max(kept.number.saturating_add(1));
            let build = ended(kept, &stop);
            builds.insert(build.reference.clone(), Arc::new(build));
        }
        forget_old(&mut builds, &files);
        let (builds, changed) = (Mutex::new(builds), watch::Sender::new(()));
        Self { builds, changed, events, next: AtomicU64::new(next), files, stop }
    }

    /// Writes what is remembered of a build.
    fn save(&self, build: &Build) {
        // Without its file it is remembered until the daemon ends.
        let _ = self.files.save(&build.reference, &build.kept());
    }

    fn builds(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Build>>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a build. A name is used once at a time.
    pub(crate) fn begin(&self, record: BuildHistoryRecord, traced: Option<TraceContext>) -> Result<Arc<Build>, Status> {
        let reference = record.r#ref.clone();
        let mut builds = self.builds();
        if builds.get(&reference).is_some_and(|build| !build.has_ended()) {
            return Err(Status::already_exists(format!("job ID {reference} exists")));
        }
        let build = Arc::new(Build {
            reference: reference.clone(),
            progress: Arc::new(Progress::new()),
            cancel: self.stop.child_token(),
            places: Places::default(),
            bridge: Mutex::default(),
            record: Mutex::new(record),
            contents: Mutex::default(),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            client_trace: Some(ClientTrace::new(traced)),
        });
        builds.insert(reference, build.clone());
        forget_old(&mut builds, &self.files);
        drop(builds);
        self.changed.send_replace(());
        self.tell(build.event());
        Ok(build)
    }

    /// Notes how a build ended.
    pub(crate) fn end(&self, build: &Build, note: impl FnOnce(&mut BuildHistoryRecord)) {
        build.set_bridge(None);
        build.progress.close();
        build.keep_log();
        build.keep_trace();
        note(&mut build.locked());
        self.save(build);
        self.changed.send_replace(());
        self.tell(build.event());
    }

    fn tell(&self, event: BuildHistoryEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Tells those who wait that a build came by what they wait for.
    pub(crate) fn announce(&self) {
        self.changed.send_replace(());
    }

    /// A build that satisfies a condition, waited for if need be.
    pub(crate) async fn wait<T>(&self, reference: &str, find: impl Fn(&Arc<Build>) -> Option<T>) -> Result<T, Status> {
        let mut changes = self.changed.subscribe();
        let search = async {
            loop {
                if let Some(found) = self.builds().get(reference).and_then(&find) {
                    return found;
                }
                // The sender lives as long as this does.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let found = tokio::time::timeout(WAIT, search).await;
        found.map_err(|_| Status::not_found(format!("no such job {reference}")))
    }

    /// All of them, oldest first, and what happens from then on.
    pub(crate) fn listen(&self) -> (Vec<Arc<Build>>, broadcast::Receiver<BuildHistoryEvent>) {
        let builds = self.builds();
        let receiver = self.events.subscribe();
        let mut all: Vec<_> = builds.values().cloned().collect();
        all.sort_by_key(|build| build.number);
        (all, receiver)
    }

    /// What is told of a build.
    pub(crate) fn event_of(build: &Build) -> BuildHistoryEvent {
        build.event()
    }

    /// Forgets a build that has ended.
    pub(crate) fn forget(&self, reference: &str) -> Result<(), Status> {
        let mut builds = self.builds();
        let found = builds.get(reference).filter(|build| build.has_ended()).cloned();
        let Some(build) = found else {
            return Err(Status::not_found(format!("no build record {reference}")));
        };
        builds.remove(reference);
        drop(builds);
        self.files.remove(reference);
        let record = BuildHistoryRecord { r#ref: build.reference.clone(), ..BuildHistoryRecord::default() };
        self.tell(BuildHistoryEvent { r#type: BuildHistoryEventType::Deleted.into(), record: Some(record) });
        Ok(())
    }

    /// Completes what is remembered of a build.
    pub(crate) fn finalize(&self, reference: &str) -> Result<(), Status> {
        let found = self.builds().get(reference).cloned();
        let build = found.ok_or_else(|| Status::not_found(format!("no build record {reference}")))?;
        build.keep_trace();
        if build.has_ended() {
            self.save(&build);
        }
        self.tell(build.event());
        Ok(())
    }

    /// Changes what is remembered of a build.
    pub(crate) fn update(&self, reference: &str, change: impl FnOnce(&mut BuildHistoryRecord)) -> Result<(), Status> {
        let found = self.builds().get(reference).cloned();
        let build = found.ok_or_else(|| Status::not_found(format!("no build record {reference}")))?;
        change(&mut build.locked());
        if build.has_ended() {
            self.save(&build);
        }
        self.tell(build.event());
        Ok(())
    }

    /// Takes a span for all builds that are part of its trace; `false` where one has no room for it.
    pub(crate) fn take_span(&self, trace: &str, span: &Span) -> bool {
        let builds = self.builds();
        let traces = builds.values().filter_map(|build| build.client_trace.as_ref());
        // Mostly one.
        traces.filter(|client| client.is_part_of(trace)).filter(|client| !client.take(span)).count() == 0
    }

    /// Something that a build kept.
    pub(crate) fn content(&self, digest: &str) -> Option<Bytes> {
        self.builds().values().find_map(|build| build.contents().get(digest).cloned())
    }

    /// All that builds kept.
    pub(crate) fn contents(&self) -> BTreeMap<String, Bytes> {
        let mut contents = BTreeMap::new();
        for build in self.builds().values() {
            contents.extend(build.contents().clone());
        }
        contents
    }

    /// Whether anything runs.
    pub(crate) fn are_idle(&self) -> bool {
        self.builds().values().all(|build| build.has_ended())
    }

    /// Waits until nothing runs.
    pub(crate) async fn idle(&self) {
        let mut changes = self.changed.subscribe();
        while !self.are_idle() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// One line for each build, for people.
    pub(crate) fn describe(&self) -> String {
        let line = |build: &Arc<Build>| {
            let (record, state) = (build.record(), if build.has_ended() { "ended" } else { "running" });
            format!(
                "{} {state} frontend={:?} steps={}/{}\n",
                build.reference, record.frontend, record.num_completed_steps, record.num_total_steps
            )
        };
        self.builds().values().map(line).collect()
    }
}

/// Pinned builds and those that run stay.
fn forget_old(builds: &mut BTreeMap<String, Arc<Build>>, files: &HistoryFiles) {
    let mut old: Vec<(u64, String)> = builds
        .values()
        .filter(|build| build.has_ended() && !build.locked().pinned)
        .map(|build| (build.number, build.reference.clone()))
        .collect();
    old.sort();
    for (_, reference) in old.iter().take(old.len().saturating_sub(REMEMBERED)) {
        builds.remove(reference);
        files.remove(reference);
    }
}

/// A build of an earlier life of the daemon.
fn ended(kept: KeptBuild, stop: &CancellationToken) -> Build {
    let record = kept.record.unwrap_or_default();
    let contents = kept.contents.into_iter().map(|bytes| (Digest::sha256(&bytes).to_string(), Bytes::from(bytes)));
    let contents: BTreeMap<String, Bytes> = contents.collect();
    let log = record.logs.as_ref().and_then(|log| contents.get(&log.digest)).cloned().unwrap_or_default();
    Build {
        reference: record.r#ref.clone(),
        progress: Arc::new(Progress::ended(&log)),
        cancel: stop.child_token(),
        places: Places::default(),
        bridge: Mutex::default(),
        record: Mutex::new(record),
        contents: Mutex::new(contents),
        number: kept.number,
        client_trace: None,
    }
}
