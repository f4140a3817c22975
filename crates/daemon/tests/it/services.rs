use crate::client::TestDaemon;
use forge_buildkit_proto::health::HealthCheckRequest;
use forge_buildkit_proto::health::health_client::HealthClient;
use forge_buildkit_proto::moby::buildkit::v1::frontend::PingRequest;
use forge_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryRequest, DiskUsageRequest, InfoRequest, ListWorkersRequest, SolveRequest, StatusRequest,
};
use tonic::{Code, Request};

#[tokio::test(flavor = "multi_thread")]
async fn clients_find_a_worker_and_a_version() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let workers = client.control().list_workers(ListWorkersRequest::default()).await.unwrap().into_inner().record;
    assert_eq!((workers.len(), workers[0].platforms.len(), workers[0].id.len()), (1, 1, 25));
    // BuildKit's own four, since nothing is configured.
    let policies = &workers[0].gc_policy;
    assert_eq!((policies.len(), policies[0].filters.len()), (4, 3), "{policies:?}");
    assert_eq!(policies[0].filters[1], "type==exec.cachemount");
    assert_eq!((policies[0].keep_duration, policies[0].max_used_space), (48 * 3600 * 1_000_000_000, 512_000_000));
    assert!(policies[3].all && policies[3].max_used_space > 0 && policies[3].min_free_space > 0, "{policies:?}");
    let filter = vec!["id==nosuch".to_owned()];
    let none = client.control().list_workers(ListWorkersRequest { filter }).await.unwrap().into_inner().record;
    assert!(none.is_empty());
    let info = client.control().info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.buildkit_version.unwrap().version, "v0.0.0+test");
    let health = HealthClient::new(client.channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status, 1);
    let usage = client.control().disk_usage(DiskUsageRequest::default()).await.unwrap().into_inner();
    assert!(usage.record.is_empty());
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let status = client.control().status(StatusRequest { r#ref: "none".into() }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such job none"));
    let nameless = client.gateway().ping(PingRequest {}).await.unwrap_err();
    assert!(nameless.message().contains("no buildid found in context"), "{nameless}");
    let mut request = Request::new(PingRequest {});
    request.metadata_mut().insert("buildkit-controlapi-buildid", "none".parse().unwrap());
    let unknown = client.gateway().ping(request).await.unwrap_err();
    assert!(unknown.message().contains("no such job none"), "{unknown}");
    let early = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let mut history = client.control().listen_build_history(early).await.unwrap().into_inner();
    assert!(history.message().await.unwrap().is_none());
}

// Seen to fail with the limit of the server left at its default of 4 MiB, and with none at all.
#[tokio::test(flavor = "multi_thread")]
async fn a119_messages_are_bounded() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let of = |bytes: usize| SolveRequest { frontend: "x".repeat(bytes), r#ref: "r".into(), ..SolveRequest::default() };
    let large = client.control().solve(of(10 << 20)).await.unwrap_err();
    assert!(large.message().starts_with("invalid frontend"), "{:.100}", large.message());
    let larger = client.control().solve(of(17 << 20)).await.unwrap_err();
    assert!(matches!(larger.code(), Code::OutOfRange | Code::ResourceExhausted), "{:.100}", larger.message());
    client.control().info(InfoRequest {}).await.unwrap();
}
