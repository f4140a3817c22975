//! Definitions that BuildKit's own client library wrote (`client/llb` of August 2026; `tests/definitions/*.pb`).

use forge_buildkit_proto::{
    Decoded, SourceFile, check_in_place, decode, definition_bytes, dot, encode, json_lines, pb,
};
use forge_image::{Digest, ErrorKind};
use forge_llb::{MountKind, Op, SourceOp};
use prost::Message as _;
use std::path::Path;

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/definitions/{name}.pb"))).unwrap()
}

fn decoded(name: &str) -> Decoded {
    decode(&bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn dump(name: &str) -> String {
    decoded(name).graph.to_string()
}

#[test]
fn vertices_keep_the_digests_that_their_maker_gave_them() {
    for name in ["exec", "mounts", "file", "merge-diff", "located", "git"] {
        let definition = pb::Definition::decode(bytes(name).as_slice()).unwrap();
        let theirs = definition.def.iter().map(|bytes| Digest::sha256(bytes));
        let graph = decoded(name).graph;
        let ours: Vec<Digest> = graph.named().map(|(digest, _)| digest.digest().clone()).collect();
        assert_eq!(theirs.take(ours.len()).collect::<Vec<_>>(), ours, "{name}");
        let goal = pb::Op::decode(definition.def.last().unwrap().as_slice()).unwrap();
        assert_eq!(graph.goal().unwrap().vertex.to_string(), goal.inputs[0].digest);
    }
}

/// What is written again has the digests it came with, so forge's own definitions are such as BuildKit would make.
#[test]
fn ops_are_written_as_buildkit_writes_them() {
    let names = [
        "image",
        "exec",
        "mounts",
        "file",
        "merge-diff",
        "git",
        "git-ssh",
        "http",
        "located",
        "nested-actions",
        "scratch",
    ];
    for name in names {
        let mut theirs = pb::Definition::decode(bytes(name).as_slice()).unwrap();
        let Decoded { graph, sources } = decoded(name);
        let mut ours = encode(&graph, &sources).unwrap();
        for definition in [&mut theirs, &mut ours] {
            // A session is named by its client alone.
            let ops = definition.def.iter().map(|op| pb::Op::decode(op.as_slice()).unwrap());
            let ops = ops.map(|mut op| {
                if let Some(pb::op::Op::Source(source)) = &mut op.op {
                    source.attrs.remove("local.session");
                }
                op.inputs.iter_mut().for_each(|input| input.digest.clear());
                op.encode_to_vec()
            });
            definition.def = ops.collect();
        }
        assert_eq!(json_lines(&ours).unwrap().len() > 1, name != "scratch");
        assert_eq!(theirs.def, ours.def, "{name}");
    }
}

#[test]
fn every_field_of_an_exec_arrives() {
    let graph = decoded("exec").graph;
    let expect = "\
#0 linux/amd64 \"docker-image://docker.io/library/alpine:latest@sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\"
  image docker.io/library/alpine:latest pinned sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881
#1 linux/amd64 \"[build 1/2] RUN make\" no-cache
  exec [\"sh\", \"-c\", \"make all\"]
  env [\"A=1\", \"B=2\"]
  cwd /srv
  user app:grp
  network None
  security Insecure
  hostname box
  extra-hosts [ExtraHost { host: \"db\", address: \"10.0.0.1\" }]
  ulimits [Ulimit { name: \"nofile\", soft: 10, hard: 20 }]
  cgroup-parent /grp
  devices [CdiDevice { name: \"vendor.com/gpu=0\", optional: true }]
  valid-exit-codes [0, 3]
  remove-mount-stubs 
  mount / from #0/ -> 0
goal #1
";
    assert_eq!(graph.to_string(), expect);
    let Op::Exec(exec) = &graph.vertices()[1].op else { panic!() };
    assert_eq!(exec.proxy_env, ["HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=x", "no_proxy=x"]);
}

#[test]
fn every_kind_of_mount_arrives() {
    let graph = decoded("mounts").graph;
    let Op::Exec(exec) = &graph.vertices().last().unwrap().op else { panic!() };
    let text = graph.to_string();
    let mounts: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  mount ")).collect();
    let expect = [
        "/ from #0/ -> 0",
        "/cache from scratch/ cache \"ns/cache\" Locked",
        "/out from scratch/ -> 1",
        "/rw from #1/",
        "/src from #1/sub ro",
        "/tmp from scratch/ tmpfs Some(1048576)",
        "/run/secrets/k from scratch/ secret \"k\" 1:2 mode 0400",
        "/run/ssh from scratch/ ssh \"default\" 0:0 mode 0600 optional",
    ];
    assert_eq!(mounts, expect);
    assert_eq!(exec.secret_env[0].name, "X");
    assert_eq!(graph.goal().unwrap().output, 1);
    assert!(exec.mounts.iter().all(|mount| !matches!(mount.kind, MountKind::Secret(_)) || mount.output.is_none()));
}

#[test]
fn every_file_action_arrives() {
    let expect = "\
  mkdir on #0: /d mode 0755 parents owner 1:2
  mkfile on action 0: /d/f mode 0644 owner app:grp \"hi\\n<b>\"
  rm on action 1: /d/x* wildcard maybe
  symlink on action 2: /d/l -> \"/d/f\"
  copy on action 3: #2 [\"/a\"] -> \"/b/\" owner app mode u=rwX wildcard unpack include [\"i\"] exclude [\"e\"] required [\"r\"] replace
  copy on action 4: #1 [\"/z\"] -> \"/zz\" mode 0755 link-itself folder-itself no-parents
goal #3
";
    let dumped = dump("file");
    assert!(dumped.ends_with(expect), "{dumped}");
    let nested = dump("nested-actions");
    assert!(nested.contains("copy on #0: action 0 [\"/in\"] -> \"/out\""), "{nested}");
}

#[test]
fn sources_arrive_with_their_attributes() {
    let line = |name: &str| dump(name).lines().nth(1).unwrap().to_owned();
    assert_eq!(line("image-pull"), "  image docker.io/library/alpine:latest pull");
    assert_eq!(line("local"), "  local context include [\"a\", \"b<&>\"] exclude [\"*.o\", \"!keep.o\"]");
    assert!(line("oci-layout").starts_with("  oci-layout base tag None digest Some(\"sha256:2d71"));
    let checksum = "0123456789012345678901234567890123456789";
    let git = format!(
        "  git https://github.com/o/r.git ref main checksum {checksum} subdir sub keep-git-dir skip-submodules commit-times"
    );
    assert_eq!(line("git"), git);
    assert_eq!(line("git-ssh"), "  git git@host.test:o/r.git ssh default");
    assert!(line("http").ends_with(" name f mode 0640 owner 3:4"), "{}", line("http"));
    let graph = decoded("git-ssh").graph;
    let Op::Source(SourceOp::Git(git)) = &graph.vertices()[0].op else { panic!() };
    assert_eq!(git.known_hosts.as_deref(), Some("host.test ssh-ed25519 AAAA\n"));
}

#[test]
fn merges_diffs_and_the_empty_file_system() {
    let merged = dump("merge-diff");
    assert!(merged.contains("  diff #0 to #2\n") && merged.contains("  merge #0 #1 #3\n"), "{merged}");
    let name = "diff (docker-image://docker.io/library/alpine:latest@sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881) -> (touch /x)";
    assert!(merged.contains(name), "{merged}");
    assert_eq!(dump("scratch"), "goal scratch\n");
}

#[test]
fn steps_know_where_they_come_from() {
    let Decoded { graph, sources } = decoded("located");
    let span = graph.vertices()[1].metadata.span.clone().unwrap();
    assert_eq!((span.file.as_str(), span.first_line, span.last_line), ("Dockerfile", 2, 3));
    assert_eq!(span.text, "RUN a\\\n b");
    let data = b"FROM alpine\nRUN a\\\n b\n".to_vec();
    assert_eq!(
        sources,
        [SourceFile { name: "Dockerfile".into(), data, language: "Dockerfile".into(), definition: Vec::new() }]
    );
}

#[test]
fn a_context_narrowed_to_paths_is_read_there_alone() {
    assert!(dump("followed").contains("local context\n"));
    assert!(check_in_place(&decoded("followed").graph).is_ok());
    let error = check_in_place(&decoded("followed-beside").graph).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("local.followpaths"), "{error}");
}

#[test]
fn headers_of_downloads_are_taken() {
    let decoded = decode(&bytes("http-header")).unwrap();
    let headers = decoded.graph.vertices().iter().find_map(|vertex| match &vertex.op {
        forge_llb::Op::Source(forge_llb::SourceOp::Http(http)) => Some(http.headers.clone()),
        _ => None,
    });
    assert!(headers.is_some_and(|headers| headers.contains_key("accept")));
}

#[test]
fn blobs_limits_of_layers_and_handed_on_inputs_are_read() {
    for name in ["blob", "layer-limit", "passthrough"] {
        let shown = dump(name);
        let word = if name == "layer-limit" { " layers " } else { &format!("{name} ") };
        assert!(shown.contains(word), "{name}: {shown}");
    }
    let mut definition = pb::Definition::decode(bytes("layer-limit").as_slice()).unwrap();
    definition.metadata.values_mut().for_each(|metadata| _ = metadata.caps.insert("source.unheard.of".into(), true));
    let error = decode(&definition_bytes(&definition)).unwrap_err();
    assert!(error.to_string().contains("\"source.unheard.of\"") && error.kind() == ErrorKind::Unsupported, "{error}");
}

/// As `buildctl debug dump-llb` printed them.
#[test]
fn dumps_are_those_of_buildctl() {
    let golden = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/definitions/{name}"));
        std::fs::read_to_string(path).unwrap()
    };
    for name in ["exec", "mounts", "merge-diff", "http", "located"] {
        let definition = pb::Definition::decode(bytes(name).as_slice()).unwrap();
        assert_eq!(json_lines(&definition).unwrap(), golden(&format!("{name}.json")), "{name}");
        assert_eq!(dot(&definition).unwrap(), golden(&format!("{name}.dot")), "{name}");
    }
}
