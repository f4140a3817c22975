//! Hostile Dockerfiles: large, deep, circular, garbled. Every one ends soon, in a result or in an error that says
//! what is wrong. The bounds on time are generous, for slow and busy machines; what they guard against takes
//! minutes.

use forge_frontend::{
    Dockerfile, FrontendError, ImageKeySource, LowerOptions, Lowered, LoweredImage, Problem, ResolvedImage,
    ResolvedImages, lower, parse,
};
use forge_image::{DiffId, Digest, ImageConfig, Platform};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn finish(dockerfile: &Dockerfile, options: &LowerOptions) -> Result<LoweredImage, FrontendError> {
    let mut images = ResolvedImages::new();
    loop {
        match lower(dockerfile, options, &images)? {
            Lowered::Done(image) => return Ok(*image),
            Lowered::NeedTime(request) => panic!("{request:?}"),
            Lowered::Need(requests) => {
                for request in requests {
                    let ImageKeySource::Image(reference) = &request.key.source else { panic!("{request:?}") };
                    let digest = Digest::sha256(reference.to_string().as_bytes());
                    let mut config = ImageConfig::new(&request.key.platform);
                    config.rootfs.diff_ids = vec![DiffId::new(digest.clone())];
                    images.insert(request.key, ResolvedImage { digest, config, replaced: None });
                }
            }
        }
    }
}

fn build(text: &str) -> Result<LoweredImage, FrontendError> {
    let dockerfile = parse("Dockerfile", text.as_bytes())?;
    finish(&dockerfile, &LowerOptions::new(platform()))
}

/// Runs something that must not take long.
#[track_caller]
fn within<T>(seconds: u64, what: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = what();
    assert!(started.elapsed() < Duration::from_secs(seconds), "{:?}", started.elapsed());
    result
}

#[track_caller]
fn too_large(text: &[u8]) {
    let error = parse("Dockerfile", text).unwrap_err();
    assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");
}

// Without the caps these take gigabytes of memory or many seconds.
#[test]
fn a113_files_and_lines_beyond_the_caps_are_refused_at_once() {
    within(5, || {
        too_large(&vec![b'\n'; (16 << 20) + 1]);
        too_large(&[b"FROM x\nRUN ".as_slice(), &vec![b'a'; 1 << 20]].concat());
        too_large(&vec![0; 4 << 20]);
    });
}

#[test]
fn a113_files_within_the_caps_are_read_in_time() {
    within(60, || {
        let comments = "#\n".repeat(4_000_000) + "FROM x";
        assert_eq!(parse("d", comments.as_bytes()).unwrap().instructions().len(), 1);
        let continued = format!("FROM x\nRUN a{}", "\\\n".repeat(1_000_000));
        assert_eq!(parse("d", continued.as_bytes()).unwrap().instructions().len(), 2);
        let labels = format!("FROM scratch\n{}", "LABEL a=b\n".repeat(79_999));
        assert_eq!(build(&labels).unwrap().config.history.len(), 79_999);
        let words = format!("FROM scratch\nLABEL {}", "a=b ".repeat(200_000));
        assert_eq!(build(&words).unwrap().config.config.labels.len(), 1);
        let ports = "EXPOSE 0-65535\n".repeat(1_000);
        let error = build(&format!("FROM scratch\n{ports}")).unwrap_err();
        assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");
    });
}

#[test]
fn a113_many_variables_stay_linear() {
    within(30, || {
        let mut text = "FROM scratch\n".to_owned();
        (0..50_000).for_each(|n| _ = writeln!(text, "ARG A{n}=$A{} B{n}", n / 2));
        (0..20).for_each(|n| _ = writeln!(text, "RUN x{n}"));
        assert_eq!(build(&text).unwrap().graph.vertices().len(), 20);
    });
}

// Fails without the budget: sixty-four doublings are more than any memory holds.
#[test]
fn a114_expansion_bombs_end_in_an_error_that_names_the_line() {
    within(30, || {
        let mut text = "FROM scratch\nARG a0=0123456789\n".to_owned();
        (1..64).for_each(|n| _ = writeln!(text, "ARG a{n}=$a{}$a{}", n - 1, n - 1));
        let error = build(&text).unwrap_err();
        assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");
        assert!(error.line().is_some_and(|line| (15..30).contains(&line)), "{:?}", error.line());
        assert!(
            error.render(&text).contains(&format!("Dockerfile:{}:", error.line().unwrap()))
                || error.file == "Dockerfile"
        );

        let big = "x".repeat(1_000_000);
        let many = format!("FROM scratch\nARG a={big}\n{}", "ENV b=$a\n".repeat(100));
        assert!(matches!(*build(&many).unwrap_err().problem, Problem::TooLarge { .. }));
        let steps = format!("FROM scratch\nARG a={big}\n{}", "RUN x\n".repeat(1_000));
        assert!(matches!(*build(&steps).unwrap_err().problem, Problem::TooLarge { .. }));
        let deep = format!("FROM scratch\nENV a={}{}\n", "${b:-".repeat(100_000), "}".repeat(100_000));
        let error = build(&deep).unwrap_err();
        assert_eq!((error.line(), error.to_string().contains("64 levels")), (Some(2), true));
    });
}

/// The bound that users see is two seconds; programs without optimisation take longer.
const PLANNED: u64 = if cfg!(debug_assertions) { 5 } else { 2 };

// Exponential without the memory of what is done; a stack overflow if it recursed.
#[test]
fn a115_thousands_of_stages_are_planned_in_linear_time() {
    let mut web = "FROM scratch AS s0\nCOPY a /\nFROM scratch AS s1\nCOPY b /\n".to_owned();
    for n in 2..5_000 {
        _ = write!(web, "FROM scratch AS s{n}\nCOPY --from=s{} / /\nCOPY --from={} / /b\n", n - 1, n - 2);
    }
    let image = within(PLANNED, || build(&web).unwrap());
    assert!(image.graph.vertices().len() > 9_900);

    let mut mounted = web.clone();
    mounted = mounted.replace("COPY --from=s", "RUN --mount=target=/x,from=s").replace(" / /\nCOPY", " true\nCOPY");
    let image = within(PLANNED, || build(&mounted).unwrap());
    assert!(image.graph.vertices().len() > 9_900);

    let mut diamond = "FROM base AS a0\nRUN x\n".to_owned();
    for n in 1..=40 {
        let below = n - 1;
        _ = write!(diamond, "FROM a{below} AS l{n}\nRUN l\nFROM a{below} AS r{n}\nRUN r\n");
        _ = write!(diamond, "FROM scratch AS a{n}\nCOPY --from=l{n} / /l\nCOPY --from=r{n} / /r\n");
    }
    let image = within(PLANNED, || build(&diamond).unwrap());
    assert_eq!(image.graph.vertices().len(), 2 + 40 * 4);

    let mut chain = "FROM scratch AS s0\n".to_owned();
    (1..80_000).for_each(|n| _ = writeln!(chain, "FROM s{} AS s{n}", n - 1));
    assert!(within(60, || build(&chain).unwrap()).graph.goal().is_none());
}

// Each vertex carries the text of its instruction: without a bound on all of them these take gigabytes.
#[test]
fn a114_one_instruction_cannot_ask_for_gigabytes() {
    within(30, || {
        let mounts: String = (0..20_000).map(|n| format!("--mount=type=cache,dst=/{n},uid={n} ")).collect();
        let error = build(&format!("FROM scratch\nRUN {mounts} true\n")).unwrap_err();
        assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");
        let mounts: String = (0..20_000).map(|n| format!("--mount=type=cache,dst=/{n} ")).collect();
        assert!(build(&format!("FROM scratch\nRUN {mounts} true\n")).is_ok());
        let addresses: String = (0..50_000).map(|n| format!("http://a/{n} ")).collect();
        let error = build(&format!("FROM scratch\nADD {addresses} /\n")).unwrap_err();
        assert!(matches!(*error.problem, Problem::TooLarge { .. }), "{error}");
        let patterns: String = (0..50_000).map(|n| format!("a{n} ")).collect();
        assert!(build(&format!("FROM scratch\nCOPY --parents {patterns} /\n")).is_ok());
    });
}

// Fails when `check_trigger` lets everything pass.
#[test]
fn a41_triggers_of_images_get_only_what_the_caller_allows() {
    use forge_frontend::TriggerRight;
    let asking = [
        ("RUN --mount=type=secret,id=a true", TriggerRight::Secret),
        ("RUN --mount=type=secret,id=a,env=A true", TriggerRight::Secret),
        ("RUN --mount=type=ssh true", TriggerRight::Ssh),
        ("RUN --network=host true", TriggerRight::HostNetwork),
        ("RUN --security=insecure true", TriggerRight::Insecure),
        ("RUN --device=a.b/c=d true", TriggerRight::Device),
    ];
    let rights = asking.map(|(_, right)| right);
    let build = |trigger: &str, allowed: &[TriggerRight]| {
        let dockerfile = parse("d", b"FROM base\n").unwrap();
        let mut options = LowerOptions::new(platform());
        options.allow_in_triggers = allowed.iter().copied().collect();
        let Lowered::Need(requests) = lower(&dockerfile, &options, &ResolvedImages::new()).unwrap() else {
            panic!("it needs an image")
        };
        let mut config = ImageConfig::new(&platform());
        config.config.on_build = vec![trigger.to_owned()];
        let digest = Digest::sha256(b"base");
        let images = [(requests[0].key.clone(), ResolvedImage { digest, config, replaced: None })].into();
        lower(&dockerfile, &options, &images)
    };
    for (trigger, right) in asking {
        let others: Vec<TriggerRight> = rights.iter().copied().filter(|other| *other != right).collect();
        let error = build(trigger, &others).unwrap_err();
        assert!(matches!(&*error.problem, Problem::Trigger { .. }), "{trigger}: {error}");
        assert!(matches!(build(trigger, &[right]), Ok(Lowered::Done(_))), "{trigger}");
    }
    assert!(matches!(build("RUN --mount=type=cache,target=/x true", &[]), Ok(Lowered::Done(_))));
}

#[test]
fn a115_circles_are_refused() {
    let circular = |text: &str| {
        let error = build(text).unwrap_err();
        assert!(matches!(*error.problem, Problem::CircularStage { .. }), "{error}");
    };
    circular("FROM scratch AS a\nCOPY --from=a / /\n");
    circular("FROM scratch\nCOPY --from=0 / /\n");
    circular("FROM scratch AS a\nRUN --mount=from=a,target=/x true\n");
    circular("FROM scratch AS a\nRUN --mount=from=b,target=/x true\nFROM a AS b\nRUN x\n");
    circular("FROM scratch AS a\nRUN --mount=from=1,target=/x true\nFROM scratch\nCOPY --from=a / /\n");
    circular("FROM scratch AS a\nCOPY --from=c / /\nFROM a AS b\nFROM scratch AS c\nCOPY --from=b / /\n");
    let mut ring = String::new();
    (0..5_000).for_each(|n| _ = write!(ring, "FROM scratch AS s{n}\nCOPY --from={} / /\n", (n + 1) % 5_000));
    within(10, || circular(&ring));
    assert!(build("FROM a AS a\nCOPY x /\n").is_ok(), "an image of the stage's name is no circle");
}

// Fails when sources are handed on as written.
#[test]
fn a31_sources_and_destinations_stay_in_their_trees() {
    let image =
        build("FROM scratch\nWORKDIR /../../w/..\nCOPY ../../etc/passwd /a/../../b/ ./../x ../../../dest/\n").unwrap();
    let text = image.graph.to_string();
    assert!(text.contains("[\"/etc/passwd\", \"/b\", \"/x\"] -> \"/dest/\""), "{text}");
    let image = build("FROM scratch\nWORKDIR ../../..\nCOPY a ..\nWORKDIR a/../../../b\n").unwrap();
    let text = image.graph.to_string();
    assert!(text.contains("[\"/a\"] -> \"/\"") && text.contains(": /b mode"), "{text}");
}

#[test]
fn proxy_settings_reach_run_beside_its_key() {
    let dockerfile = parse("d", b"FROM scratch\nRUN a\nARG HTTPS_PROXY\nRUN b\n").unwrap();
    let mut options = LowerOptions::new(platform());
    options.build_args.insert("http_proxy".to_owned(), "http://a".to_owned());
    options.build_args.insert("HTTPS_PROXY".to_owned(), "http://s".to_owned());
    options.proxy_env = ["NO_PROXY=x", "HTTP_PROXY=http://other"].map(str::to_owned).to_vec();
    let image = finish(&dockerfile, &options).unwrap();
    assert_eq!(image.unused_build_args, [""; 0]);
    let proxies = image.graph.vertices().iter().filter_map(|vertex| match &vertex.op {
        forge_llb::Op::Exec(exec) => Some(exec.proxy_env.join(" ")),
        _ => None,
    });
    let http = "HTTP_PROXY=http://a http_proxy=http://a";
    let first = format!("{http} HTTPS_PROXY=http://s https_proxy=http://s NO_PROXY=x no_proxy=x");
    assert_eq!(proxies.collect::<Vec<_>>(), [first, format!("{http} https_proxy=http://s NO_PROXY=x no_proxy=x")]);
    let history = image.config.history.iter().filter_map(|entry| entry.created_by.as_deref());
    let history: Vec<&str> = history.collect();
    assert_eq!(
        history,
        [
            "RUN /bin/sh -c a # buildkit",
            "ARG HTTPS_PROXY=http://s",
            "RUN |1 HTTPS_PROXY=http://s /bin/sh -c b # buildkit",
        ]
    );
}

#[test]
fn unused_stages_are_never_asked_for() {
    let dockerfile = parse("d", b"FROM used AS a\nFROM never\nRUN x\nFROM a\nCOPY x /\n").unwrap();
    let Lowered::Need(requests) = lower(&dockerfile, &LowerOptions::new(platform()), &ResolvedImages::new()).unwrap()
    else {
        panic!("it needs an image")
    };
    let steps: Vec<&str> = requests.iter().map(|request| request.step.as_str()).collect();
    assert_eq!(steps, ["[internal] load metadata for docker.io/library/used:latest"]);
    let image = finish(&dockerfile, &LowerOptions::new(platform())).unwrap();
    assert!(!image.graph.to_string().contains("never"));
}

#[test]
fn a117_heredocs_and_odd_bytes() {
    let accepted = |text: &[u8]| parse("d", text).is_ok();
    let many = "COPY <<A <<B /x/\na\nA\nb\nB\n".repeat(50_000);
    within(30, || assert!(accepted(format!("FROM x\n{many}").as_bytes())));
    assert!(!accepted(b"FROM x\nRUN <<A\nb\n"), "unterminated");
    assert!(!accepted(b"FROM x\nRUN <<A\n A\n"), "the end must stand alone");
    assert!(accepted(b"FROM x\nRUN <<-A\n\t\tA\n"), "tabs before the end");
    assert!(accepted(b"FROM x\nRUN <<A\n<<B\nA\n"), "nested ones are text");
    assert!(accepted(b"FROM x\nRUN echo 'it<<A'\n"), "quoted ones are none");
    assert!(accepted(b"FROM x\nCMD <<A\n"), "only some instructions have them");
    assert!(accepted(b"FROM x\r\nRUN <<A\r\nb\r\nA\r\n"), "CRLF");
    assert!(accepted(b"\xef\xbb\xbfFROM x\n"), "a byte order mark");
    assert!(!accepted(b"\xff\xfeF\0R\0O\0M\0"), "UTF-16");
    assert!(accepted(b"# \xe9\xff\nFROM x\n"), "comments in any encoding");
    assert!(!accepted(b"FROM x\nRUN \xff\n"), "instructions are UTF-8");
    assert!(!accepted(b""), "empty");
    assert!(!accepted(b"#\n\n \n"), "comments only");
    assert!(accepted(b"FROM x\nRUN a \\\n"), "a continuation at the end");
    assert!(accepted(b"# escape=`\n# escape\nFROM x `\n\n"), "a word of a directive is a comment");
    let nul = build("FROM scratch\nRUN a\0b\n").unwrap_err();
    assert_eq!((nul.line(), nul.to_string().contains("NUL")), (Some(2), true));
    let carriage_returns = parse("d", b"FROM x\rRUN y\r").unwrap();
    assert_eq!(carriage_returns.instructions().len(), 1, "a carriage return alone ends no line");
    assert!(!accepted(format!("FROM x\n{}RUN y", "ONBUILD ".repeat(100_000)).as_bytes()), "chains");
}

/// A generator of numbers that is the same everywhere (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

/// Pieces that mean something to the parser, so that random texts get beyond the first word.
const PIECES: [&str; 58] = [
    "FROM scratch\n",
    "FROM a AS b\n",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ",
    "LABEL ",
    "ONBUILD ",
    "CMD ",
    "HEALTHCHECK ",
    "EXPOSE ",
    "USER ",
    "WORKDIR ",
    "SHELL ",
    "VOLUME ",
    "STOPSIGNAL ",
    "ENTRYPOINT ",
    "\\\n",
    "`\n",
    "\n",
    "\r\n",
    " ",
    "\t",
    "--from=0 ",
    "--mount=type=",
    "cache,target=/x ",
    "secret,env=A,id=",
    "--device=\"",
    "--link ",
    "--parents ",
    "/./",
    "https://e/x.git?ref=",
    "http://e/%2",
    "--checksum=sha256:",
    "--chmod=",
    "--exclude=[",
    "<<A ",
    "<<-\"B\" ",
    "A\n",
    "B\n",
    "\"",
    "'",
    "[\"a\",",
    "]",
    "${a:-",
    "${a#*",
    "${a//x/",
    "}",
    "$",
    "=",
    "# escape=`\n",
    "# check=skip=all\n",
    "#",
    "\0",
    "é",
    "\u{feff}",
    "9-1/TCP:",
];

fn random_text(random: &mut Random) -> Vec<u8> {
    let mut text = Vec::new();
    if random.next(2) == 0 {
        text.extend_from_slice(b"FROM scratch AS z\n");
    }
    for _ in 0..random.next(60) {
        match random.next(12) {
            0 => text.push(random.next(256) as u8),
            _ => text.extend_from_slice(PIECES[random.next(PIECES.len())].as_bytes()),
        }
    }
    text
}

/// Parses, lowers and renders; what comes of it does not matter, but that it comes.
fn survive(text: &[u8]) -> Option<()> {
    let render = |error: FrontendError| assert!(!error.render(&String::from_utf8_lossy(text)).is_empty());
    let dockerfile = parse("d", text).map_err(render).ok()?;
    assert!(!dockerfile.to_sexpr().is_empty());
    for instruction in dockerfile.instructions() {
        assert!(instruction.span.end as usize <= text.len() && instruction.span.start <= instruction.span.end);
        assert!(instruction.keyword.span.slice(text) == instruction.keyword.text.as_bytes() || text.contains(&b'\n'));
    }
    finish(&dockerfile, &LowerOptions::new(platform())).map_err(render).ok().map(drop)
}

// Fails when `Walker::plain` steps by a byte instead of a character.
#[test]
fn a117_random_texts_never_panic() {
    let mut random = Random(0x5eed_f04e);
    let mut built = 0;
    for _ in 0..20_000 {
        let text = random_text(&mut random);
        built += usize::from(survive(&text).is_some());
    }
    assert!(built > 100, "too few random texts are Dockerfiles: {built}");
}

#[test]
fn a117_changed_files_never_panic() {
    let mut random = Random(0x5eed_0117);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/frontend");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    for case in cases {
        let text = std::fs::read(case.join("Dockerfile")).unwrap();
        for _ in 0..100 {
            let mut changed = text.clone();
            for _ in 0..=random.next(4) {
                let at = random.next(changed.len().max(1)).min(changed.len());
                match random.next(4) {
                    0 => changed.truncate(at),
                    1 if at < changed.len() => changed[at] = random.next(256) as u8,
                    2 if at < changed.len() => drop(changed.remove(at)),
                    _ => drop(changed.splice(at..at, PIECES[random.next(PIECES.len())].bytes())),
                }
            }
            survive(&changed);
        }
    }
}
