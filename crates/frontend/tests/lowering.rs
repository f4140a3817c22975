//! Dockerfile in, graph and config out. Each folder of `testdata/frontend` holds a `Dockerfile`, perhaps
//! `options` (one a line), and what comes of them in `expected`: written anew with `FORGE_BLESS=1`.

use forge_frontend::{
    ImageKeySource, ImageRequest, LowerOptions, Lowered, LoweredImage, NamedContext, ResolvedImage, ResolvedImages,
    SourceTime, TriggerRight, lower, parse,
};
use forge_image::{DiffId, Digest, HistoryEntry, ImageConfig, Platform};
use forge_llb::{CdiDevice, GitUrl, HttpSource, NetworkMode, Ulimit};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/frontend")
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

/// The images that the cases are built on, by the last part of their name.
fn image(request: &ImageRequest) -> ResolvedImage {
    let name = match &request.key.source {
        ImageKeySource::Image(reference) => reference.repository().rsplit('/').next().unwrap().to_owned(),
        ImageKeySource::OciLayout { name, .. } => name.clone(),
    };
    let mut config = ImageConfig::new(&request.key.platform);
    if name == "amd64only" {
        config = ImageConfig::new(&platform("linux/amd64"));
    }
    config.created = Some("2020-01-01T00:00:00Z".to_owned());
    config.rootfs.diff_ids = vec![DiffId::new(Digest::sha256(name.as_bytes()))];
    config.history = vec![HistoryEntry { created_by: Some(format!("ADD {name}.tar /")), ..HistoryEntry::default() }];
    config.config.cmd = Some(vec!["bash".to_owned()]);
    match name.as_str() {
        "rich" => {
            config.config.env = vec!["PATH=/opt/bin:/bin".to_owned(), "LANG=C.UTF-8".to_owned()];
            config.config.user = "app".to_owned();
            config.config.working_dir = "/srv".to_owned();
            config.config.entrypoint = Some(vec!["/init".to_owned()]);
            config.config.labels.insert("vendor".to_owned(), "x".into());
            config.config.shell = vec!["/bin/bash".to_owned(), "-ec".to_owned()];
        }
        "triggers" => {
            config.config.on_build =
                vec!["COPY . /src".to_owned(), "RUN make".to_owned(), "COPY --from=tools /t /t".to_owned()];
        }
        "greedy" => {
            config.config.on_build = vec![
                "RUN --network=host --security=insecure --mount=type=ssh --mount=type=secret,id=a true".to_owned(),
                "RUN --device=vendor.com/class=a true".to_owned(),
                "RUN --mount=from=tools,target=/t true".to_owned(),
                "RUN --mount=type=cache,target=/c true".to_owned(),
            ]
        }
        "hostnet" => config.config.on_build = vec!["RUN --network=host true".to_owned()],
        "mounts" => config.config.on_build = vec!["RUN --mount=type=secret,id=aws true".to_owned()],
        "chain" => config.config.on_build = vec!["ONBUILD RUN true".to_owned()],
        "insecure" => config.config.on_build = vec!["RUN --security=insecure true".to_owned()],
        "agent" => config.config.on_build = vec!["RUN --mount=type=ssh true".to_owned()],
        "device" => config.config.on_build = vec!["RUN --device=vendor.com/class=a true".to_owned()],
        "empty" => (config.rootfs.diff_ids, config.history) = (Vec::new(), Vec::new()),
        _ => {}
    }
    ResolvedImage {
        digest: Digest::sha256(format!("{name} {}", request.key.platform).as_bytes()),
        config,
        replaced: None,
    }
}

fn options(text: &str) -> LowerOptions {
    let mut options = LowerOptions::new(platform("linux/amd64"));
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let (name, rest) = value.split_once('=').unwrap_or((value, ""));
        match key {
            "target" => options.target = Some(value.to_owned()),
            "build-arg" => _ = options.build_args.insert(name.to_owned(), rest.to_owned()),
            "label" => options.labels.push((name.to_owned(), rest.to_owned())),
            "platform" => {
                options.platform = platform(value);
                options.platform_requested = true;
            }
            "no-cache-stage" => options.no_cache_stages.push(value.to_owned()),
            "hostname" => value.clone_into(&mut options.hostname),
            "shm-size" => options.shm_size = Some(value.parse().unwrap()),
            "cgroup-parent" => value.clone_into(&mut options.cgroup_parent),
            "cache-namespace" => value.clone_into(&mut options.cache_mount_namespace),
            "ulimit" => {
                let limit = Ulimit { name: name.to_owned(), soft: rest.parse().unwrap(), hard: rest.parse().unwrap() };
                options.ulimits.push(limit);
            }
            "device" => options.devices.push(CdiDevice { name: value.to_owned(), optional: false }),
            "network-host" => options.network = NetworkMode::Host,
            "allow" => _ = options.allow_in_triggers.insert(right(value)),
            "source-time" => options.source_time = SourceTime::Seconds(value.parse().unwrap()),
            "main-context" => options.main_context = context("context", value),
            "multi-platform" => options.multi_platform = true,
            "no-cache" => options.no_cache = true,
            "pull" => options.pull = true,
            "epoch" => options.source_date_epoch = Some(value.parse().unwrap()),
            "ignore" => match &mut options.main_context {
                NamedContext::Local { exclude, .. } => exclude.push(value.to_owned()),
                other => panic!("{other:?} has no ignore file"),
            },
            "proxy" => options.proxy_env.push(value.to_owned()),
            "context" => _ = options.named_contexts.insert(name.to_owned(), context(name, rest)),
            other => panic!("unknown option {other:?}"),
        }
    }
    options
}

fn context(name: &str, value: &str) -> NamedContext {
    if let Some(url) = GitUrl::parse(value).unwrap() {
        return NamedContext::Git(url.source());
    }
    match value.split_once(':') {
        Some(("docker-image", "//scratch")) => NamedContext::Scratch,
        Some(("docker-image", reference)) => NamedContext::Image(reference[2..].parse().unwrap()),
        Some(("oci-layout", layout)) => {
            NamedContext::OciLayout { name: layout[2..].to_owned(), tag: Some("1".to_owned()), digest: None }
        }
        Some(("http" | "https", _)) => NamedContext::Http(HttpSource::new(value)),
        Some(("target", stage)) => NamedContext::Stage(stage.to_owned()),
        _ => NamedContext::Local { name: name.to_owned(), exclude: vec!["*.o".to_owned()] },
    }
}

fn right(name: &str) -> TriggerRight {
    match name {
        "secret" => TriggerRight::Secret,
        "ssh" => TriggerRight::Ssh,
        "network" => TriggerRight::HostNetwork,
        "insecure" => TriggerRight::Insecure,
        "device" => TriggerRight::Device,
        other => panic!("unknown right {other:?}"),
    }
}

fn printed(image: &LoweredImage) -> String {
    let config: serde_json::Value = serde_json::from_slice(&image.config.to_json()).unwrap();
    let mut text = format!("{}\n{}\n", image.graph, serde_json::to_string_pretty(&config).unwrap());
    let mut list = |name: &str, entries: &[String]| {
        if !entries.is_empty() {
            _ = writeln!(text, "\n{name}:\n  {}", entries.join("\n  "));
        }
    };
    let warnings: Vec<String> = image.warnings.iter().map(ToString::to_string).collect();
    list("warnings", &warnings);
    list("unused build args", &image.unused_build_args);
    list("contexts", &image.context_names_used);
    list("triggers", &image.triggers);
    let uses = image.entitlements.iter();
    let uses: Vec<String> = uses.map(|used| format!("{} line {}", used.entitlement, used.span.first_line)).collect();
    list("entitlements", &uses);
    text
}

/// Lowers to the fixpoint and prints every turn.
fn outcome(name: &str, dockerfile: &[u8], options: &LowerOptions) -> String {
    let source = String::from_utf8_lossy(dockerfile);
    let mut text = String::new();
    let mut images = ResolvedImages::new();
    let parsed = match parse(name, dockerfile) {
        Ok(parsed) => parsed,
        Err(error) => return format!("{:?} {}", error.kind(), error.render(&source)),
    };
    loop {
        match lower(&parsed, options, &images) {
            Err(error) => return text + &format!("{:?} {}", error.kind(), error.render(&source)),
            Ok(Lowered::Done(image)) => return text + &printed(&image),
            Ok(Lowered::NeedTime(request)) => {
                let line = request.span.map_or(0, |span| span.first_line);
                return text + &format!("need time line {line}: {} {:#?}\n", request.step, request.source);
            }
            Ok(Lowered::Need(requests)) => {
                assert!(!requests.is_empty());
                for request in requests {
                    _ = writeln!(text, "need line {}: {}", request.span.first_line, request.step);
                    let image = image(&request);
                    assert!(images.insert(request.key, image).is_none(), "asked twice");
                }
            }
        }
    }
}

#[test]
fn cases_come_out_as_expected() {
    let mut cases: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut wrong = Vec::new();
    for case in &cases {
        let dockerfile = fs::read(case.join("Dockerfile")).unwrap();
        let options = options(&fs::read_to_string(case.join("options")).unwrap_or_default());
        let found = outcome("Dockerfile", &dockerfile, &options);
        assert_eq!(found, outcome("Dockerfile", &dockerfile, &options), "the same input gives the same output");
        let file = case.join("expected");
        if std::env::var_os("FORGE_BLESS").is_some() {
            fs::write(&file, &found).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}:\n--- expected\n{expected}--- found\n{found}", case.display()));
        }
    }
    assert!(cases.len() > 20 && wrong.is_empty(), "{}", wrong.join("\n"));
}
