//! What forge takes the image specification to say, against the types of `oci-spec`.
//!
//! Those types cannot be forge's own: they drop what they do not know, and keep labels and annotations in hash maps, so
//! that a document that is read and written again has another digest. As a second reader of the specification they
//! do well.

use forge_image::{
    ContainerConfig, Descriptor, DiffId, Digest, HistoryEntry, ImageConfig, Index, Manifest, MediaType, Platform,
    Reference, RootFs,
};
use oci_spec::distribution::Reference as TheirReference;
use oci_spec::image as theirs;
use oci_spec::image::ToDockerV2S2 as _;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const KINDS: [MediaType; 13] = [
    MediaType::OciManifest,
    MediaType::OciIndex,
    MediaType::OciConfig,
    MediaType::OciLayer,
    MediaType::OciLayerGzip,
    MediaType::OciLayerZstd,
    MediaType::OciEmpty,
    MediaType::DockerManifest,
    MediaType::DockerManifestList,
    MediaType::DockerConfig,
    MediaType::DockerLayer,
    MediaType::DockerLayerGzip,
    MediaType::DockerLayerZstd,
];

/// `None` for what only docker defines. Whoever adds a media type is asked here.
fn their_kind(kind: &MediaType) -> Option<theirs::MediaType> {
    use theirs::MediaType as Theirs;
    match kind {
        MediaType::OciManifest | MediaType::DockerManifest => Some(Theirs::ImageManifest),
        MediaType::OciIndex | MediaType::DockerManifestList => Some(Theirs::ImageIndex),
        MediaType::OciConfig | MediaType::DockerConfig => Some(Theirs::ImageConfig),
        MediaType::OciLayer => Some(Theirs::ImageLayer),
        MediaType::OciLayerGzip | MediaType::DockerLayerGzip => Some(Theirs::ImageLayerGzip),
        MediaType::OciLayerZstd => Some(Theirs::ImageLayerZstd),
        MediaType::OciEmpty => Some(Theirs::EmptyJSON),
        MediaType::DockerLayer | MediaType::DockerLayerZstd | MediaType::Other(_) => None,
    }
}

#[test]
fn media_types_are_those_of_the_specification() {
    let mut compared = 0;
    for kind in &KINDS {
        let Some(theirs) = their_kind(kind) else { continue };
        match kind.as_str().starts_with("application/vnd.oci.") {
            true => assert_eq!(kind.as_str(), theirs.as_ref()),
            false => assert_eq!(kind.as_str(), theirs.to_docker_v2s2().unwrap()),
        }
        compared += 1;
    }
    assert_eq!(compared, 11);
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    assert_eq!(MediaType::from(foreign), MediaType::Other(foreign.to_owned()));
    assert_eq!(MediaType::from(foreign).distributable(), MediaType::OciLayer);
    assert_eq!(MediaType::OciLayer.nondistributable(), MediaType::from(foreign));
    assert!(MediaType::from(foreign).is_layer() && MediaType::OciConfig.nondistributable() == MediaType::OciConfig);
}

fn object(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).unwrap()
}

fn their_map(map: &Map<String, Value>) -> Option<HashMap<String, String>> {
    let pair = |(key, value): (&String, &Value)| (key.clone(), value.as_str().unwrap().to_owned());
    (!map.is_empty()).then(|| map.iter().map(pair).collect())
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Empty and absent mean the same in these documents.
fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn our_manifest() -> Manifest {
    let mut config = Descriptor::of(MediaType::OciConfig, b"config");
    config.unknown = object(json!({"urls": ["https://example.com/config"], "data": "Y29uZmln"}));
    let mut zstd = Descriptor::of(MediaType::OciLayerZstd, b"zstd");
    zstd.annotations = object(json!({"z": "1", "a": "2"}));
    let (tar, gzip) = (Descriptor::of(MediaType::OciLayer, b"tar"), Descriptor::of(MediaType::OciLayerGzip, b"gzip"));
    Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config,
        layers: vec![tar, gzip, zstd],
        annotations: object(json!({"org.opencontainers.image.version": "1.0"})),
        unknown: object(
            json!({"artifactType": "application/x", "subject": Descriptor::of(MediaType::OciManifest, b"")}),
        ),
    }
}

fn our_index() -> Index {
    let entry = |platform: &str| {
        let platform = Some(platform.parse::<Platform>().unwrap());
        Descriptor { platform, ..Descriptor::of(MediaType::OciManifest, b"manifest") }
    };
    Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: vec![entry("linux/amd64"), entry("linux/arm/v7"), entry("windows/arm64"), entry("linux/riscv64")],
        annotations: object(json!({"a": "b"})),
        unknown: Map::new(),
    }
}

fn our_config() -> ImageConfig {
    let diff_ids = [b"one", b"two"].map(|bytes| DiffId::new(Digest::sha256(bytes))).to_vec();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let ran = HistoryEntry {
        created: Some("2024-01-01T00:00:00Z".to_owned()),
        created_by: Some("RUN x".to_owned()),
        ..HistoryEntry::default()
    };
    let empty = HistoryEntry { comment: Some("no layer".to_owned()), empty_layer: true, ..HistoryEntry::default() };
    ImageConfig {
        created: Some("2024-01-02T03:04:05.678Z".to_owned()),
        author: Some("Anna <a@example.com>".to_owned()),
        os_version: Some("10.0".to_owned()),
        os_features: words(&["win32k"]),
        config: ContainerConfig {
            user: "1000:100".to_owned(),
            exposed_ports: object(json!({"80/tcp": {}, "53/udp": {}})),
            env: words(&["PATH=/bin", "EMPTY=", "A=b=c"]),
            entrypoint: Some(words(&["/entry", "a b"])),
            cmd: Some(words(&["-c"])),
            volumes: object(json!({"/data": {}, "/a b": {}})),
            working_dir: "/work".to_owned(),
            labels: object(json!({"z": "1", "a": "quote \" and \u{2603}"})),
            stop_signal: "SIGRTMIN+3".to_owned(),
            // docker's own, which readers of the specification must pass over.
            on_build: words(&["RUN y"]),
            shell: words(&["/bin/bash", "-c"]),
            ..ContainerConfig::default()
        },
        rootfs: RootFs { diff_ids, ..RootFs::default() },
        history: vec![ran, empty],
        ..ImageConfig::new(&"linux/arm/v7".parse().unwrap())
    }
}

fn same_descriptor(ours: &Descriptor, theirs: &theirs::Descriptor) {
    assert_eq!(ours.media_type.as_str(), theirs.media_type().as_ref());
    assert_eq!(ours.digest.as_str(), theirs.digest().to_string());
    assert_eq!(
        (ours.digest.algorithm(), ours.digest.hex()),
        (theirs.digest().algorithm().as_ref(), theirs.digest().digest())
    );
    assert_eq!(ours.size, theirs.size());
    assert_eq!(&their_map(&ours.annotations), theirs.annotations());
    assert_eq!(ours.unknown.get("urls").cloned(), theirs.urls().as_ref().map(|urls| json!(urls)));
    assert_eq!(ours.unknown.get("data").cloned(), theirs.data().as_ref().map(|data| json!(data)));
    // `os.version` and `os.features` of a platform are `os_version` and `os_features` to oci-spec: not compared.
    let platform = theirs.platform().as_ref();
    let words = platform
        .map(|platform| (platform.os().to_string(), platform.architecture().to_string(), platform.variant().clone()));
    assert_eq!(ours.platform.clone().map(|platform| (platform.os, platform.architecture, platform.variant)), words);
}

fn same_descriptors(ours: &[Descriptor], theirs: &[theirs::Descriptor]) {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).for_each(|(ours, theirs)| same_descriptor(ours, theirs));
}

fn same_kind(ours: Option<&MediaType>, theirs: Option<&theirs::MediaType>) {
    assert_eq!(ours.map(MediaType::as_str), theirs.map(AsRef::as_ref));
}

fn same_manifest(ours: &Manifest, theirs: &theirs::ImageManifest) {
    assert_eq!(ours.schema_version, u64::from(theirs.schema_version()));
    same_kind(ours.media_type.as_ref(), theirs.media_type().as_ref());
    same_descriptor(&ours.config, theirs.config());
    same_descriptors(&ours.layers, theirs.layers());
    assert_eq!(&their_map(&ours.annotations), theirs.annotations());
    assert_eq!(ours.unknown.get("artifactType").cloned(), theirs.artifact_type().as_ref().map(|kind| json!(kind)));
    assert_eq!(ours.unknown.get("subject").cloned(), theirs.subject().as_ref().map(|subject| json!(subject)));
}

fn same_index(ours: &Index, theirs: &theirs::ImageIndex) {
    assert_eq!(ours.schema_version, u64::from(theirs.schema_version()));
    same_kind(ours.media_type.as_ref(), theirs.media_type().as_ref());
    same_descriptors(&ours.manifests, theirs.manifests());
    assert_eq!(&their_map(&ours.annotations), theirs.annotations());
}

fn same_config(ours: &ImageConfig, theirs: &theirs::ImageConfiguration) {
    assert_eq!((&ours.created, &ours.author), (theirs.created(), theirs.author()));
    assert_eq!(ours.architecture, theirs.architecture().to_string());
    assert_eq!((&ours.os, &ours.variant), (&theirs.os().to_string(), theirs.variant()));
    assert_eq!((&ours.os_version, &some(ours.os_features.clone())), (theirs.os_version(), theirs.os_features()));
    same_container(&ours.config, &theirs.config().clone().unwrap_or_default());
    assert_eq!(&ours.rootfs.kind, theirs.rootfs().typ());
    let diff_ids: Vec<String> = ours.rootfs.diff_ids.iter().map(DiffId::to_string).collect();
    assert_eq!(&diff_ids, theirs.rootfs().diff_ids());
    let history = theirs.history().clone().unwrap_or_default();
    assert_eq!(ours.history.len(), history.len());
    ours.history.iter().zip(&history).for_each(|(ours, theirs)| same_history(ours, theirs));
}

fn same_container(ours: &ContainerConfig, theirs: &theirs::Config) {
    let keys = |map: &Map<String, Value>| some(sorted(map.keys().cloned().collect()));
    assert_eq!(&some(ours.user.clone()), theirs.user());
    assert_eq!(keys(&ours.exposed_ports), theirs.exposed_ports().clone().map(sorted));
    assert_eq!(&some(ours.env.clone()), theirs.env());
    assert_eq!((&ours.entrypoint, &ours.cmd), (theirs.entrypoint(), theirs.cmd()));
    assert_eq!(keys(&ours.volumes), theirs.volumes().clone().map(sorted));
    assert_eq!(&some(ours.working_dir.clone()), theirs.working_dir());
    assert_eq!(&their_map(&ours.labels), theirs.labels());
    assert_eq!(&some(ours.stop_signal.clone()), theirs.stop_signal());
}

fn same_history(ours: &HistoryEntry, theirs: &theirs::History) {
    assert_eq!((&ours.created, &ours.created_by), (theirs.created(), theirs.created_by()));
    assert_eq!((&ours.author, &ours.comment), (theirs.author(), theirs.comment()));
    assert_eq!(ours.empty_layer, theirs.empty_layer().unwrap_or(false));
}

#[test]
fn documents_that_forge_writes_mean_the_same_to_oci_spec() {
    let (manifest, index, config) = (our_manifest(), our_index(), our_config());
    same_manifest(&manifest, &theirs::ImageManifest::from_reader(manifest.to_json().as_slice()).unwrap());
    same_index(&index, &theirs::ImageIndex::from_reader(index.to_json().as_slice()).unwrap());
    same_config(&config, &theirs::ImageConfiguration::from_reader(config.to_json().as_slice()).unwrap());
    let scratch = ImageConfig::new(&Platform::host());
    same_config(&scratch, &theirs::ImageConfiguration::from_reader(scratch.to_json().as_slice()).unwrap());
}

fn their_descriptor(kind: theirs::MediaType, bytes: &[u8]) -> theirs::Descriptor {
    let digest: theirs::Digest = Digest::sha256(bytes).as_str().parse().unwrap();
    theirs::Descriptor::new(kind, bytes.len() as u64, digest)
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn their_manifest() -> theirs::ImageManifest {
    let mut layer = their_descriptor(theirs::MediaType::ImageLayerZstd, b"layer");
    layer.set_annotations(Some(HashMap::from([("a".to_owned(), "b".to_owned())])));
    layer.set_urls(Some(strings(&["https://example.com/layer"])));
    let manifest = theirs::ImageManifestBuilder::default()
        .schema_version(theirs::SCHEMA_VERSION)
        .media_type(theirs::MediaType::ImageManifest)
        .artifact_type(theirs::MediaType::from("application/x"))
        .config(their_descriptor(theirs::MediaType::ImageConfig, b"config"))
        .layers(vec![their_descriptor(theirs::MediaType::ImageLayerGzip, b"tar"), layer])
        .subject(their_descriptor(theirs::MediaType::ImageManifest, b"subject"))
        .annotations(HashMap::from([("c".to_owned(), "d".to_owned())]));
    manifest.build().unwrap()
}

fn their_index() -> theirs::ImageIndex {
    let entry = |architecture: theirs::Arch, variant: Option<&str>| {
        let platform = theirs::PlatformBuilder::default().architecture(architecture).os(theirs::Os::Linux);
        let mut platform = platform.build().unwrap();
        platform.set_variant(variant.map(str::to_owned));
        let mut entry = their_descriptor(theirs::MediaType::ImageManifest, b"manifest");
        entry.set_platform(Some(platform));
        entry
    };
    let entries = [(theirs::Arch::Amd64, None), (theirs::Arch::ARM, Some("v6")), (theirs::Arch::PowerPC64le, None)];
    let index = theirs::ImageIndexBuilder::default()
        .schema_version(theirs::SCHEMA_VERSION)
        .media_type(theirs::MediaType::ImageIndex)
        .manifests(entries.map(|(architecture, variant)| entry(architecture, variant)).to_vec());
    index.build().unwrap()
}

fn their_config() -> theirs::ImageConfiguration {
    let container = theirs::ConfigBuilder::default()
        .user("alice")
        .exposed_ports(strings(&["8080/tcp", "9"]))
        .env(strings(&["A=1", "B="]))
        .entrypoint(strings(&["/app"]))
        .cmd(strings(&["--flag", ""]))
        .volumes(strings(&["/data"]))
        .working_dir("/home/alice")
        .labels(HashMap::from([("one".to_owned(), "1".to_owned()), ("two".to_owned(), "2".to_owned())]))
        .stop_signal("SIGKILL");
    let ran = theirs::HistoryBuilder::default().created("2015-10-31T22:22:54Z").created_by("RUN").author("a");
    let empty = theirs::HistoryBuilder::default().comment("c").empty_layer(true);
    let diff_ids = vec![Digest::sha256(b"layer").to_string()];
    let config = theirs::ImageConfigurationBuilder::default()
        .created("2015-10-31T22:22:56.015925234Z")
        .author("Alyssa")
        .architecture(theirs::Arch::ARM64)
        .variant("v8")
        .os(theirs::Os::Linux)
        .os_version("1")
        .os_features(strings(&["f"]))
        .config(container.build().unwrap())
        .rootfs(theirs::RootFsBuilder::default().diff_ids(diff_ids).build().unwrap())
        .history(vec![ran.build().unwrap(), empty.build().unwrap()]);
    config.build().unwrap()
}

#[test]
fn documents_that_oci_spec_builds_mean_the_same_to_forge() {
    let (manifest, index, config) = (their_manifest(), their_index(), their_config());
    let read = Manifest::from_json(manifest.to_string().unwrap().as_bytes(), Some(&MediaType::OciManifest)).unwrap();
    same_manifest(&read, &manifest);
    let read = Index::from_json(index.to_string().unwrap().as_bytes(), Some(&MediaType::OciIndex)).unwrap();
    same_index(&read, &index);
    same_config(&ImageConfig::from_json(config.to_string().unwrap().as_bytes()).unwrap(), &config);
    let least = theirs::ImageConfigurationBuilder::default().build().unwrap();
    same_config(&ImageConfig::from_json(least.to_string().unwrap().as_bytes()).unwrap(), &least);
}

/// Registry, repository, tag and digest on one line, or a dash for what is refused.
fn parts(registry: &str, repository: &str, tag: Option<&str>, digest: Option<&str>) -> String {
    format!("{registry} {repository} {} {}", tag.unwrap_or("."), digest.unwrap_or("."))
}

fn ours(text: &str) -> String {
    let parts =
        |name: Reference| parts(name.registry(), name.repository(), name.tag(), name.digest().map(Digest::as_str));
    text.parse().map_or("-".to_owned(), parts)
}

fn theirs(text: &str) -> String {
    let parts = |name: TheirReference| parts(name.registry(), name.repository(), name.tag(), name.digest());
    text.parse().map_or("-".to_owned(), parts)
}

fn hex(digits: usize) -> String {
    "a".repeat(digits)
}

/// Names on which both must agree, well formed or not.
fn undisputed() -> Vec<String> {
    let names = [
        "a a:1 a/b a/b/c docker.io/a docker.io/library/a docker.io/a/b:1 index.docker.io/a index.docker.io/a/b",
        "registry-1.docker.io/a localhost localhost:5000 localhost/a localhost:5000/a docker.io foo.com foo.com:8080",
        "foo.com/a foo:8080/a FOO.com/a 127.0.0.1/a 127.0.0.1:5000/a/b/c:t 1.2.3.4.5/a xn--n3h.com/a 0/0 0.0/0",
        "r.io:0/a r.io:/a r.io:x/a -a.com/b a..b/c a.-b/c a.b./c com. com./a https://r.io/a http:a r.io/a:1/b [::g]/a",
        "a:B a:_x a:x.y-z_ a:.x a:-x a: :a a:1:2 a__b a___b a_-b a--b a---b a.b a..b a._b a- -a _a a. A a/B \u{e9}",
        "a/ /a a//b a/../b a/./b .. docker.io/ docker.io//a @a a@ [fe80::1%25eth0]/a",
    ];
    let names = names.iter().flat_map(|line| line.split(' ')).map(str::to_owned);
    let (sha256, sha512) = (format!("sha256:{}", hex(64)), format!("sha512:{}", hex(128)));
    let digests = [
        format!("a@{sha256}"),
        format!("a:1@{sha256}"),
        format!("r.io/a:1@{sha256}"),
        format!("r.io:5000/a/b@{sha512}"),
        format!("{}@{sha256}", hex(64)),
        format!("sha256@{sha256}"),
        format!("a@{sha256}@{sha256}"),
        format!("@{sha256}"),
        format!("a@sha256:{}", hex(63)),
        format!("a@sha512:{}", hex(64)),
        format!("a@md5:{}", hex(32)),
        format!("a@SHA256:{}", hex(64)),
        format!("a@sha256+b64:{}", hex(64)),
    ];
    let lengths = [
        format!("a:{}", hex(128)),
        format!("a:{}", hex(129)),
        format!("{}:1", hex(64)),
        format!("library/{}", hex(64)),
        format!("r.io/{}", hex(251)),
        format!("r.io/{}", hex(256)),
    ];
    let blanks = ["", " ", "a b", " a", "a ", "a\n"].map(str::to_owned);
    names.chain(digests).chain(lengths).chain(blanks).collect()
}

/// What both are known to see differently: the name, what forge makes of it, what `oci-spec` does, and why.
fn disputed() -> Vec<(String, String, String, &'static str)> {
    let refused = "-".to_owned();
    let same_name = |registry: &str, repository: &str| format!("{registry} {repository} latest .");
    let hub = |text: &str| (text.to_owned(), refused.clone(), same_name("docker.io", text));
    let with = |(text, ours, theirs): (String, String, String), why| (text, ours, theirs, why);
    let upper =
        "upper-case letters are for host names only; oci-spec takes the word for one, and then for a repository";
    let address = "the grammar of distribution/reference admits IPv6 addresses as hosts";
    let port = "a port has 16 bits";
    let digest = "the image specification registers sha256 and sha512, in lower-case digits";
    let length = "forge counts the host towards the 255 characters, by the note in the distribution specification; oci-spec the path";
    let pinned = |digest: String| (format!("a@{digest}"), refused.clone(), format!("docker.io library/a . {digest}"));
    let port_of = |port: &str| (format!("r.io:{port}/a"), refused.clone(), same_name(&format!("r.io:{port}"), "a"));
    let on = |host: &str, path: &str| (format!("{host}/{path}"), refused.clone(), same_name(host, path));
    let id = (hex(64), refused.clone(), same_name("docker.io", &format!("library/{}", hex(64))));
    let long = (hex(247), refused.clone(), same_name("docker.io", &format!("library/{}", hex(247))));
    vec![
        with(hub("FOO/a"), upper),
        with(hub("Foo/bar/baz"), upper),
        with(hub("LOCALHOST/a"), upper),
        with(("[::1]/a".to_owned(), same_name("[::1]", "a"), refused.clone()), address),
        with(("[::1]:5000/a".to_owned(), same_name("[::1]:5000", "a"), refused.clone()), address),
        with(
            on("a_b.com", "c"),
            "no host name has an underscore; oci-spec checks it as a path, and then takes it for a host",
        ),
        with(port_of("65536"), port),
        with(port_of("99999"), port),
        with(id, "docker takes 64 digits for an image ID"),
        with(pinned(format!("sha256:{}", "A".repeat(64))), digest),
        with(pinned(format!("sha384:{}", hex(96))), digest),
        with(long, length),
        with(on("r.io", &hex(255)), length),
    ]
}

#[test]
fn names_are_read_as_oci_spec_reads_them() {
    let names = undisputed();
    for name in &names {
        assert_eq!(ours(name), theirs(name), "{name:?}");
    }
    let accepted = names.iter().filter(|name| ours(name) != "-").count();
    assert!(accepted >= 45 && names.len() - accepted >= 45, "{accepted} of {}", names.len());
    for (name, expected, expected_theirs, why) in disputed() {
        assert_eq!((ours(&name), theirs(&name)), (expected, expected_theirs), "{name:?}: {why}");
    }
}
