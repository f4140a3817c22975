//! The gateway service: on the control socket each call belongs to the build that its metadata names, on a connection of its own
//! all belong to one.

use crate::bridge::Bridge;
use crate::daemon::Shared;
use crate::exec_process;
use crate::session::MOST_MESSAGE;
use crate::solve_service::WithSolve;
use forge_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::{LlbBridge, LlbBridgeServer};
use forge_buildkit_proto::moby::buildkit::v1::frontend::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse, NewContainerRequest,
    NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse, ReadFileRequest,
    ReadFileResponse, ReleaseContainerRequest, ReleaseContainerResponse, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest, ReturnResponse,
    SolveRequest, SolveResponse, StatFileRequest, StatFileResponse, WarnRequest, WarnResponse,
};
use futures_util::stream::BoxStream;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Serves the gateway service.
pub(crate) enum GatewayService {
    /// For all builds of the daemon.
    Builds(Arc<Shared>),
    /// For whoever has this connection.
    One(Arc<Bridge>),
}

impl GatewayService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self::Builds(shared)
    }

    /// Serves one build.
    pub(crate) fn of(bridge: Arc<Bridge>) -> Self {
        Self::One(bridge)
    }

    /// The bridge of the build that a call belongs to.
    async fn bridge<T>(&self, request: &Request<T>, call: &str) -> Result<Arc<Bridge>, Status> {
        let shared = match self {
            Self::Builds(shared) => shared,
            Self::One(bridge) => return Ok(bridge.clone()),
        };
        let id = request.metadata().get("buildkit-controlapi-buildid").and_then(|id| id.to_str().ok());
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            return Err(Status::unknown(format!("forwarding {call}: no buildid found in context")));
        };
        let found = shared.builds.wait(id, |build| build.bridge()).await;
        found.map_err(|status| Status::new(status.code(), format!("forwarding {call}: {}", status.message())))
    }
}

/// Serves it on a connection.
pub(crate) fn server(gateway: Arc<GatewayService>) -> WithSolve<LlbBridgeServer<GatewayService>, GatewayService> {
    let inner = LlbBridgeServer::from_arc(gateway.clone());
    let inner = inner.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(MOST_MESSAGE);
    WithSolve { inner, solver: gateway }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl LlbBridge for GatewayService {
    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Reply<ResolveImageConfigResponse> {
        let bridge = self.bridge(&request, "ResolveImageConfig").await?;
        bridge.resolve_image_config(request.into_inner()).await.map(Response::new)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Reply<ResolveSourceMetaResponse> {
        let bridge = self.bridge(&request, "ResolveSourceMeta").await?;
        bridge.resolve_source_meta(request.into_inner()).await.map(Response::new)
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Reply<SolveResponse> {
        let bridge = self.bridge(&request, "Solve").await?;
        bridge.solve(request.into_inner()).await.map(Response::new)
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Reply<ReadFileResponse> {
        let bridge = self.bridge(&request, "ReadFile").await?;
        bridge.read_file(request.into_inner()).await.map(Response::new)
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Reply<ReadDirResponse> {
        let bridge = self.bridge(&request, "ReadDir").await?;
        bridge.read_dir(request.into_inner()).await.map(Response::new)
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Reply<StatFileResponse> {
        let bridge = self.bridge(&request, "StatFile").await?;
        bridge.stat_file(request.into_inner()).await.map(Response::new)
    }

    async fn evaluate(&self, request: Request<EvaluateRequest>) -> Reply<EvaluateResponse> {
        let bridge = self.bridge(&request, "Evaluate").await?;
        bridge.evaluate(&request.into_inner().r#ref).await.map(Response::new)
    }

    async fn ping(&self, request: Request<PingRequest>) -> Reply<PongResponse> {
        Ok(Response::new(self.bridge(&request, "Ping").await?.ping()))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Reply<ReturnResponse> {
        let bridge = self.bridge(&request, "Return").await?;
        bridge.return_result(request.into_inner())?;
        Ok(Response::new(ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Reply<InputsResponse> {
        Ok(Response::new(self.bridge(&request, "Inputs").await?.inputs()))
    }

    async fn new_container(&self, request: Request<NewContainerRequest>) -> Reply<NewContainerResponse> {
        let bridge = self.bridge(&request, "NewContainer").await?;
        bridge.new_container(request.into_inner()).await?;
        Ok(Response::new(NewContainerResponse {}))
    }

    async fn release_container(&self, request: Request<ReleaseContainerRequest>) -> Reply<ReleaseContainerResponse> {
        let bridge = self.bridge(&request, "ReleaseContainer").await?;
        bridge.containers.release(&request.into_inner().container_id).await?;
        Ok(Response::new(ReleaseContainerResponse {}))
    }

    type ExecProcessStream = BoxStream<'static, Result<ExecMessage, Status>>;

    async fn exec_process(&self, request: Request<Streaming<ExecMessage>>) -> Reply<Self::ExecProcessStream> {
        let bridge = self.bridge(&request, "ExecProcess").await?;
        Ok(Response::new(exec_process::serve(bridge, request.into_inner())))
    }

    async fn read_file_container(&self, request: Request<ReadFileRequest>) -> Reply<ReadFileResponse> {
        let bridge = self.bridge(&request, "ReadFileContainer").await?;
        bridge.read_container_file(request.into_inner()).await.map(Response::new)
    }

    async fn read_dir_container(&self, request: Request<ReadDirRequest>) -> Reply<ReadDirResponse> {
        let bridge = self.bridge(&request, "ReadDirContainer").await?;
        bridge.read_container_dir(request.into_inner()).await.map(Response::new)
    }

    async fn stat_file_container(&self, request: Request<StatFileRequest>) -> Reply<StatFileResponse> {
        let bridge = self.bridge(&request, "StatFileContainer").await?;
        bridge.stat_container_file(request.into_inner()).await.map(Response::new)
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Reply<WarnResponse> {
        self.bridge(&request, "Warn").await?.warn(request.into_inner());
        Ok(Response::new(WarnResponse {}))
    }
}
