//! The control service: builds, their progress, sessions, and what the store holds.

mod history;
mod usage;

use crate::daemon::Shared;
use crate::session::MOST_MESSAGE;
use crate::traces::TraceContext;
use crate::{solve, worker_record};
use forge_buildkit_proto::moby::buildkit::v1::control_server::Control;
use forge_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message as _;
use std::sync::Arc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

/// What comes back piece by piece.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Serves the control service.
pub(crate) struct ControlService {
    shared: Arc<Shared>,
}

impl ControlService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// The daemon's clock, by which clients correct the times that they are told.
fn timed<T>(answer: T) -> Response<T> {
    let mut response = Response::new(answer);
    let now = crate::timestamp::rfc3339(std::time::SystemTime::now());
    if let Ok(now) = MetadataValue::try_from(now) {
        response.metadata_mut().insert("buildkit-current-timestamp", now);
    }
    response
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn disk_usage(&self, request: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        let record = usage::list(&self.shared, &request.into_inner().filter).await?;
        Ok(Response::new(DiskUsageResponse { record }))
    }

    type PruneStream = Answers<UsageRecord>;

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let removed = usage::prune(&self.shared, &request.into_inner()).await?;
        Ok(Response::new(stream::iter(removed.into_iter().map(Ok)).boxed()))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let traced = TraceContext::of(request.metadata());
        let request = request.into_inner();
        if request.encoded_len() > MOST_MESSAGE {
            return Err(Status::resource_exhausted("the request is too large"));
        }
        solve::solve(self.shared.clone(), request, traced).await.map(Response::new)
    }

    type StatusStream = Answers<StatusResponse>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let reference = request.into_inner().r#ref;
        let build = self.shared.builds.wait(&reference, |build| Some(build.clone())).await?;
        let told = stream::unfold((build, 0), |(build, mut position)| async move {
            let message = build.progress.next(&mut position).await?;
            Some((Ok(message), (build, position)))
        });
        Ok(timed(told.boxed()))
    }

    type SessionStream = Answers<BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, incoming) = request.into_parts();
        let outgoing = self.shared.sessions.connect(&metadata, incoming)?;
        Ok(Response::new(outgoing.boxed()))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let filters = request.into_inner().filter;
        let worker = &self.shared.worker;
        let field = |path: &str| match path.strip_prefix("labels.") {
            Some(label) => worker.labels.get(label.trim_matches('"')).cloned(),
            None if path == "id" => Some(worker.id.clone()),
            None => None,
        };
        let record = match crate::filter::matches(&filters, field)? {
            true => vec![worker.clone()],
            false => Vec::new(),
        };
        Ok(Response::new(ListWorkersResponse { record }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let version = worker_record::version(&self.shared.options);
        Ok(Response::new(InfoResponse { buildkit_version: Some(version) }))
    }

    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Ok(timed(history::listen(&self.shared.builds, request.into_inner())?))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        history::update(&self.shared.builds, &request.into_inner())?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}
