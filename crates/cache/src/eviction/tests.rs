use super::*;

const NOW: Duration = Duration::from_secs(1_000_000_000);

/// Records as lines: `name stack wall_ms days-since-use flags`. A stack is letters, the last one its own layer; `-` is
/// none. Each letter takes 10 MB; `mount` takes 10 MB of its own; a capital letter belongs to an image.
fn check(policy: &str, records: &str, expect: &str) {
    let (mut letters, mut stands) = (Vec::new(), Vec::new());
    let read = |line: &str| read(line.trim(), &mut letters, &mut stands);
    let candidates: Vec<Candidate> = records.lines().map(read).collect();
    let weight = |letter: &char| Weight { bytes: 10_000_000, pinned: letter.is_uppercase() };
    let weights: Vec<Weight> = letters.iter().map(weight).collect();
    let now = SystemTime::UNIX_EPOCH + NOW;
    let space = Space { total: 1_000_000_000, free: 100_000_000 };
    let selected = select(&policies(policy), &candidates, &stands, &weights, space, now);
    let mut text: Vec<String> = selected
        .evictions
        .iter()
        .map(|eviction| {
            let reason = match eviction.reason {
                Reason::Meant => "meant".to_owned(),
                Reason::Unused(age) => format!("unused for {} days", age.as_secs() / 86_400),
                Reason::LeastValuable { wall_ms, .. } => format!("saves {wall_ms} ms"),
            };
            format!("{}: {reason}", candidates[eviction.candidate].facts.id)
        })
        .collect();
    text.extend((selected.over > 0).then(|| format!("over by {}", selected.over)));
    assert_eq!(text.join("; "), expect, "{policy}");
}

fn read(line: &str, letters: &mut Vec<char>, stands: &mut Vec<Stand>) -> Candidate {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (stack, flags) = (words[1], words.get(4).copied().unwrap_or_default());
    let mut number = |letter: char| match letters.iter().position(|known| *known == letter) {
        Some(at) => at,
        None => {
            letters.push(letter);
            letters.len() - 1
        }
    };
    let layers: Vec<usize> = stack.chars().filter(char::is_ascii_alphabetic).map(&mut number).collect();
    let stand = layers.iter().fold(None, |below, layer| {
        let stand = Stand { layer: *layer, below };
        let known = stands.iter().position(|known| *known == stand);
        known.or_else(|| {
            stands.push(stand);
            Some(stands.len() - 1)
        })
    });
    let mount = flags.contains("mount");
    let days: i64 = words[3].parse().unwrap();
    let seconds = NOW.as_secs().checked_add_signed(-days * 86_400).unwrap();
    Candidate {
        facts: Facts {
            id: words[0].to_owned(),
            kind: if mount { "exec.cachemount" } else { "regular" }.to_owned(),
            in_use: flags.contains("used"),
            shared: stack.ends_with(char::is_uppercase),
            mutable: mount,
            ..Facts::default()
        },
        own: layers.last().copied(),
        stands: stand.into_iter().collect(),
        bytes: if mount { 10_000_000 } else { 0 },
        wall_ms: words[2].parse().unwrap(),
        last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    }
}

/// `max=20,free=..,reserved=..` in MB, `keep=2` in days, `all`, anything else a filter; `;` between policies.
fn policies(text: &str) -> Vec<Policy> {
    let policy = |text: &str| {
        let mut policy = Policy::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let megabytes = || Some(value.parse::<u64>().unwrap() * 1_000_000);
            match name {
                "max" => policy.max_used_space = megabytes(),
                "free" => policy.min_free_space = megabytes(),
                "reserved" => policy.reserved_space = megabytes(),
                "keep" => policy.keep_duration = Duration::from_secs(value.parse::<u64>().unwrap() * 86_400),
                "all" => policy.all = true,
                _ => policy.filters.push(word.parse().unwrap()),
            }
        }
        policy
    };
    text.split(';').map(policy).collect()
}

const CHAIN: &str = "base B 5000 0
    one Ba 9000 0
    two Bab 100 0
    three Babc 5000 0
    other Bad 20 0";

#[test]
fn what_saves_the_least_time_for_its_bytes_goes_first_and_children_before_parents() {
    check("max=100", CHAIN, "");
    check("max=30", CHAIN, "other: saves 20 ms");
    // `two` saves less than `three` does, but nothing would be free without the layer above it.
    check("max=20", CHAIN, "other: saves 20 ms; three: saves 5000 ms");
    check("max=10", CHAIN, "other: saves 20 ms; three: saves 5000 ms; two: saves 100 ms");
}

#[test]
fn a_cap_takes_nothing_that_is_used_or_that_an_image_needs_and_says_so() {
    let records = "base B 1 0\nrunning Ba 1 0 used\nparent c 1 0\nchild cd 1 0 used";
    check("max=1,all", records, "over by 29000000");
    check("all", records, "base: meant; parent: meant");
}

#[test]
fn a_layer_on_several_others_waits_for_all_that_stand_on_it() {
    let linked = "base a 9 0\nlink ax 1 0\nother b 9 0\nlinked bx 1 0\nabove bxc 5 0";
    check("max=31", linked, "above: saves 5 ms");
    check("max=25", linked, "above: saves 5 ms; link: saves 1 ms; linked: saves 1 ms");
    check("all", linked, "above: meant; link: meant; linked: meant; base: meant; other: meant");
}

/// Each step from one thing to the next is taken once: with whole stacks, this many would be half a minute's work.
#[test]
fn what_a_high_chain_takes_grows_with_its_steps() {
    let steps = 100_000;
    let stands: Vec<Stand> = (0..steps).map(|layer: usize| Stand { layer, below: layer.checked_sub(1) }).collect();
    let candidate = |layer: usize| Candidate {
        facts: Facts::default(),
        own: Some(layer),
        stands: vec![layer],
        bytes: 0,
        wall_ms: 5,
        last_used: SystemTime::UNIX_EPOCH,
    };
    let candidates: Vec<Candidate> = (0..steps).map(candidate).collect();
    let weights = vec![Weight { bytes: 1, pinned: false }; steps];
    let select =
        |text| select(&policies(text), &candidates, &stands, &weights, Space::default(), SystemTime::UNIX_EPOCH + NOW);
    for selected in [select("all"), select("free=1")] {
        let order = selected.evictions.iter().map(|eviction| eviction.candidate);
        assert!(order.eq((0..steps).rev()), "{} {}", selected.evictions.len(), selected.over);
    }
}

#[test]
fn records_of_one_layer_go_together() {
    check("max=1", "one a 10 0\ntwo a 10 0\nthree b 30 0", "one: saves 10 ms; two: saves 10 ms; three: saves 30 ms");
    check("max=10", "one a 10 0\ntwo a 10 0 used\nthree b 90 0", "three: saves 90 ms");
}

#[test]
fn age_counts_and_a_clock_set_back_makes_nothing_old() {
    check("keep=2", "old a 1 3\nnew b 1 1\nfuture c 1 -4000", "old: unused for 3 days");
    check("max=10", "rested a 50 30\nfresh b 10 0", "rested: saves 50 ms");
    check("max=10", "future a 50 -4000\nfresh b 10 0", "fresh: saves 10 ms");
}

#[test]
fn limits_work_together_as_in_buildkit() {
    let four = "a a 1 0\nb b 2 0\nc c 3 0\nd d 4 0";
    check("reserved=20", four, "a: saves 1 ms; b: saves 2 ms");
    check("free=120", four, "a: saves 1 ms; b: saves 2 ms");
    check("free=90", four, "");
    check("free=500,reserved=30", four, "a: saves 1 ms");
    check("max=20,reserved=30", four, "a: saves 1 ms");
    check("max=10,free=110", four, "a: saves 1 ms; b: saves 2 ms; c: saves 3 ms");
    check("id==b", four, "b: meant");
}

#[test]
fn the_default_policies_take_old_mounts_first() {
    let defaults = Policy::defaults(&Policy { max_used_space: Some(20_000_000), ..Policy::default() });
    assert_eq!(defaults.len(), 4);
    assert_eq!(defaults[1].keep_duration.as_secs(), 60 * 86_400);
    assert!(defaults[3].all && !defaults[2].all);
    let text = "max=5,type==exec.cachemount,keep=2;max=20";
    check(text, "cargo - 0 3 mount\npip - 0 1 mount\nstep a 10 0", "cargo: unused for 3 days");
    check(text, "pip - 0 1 mount\nstep a 10 0\nlast b 5 0", "pip: saves 0 ms");
}
