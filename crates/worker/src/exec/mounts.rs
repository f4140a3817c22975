//! What a step sees besides its root.

use super::caches::Caches;
use super::copies::{self, Source};
use super::secrets::Secrets;
use super::{ExecError, StepContext};
use crate::WorkError;
use forge_cache::ResultRef;
use forge_executor::{MountSource, MountSpec, OverlayChanges};
use forge_llb::{ExecMount, ExecOp, MountKind, SecretMount};
use forge_store::{ActiveLayer, LayerId, LowerDirs};
use std::path::{Path, PathBuf};

/// The mounts of a step, and the trees that writable ones change.
#[derive(Default)]
pub(super) struct StepMounts {
    pub(super) specs: Vec<MountSpec>,
    pub(super) changed: Vec<ChangedMount>,
    /// What those that cannot be changed show.
    pub(super) fixed: Vec<LowerDirs>,
}

/// A tree that the step may change.
pub(super) struct ChangedMount {
    /// Its place among the mounts.
    pub(super) mount: usize,
    /// Which output it becomes; `None` where the changes are thrown away.
    pub(super) output: Option<usize>,
    pub(super) active: ActiveLayer,
}

/// What was found for a step before it is set up.
pub(super) struct Found<'a> {
    pub(super) secrets: &'a Secrets,
    /// Of each mount of an agent in order, whether it is there.
    pub(super) agents: &'a [Option<String>],
    pub(super) caches: &'a Caches,
}

impl StepMounts {
    /// Makes everything but the root ready. Blocks.
    pub(super) fn prepare(op: &ExecOp, context: &StepContext, found: &Found<'_>) -> Result<Self, WorkError> {
        let mut mounts = Self::default();
        let mut agents = found.agents.iter();
        for (place, mount) in op.mounts.iter().enumerate().filter(|(_, mount)| mount.target != "/") {
            let spec = match &mount.kind {
                MountKind::Bind => Some(mounts.bind(place, mount, context)?),
                MountKind::Tmpfs { size } => Some(tmpfs(mount, *size)),
                MountKind::Cache { id, .. } => Some(cache(mount, id, found.caches)?),
                MountKind::Secret(secret) => found.secrets.mount(&mount.target, secret),
                MountKind::Ssh(ssh) => agents.next().and_then(Option::as_ref).map(|_| socket(mount, ssh)),
            };
            mounts.specs.extend(spec);
        }
        Ok(mounts)
    }

    /// A tree of the graph. Always an overlay: not even a step with all privileges can make a read-only one writable,
    /// since the file system itself is read-only, or reach what lies beside the selected path.
    fn bind(&mut self, place: usize, mount: &ExecMount, context: &StepContext) -> Result<MountSpec, WorkError> {
        let (layers, path) = tree_of(mount, context)?;
        let layers_store = context.store.layers();
        if mount.readonly {
            let lower = layers_store.lower_dirs(&layers)?;
            let source = MountSource::Overlay { lower: lower.to_vec(), changes: None, path };
            self.fixed.push(lower);
            return Ok(MountSpec::new(&mount.target, source, true));
        }
        let active = layers_store.prepare(&layers)?;
        let changes = OverlayChanges { upper: active.upper().to_owned(), work: active.work().to_owned() };
        let lower = active.lower_dirs().to_vec();
        self.changed.push(ChangedMount { mount: place, output: mount.output, active });
        Ok(MountSpec::new(&mount.target, MountSource::Overlay { lower, changes: Some(changes), path }, false))
    }
}

/// The layers that a bind mount shows, and the path in them. What lies in a context becomes a layer first: its owners,
/// and what the ignore file hides, are not the step's to see.
pub(super) fn tree_of(mount: &ExecMount, context: &StepContext) -> Result<(Vec<LayerId>, PathBuf), WorkError> {
    let Some(index) = mount.input else { return Ok((Vec::new(), PathBuf::from(&mount.selector))) };
    let input = &context.inputs[index];
    let StepContext { store, lease, session, contexts, .. } = context;
    match input {
        ResultRef::Layers(layers) => Ok((layers.clone(), PathBuf::from(&mount.selector))),
        ResultRef::Context { .. } => {
            let layer = Source { store, lease, session, contexts, input, path: &mount.selector }.layer()?;
            Ok((vec![layer], Path::new("/").join(copies::ROOT)))
        }
    }
}

fn tmpfs(mount: &ExecMount, size: Option<u64>) -> MountSpec {
    MountSpec::new(&mount.target, MountSource::Tmpfs { size, mode: 0o1777 }, mount.readonly)
}

fn cache(mount: &ExecMount, id: &str, caches: &Caches) -> Result<MountSpec, WorkError> {
    let Some(tree) = caches.tree(&mount.target) else {
        return Err(ExecError::NoCache { id: id.to_owned() }.into());
    };
    Ok(MountSpec::new(&mount.target, MountSource::Bind(tree), mount.readonly))
}

fn socket(mount: &ExecMount, ssh: &SecretMount) -> MountSpec {
    let source = MountSource::Socket { mode: ssh.mode & 0o777, uid: ssh.uid, gid: ssh.gid };
    MountSpec::new(&mount.target, source, false)
}
