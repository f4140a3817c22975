//! The cache mounts of a step: taken into use before it runs, left when everything of it is dead.

use super::copies::{self, Source};
use super::{ExecError, StepContext};
use crate::WorkError;
use forge_cache::ResultRef;
use forge_cache::remote::RemoteMounts;
use forge_llb::{CacheSharing, ExecMount, ExecOp, MountKind};
use forge_session::{Event, StatusUpdate};
use forge_store::{CacheMountFound, CacheMountGuard, CacheMountKey, CacheMountRecord, CacheMountUse, ScratchDir};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

/// The first pauses between two looks at a folder that somebody else uses; the last one is repeated.
const PAUSES_MS: [u64; 5] = [5, 10, 25, 50, 100];

/// The folders of a step by the targets of their mounts.
#[derive(Default)]
pub(super) struct Caches {
    guards: Vec<CacheMountGuard>,
    /// Which guard a target belongs to: two mounts of one key in one step are one folder.
    of_target: BTreeMap<String, usize>,
}

/// A cache mount that a step asks for.
struct Wanted<'a> {
    mount: &'a ExecMount,
    id: &'a str,
    usage: CacheMountUse,
    key: CacheMountKey,
}

impl Caches {
    /// Takes everything that the step asks for into use, one after the other in the order of the keys: two steps that
    /// want the same two locked folders cannot wait for each other.
    pub(super) async fn acquire(op: &ExecOp, context: &StepContext) -> Result<Self, WorkError> {
        let mut wanted: Vec<(usize, CacheMountUse, CacheMountKey)> = Vec::new();
        for (index, mount) in op.mounts.iter().enumerate() {
            let MountKind::Cache { id, sharing } = &mount.kind else { continue };
            wanted.push((index, usage(*sharing), key(mount, id, context).await?));
        }
        sort(&mut wanted);
        let mut caches = Self::default();
        let mut last: Option<CacheMountKey> = None;
        for (index, usage, key) in wanted {
            let mount = &op.mounts[index];
            let MountKind::Cache { id, .. } = &mount.kind else { continue };
            if last.as_ref() != Some(&key) {
                let wanted = Wanted { mount, id, usage, key: key.clone() };
                context.shared_mounts.iter().for_each(|shared| shared.mounted(&key));
                if let Some(renewed) = &context.renewed_mounts
                    && renewed.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone())
                {
                    let (store, key) = (context.store.clone(), key.clone());
                    tokio::task::spawn_blocking(move || store.cache_mounts().forget(&key)).await??;
                }
                caches.guards.push(wanted.acquire(context).await?);
                last = Some(key);
            }
            caches.of_target.insert(mount.target.clone(), caches.guards.len() - 1);
        }
        Ok(caches)
    }

    /// Whether the step asked for none.
    pub(super) fn is_empty(&self) -> bool {
        self.guards.is_empty()
    }

    /// The folder of a target.
    pub(super) fn tree(&self, target: &str) -> Option<PathBuf> {
        let guard = self.guards.get(*self.of_target.get(target)?)?;
        Some(guard.tree().to_owned())
    }

    /// Leaves the folders. Blocks: each is measured.
    pub(super) fn release(self) -> Result<(), WorkError> {
        self.guards.into_iter().try_for_each(|guard| Ok(guard.release()?))
    }
}

/// By key, and of one key the strictest use first: it holds for all mounts that are this one folder.
fn sort(wanted: &mut [(usize, CacheMountUse, CacheMountKey)]) {
    let looseness = |usage| match usage {
        CacheMountUse::Locked => 0,
        CacheMountUse::Private => 1,
        CacheMountUse::Shared => 2,
    };
    wanted.sort_by(|(_, one_use, one), (_, other_use, other)| {
        one.cmp(other).then(looseness(*one_use).cmp(&looseness(*other_use)))
    });
}

fn usage(sharing: CacheSharing) -> CacheMountUse {
    match sharing {
        CacheSharing::Shared => CacheMountUse::Shared,
        CacheSharing::Private => CacheMountUse::Private,
        CacheSharing::Locked => CacheMountUse::Locked,
    }
}

/// The input and path that a mount begins with, if there is anything.
fn seed<'a>(mount: &'a ExecMount, context: &'a StepContext) -> Option<&'a ResultRef> {
    let input = &context.inputs[mount.input?];
    let is_empty = matches!(input, ResultRef::Layers(layers) if layers.is_empty());
    (!is_empty).then_some(input)
}

async fn key(mount: &ExecMount, id: &str, context: &StepContext) -> Result<CacheMountKey, WorkError> {
    let Some(input) = seed(mount, context).cloned() else {
        return Ok(CacheMountKey { id: id.to_owned(), first_content: None });
    };
    let (path, context) = (mount.selector.clone(), context.clone());
    let digest = tokio::task::spawn_blocking(move || source(&context, &input, &path).digest()).await??;
    Ok(CacheMountKey { id: id.to_owned(), first_content: Some(digest) })
}

fn source<'a>(context: &'a StepContext, input: &'a ResultRef, path: &'a str) -> Source<'a> {
    let StepContext { store, lease, session, contexts, .. } = context;
    Source { store, lease, session, contexts, input, path }
}

impl Wanted<'_> {
    async fn acquire(&self, context: &StepContext) -> Result<CacheMountGuard, WorkError> {
        let begin = SystemTime::now();
        let mut pauses = PAUSES_MS.iter();
        let mut pause = Duration::ZERO;
        let waiting = format!("waiting for cache mount {}", shown(self.id));
        let mut waits = false;
        loop {
            let (store, key, usage) = (context.store.clone(), self.key.clone(), self.usage);
            let found = tokio::task::spawn_blocking(move || store.cache_mounts().find(&key, usage)).await??;
            let guard = match found {
                CacheMountFound::Folder(guard) => Some((guard, "reused")),
                CacheMountFound::Absent => self.create(context).await?.map(|guard| (guard, "new")),
                CacheMountFound::InUse => None,
            };
            if let Some((guard, how)) = guard {
                if waits {
                    self.say(context, &waiting, begin, Some(SystemTime::now()));
                    // With the folder: who else wants it has no place either, so that nobody waits in a circle.
                    context.session.take_place().await;
                }
                let line = describe(guard.record(), how, SystemTime::now());
                self.say(context, &line, begin, Some(SystemTime::now()));
                return Ok(guard);
            }
            if !waits {
                self.say(context, &waiting, begin, None);
                context.session.leave_place().await;
                waits = true;
            }
            pause = pauses.next().map_or(pause, |&milliseconds| Duration::from_millis(milliseconds));
            let slept = context.session.cancellation().run_until_cancelled(tokio::time::sleep(pause)).await;
            slept.ok_or(WorkError::Cancelled)?;
        }
    }

    /// Makes the folder; `None` when somebody else was faster.
    async fn create(&self, context: &StepContext) -> Result<Option<CacheMountGuard>, WorkError> {
        if let Some(shared) = &context.shared_mounts
            && let Some(scratch) = self.filled(shared, context).await?
        {
            let (store, key, usage) = (context.store.clone(), self.key.clone(), self.usage);
            let make =
                move || Ok(store.cache_mounts().create(&key, usage, &scratch.path().join("tree"), "a shared cache")?);
            return tokio::task::spawn_blocking(make).await?;
        }
        self.begin(context).await
    }

    /// A folder with what the mount holds in a shared cache, if one has it.
    async fn filled(
        &self,
        shared: &Arc<dyn RemoteMounts>,
        context: &StepContext,
    ) -> Result<Option<ScratchDir>, WorkError> {
        let scratch = context.store.scratch("cache")?;
        let staged = scratch.path().join("tree");
        std::fs::create_dir(&staged).map_err(|source| ExecError::Seed { source })?;
        let asked = shared.fill(&self.key, &staged, &context.vertex);
        let filled = context.session.cancellation().run_until_cancelled(asked).await.ok_or(WorkError::Cancelled)?;
        Ok(filled.then_some(scratch))
    }

    /// Makes the folder with its first content.
    async fn begin(&self, context: &StepContext) -> Result<Option<CacheMountGuard>, WorkError> {
        let input = seed(self.mount, context).cloned();
        let (context, key, usage) = (context.clone(), self.key.clone(), self.usage);
        let (path, origin) = (self.mount.selector.clone(), origin(self.mount, input.as_ref()));
        let make = move || -> Result<Option<CacheMountGuard>, WorkError> {
            let mounts = context.store.cache_mounts();
            let Some(input) = input else {
                let scratch = context.store.scratch("cache")?;
                let staged = scratch.path().join("tree");
                std::fs::create_dir(&staged).map_err(|source| ExecError::Seed { source })?;
                let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&staged, open).map_err(|source| ExecError::Seed { source })?;
                return Ok(mounts.create(&key, usage, &staged, &origin)?);
            };
            let copy = source(&context, &input, &path).copy()?;
            Ok(mounts.create(&key, usage, &copy.upper().join(copies::ROOT), &origin)?)
        };
        tokio::task::spawn_blocking(make).await?
    }

    /// Shows a line below the step.
    fn say(&self, context: &StepContext, line: &str, started: SystemTime, completed: Option<SystemTime>) {
        context.session.events().emit(Event::Status(StatusUpdate {
            id: line.to_owned(),
            vertex: context.vertex.clone(),
            name: line.to_owned(),
            total: 0,
            current: 0,
            timestamp: completed.unwrap_or(started),
            started: Some(started),
            completed,
        }));
    }
}

fn origin(mount: &ExecMount, input: Option<&ResultRef>) -> String {
    match input {
        None => "empty".to_owned(),
        Some(ResultRef::Context { name, .. }) => format!("{} of the context {name}", mount.selector),
        Some(ResultRef::Layers(_)) => format!("{} of an image or stage", mount.selector),
    }
}

/// What a step got, in one line.
fn describe(record: &CacheMountRecord, how: &str, now: SystemTime) -> String {
    let CacheMountRecord { key, origin, bytes, created, .. } = record;
    let age = now.duration_since(*created).unwrap_or_default();
    format!("cache mount {}: {how}, {}, {} old, began as {origin}", shown(&key.id), size(*bytes), duration(age))
}

/// An id as its author wrote it: in front of it stand the namespace, mostly none, and a slash.
fn shown(id: &str) -> &str {
    id.strip_prefix('/').unwrap_or(id)
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") }
}

fn duration(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_use_of_a_folder_holds_for_all_its_mounts() {
        let key = |id: &str| CacheMountKey { id: id.to_owned(), first_content: None };
        let mut wanted = [
            (0, CacheMountUse::Shared, key("b")),
            (1, CacheMountUse::Shared, key("a")),
            (2, CacheMountUse::Private, key("a")),
            (3, CacheMountUse::Locked, key("a")),
        ];
        sort(&mut wanted);
        assert_eq!(wanted.map(|(index, ..)| index), [3, 2, 1, 0]);
    }

    #[test]
    fn a_step_is_told_what_it_got() {
        let created = SystemTime::UNIX_EPOCH;
        let record = CacheMountRecord {
            name: "0".repeat(32),
            key: CacheMountKey { id: "/go".to_owned(), first_content: None },
            origin: "empty".to_owned(),
            bytes: 1_234_567,
            created,
            last_used: created,
        };
        let line = |seconds| describe(&record, "reused", created + Duration::from_secs(seconds));
        assert_eq!(line(7), "cache mount go: reused, 1.2MB, 7s old, began as empty");
        assert_eq!(line(2 * 86_400), "cache mount go: reused, 1.2MB, 2d old, began as empty");
        assert_eq!((size(999), size(1000)), ("999B".to_owned(), "1.0kB".to_owned()));
    }
}
