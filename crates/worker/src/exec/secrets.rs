//! Secrets of the session, as files in memory and as variables.

use super::ExecError;
use forge_executor::{Hidden, MountFlags, MountSource, MountSpec};
use forge_llb::{ExecOp, MountKind, SecretMount};
use forge_session::{Secret, Session};
use std::collections::HashMap;

/// The secrets that a step may see, by their ids; `None` for one that is not there and need not be.
#[derive(Default)]
pub(super) struct Secrets(HashMap<String, Option<Secret>>);

impl Secrets {
    /// Asks the session for everything that the step names.
    pub(super) async fn fetch(op: &ExecOp, session: &dyn Session) -> Result<Self, ExecError> {
        let mounts = op.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Secret(secret) => Some((&secret.id, secret.optional)),
            _ => None,
        });
        let variables = op.secret_env.iter().map(|variable| (&variable.id, variable.optional));
        let mut found = HashMap::new();
        for (id, optional) in mounts.chain(variables) {
            if !found.contains_key(id) {
                found.insert(id.clone(), session.secret(id).await?);
            }
            if !optional && found[id].is_none() {
                return Err(ExecError::NoSecret { id: id.clone() });
            }
        }
        Ok(Self(found))
    }

    fn get(&self, id: &str) -> Option<&Secret> {
        self.0.get(id).and_then(Option::as_ref)
    }

    /// The file of one mount; nothing where the session has no such secret.
    pub(super) fn mount(&self, target: &str, wanted: &SecretMount) -> Option<MountSpec> {
        let secret = self.get(&wanted.id)?;
        let content = Hidden::new(secret.reveal());
        let (mode, uid, gid) = (wanted.mode & 0o777, wanted.uid, wanted.gid);
        let source = MountSource::Secret { content, mode, uid, gid };
        let flags = MountFlags { noexec: mode & 0o111 == 0, ..MountFlags::default() };
        Some(MountSpec { flags, ..MountSpec::new(target, source, true) })
    }

    /// The variables.
    pub(super) fn environment(&self, op: &ExecOp) -> Vec<Hidden> {
        let pair = |variable: &forge_llb::SecretEnv| {
            let secret = self.get(&variable.id)?;
            Some(Hidden::new([variable.name.as_bytes(), b"=", secret.reveal()].concat()))
        };
        op.secret_env.iter().filter_map(pair).collect()
    }
}
