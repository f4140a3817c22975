//! Results that come out as before, causes of misses, and forecasts.

mod fake;

use fake::*;
use forge_cache::{BuildId, ResultRef};
use forge_solver::{Explain, Forecast, MissCause, OnFailure, Remembered, SolveError, Solver};
use std::sync::Arc;
use std::time::Duration;

fn remembered(explain: Explain) -> Remembered {
    Remembered { id: BuildId::new(&[b"test"]), arguments: Default::default(), explain }
}

/// Builds, and gives the lines that say why steps ran.
async fn told(solver: &Solver, graph: &forge_llb::Graph, explain: Explain) -> Vec<String> {
    let session = FakeSession::new();
    solver.solve_again(graph, session.clone(), remembered(explain)).await.unwrap();
    session.lines()
}

async fn result(solver: &Solver, graph: &forge_llb::Graph) -> ResultRef {
    solver.solve(graph, FakeSession::new()).await.unwrap().result
}

/// Fails when what a step made is kept as it came: the goal is another result then.
#[tokio::test(start_paused = true)]
async fn what_came_out_as_before_is_replaced_by_what_was_before() {
    let fake = Fake::default();
    fake.set("old", |step| step.text = Some("same".to_owned()));
    fake.set("new", |step| step.text = Some("same".to_owned()));
    fake.set("goal", |step| _ = step.reads.insert(0));
    let solver = solver(&fake);
    let first = result(&solver, &chain(&["old", "goal"])).await;
    let alone = result(&solver, &chain(&["old"])).await;
    fake.ran();
    assert_eq!(result(&solver, &chain(&["new", "goal"])).await, first);
    assert_eq!(result(&solver, &chain(&["new"])).await, alone);
    assert_eq!(fake.ran(), ["new"]);
    // Told to run, it runs, and is what it was all the same.
    let mut builder = GraphBuilder::default();
    let again = builder.add_ignoring_cache("new", &[]);
    assert_eq!(result(&solver, &builder.goal(&again)).await, alone);
    assert_eq!(fake.ran(), ["new"]);
    // What is lost replaces nothing.
    fake.forget_results();
    fake.set("newest", |step| step.text = Some("same".to_owned()));
    assert_ne!(result(&solver, &chain(&["newest"])).await, alone);
}

#[tokio::test(start_paused = true)]
async fn a_miss_says_its_first_cause() {
    let fake = Fake::default();
    let solver = solver(&fake);
    let first = async |names: &[&str]| told(&solver, &chain(names), Explain::FirstCauses).await;
    assert!(first(&["[1/3] FROM a", "[2/3] RUN x", "[3/3] RUN y"]).await.is_empty(), "nothing was found before");
    assert!(first(&["[1/3] FROM a", "[2/3] RUN x", "[3/3] RUN y"]).await.is_empty(), "everything is found");
    let lines = first(&["[1/3] FROM a", "[2/3] RUN z", "[3/3] RUN y"]).await;
    assert_eq!(lines, ["forge: not cached: op: [2/3] RUN x → [2/3] RUN z"]);
    // Back and forth: compared with the build before, not with any.
    assert!(first(&["[1/3] FROM a", "[2/3] RUN x", "[3/3] RUN y"]).await.is_empty());
    let lines = first(&["[1/3] FROM a", "[2/3] RUN w", "[3/3] RUN y"]).await;
    assert_eq!(lines, ["forge: not cached: op: [2/3] RUN x → [2/3] RUN w"]);
    // A source that was found says nothing itself.
    let graph = chain(&["[1/3] FROM b", "[2/3] RUN w", "[3/3] RUN y"]);
    let goal = chain(&["[1/3] FROM b"]);
    solver.solve(&goal, FakeSession::new()).await.unwrap();
    let lines = told(&solver, &graph, Explain::FirstCauses).await;
    assert_eq!(
        lines[0],
        "forge: not cached: [1/3] FROM b: op: [1/3] FROM a → [1/3] FROM b; what it starts from is another one"
    );
    let lines = told(&solver, &chain(&["[1/3] FROM b", "[2/3] RUN v", "[3/3] RUN u"]), Explain::Everything).await;
    assert_eq!(lines.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_result_is_told_as_lost() {
    let fake = Fake::default();
    let solver = solver(&fake);
    let graph = chain(&["base", "goal"]);
    told(&solver, &graph, Explain::FirstCauses).await;
    fake.forget_results();
    let lines = told(&solver, &graph, Explain::FirstCauses).await;
    assert_eq!(lines, ["forge: not cached: its result is not in the store any more"; 2]);
}

async fn forecasts(solver: &Solver, graph: &forge_llb::Graph) -> Vec<Forecast> {
    let session = FakeSession::new();
    let forecasts = solver.forecast(graph, session.clone(), remembered(Explain::FirstCauses)).await.unwrap();
    assert!(session.lines().is_empty());
    forecasts.into_iter().map(|step| step.forecast).collect()
}

#[tokio::test(start_paused = true)]
async fn a_forecast_runs_nothing_and_knows_what_would_run() {
    let fake = Fake::default();
    fake.set("goal", |step| _ = step.reads.insert(0));
    let solver = solver(&fake);
    let graph = chain(&["base", "run", "goal"]);
    let unknown = Forecast::Unknown;
    let before = forecasts(&solver, &graph).await;
    assert_eq!(before, [Forecast::Runs(MissCause::FirstBuild), unknown.clone(), unknown.clone()]);
    assert!(fake.ran().is_empty() && solver.index.list().unwrap().is_empty());
    told(&solver, &graph, Explain::FirstCauses).await;
    fake.ran();
    assert_eq!(forecasts(&solver, &graph).await, [Forecast::Cached, Forecast::Cached, Forecast::Cached]);
    let changed = forecasts(&solver, &chain(&["base", "walk", "goal"])).await;
    assert_eq!((&changed[0], &changed[2]), (&Forecast::Cached, &unknown));
    assert!(matches!(changed[1], Forecast::Runs(MissCause::New)), "{changed:?}");
    assert!(fake.ran().is_empty());
    // Nothing was noted: the next build is still compared with the last one.
    assert!(told(&solver, &graph, Explain::Everything).await.is_empty());
}

/// Another process runs the very step: a forecast does not wait for it.
#[tokio::test(start_paused = true)]
async fn a_forecast_waits_for_nobody() {
    let fake = Fake::default();
    fake.set("base", |step| step.takes = Duration::from_secs(3600));
    let solver = solver(&fake);
    let graph = chain(&["base"]);
    let build = {
        let (solver, graph) = (solver.clone(), graph.clone());
        tokio::spawn(async move { solver.solve(&graph, FakeSession::new()).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = tokio::time::Instant::now();
    assert_eq!(forecasts(&solver, &graph).await, [Forecast::Runs(MissCause::FirstBuild)]);
    assert!(begin.elapsed() < Duration::from_secs(1));
    build.abort();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_build_is_told() {
    let fake = Fake::default();
    fake.set("base", |step| step.takes = Duration::from_secs(30));
    let solver = solver(&fake);
    let (first, second) = (FakeSession::new(), FakeSession::new());
    let graph = chain(&["base"]);
    let (one, two) = tokio::join!(solver.solve(&graph, first.clone()), solver.solve(&graph, second.clone()));
    one.unwrap();
    two.unwrap();
    let lines = [first.lines(), second.lines()].concat();
    assert_eq!(lines, ["forge: waiting for another build of this process, which runs the same step"]);
}

/// Two branches, one of which fails at once.
fn branches() -> forge_llb::Graph {
    let mut builder = GraphBuilder::default();
    let bad = builder.add("bad", &[]);
    let above = builder.add("above", &[&bad]);
    let slow = builder.add("slow", &[]);
    let good = builder.add("good", &[&slow]);
    let goal = builder.add("goal", &[&above, &good]);
    builder.goal(&goal)
}

#[tokio::test(start_paused = true)]
async fn one_failure_stops_the_others_or_lets_them_finish() {
    for on_failure in [OnFailure::CancelOthers, OnFailure::FinishOthers] {
        let fake = Fake::default();
        fake.set("bad", |step| step.fails = true);
        fake.set("slow", |step| step.takes = Duration::from_secs(10));
        let solver = Solver { on_failure, ..solver(&fake) };
        let session = FakeSession::new();
        let error = solver.solve(&branches(), session.clone()).await.unwrap_err();
        assert!(matches!(&error, SolveError::Step { name, .. } if name == "bad"), "{error}");
        session.check(5);
        let finished = on_failure == OnFailure::FinishOthers;
        let kept: Vec<String> = solver.index.list().unwrap().into_iter().map(|(_, record)| record.name).collect();
        assert_eq!(kept, if finished { vec!["slow", "good"] } else { vec![] });
        assert_eq!(session.log().contains(&"< good".to_owned()), finished);
        assert!(!fake.ran().contains(&"above".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_that_goes_on_after_a_failure_can_still_be_cancelled() {
    let fake = Fake::default();
    fake.set("bad", |step| step.fails = true);
    fake.set("slow", |step| step.takes = Duration::from_secs(3600));
    let solver = Solver { on_failure: OnFailure::FinishOthers, ..solver(&fake) };
    let session = FakeSession::new();
    let token = forge_session::Session::cancellation(&*session).clone();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        token.cancel();
    };
    let graph = branches();
    let begin = tokio::time::Instant::now();
    let (solved, ()) = tokio::join!(solver.solve(&graph, session.clone()), stop);
    assert!(solved.is_err() && begin.elapsed() < Duration::from_secs(60));
    assert_eq!(fake.running(), 0);
}

/// What failed is compared with too: the step that was mended says what was changed in it.
#[tokio::test(start_paused = true)]
async fn a_failed_build_is_remembered_as_far_as_it_came() {
    let fake = Fake::default();
    let solver = solver(&fake);
    told(&solver, &chain(&["[1/2] RUN a", "[2/2] RUN b"]), Explain::FirstCauses).await;
    fake.set("[2/2] RUN c", |step| step.fails = true);
    let session: Arc<FakeSession> = FakeSession::new();
    let graph = chain(&["[1/2] RUN a2", "[2/2] RUN c"]);
    let failed = solver.solve_again(&graph, session, remembered(Explain::FirstCauses)).await;
    assert!(failed.is_err());
    let lines = told(&solver, &chain(&["[1/2] RUN a2", "[2/2] RUN d"]), Explain::FirstCauses).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("op: [2/2] RUN b → [2/2] RUN d"), "{lines:?}");
}
