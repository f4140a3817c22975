//! Questions about a Dockerfile, which a daemon answers without building it.

use crate::answers::Answered;
use crate::build::{Begun, RemoteBuild};
use crate::connection::{Client, MOST_MESSAGE};
use crate::failure;
use forge_buildkit_proto::moby::buildkit::v1::SolveRequest;
use forge_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use forge_buildkit_proto::moby::buildkit::v1::frontend::{self as gateway, ReturnRequest};
use forge_engine::{Call, EngineError, OwnOptions};
use forge_session::EventSink;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Status};

/// Whoever steers a build says by this which one.
const BUILD: &str = "buildkit-controlapi-buildid";

impl Client {
    /// Asks what the engine's own `call` is asked. Outputs, names and caches of the build do not matter.
    ///
    /// # Errors
    /// As that; or the request asks for what a daemon cannot be asked for, or the connection ends.
    pub async fn call(
        &self,
        build: RemoteBuild,
        call: Call,
        events: Arc<dyn EventSink>,
        cancel: CancellationToken,
    ) -> Result<Answered, EngineError> {
        let build = RemoteBuild { imports: Vec::new(), exports: Vec::new(), ..build };
        let stop = cancel.child_token();
        let _stop = stop.clone().drop_guard();
        let begun = self.begin(&build, events, stop).await?;
        let mut options = begun.options(&build.request)?;
        // They are about steps, of which none runs.
        options.remove(OwnOptions::ATTRIBUTE);
        options.insert("requestid".to_owned(), question(call).to_owned());
        options.insert("frontend.caps".to_owned(), "moby.buildkit.frontend.subrequests".to_owned());
        let session = begun.open_session(self, crate::outputs::Targets::none()).await?;
        let steered = SolveRequest {
            r#ref: begun.id.clone(),
            session: begun.id.clone(),
            source_policy: crate::request::source_policy(&build.request)?,
            ..SolveRequest::default()
        };
        let mut control = self.control();
        let asked = async {
            let metadata = self.asked(&begun, options).await?;
            Ok::<_, Status>(metadata)
        };
        let answered = tokio::select! {
            answered = asked => answered,
            // It ends by itself when it cannot begin.
            Err(status) = control.solve(steered) => Err(status),
            () = cancel.cancelled() => Err(Status::cancelled("cancelled")),
        };
        let _ = begun.end().await;
        drop(session);
        answered.map(Answered::new).map_err(|status| failure::of_build(&status))
    }

    /// Asks the front end, and ends the build that was begun for that.
    async fn asked(&self, begun: &Begun, options: HashMap<String, String>) -> Result<HashMap<String, Vec<u8>>, Status> {
        let mut bridge = LlbBridgeClient::new(self.channel()).max_decoding_message_size(MOST_MESSAGE);
        let question = gateway::SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            frontend_opt: options,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        let answer = bridge.solve(of_build(question, &begun.id)?).await?.into_inner();
        let nothing = ReturnRequest { result: Some(gateway::Result::default()), error: None };
        bridge.r#return(of_build(nothing, &begun.id)?).await?;
        Ok(answer.result.unwrap_or_default().metadata)
    }
}

fn of_build<T>(message: T, id: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = AsciiMetadataValue::try_from(id).map_err(|error| Status::internal(error.to_string()))?;
    request.metadata_mut().insert(BUILD, value);
    Ok(request)
}

fn question(call: Call) -> &'static str {
    match call {
        Call::Check => "frontend.lint",
        Call::Outline => "frontend.outline",
        Call::Targets => "frontend.targets",
    }
}
