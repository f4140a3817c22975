//! A thousand random graphs: whatever their shape, every step runs at most once and after its inputs, nothing
//! unneeded runs, results are those of the model, and failures and cancellation leave nothing behind.
#![allow(clippy::print_stdout, reason = "measurements and seeds are for whoever runs the test")]

mod fake;

use fake::*;
use forge_llb::{Graph, VertexDigest};
use forge_solver::{SolveError, Solved, Solver};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

const SEEDS: u64 = 1000;

/// xorshift64*, so that a seed means the same graph for ever.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// The shape of a graph: for each step the steps that it needs, and whether it ignores the cache.
struct Shape {
    inputs: Vec<Vec<usize>>,
    ignores: Vec<bool>,
}

impl Shape {
    fn random(random: &mut Random) -> Self {
        let steps = 2 + random.below(20);
        let few = |random: &mut Random, step: usize| (0..random.below(4)).map(|_| random.below(step)).collect();
        let inputs: Vec<Vec<usize>> =
            (0..steps).map(|step| if step == 0 { Vec::new() } else { few(random, step) }).collect();
        let ignores = (0..steps).map(|_| random.one_in(20)).collect();
        Self { inputs, ignores }
    }

    /// The graph whose goal is the last step. The step `changed` has another name.
    fn graph(&self, changed: Option<usize>) -> Graph {
        let mut builder = GraphBuilder::default();
        let mut edges = Vec::new();
        for (step, inputs) in self.inputs.iter().enumerate() {
            let inputs: Vec<_> = inputs.iter().map(|input| &edges[*input]).collect();
            let name = name(step, changed == Some(step));
            edges.push(match self.ignores[step] {
                true => builder.add_ignoring_cache(&name, &inputs),
                false => builder.add(&name, &inputs),
            });
        }
        builder.goal(edges.last().unwrap())
    }

    /// The steps of a set and everything above them.
    fn above(&self, steps: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut above = steps.clone();
        for (step, inputs) in self.inputs.iter().enumerate() {
            if inputs.iter().any(|input| above.contains(input)) {
                above.insert(step);
            }
        }
        above
    }
}

fn name(step: usize, changed: bool) -> String {
    format!("s{step}{}", if changed { "'" } else { "" })
}

fn number(name: &str) -> usize {
    name.trim_matches(|sign| sign == 's' || sign == '\'').parse().unwrap()
}

/// A shape, a worker for it and a solver.
struct Case {
    random: Random,
    shape: Shape,
    fake: Fake,
    solver: Solver,
    /// Steps that need not be found in the cache: contexts, what is never kept, what ignores the cache.
    special: BTreeSet<usize>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let shape = Shape::random(&mut random);
        let fake = Fake::default();
        let mut special: BTreeSet<usize> = (0..shape.ignores.len()).filter(|step| shape.ignores[*step]).collect();
        for step in 0..shape.inputs.len() {
            let leaf = shape.inputs[step].is_empty();
            let (context, uncacheable) = (leaf && random.one_in(4), random.one_in(20));
            special.extend((context || uncacheable).then_some(step));
            let reads = (0..shape.inputs[step].len()).filter(|_| random.one_in(2)).collect();
            let takes = Duration::from_millis(random.below(50) as u64);
            for changed in [false, true] {
                fake.set(&name(step, changed), |behaviour| {
                    behaviour.context = context.then(|| "main".to_owned());
                    (behaviour.uncacheable, behaviour.takes) = (uncacheable, takes);
                    behaviour.reads = BTreeSet::clone(&reads);
                });
            }
        }
        fake.set_context("main", "old");
        let mut solver = solver(&fake);
        solver.max_parallelism = [None, Some(1), Some(2)][random.below(3)];
        Self { random, shape, fake, solver, special }
    }

    async fn solve(&self, graph: &Graph) -> Result<Solved, SolveError> {
        let session = FakeSession::new();
        let day = Duration::from_secs(24 * 3600);
        let solved = tokio::time::timeout(day, self.solver.solve(graph, session.clone())).await.expect("no deadlock");
        let ended = session.check(graph.needed().len());
        if let Ok(solved) = &solved {
            assert_eq!(ended.len(), graph.needed().len(), "a step was not reported");
            let text = self.fake.text(&solved.result);
            assert_eq!(text, self.fake.model(graph)[&graph.goal().unwrap().vertex], "a wrong result");
        }
        assert_eq!(self.fake.running(), 0, "something still runs");
        solved
    }

    /// What ran since the last look: each once, and only what the goal needs.
    fn ran(&self, graph: &Graph) -> BTreeSet<usize> {
        let ran = self.fake.ran();
        let needed: HashSet<&str> = graph.needed().iter().map(|(_, vertex)| vertex.metadata.name.as_str()).collect();
        assert!(ran.iter().all(|name| needed.contains(name.as_str())), "an unused step ran: {ran:?}");
        let numbers: BTreeSet<usize> = ran.iter().map(|name| number(name)).collect();
        assert_eq!(numbers.len(), ran.len(), "a step ran twice: {ran:?}");
        numbers
    }

    fn needed(&self, graph: &Graph) -> BTreeSet<usize> {
        graph.needed().iter().map(|(_, vertex)| number(&vertex.metadata.name)).collect()
    }
}

/// Runs a check for every seed, naming the seed that fails.
fn for_all_seeds<F: Future<Output = ()>>(check: impl Fn(Case) -> F) {
    for seed in 0..SEEDS {
        let _guard = NameOnPanic(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(Case::new(seed)));
    }
}

struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed with seed {}", self.0);
        }
    }
}

#[test]
fn everything_runs_once_and_the_second_build_runs_nothing() {
    for_all_seeds(|case| async move {
        let graph = case.shape.graph(None);
        case.solve(&graph).await.unwrap();
        assert_eq!(case.ran(&graph), case.needed(&graph));
        case.solve(&graph).await.unwrap();
        let again = case.ran(&graph);
        let expect = case.shape.above(&case.special);
        assert!(again.is_subset(&expect), "{again:?} ran again, only {expect:?} may");
        if case.special.is_empty() {
            assert!(again.is_empty());
        }
    });
}

#[test]
fn a_change_reruns_at_most_what_stands_above_it() {
    for_all_seeds(|mut case| async move {
        let graph = case.shape.graph(None);
        case.solve(&graph).await.unwrap();
        case.ran(&graph);
        let changed = case.random.below(case.shape.inputs.len());
        if case.random.one_in(2) {
            case.fake.set_context("main", "new");
        }
        let other = case.shape.graph(Some(changed));
        case.solve(&other).await.unwrap();
        let mut may = case.special.clone();
        may.insert(changed);
        let (ran, may) = (case.ran(&other), case.shape.above(&may));
        assert!(ran.is_subset(&may), "{ran:?} ran, only {may:?} may");
        // And back again.
        case.fake.set_context("main", "old");
        case.solve(&graph).await.unwrap();
        assert!(case.ran(&graph).is_subset(&case.shape.above(&case.special)));
    });
}

#[test]
fn a_failure_names_its_step_and_nothing_above_it_runs() {
    for_all_seeds(|mut case| async move {
        let graph = case.shape.graph(None);
        let bad: BTreeSet<usize> =
            (0..1 + case.random.below(2)).map(|_| case.random.below(case.shape.inputs.len())).collect();
        for step in &bad {
            case.fake.set(&name(*step, false), |behaviour| behaviour.fails = true);
        }
        let needed_bad = !bad.is_disjoint(&case.needed(&graph));
        let solved = case.solve(&graph).await;
        assert_eq!(solved.is_err(), needed_bad);
        let ran = case.ran(&graph);
        if let Err(error) = solved {
            let SolveError::Step { name, .. } = &error else { panic!("{error}") };
            assert!(bad.contains(&number(name)), "{name} did not fail");
            let above: BTreeSet<usize> = case.shape.above(&bad).difference(&bad).copied().collect();
            assert!(ran.is_disjoint(&above), "{ran:?} ran above the failure");
        }
        let kept = case.solver.index.list().unwrap();
        assert!(kept.iter().all(|(_, record)| !bad.contains(&number(&record.name))), "a failed step was kept");
        // Mended, it ends as if nothing had been.
        for step in &bad {
            case.fake.set(&name(*step, false), |behaviour| behaviour.fails = false);
        }
        case.solve(&graph).await.unwrap();
    });
}

#[test]
fn a_cancelled_build_ends_and_the_next_one_goes_on_from_there() {
    for_all_seeds(|mut case| async move {
        let graph = case.shape.graph(None);
        let session = FakeSession::new();
        let token = forge_session::Session::cancellation(&*session).clone();
        let after = Duration::from_millis(case.random.below(200) as u64);
        let stop = async {
            tokio::time::sleep(after).await;
            token.cancel();
        };
        let (solved, ()) = tokio::join!(case.solver.solve(&graph, session.clone()), stop);
        assert!(matches!(solved, Ok(_) | Err(SolveError::Cancelled)));
        assert_eq!(case.fake.running(), 0);
        session.check(graph.needed().len());
        let first = case.ran(&graph);
        let kept: BTreeSet<usize> =
            case.solver.index.list().unwrap().iter().map(|(_, record)| number(&record.name)).collect();
        assert!(kept.is_subset(&first));
        case.solve(&graph).await.unwrap();
        let second = case.ran(&graph);
        let again: BTreeSet<usize> = second.intersection(&kept).copied().collect();
        assert!(again.is_subset(&case.shape.above(&case.special)), "{again:?} ran again though it was kept");
    });
}

#[test]
fn three_builds_at_once_run_equal_steps_once() {
    for_all_seeds(|mut case| async move {
        let changed = case.random.below(case.shape.inputs.len());
        let (one, two) = (case.shape.graph(None), case.shape.graph(Some(changed)));
        let solve = |graph| case.solver.solve(graph, FakeSession::new());
        let (first, second, third) = tokio::join!(solve(&one), solve(&two), solve(&one));
        let goal = |graph: &Graph| -> VertexDigest { graph.goal().unwrap().vertex.clone() };
        for (solved, graph) in [(first, &one), (second, &two), (third, &one)] {
            assert_eq!(case.fake.text(&solved.unwrap().result), case.fake.model(graph)[&goal(graph)]);
        }
        // What stands above the change is another step in the second graph, though of the same name.
        let (special, twice) = (case.shape.above(&case.special), case.shape.above(&[changed].into()));
        let mut times: HashMap<String, usize> = HashMap::new();
        case.fake.ran().into_iter().for_each(|name| *times.entry(name).or_default() += 1);
        for (name, times) in times {
            let most =
                if special.contains(&number(&name)) { 3 } else { 1 + usize::from(twice.contains(&number(&name))) };
            assert!(times <= most, "{name} ran {times} times");
        }
    });
}
