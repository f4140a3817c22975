//! What changes the content key of a step, and what must not.

use crate::Test;
use crate::exec::shell;
use crate::site::{Site, file_op, vertex};
use forge_llb::Op;
use forge_session::Session;
use forge_solver::{InputKey, Worker};
use forge_store::ContentDigest;
use std::sync::Arc;

pub const TESTS: &[Test] = &[
    ("privileged_what_changes_the_key_of_a_copy", changes),
    ("privileged_what_makes_no_difference_to_a_copy", no_changes),
    ("privileged_what_of_a_stage_is_in_the_key", stages),
    ("privileged_keys_are_the_same_in_every_version", golden),
    ("privileged_the_readable_part_of_keys", readable),
];

const TREE: &str = "d/ 0711\n d/f =F\n d/l -> f\n d/s/x =X\n d/s/\n top =T";

fn key(tree: &str, instruction: &str) -> ContentDigest {
    let index = usize::from(instruction.contains("--from")) + 1;
    let site = Site::new();
    let site = if index == 1 { site.context(tree) } else { site.stage(tree) };
    site.keys(instruction).unwrap()[index]
}

#[track_caller]
fn differ(instruction: &str, edit: (&str, &str)) {
    assert_ne!(key(TREE, instruction), key(&TREE.replace(edit.0, edit.1), instruction), "{instruction} {edit:?}");
}

#[track_caller]
fn equal(instruction: &str, edit: (&str, &str)) {
    let edited = TREE.replace(edit.0, edit.1);
    assert_ne!(TREE, edited);
    assert_eq!(key(TREE, instruction), key(&edited, instruction), "{instruction} {edit:?}");
}

fn changes() {
    let copy = "COPY d /t/";
    differ(copy, ("=F", "=G"));
    differ(copy, ("=F", "=F 0600"));
    differ(copy, ("d/ 0711", "d/ 0755"));
    differ(copy, ("d/s/\n", "d/s/ 0700\n"));
    differ(copy, ("d/f =F", "d/g =F"));
    differ(copy, ("-> f", "-> g"));
    differ(copy, ("d/l -> f", "d/l =F"));
    differ(copy, ("top", "d/more =M\n top"));
    differ(copy, ("d/s/x =X", "d/s/y/\n d/s/x =X"));
    differ("COPY t* /t/", ("top =T", "tip =T"));
    differ("COPY --chmod=u=rwX d /t/", ("=F", "=F 0600"));
    differ("COPY --exclude=s d /t/", ("=F", "=G"));
    // Where one file ends and the next begins is part of it.
    assert_ne!(key("d/a =xy\n d/b =z", "COPY d /t/"), key("d/a =x\n d/b =yz", "COPY d /t/"));
    assert_ne!(key("d/ab =\n d/c =", "COPY d /t/"), key("d/a =\n d/bc =", "COPY d /t/"));
}

fn no_changes() {
    let copy = "COPY d /t/";
    equal(copy, ("=F", "=F @5"));
    equal(copy, ("d/ 0711", "d/ 0711 @5"));
    equal(copy, ("=F", "=F 7:8"));
    equal(copy, ("=F", "=F user.k=v"));
    equal(copy, ("top =T", "top =U"));
    equal("COPY --chmod=644 d /t/", ("=F", "=F 0600"));
    equal("COPY --exclude=s d /t/", ("=X", "=Y"));
    equal("COPY --exclude=s d /t/", ("d/s/\n", "d/s/ 0700\n"));
    // What is never copied is in no key: sockets come and go.
    equal(copy, ("top", "d/sock socket\n top"));
    // The ignore file hides from the key what it hides from the copy.
    let ignored = |tree: &str| Site::new().context(tree).ignore(&["d/s"]).keys(copy).unwrap()[1];
    assert_eq!(ignored(TREE), ignored(&TREE.replace("=X", "=Y")));
    // The folder that is the context counts with its contents only.
    let site = Site::new().context(TREE);
    let before = site.keys("COPY . /t/").unwrap();
    std::fs::set_permissions(site.path("context"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(site.keys("COPY . /t/").unwrap(), before);
}

fn stages() {
    let copy = "COPY --from=stage d /t/";
    differ(copy, ("=F", "=F 7:8"));
    differ(copy, ("=F", "=F user.k=v"));
    differ(copy, ("d/ 0711", "d/ 0711 1:1"));
    // Nothing says that these layers were made by a step, so all of their times may be meant.
    differ(copy, ("=F", "=F @5"));
    equal(copy, ("top =T", "top =T 5:5"));
    equal("COPY --from=stage --chown=1 d /t/", ("=F", "=F 7:8"));
    differ("COPY --from=stage --chown=1 d /t/", ("=F", "=F user.k=v"));
    // Two names of one file are not two files.
    let (linked, apart) = ("d/f =F\n d/g == d/f", "d/f =F\n d/g =F");
    assert_ne!(key(linked, copy), key(apart, copy));
    let crossed = |a: &str, b: &str| format!("d/1 =F\n d/2 =F\n d/3 == d/{a}\n d/4 == d/{b}");
    assert_ne!(key(&crossed("1", "2"), copy), key(&crossed("2", "1"), copy));
    // The same files in one layer and in two.
    let split = Site::new().stage("d/ 0711\n d/f =G\n d/l -> f").stage("d/ 0711\n d/f =F\n d/s/x =X\n d/s/");
    assert_eq!(split.keys(copy).unwrap()[2], key(TREE, copy));
    // What is changed is seen as a whole.
    let base = |tree: &str| Site::new().base(tree).keys("COPY . /t/").unwrap()[0];
    assert_ne!(base("a =A"), base("a =B"));
    assert_ne!(base("a =A"), base("a =A @5"));
}

/// A changed key is a lost cache: it must not come by accident.
fn golden() {
    let shown = |instruction| key(TREE, instruction).to_string();
    let keys = [shown("COPY d /t/"), shown("COPY --chmod=644 top /t/"), shown("COPY --from=stage d /t/")];
    assert_eq!(keys.map(|key| key[..16].to_owned()), ["733feeefc1c06cd6", "8475682a05a0e202", "11bab0d32ee08eb1"]);
}

fn readable() {
    let site = Site::new();
    let session: Arc<dyn Session> = site.session.clone();
    let map = |op| site.runtime.block_on(site.worker.cache_map(&vertex(op), &session)).unwrap();
    let copy = map(Op::File(file_op("COPY a b /d/")));
    assert_eq!(copy.readable, [("copy".to_owned(), "a b to /d/".to_owned())]);
    assert!(copy.cacheable);
    let op = |instruction| map(Op::File(file_op(instruction))).op;
    assert_eq!(op("COPY a /d/"), op("COPY a /d/"));
    for other in ["COPY b /d/", "COPY a /e/", "ADD a /d/", "COPY --chown=1 a /d/", "COPY --chmod=7 a /d/"] {
        assert_ne!(op("COPY a /d/"), op(other), "{other}");
    }
    let exec = map(Op::Exec(shell("true")));
    let names: Vec<&str> = exec.readable.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["command", "network", "security"]);
    // Neither proxies nor the addresses of further hosts are anything of the result's.
    let mut proxied = shell("true");
    proxied.proxy_env = vec!["http_proxy=x".to_owned()];
    assert_eq!(map(Op::Exec(proxied)).op, exec.op);
    let mut other = shell("true");
    other.env = vec!["A=1".to_owned()];
    assert_ne!(map(Op::Exec(other)).op, exec.op);
    assert!(exec.inputs.iter().all(|input| matches!(input, InputKey::Content(selector) if selector.paths.is_empty())));
}
