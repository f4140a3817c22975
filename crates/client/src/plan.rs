//! What a build by a daemon would do.

use crate::build::RemoteBuild;
use crate::connection::Client;
use crate::failure;
use crate::outputs::{Targets, unsupported};
use forge_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest};
use forge_engine::{EngineError, PLAN_OUTPUT, PlatformPlan};
use forge_image::ErrorKind;
use forge_session::EventSink;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

impl Client {
    /// Says what [`Client::build`] would do, and does nothing of it but what the front end itself asks for. Outputs and shared
    /// caches do not matter.
    ///
    /// # Errors
    /// As a build; or the daemon is not forge's.
    pub async fn plan(
        &self,
        build: RemoteBuild,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Vec<PlatformPlan>, EngineError> {
        if !self.is_forge() {
            return Err(unsupported("a plan", "this one is not forge's, or an earlier version of it"));
        }
        let build = RemoteBuild { imports: Vec::new(), exports: Vec::new(), ..build };
        let stop = cancel.child_token();
        let _stop = stop.clone().drop_guard();
        let begun = self.begin(&build, events, stop).await?;
        let session = begun.open_session(self, Targets::none()).await?;
        let exporter = Exporter { r#type: PLAN_OUTPUT.to_owned(), attrs: Default::default() };
        let asked = SolveRequest { exporters: vec![exporter], ..begun.solve_request(&build)? };
        let mut control = self.control();
        let solved = tokio::select! {
            solved = control.solve(asked) => solved,
            () = cancel.cancelled() => Err(Status::cancelled("cancelled")),
        };
        let _ = begun.end().await;
        drop(session);
        let solved = solved.map_err(|status| failure::of_build(&status))?.into_inner();
        let told = solved.exporter_response.get(PLAN_OUTPUT).map(|text| serde_json::from_str(text));
        let unread =
            |why: String| EngineError::new(ErrorKind::Remote, format!("the daemon's plan cannot be read: {why}"));
        told.ok_or_else(|| unread("there is none".to_owned()))?.map_err(|error| unread(error.to_string()))
    }
}
