use crate::client::{Client, Served, TestDaemon};
use forge_buildkit_proto::moby::buildkit::v1::sourcepolicy::{Policy, PolicyAction, Rule, Selector};
use forge_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryRecord, BuildHistoryRequest, CacheOptions, CacheOptionsEntry, PruneRequest, SolveRequest,
    UpdateBuildHistoryRequest,
};
use std::time::Duration;
use tonic::Code;

fn copying(text: &str) -> Served {
    let dockerfile = "FROM scratch\nCOPY a dir/\nCOPY <<EOF /made\nmade\nEOF\n";
    Served::context("dockerfile", &[("Dockerfile", dockerfile)]).and("context", &[("a", text), ("b", "unused")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_and_its_context_come_from_the_client() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let (_, files) = client.build("one", copying("text"), &[]).await.unwrap();
    assert_eq!(files["dir/a"], b"text");
    assert_eq!(files["made"], b"made\n");
    let status = client.status("one").await;
    let vertices: Vec<_> = status.iter().flat_map(|message| &message.vertexes).collect();
    assert!(vertices.iter().any(|vertex| vertex.name.contains("COPY a dir/") && vertex.completed.is_some()));
    let (_, again) = client.build("two", copying("text"), &[]).await.unwrap();
    assert_eq!(again, files);
    let status = client.status("two").await;
    let cached = status.iter().flat_map(|message| &message.vertexes).filter(|vertex| vertex.cached);
    assert!(cached.count() >= 2);
    let history = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let mut history = client.control().listen_build_history(history).await.unwrap().into_inner();
    let first = history.message().await.unwrap().unwrap().record.unwrap();
    assert_eq!((first.r#ref.as_str(), first.error.is_none()), ("one", true));
}

/// All builds that are remembered.
async fn remembered(client: &Client) -> Vec<BuildHistoryRecord> {
    let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let mut events = client.control().listen_build_history(request).await.unwrap().into_inner();
    let mut records = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        records.extend(event.record);
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_remembered_when_the_daemon_starts_anew() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    client.build("one", copying("text"), &[]).await.unwrap();
    let none = Served::context("dockerfile", &[]).and("context", &[]);
    client.build("two", none, &[]).await.unwrap_err();
    let (records, status) = (remembered(&client).await, client.status("one").await);
    assert_eq!(records.iter().map(|record| record.r#ref.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    for record in &records {
        assert_eq!(record.logs.as_ref().unwrap().media_type, "application/vnd.buildkit.status.v0");
        assert!(record.trace.is_some() && record.completed_at.is_some());
    }
    assert!(records[0].num_completed_steps > 0 && records[1].external_error.is_some());
    let daemon = daemon.again().await;
    let client = daemon.client().await;
    assert_eq!(remembered(&client).await, records);
    assert_eq!(client.status("one").await, status);
    let forget = UpdateBuildHistoryRequest { r#ref: "one".into(), delete: true, ..Default::default() };
    client.control().update_build_history(forget).await.unwrap();
    client.build("three", copying("text"), &[]).await.unwrap();
    let daemon = daemon.again().await;
    let names: Vec<String> = remembered(&daemon.client().await).await.into_iter().map(|record| record.r#ref).collect();
    assert_eq!(names, ["two", "three"]);
    daemon.stop().await.unwrap();
}

/// What is removed of copies of clients' files, and of results.
async fn pruned(client: &Client, request: PruneRequest) -> (usize, usize) {
    let mut answers = client.control().prune(request).await.unwrap().into_inner();
    let (mut files, mut results) = (0, 0);
    while let Some(record) = answers.message().await.unwrap() {
        if record.record_type == "source.local" { files += 1 } else { results += 1 }
    }
    (files, results)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_keeps_to_filters_and_limits() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let build = async |name: &str| client.build(name, copying("text"), &[]).await.unwrap();
    build("one").await;
    let request = |change: fn(&mut PruneRequest)| {
        let mut request = PruneRequest { all: true, ..PruneRequest::default() };
        change(&mut request);
        request
    };
    let filtered = |filter: &str| PruneRequest { filter: vec![filter.to_owned()], ..request(|_| {}) };
    assert_eq!(pruned(&client, filtered("description~=never")).await, (0, 0));
    assert_eq!(pruned(&client, request(|it| it.keep_duration = 3_600_000_000_000)).await, (0, 0), "all of it is new");
    assert_eq!(pruned(&client, request(|it| it.max_used_space = 1 << 40)).await, (0, 0), "there is room");
    assert_eq!(pruned(&client, request(|it| it.reserved_space = 1 << 40)).await, (0, 0), "so much may stay");
    assert_eq!(pruned(&client, request(|it| it.min_free_space = 1)).await, (0, 0), "enough is free");
    let (files, results) = pruned(&client, filtered("type==source.local")).await;
    assert!(files > 0 && results == 0, "{files} {results}");
    build("two").await;
    let (files, results) = pruned(&client, request(|it| it.max_used_space = 1)).await;
    assert!(files > 0 && results > 0, "{files} {results}");
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_that_changed_cross_the_connection() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    client.build("one", copying("text"), &[]).await.unwrap();
    let second = copying("text");
    client.build("two", second.clone(), &[]).await.unwrap();
    assert_eq!(*second.requests.lock().unwrap(), [""; 0]);
    let third = copying("longer text");
    let (_, files) = client.build("three", third.clone(), &[]).await.unwrap();
    assert_eq!(*third.requests.lock().unwrap(), ["a"]);
    assert_eq!(files["dir/a"], b"longer text");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_the_step_and_the_place() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let served = Served::context("dockerfile", &[("Dockerfile", "FROM scratch\nCOPY missing /\n")])
        .and("context", &[("a", "x")]);
    let failed = client.build("one", served, &[]).await.unwrap_err();
    assert!(failed.message().contains("missing"), "{failed}");
    let details = String::from_utf8_lossy(failed.details());
    assert!(details.contains("errdefs.Vertex+json") && details.contains("errdefs.Source+json"), "{details}");
    let none = Served::context("dockerfile", &[]).and("context", &[]);
    let failed = client.build("two", none, &[]).await.unwrap_err();
    assert!(failed.message().contains("open Dockerfile: no such file or directory"), "{failed}");
}

// Seen to fail when a build that nobody waits for goes on: the second one never gets its name.
#[tokio::test(flavor = "multi_thread")]
async fn f26_a_client_that_vanishes_leaves_nothing_running() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    // Nobody steers it: it waits for its result for ever.
    let request = SolveRequest { r#ref: "same".into(), ..SolveRequest::default() };
    let waiting = tokio::spawn({
        let (client, request) = (client.clone(), request.clone());
        async move { client.control().solve(request).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let taken = client.control().solve(request.clone()).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    waiting.abort();
    let free = async {
        loop {
            let again = client.control().solve(SolveRequest { frontend: "none".into(), ..request.clone() }).await;
            match again.unwrap_err().code() {
                Code::AlreadyExists => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => return,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a27_a_session_that_ends_fails_its_build() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let request = SolveRequest {
        r#ref: "r".into(),
        session: "nobody".into(),
        frontend: "dockerfile.v0".into(),
        ..SolveRequest::default()
    };
    let failed = client.control().solve(request).await.unwrap_err();
    assert!(failed.message().contains("no active session for nobody"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_build_at_the_same_time() {
    let daemon = TestDaemon::start().await;
    let (one, two) = (daemon.client().await, daemon.client().await);
    let builds = tokio::join!(one.build("1", copying("one"), &[]), two.build("2", copying("two"), &[]));
    assert_eq!(builds.0.unwrap().1["dir/a"], b"one");
    assert_eq!(builds.1.unwrap().1["dir/a"], b"two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_carries_the_cache_from_daemon_to_daemon() {
    let registry = forge_testkit::TestRegistry::start();
    let entry = |kind: &str, attrs: &[(&str, &str)]| CacheOptionsEntry {
        r#type: kind.to_owned(),
        attrs: attrs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let place = format!("{}/team/cache:main", registry.authority());
    let caches = |exports, imports| Some(CacheOptions { exports, imports, ..CacheOptions::default() });
    let (one, two) = (TestDaemon::start_online().await, TestDaemon::start_online().await);
    let ran = async |daemon: &TestDaemon, name: &str, cache| {
        let client = daemon.client().await;
        let (_, files) = client.build_with(name, copying("text"), &[], cache).await.unwrap();
        assert_eq!(files["made"], b"made\n");
        let status = client.status(name).await;
        let warnings = status.iter().flat_map(|message| &message.warnings);
        let warnings: Vec<_> = warnings.map(|warning| String::from_utf8_lossy(&warning.short).into_owned()).collect();
        let copies = status.iter().flat_map(|message| &message.vertexes).filter(|vertex| vertex.name.contains("COPY"));
        let cached = copies.filter(|vertex| vertex.cached && vertex.completed.is_some()).count();
        (cached, warnings)
    };
    let exports = vec![entry("registry", &[("ref", &place), ("mode", "max"), ("ignore-error", "true")])];
    assert_eq!(ran(&one, "one", caches(exports, Vec::new())).await, (0, Vec::new()));
    let imports = vec![entry("registry", &[("ref", &place)])];
    assert_eq!(ran(&two, "two", caches(Vec::new(), imports)).await, (2, Vec::new()));
    // What this machine does not have is told, and its steps are run.
    let (_, told) = ran(&two, "three", caches(Vec::new(), vec![entry("azblob", &[])])).await;
    assert!(told.len() == 1 && told[0].starts_with("cache import type=azblob is not supported"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_a_client_s_rules_deny_are_not_asked_for() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let served = copying("text");
    let _open = client.session("session", "key", served.clone()).await;
    let rule = |identifier: &str| Rule {
        action: PolicyAction::Deny.into(),
        selector: Some(Selector { identifier: identifier.to_owned(), ..Selector::default() }),
        updates: None,
    };
    let request = |name: &str, rule: Rule| SolveRequest {
        r#ref: name.to_owned(),
        session: "session".into(),
        frontend: "dockerfile.v0".into(),
        source_policy: Some(Policy { version: 1, rules: vec![rule] }),
        ..SolveRequest::default()
    };
    let denied = client.control().solve(request("one", rule("local://context"))).await.unwrap_err();
    assert!(denied.message().contains("source \"local://context\" denied by policy"), "{denied}");
    assert!(!served.requests.lock().unwrap().iter().any(|path| path == "a"));
    client.control().solve(request("two", rule("docker-image://*"))).await.unwrap();
    let none = Rule { selector: None, ..rule("") };
    let refused = client.control().solve(request("three", none)).await.unwrap_err();
    assert_eq!(refused.message(), "invalid nil selector in policy");
}
