//! File operations on bases that nobody has read: a base that lies in a registry stays there where what the operation must know
//! of it is known without.
//!
//! First nothing is asked: of what goes into the root folder itself only the names count. Then the tables of contents of the
//! base's layers, where they have some. What is still not known is fetched, and so is what is unusual. The layer that is
//! made is the same each time.

use crate::error::WorkError;
use crate::file::{packed, packed_folder};
use crate::local::{LocalWorker, file_inputs};
use forge_cache::ResultRef;
use forge_llb::{FileInput, FileKind, FileOp};
use forge_session::Session;
use forge_solver::{ExecuteRequest, Execution};
use std::sync::Arc;
use std::time::SystemTime;

impl LocalWorker {
    /// Carries out a file operation.
    pub(crate) async fn file_step(
        &self,
        op: &FileOp,
        request: &ExecuteRequest,
        session: &Arc<dyn Session>,
    ) -> Result<Execution, WorkError> {
        let vertex = request.digest.digest();
        let images = &self.sources.images;
        if let Some(base) = self.unread_base(op, &request.inputs)? {
            let mut inputs = images.present_but(base, &request.inputs, vertex).await?;
            if let Some(made) = self.unread(op, &inputs, session).await? {
                return Ok(made);
            }
            if images.tell(&inputs[base], vertex).await?
                && let Some(made) = self.unread(op, &inputs, session).await?
            {
                return Ok(made);
            }
            inputs = images.present(&inputs, vertex).await?;
            return self.file(op, &inputs, session).await;
        }
        self.file(op, &images.present(&request.inputs, vertex).await?, session).await
    }

    /// The input that the operation lies on, where some of it is not here.
    fn unread_base(&self, op: &FileOp, inputs: &[ResultRef]) -> Result<Option<usize>, WorkError> {
        let [only] = &op.actions[..] else { return Ok(None) };
        let FileInput::Input(base) = only.base else { return Ok(None) };
        let reads_it = match &only.kind {
            FileKind::Copy(copy) => copy.from == only.base,
            FileKind::Mkdir(_) => false,
            FileKind::Mkfile(_) | FileKind::Symlink(_) | FileKind::Rm(_) => true,
        };
        let is_absent = !reads_it && !self.store.layers().absent(inputs[base].layers())?.is_empty();
        Ok(is_absent.then_some(base))
    }

    /// What the operation makes, where it can be said by what is known of its base.
    async fn unread(
        &self,
        op: &FileOp,
        inputs: &[ResultRef],
        session: &Arc<dyn Session>,
    ) -> Result<Option<Execution>, WorkError> {
        let (store, lease, op) = (self.store.clone(), self.lease.clone(), op.clone());
        let (inputs, session, contexts) = (inputs.to_vec(), session.clone(), self.contexts());
        let work = move || -> Result<Option<Execution>, WorkError> {
            let times = crate::keys::file_times(&op, |input| matches!(inputs[input], ResultRef::Context { .. }));
            let now = SystemTime::now();
            if let FileKind::Mkdir(mkdir) = &op.actions[0].kind {
                let FileInput::Input(base) = op.actions[0].base else { return Ok(None) };
                let parents = inputs[base].layers();
                return Ok(packed_folder::execute(mkdir, times, &store, &lease, parents, now)?);
            }
            let inputs = file_inputs(&store, inputs, session, &contexts)?;
            Ok(packed::execute(&op, times, &store, &lease, &inputs, now)?)
        };
        match tokio::task::spawn_blocking(work).await? {
            Err(error) if error.is_absent_layer() => Ok(None),
            made => made,
        }
    }
}
