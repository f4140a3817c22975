//! Graphs whose file operations try to leave their root.

use crate::client::{Served, TestDaemon};
use forge_buildkit_proto::moby::buildkit::v1::{Exporter, SolveRequest};
use forge_buildkit_proto::pb;
use forge_buildkit_proto::pb::file_action::Action;
use forge_image::Digest;
use forge_testkit::fuzz::Random;
use prost::Message;
use std::path::Component;
use std::time::Duration;

const PIECES: [&str; 9] = ["a", "b", "link", "up", "..", ".", "", "loop", "etc"];

fn path(random: &mut Random) -> String {
    let pieces: Vec<&str> = (0..1 + random.below(6)).map(|_| PIECES[random.below(PIECES.len())]).collect();
    let start = if random.below(2) == 0 { "/" } else { "" };
    format!("{start}{}", pieces.join("/"))
}

fn action(random: &mut Random) -> Action {
    let at = path(random);
    match random.below(5) {
        0 => Action::Mkdir(pb::FileActionMkDir {
            path: at,
            mode: 0o755,
            make_parents: random.below(2) == 0,
            timestamp: -1,
            ..pb::FileActionMkDir::default()
        }),
        1 => Action::Mkfile(pb::FileActionMkFile {
            path: at,
            mode: 0o644,
            data: b"escaped".to_vec(),
            timestamp: -1,
            ..pb::FileActionMkFile::default()
        }),
        2 => Action::Rm(pb::FileActionRm { path: at, allow_not_found: true, allow_wildcard: random.below(2) == 0 }),
        3 => Action::Symlink(pb::FileActionSymlink {
            oldpath: path(random),
            newpath: at,
            timestamp: -1,
            ..pb::FileActionSymlink::default()
        }),
        _ => Action::Copy(pb::FileActionCopy {
            src: path(random),
            dest: at,
            mode: -1,
            timestamp: -1,
            create_dest_path: random.below(2) == 0,
            dir_copy_contents: random.below(2) == 0,
            follow_symlink: random.below(2) == 0,
            allow_wildcard: random.below(2) == 0,
            allow_empty_wildcard: true,
            ..pb::FileActionCopy::default()
        }),
    }
}

/// Folders, and links that lead out of the root in every way.
fn base(canary: &str) -> Vec<Action> {
    let folder = |path: &str| {
        Action::Mkdir(pb::FileActionMkDir { path: path.into(), mode: 0o755, timestamp: -1, ..Default::default() })
    };
    let link = |target: &str, path: &str| {
        let (oldpath, newpath) = (target.to_owned(), path.to_owned());
        Action::Symlink(pb::FileActionSymlink { oldpath, newpath, timestamp: -1, ..Default::default() })
    };
    let up = format!("../../../../../../../../../..{canary}");
    vec![folder("/a"), folder("/b"), link(canary, "/link"), link(&up, "/a/up"), link(&up, "/up"), link("loop", "/loop")]
}

fn op(inputs: Vec<pb::Input>, actions: Vec<Action>) -> Vec<u8> {
    let first = inputs.len() as i64;
    let mut made = Vec::new();
    for (number, action) in actions.into_iter().enumerate() {
        let before = if number == 0 { first - 1 } else { first + number as i64 - 1 };
        let is_copy = matches!(action, Action::Copy(_));
        made.push(pb::FileAction {
            input: before,
            secondary_input: if is_copy { before } else { -1 },
            output: -1,
            action: Some(action),
        });
    }
    if let Some(last) = made.last_mut() {
        last.output = 0;
    }
    let op = Some(pb::op::Op::File(pb::FileOp { actions: made }));
    pb::Op { inputs, op, ..pb::Op::default() }.encode_to_vec()
}

fn input(of: &[u8]) -> pb::Input {
    pb::Input { digest: Digest::sha256(of).to_string(), index: 0 }
}

fn listed(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.into_iter().map(|path| format!("{path:?} {:?}", std::fs::read(&path).ok())).collect()
}

/// What the worker's own tests show of paths, from the other end of the wire.
#[tokio::test(flavor = "multi_thread")]
async fn a29_file_operations_stay_in_their_root() {
    let daemon = TestDaemon::start().await;
    let client = daemon.client().await;
    let canary = daemon.folder.path().join("canary");
    std::fs::create_dir_all(canary.join("a")).unwrap();
    std::fs::write(canary.join("b"), "untouched").unwrap();
    let around = || [listed(&canary), listed(&canary.join("a")), listed(daemon.folder.path())];
    let before = around();
    let mut random = Random::new(29);
    let mut succeeded = 0;
    for number in 0..200 {
        let below = op(Vec::new(), base(canary.to_str().unwrap()));
        let actions = (0..1 + random.below(4)).map(|_| action(&mut random)).collect();
        let above = op(vec![input(&below)], actions);
        let goal = pb::Op { inputs: vec![input(&above)], ..pb::Op::default() }.encode_to_vec();
        let definition = pb::Definition { def: vec![below, above, goal], ..pb::Definition::default() };
        let served = Served::default();
        let session = client.session(&format!("s{number}"), "key", served.clone()).await;
        let request = SolveRequest {
            r#ref: format!("r{number}"),
            session: format!("s{number}"),
            definition: Some(definition),
            exporters: vec![Exporter { r#type: "tar".to_owned(), ..Exporter::default() }],
            ..SolveRequest::default()
        };
        let solved = tokio::time::timeout(Duration::from_secs(20), client.control().solve(request)).await.unwrap();
        drop(session);
        assert_eq!(around(), before, "{number}: {solved:?}");
        if let Err(failed) = solved {
            assert!(!failed.message().contains("panic"), "{failed}");
            continue;
        }
        succeeded += 1;
        let bytes = std::mem::take(&mut *served.received.lock().unwrap());
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let path = entry.unwrap().path().unwrap().into_owned();
            let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            assert!(path.components().all(inside) && !path.ends_with("untouched"), "{path:?}");
        }
    }
    assert!(succeeded > 20, "{succeeded} of 200 could be done");
}
