//! What the solver promises, step by step.

mod fake;

use fake::*;
use forge_cache::ResultRef;
use forge_image::ErrorKind;
use forge_llb::Graph;
use forge_solver::{SolveError, Solved};
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Solves in a session of its own and gives back what is to be seen of it: what ran, and the events.
async fn solve(solver: &forge_solver::Solver, graph: &Graph) -> (Result<Solved, SolveError>, Vec<String>) {
    let session = FakeSession::new();
    let solved = tokio::time::timeout(24 * 3600 * SECOND, solver.solve(graph, session.clone())).await.expect("in time");
    let ended = session.check(graph.needed().len());
    if solved.is_ok() {
        assert_eq!(ended.len(), graph.needed().len(), "every step is reported");
    }
    (solved, session.log())
}

#[tokio::test(start_paused = true)]
async fn a_chain_runs_in_order_once_and_then_comes_from_the_cache() {
    let fake = Fake::default();
    let solver = solver(&fake);
    let graph = chain(&["base", "run", "copy"]);
    let (solved, log) = solve(&solver, &graph).await;
    assert_eq!(fake.text(&solved.unwrap().result), fake.model(&graph)[&graph.goal().unwrap().vertex]);
    let expect = ["base", "run", "copy", "> base", "< base", "> run", "< run", "> copy", "< copy"];
    assert_eq!(log, expect);
    fake.ran();
    let (solved, log) = solve(&solver, &graph).await;
    assert_eq!(fake.ran(), [""; 0]);
    assert_eq!(log, ["base", "run", "copy", "= base", "= run", "= copy"]);
    let steps = solved.unwrap().steps;
    assert!(steps.iter().all(|step| step.cached));
    assert_eq!(steps.iter().map(|step| step.result.len()).collect::<Vec<_>>(), [0, 0, 1]);
}

#[tokio::test]
async fn an_empty_goal_is_scratch() {
    let fake = Fake::default();
    let (solved, _) = solve(&solver(&fake), &Graph::default()).await;
    assert_eq!(solved.unwrap(), Solved { result: ResultRef::scratch(), steps: Vec::new() });
}

#[tokio::test(start_paused = true)]
async fn unused_vertices_are_never_touched() {
    let fake = Fake::default();
    let mut builder = GraphBuilder::default();
    let base = builder.add("base", &[]);
    let unused_base = builder.add("unused base", &[]);
    builder.add("unused", &[&base, &unused_base]);
    let goal = builder.add("goal", &[&base]);
    let graph = builder.goal(&goal);
    let (solved, log) = solve(&solver(&fake), &graph).await;
    solved.unwrap();
    assert_eq!(fake.ran(), ["base", "goal"]);
    assert_eq!(fake.mapped(), ["base", "goal"]);
    assert!(!log.iter().any(|line| line.contains("unused")));
}

#[tokio::test(start_paused = true)]
async fn a_changed_step_reruns_only_what_follows() {
    let fake = Fake::default();
    let solver = solver(&fake);
    solve(&solver, &chain(&["base", "a", "b", "c"])).await.0.unwrap();
    fake.ran();
    let (solved, log) = solve(&solver, &chain(&["base", "a", "B", "c"])).await;
    solved.unwrap();
    assert_eq!(fake.ran(), ["B", "c"]);
    assert_eq!(log[4..], ["= base", "= a", "> B", "< B", "> c", "< c"]);
}

#[tokio::test(start_paused = true)]
async fn independent_steps_run_at_the_same_time_within_the_bound() {
    for (bound, seconds) in [(None, 3), (Some(2), 5), (Some(1), 8)] {
        let fake = Fake::default();
        let mut builder = GraphBuilder::default();
        let inputs: Vec<_> = (0..6).map(|number| builder.add(&format!("input {number}"), &[])).collect();
        let middle = builder.add("middle", &inputs.iter().collect::<Vec<_>>());
        let goal = builder.add("goal", &[&middle]);
        for step in builder.graph.vertices() {
            fake.set(&step.metadata.name, |behaviour| behaviour.takes = SECOND);
        }
        let graph = builder.goal(&goal);
        let mut solver = solver(&fake);
        solver.max_parallelism = bound;
        let begin = tokio::time::Instant::now();
        solve(&solver, &graph).await.0.unwrap();
        assert_eq!(begin.elapsed().as_secs(), seconds, "{bound:?}");
        assert_eq!(fake.most(), bound.unwrap_or(6));
    }
}

#[tokio::test(start_paused = true)]
async fn a_context_is_known_by_its_content() {
    let fake = Fake::default();
    fake.set("context", |behaviour| behaviour.context = Some("main".to_owned()));
    fake.set("copy", |behaviour| behaviour.reads = [1].into());
    fake.set_context("main", "old");
    let mut builder = GraphBuilder::default();
    let base = builder.add("base", &[]);
    let context = builder.add("context", &[]);
    let copy = builder.add("copy", &[&base, &context]);
    let goal = builder.add("goal", &[&copy]);
    let graph = builder.goal(&goal);
    let solver = solver(&fake);
    solve(&solver, &graph).await.0.unwrap();
    assert_eq!(fake.ran(), ["context", "base", "copy", "goal"]);
    let (solved, log) = solve(&solver, &graph).await;
    assert_eq!(fake.ran(), ["context"]);
    assert_eq!(log[4..], ["> context", "< context", "= base", "= copy", "= goal"]);
    let outcome = solved.unwrap().steps;
    assert_eq!(outcome.iter().filter(|step| step.cached).count(), 3);
    // A change of what the copy reads.
    fake.set_context("main", "new");
    let (solved, _) = solve(&solver, &graph).await;
    assert_eq!(fake.ran(), ["context", "copy", "goal"]);
    assert_eq!(fake.text(&solved.unwrap().result), fake.model(&graph)[&goal.vertex]);
    // And back: the old records are still there.
    fake.set_context("main", "old");
    solve(&solver, &graph).await.0.unwrap();
    assert_eq!(fake.ran(), ["context"]);
}

#[tokio::test(start_paused = true)]
async fn an_equal_result_of_a_changed_step_cuts_off_what_reads_it() {
    let fake = Fake::default();
    let solver = solver(&fake);
    for name in ["make", "make again"] {
        fake.set(name, |behaviour| behaviour.text = Some("binary".to_owned()));
    }
    fake.set("copy", |behaviour| behaviour.reads = [0].into());
    solve(&solver, &chain(&["make", "copy", "last"])).await.0.unwrap();
    fake.ran();
    let changed = chain(&["make again", "copy", "last"]);
    let (_, log) = solve(&solver, &changed).await;
    // `last` is keyed by definition alone, and what is below it is defined otherwise now.
    assert_eq!(fake.ran(), ["make again", "last"]);
    assert_eq!(log[3..], ["> make again", "< make again", "= copy", "> last", "< last"]);
    // The hit by content was saved under the new definition key as well.
    solve(&solver, &changed).await.0.unwrap();
    assert_eq!(fake.ran(), [""; 0]);
    assert_eq!(fake.digests(), 2);
}

#[tokio::test(start_paused = true)]
async fn ignoring_the_cache_runs_the_step_and_saves_it() {
    let fake = Fake::default();
    let solver = solver(&fake);
    let graph = |ignore: bool| {
        let mut builder = GraphBuilder::default();
        let base = builder.add("base", &[]);
        let fetch = match ignore {
            true => builder.add_ignoring_cache("fetch", &[&base]),
            false => builder.add("fetch", &[&base]),
        };
        let make = builder.add("make", &[&fetch]);
        let goal = builder.add("goal", &[&make]);
        builder.goal(&goal)
    };
    fake.set("fetch", |behaviour| behaviour.text = Some("old packages".to_owned()));
    fake.set("make", |behaviour| behaviour.reads = [0].into());
    solve(&solver, &graph(false)).await.0.unwrap();
    assert_eq!(fake.ran(), ["base", "fetch", "make", "goal"]);
    // The same bytes again: what reads them is found by content. The goal is keyed by definition alone, so that
    // for once its input counts by its bytes, under which it is not kept yet.
    solve(&solver, &graph(true)).await.0.unwrap();
    assert_eq!(fake.ran(), ["fetch", "goal"]);
    // Other bytes: everything above follows, though its definition keys lead to records.
    fake.set("fetch", |behaviour| behaviour.text = Some("new packages".to_owned()));
    let fresh = solve(&solver, &graph(true)).await.0.unwrap();
    assert_eq!(fake.ran(), ["fetch", "make", "goal"]);
    assert_eq!(fake.text(&fresh.result), fake.model(&graph(true))[&graph(true).goal().unwrap().vertex]);
    // The next build finds the new results, not those of the first.
    let next = solve(&solver, &graph(false)).await.0.unwrap();
    assert_eq!(fake.ran(), [""; 0]);
    assert_eq!(next.result, fresh.result);
}

#[tokio::test(start_paused = true)]
async fn a_failure_cancels_the_others_and_is_not_kept() {
    let fake = Fake::default();
    fake.set("bad", |behaviour| {
        behaviour.fails = true;
        behaviour.takes = SECOND;
    });
    fake.set("slow", |behaviour| behaviour.takes = 3600 * SECOND);
    let mut builder = GraphBuilder::default();
    let (bad, slow) = (builder.add("bad", &[]), builder.add("slow", &[]));
    let goal = builder.add("goal", &[&bad, &slow]);
    let graph = builder.goal(&goal);
    let solver = solver(&fake);
    let begin = tokio::time::Instant::now();
    let (solved, log) = solve(&solver, &graph).await;
    assert_eq!(begin.elapsed(), SECOND);
    assert_eq!(fake.running(), 0);
    let error = solved.unwrap_err();
    let text = "failed to solve \"bad\": process \"bad\" did not complete successfully: exit code: 3";
    assert_eq!(describe(&error), (ErrorKind::Process, text.to_owned()));
    let SolveError::Step { span, .. } = error else { panic!("{error}") };
    assert_eq!(span.unwrap().first_line, 3);
    let line = "! bad: process \"bad\" did not complete successfully: exit code: 3";
    assert_eq!(log[5..], [line, "! slow: cancelled"]);
    assert_eq!(solver.index.list().unwrap().len(), 0);
    // Nothing of the failure stays.
    fake.set("bad", |behaviour| behaviour.fails = false);
    fake.ran();
    solve(&solver, &graph).await.0.unwrap();
    assert_eq!(fake.ran().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_step_is_a_defect_and_not_a_hang() {
    let fake = Fake::default();
    fake.set("bad", |behaviour| behaviour.panics = true);
    let (solved, _) = solve(&solver(&fake), &chain(&["bad", "goal"])).await;
    assert_eq!(describe(&solved.unwrap_err()).0, ErrorKind::Internal);
}

#[tokio::test(start_paused = true)]
async fn cancelling_tells_running_steps_and_waits_for_them() {
    let fake = Fake::default();
    fake.set("slow", |behaviour| behaviour.takes = 3600 * SECOND);
    let session = FakeSession::new();
    let token = forge_session::Session::cancellation(&*session).clone();
    let solver = solver(&fake);
    let graph = chain(&["base", "slow", "goal"]);
    let stop = async {
        tokio::time::sleep(5 * SECOND).await;
        token.cancel();
    };
    let (solved, ()) = tokio::join!(solver.solve(&graph, session.clone()), stop);
    assert!(matches!(solved, Err(SolveError::Cancelled)));
    assert_eq!(fake.running(), 0);
    assert_eq!(session.log()[3..], ["> base", "< base", "> slow", "! slow: cancelled"]);
    session.check(3);
    // What was done before is kept.
    assert_eq!(solver.index.list().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_build_stops_its_steps() {
    let fake = Fake::default();
    fake.set("slow", |behaviour| behaviour.takes = 3600 * SECOND);
    let solver = solver(&fake);
    let graph = chain(&["slow"]);
    let session = FakeSession::new();
    let solved = tokio::time::timeout(SECOND, solver.solve(&graph, session)).await;
    assert!(solved.is_err());
    // The flight of the step is free again.
    fake.set("slow", |behaviour| behaviour.takes = SECOND);
    solve(&solver, &graph).await.0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failure_leaves_the_callers_session_alone() {
    let fake = Fake::default();
    fake.set("bad", |behaviour| behaviour.fails = true);
    let session = FakeSession::new();
    solver(&fake).solve(&chain(&["bad"]), session.clone()).await.unwrap_err();
    assert!(!forge_session::Session::cancellation(&*session).is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn lost_results_are_made_again() {
    let fake = Fake::default();
    let solver = solver(&fake);
    let graph = chain(&["base", "run", "copy"]);
    solve(&solver, &graph).await.0.unwrap();
    fake.forget_results();
    fake.ran();
    let (solved, _) = solve(&solver, &graph).await;
    assert_eq!(fake.ran(), ["base", "run", "copy"]);
    assert_eq!(fake.text(&solved.unwrap().result), fake.model(&graph)[&graph.goal().unwrap().vertex]);
}

#[tokio::test(start_paused = true)]
async fn equal_steps_of_two_builds_run_once() {
    let fake = Fake::default();
    let solver = solver(&fake);
    for name in ["base", "shared"] {
        fake.set(name, |behaviour| behaviour.takes = SECOND);
    }
    // A build with one slot that waits for the other's step still runs what is independent of it.
    let bounded = forge_solver::Solver { max_parallelism: Some(1), ..solver.clone() };
    let (one, two) = (chain(&["base", "shared", "one"]), chain(&["base", "shared", "two"]));
    let (one, two) = tokio::join!(solve(&solver, &one), solve(&bounded, &two));
    one.0.unwrap();
    two.0.unwrap();
    let mut ran = fake.ran();
    ran.sort();
    assert_eq!(ran, ["base", "one", "shared", "two"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_another_build_holds_no_slot() {
    let fake = Fake::default();
    let solver = solver(&fake);
    fake.set("shared", |behaviour| behaviour.takes = 10 * SECOND);
    fake.set("own", |behaviour| behaviour.takes = SECOND);
    let mut builder = GraphBuilder::default();
    let (shared, own) = (builder.add("shared", &[]), builder.add("own", &[]));
    let goal = builder.add("goal", &[&shared, &own]);
    let graph = builder.goal(&goal);
    let bounded = forge_solver::Solver { max_parallelism: Some(1), ..solver.clone() };
    let begin = tokio::time::Instant::now();
    let other = chain(&["shared"]);
    let later = async {
        tokio::time::sleep(SECOND).await;
        solve(&bounded, &graph).await
    };
    let (_, (solved, _)) = tokio::join!(solve(&solver, &other), later);
    solved.unwrap();
    // And the short while after which a record is saved.
    assert_eq!(begin.elapsed().as_secs(), 10);
    assert_eq!(fake.ran(), ["shared", "own", "goal"]);
}

/// Without [`Session::leave_place`] in the fake's step this waits for ever.
#[tokio::test(start_paused = true)]
async fn a_step_that_waits_for_another_one_lets_it_run() {
    let fake = Fake::default();
    fake.set("first", |behaviour| behaviour.waits_for = Some("second".to_owned()));
    fake.set("second", |behaviour| behaviour.takes = SECOND);
    let mut builder = GraphBuilder::default();
    let (first, second) = (builder.add("first", &[]), builder.add("second", &[]));
    let goal = builder.add("goal", &[&first, &second]);
    let graph = builder.goal(&goal);
    let bounded = forge_solver::Solver { max_parallelism: Some(1), ..solver(&fake) };
    let (solved, _) =
        tokio::time::timeout(60 * SECOND, solve(&bounded, &graph)).await.expect("nobody waits in a circle");
    solved.unwrap();
    assert_eq!(fake.ran(), ["first", "second", "goal"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_build_takes_over_when_the_owner_is_cancelled() {
    let fake = Fake::default();
    fake.set("slow", |behaviour| behaviour.takes = 100 * SECOND);
    let solver = solver(&fake);
    let graph = chain(&["slow"]);
    let session = FakeSession::new();
    let token = forge_session::Session::cancellation(&*session).clone();
    let first = solver.solve(&graph, session);
    let second = async {
        tokio::time::sleep(SECOND).await;
        tokio::join!(solve(&solver, &graph), async {
            tokio::time::sleep(SECOND).await;
            token.cancel();
        })
    };
    let begin = tokio::time::Instant::now();
    let (first, (second, ())) = tokio::join!(first, second);
    assert!(matches!(first, Err(SolveError::Cancelled)));
    second.0.unwrap();
    assert_eq!(begin.elapsed().as_secs(), 102);
    assert_eq!(fake.ran(), ["slow", "slow"]);
}

#[tokio::test(start_paused = true)]
async fn records_say_what_they_are_of() {
    let fake = Fake::default();
    let solver = solver(&fake);
    solve(&solver, &chain(&["base", "run"])).await.0.unwrap();
    let records = solver.index.list().unwrap();
    let run = &records.iter().find(|(_, record)| record.name == "run").unwrap().1;
    assert_eq!((run.is_source, run.bytes, run.result.is_some()), (false, 7, true));
    assert!(run.is_of_this_boot());
    assert_eq!(solver.index.all_layers().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_worker_serves_vertices_of_several_outputs_and_inputs_used_twice() {
    let fake = Fake::default();
    let mut builder = GraphBuilder::default();
    let base = builder.add("base", &[]);
    let goal = builder.add("goal", &[&base, &base, &base]);
    let graph = builder.goal(&goal);
    let (solved, _) = solve(&solver(&fake), &graph).await;
    assert_eq!(fake.text(&solved.unwrap().result), fake.model(&graph)[&goal.vertex]);
    assert_eq!(fake.ran(), ["base", "goal"]);
    let session: Arc<FakeSession> = FakeSession::new();
    solver(&fake).solve(&graph, session.clone()).await.unwrap();
    assert_eq!(session.updates()[1].inputs.len(), 1);
}

/// A COPY that adds the same layer to another base. Fails when the key without the base is not asked, or believed unasked.
#[tokio::test]
async fn a_step_that_adds_the_same_to_another_base_does_not_run() {
    let graph = |base: &str, source: &str| {
        let mut builder = GraphBuilder::default();
        let (base, source) = (builder.add(base, &[]), builder.add(source, &[]));
        let copy = builder.add("copy", &[&base, &source]);
        builder.goal(&copy)
    };
    let fake = Fake::default();
    let kept = |is_kept: bool| {
        fake.set("copy", |step| {
            (step.beneath, step.is_kept, step.text) = (Some(0), is_kept, Some("layer".to_owned()));
            step.reads = [0, 1].into();
        });
    };
    let solver = solver(&fake);
    let ran = async |base: &str, source: &str| {
        let solved = solver.solve(&graph(base, source), FakeSession::new()).await.unwrap();
        let copy = solved.steps.iter().find(|step| step.name == "copy").unwrap();
        let ran = fake.ran();
        assert_eq!(copy.cached, !ran.contains(&"copy".to_owned()));
        ran
    };
    kept(true);
    // Nobody made it before: the worker is not asked.
    assert_eq!(ran("one", "source").await, ["one", "source", "copy"]);
    assert_eq!(ran("two", "source").await, ["two"]);
    assert!(ran("two", "source").await.is_empty(), "it is found by its own key then");
    assert_eq!(ran("two", "other source").await, ["other source", "copy"]);
    // What the worker does not find is made.
    kept(false);
    assert_eq!(ran("three", "source").await, ["three", "copy"]);
}
