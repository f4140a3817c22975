//! COPY with patterns of what is taken (`--parents`), and the further options of a copy.

use crate::Test;
use crate::site::Site;

pub const TESTS: &[Test] = &[
    ("privileged_parents_are_kept", kept),
    ("privileged_folders_on_the_way_have_their_own_metadata", on_the_way),
    ("privileged_what_is_required_must_be_there", required),
    ("privileged_a_context_may_show_only_a_part", part_of_a_context),
    ("privileged_only_what_is_taken_is_in_the_key", keys),
    ("privileged_links_may_be_copied_themselves", unfollowed),
    ("privileged_folders_may_be_copied_themselves", folders_themselves),
    ("privileged_destinations_may_have_to_be_there", missing_parents),
    ("privileged_patterns_may_have_to_match", empty_wildcards),
    ("privileged_files_and_folders_may_replace_each_other", replacing),
];

const TREE: &str =
    "a/ 0711 @5\n a/b/ 0700 @6\n a/b/x.c =X\n a/b/y.h =Y\n a/z.c =Z\n q/r/s/t.c =T\n q/r/s/\n q/r/\n q/\n top.c =C";

fn kept() {
    let site = Site::new().context(TREE);
    site.check("COPY --include=a/b/x.c / /t/", "t/ @now\n t/a/ 0711 @5\n t/a/b/ 0700 @6\n t/a/b/x.c =X");
    site.check(
        "COPY --include=a / /t/",
        "t/ @now\n t/a/ 0711 @5\n t/a/b/ 0700 @6\n t/a/b/x.c =X\n t/a/b/y.h =Y\n t/a/z.c =Z",
    );
    site.check("COPY --include=*.c / /t/", "t/ @now\n t/top.c =C");
    site.check("COPY --include=*/*.c / /t/", "t/ @now\n t/a/ 0711 @5\n t/a/z.c =Z");
    site.check(
        "COPY --include=**/*.c / /",
        "a/ 0711 @5\n a/b/ 0700 @6\n a/b/x.c =X\n a/z.c =Z\n q/\n q/r/\n q/r/s/\n q/r/s/t.c =T\n top.c =C",
    );
    // The pivot: only what is below the source keeps its folders.
    site.check("COPY --include=b/x.c a /t/", "t/ @5\n t/b/ 0700 @6\n t/b/x.c =X");
    site.check("COPY --include=r/**/*.c q /t", "t/\n t/r/\n t/r/s/\n t/r/s/t.c =T");
    site.check("COPY --include=*/x.c ? /t/", "t/ @5\n t/b/ 0700 @6\n t/b/x.c =X");
    site.check("COPY --include=a --exclude=**/*.c / /t/", "t/ @now\n t/a/ 0711 @5\n t/a/b/ 0700 @6\n t/a/b/y.h =Y");
    site.check("COPY --include=none / /t/", "t/ @now");
    site.check("COPY --chown=1:2 --chmod=755 --include=a/z.c / /t/", "t/ 1:2 @now\n t/a/ 1:2 @5\n t/a/z.c =Z 0755 1:2");
    let stage = Site::new().stage("a/ 0711 3:4 @5\n a/f =F 5:6");
    stage.check("COPY --from=stage --include=a/f / /t/", "t/ @now\n t/a/ 0711 3:4 @5\n t/a/f =F 5:6");
}

/// An existing folder on the way takes the permission bits and keeps the rest; one that was asked for takes all.
fn on_the_way() {
    let site = Site::new()
        .context("a/ 0711 @5\n a/b/ 0700 @6\n a/b/f =F")
        .base("a/ 0755 1:2 @3\n a/b/ 0755 3:4 @4\n a/b/old =");
    site.check("COPY --include=a/b/f / /", "a/ 0711 1:2 @3\n a/b/ 0700 3:4 @4\n a/b/f =F");
    site.check("COPY --include=a / /", "a/ 0711 @5\n a/b/ 0700 @6\n a/b/f =F");
    let same = Site::new().context("a/ 0755 @5\n a/f =F").base("a/ 0755 1:2 @3\n a/old =");
    same.check("COPY --include=a/f / /", "(a/) 1:2 @3\n a/f =F");
    same.check("COPY --chmod=700 --include=a/f / /", "(a/) 1:2 @3\n a/f =F 0700");
}

fn required() {
    let site = Site::new().context(TREE).ignore(&["q"]);
    site.check("COPY --include=a/z.c --required=a/z.c / /t/", "t/ @now\n t/a/ 0711 @5\n t/a/z.c =Z");
    site.check("COPY --include=a/no --required=a/no / /t/", "UserInput: \"/a/no\": not found");
    site.check("COPY --include=no --required=no a /t/", "UserInput: \"/a/no\": not found");
    site.check("COPY --include=../no --required=../no a/b /t/", "UserInput: \"/a/no\": not found");
    site.check(
        "COPY --include=q/r --required=q/r / /t/",
        "UserInput: \"/q/r\": not found: it is excluded by the ignore file",
    );
    site.check("COPY --include=a/* --required=a/*.h / /t/", "UserInput: \"/a/*.h\": not found");
    assert_eq!(
        site.keys("COPY --include=no --required=no / /t/").unwrap_err(),
        "cannot read a cached result: failed to calculate checksum of ref context::context: \"/no\": not found"
    );
}

fn part_of_a_context() {
    let site = Site::new().context(TREE).include(&["a/b", "q/**/t.c"]);
    site.check("COPY . /t/", "t/ @now\n t/a/ 0711 @5\n t/a/b/ 0700 @6\n t/a/b/x.c =X\n t/a/b/y.h =Y\n t/q/\n t/q/r/\n t/q/r/s/\n t/q/r/s/t.c =T");
    site.check("COPY top.c /t/", "UserInput: \"/top.c\": not found");
    site.check("COPY *.c /t/", "");
    site.check("COPY a/z.c /t/", "UserInput: \"/a/z.c\": not found");
    let both = Site::new().context(TREE).include(&["a"]).ignore(&["a/b"]);
    both.check("COPY . /t/", "t/ @now\n t/a/ 0711 @5\n t/a/z.c =Z");
    both.check("COPY a/b /t/", "UserInput: \"/a/b\": not found: it is excluded by the ignore file");
    let bad = Site::new().include(&["["]);
    assert!(bad.does("COPY . /t/").contains("a '[' is not closed"));
}

fn keys() {
    let key = |tree: &str, instruction: &str| Site::new().context(tree).keys(instruction).unwrap()[1];
    let copy = "COPY --include=a/**/*.c / /t/";
    for unrelated in [("=Y", "=y"), ("=T", "=t"), ("=C", "=c"), ("top.c", "tip.c"), ("q/r/s/t.c =T\n", "")] {
        assert_eq!(key(TREE, copy), key(&TREE.replace(unrelated.0, unrelated.1), copy), "{unrelated:?}");
    }
    for related in [("=X", "=x"), ("=Z", "=z"), ("a/ 0711", "a/ 0755"), ("a/b/ 0700", "a/b/ 0755"), ("a/z.c", "a/w.c")]
    {
        assert_ne!(key(TREE, copy), key(&TREE.replace(related.0, related.1), copy), "{related:?}");
    }
    let part = |tree: &str| Site::new().context(tree).include(&["a"]).keys("COPY . /t/").unwrap()[1];
    assert_eq!(part(TREE), part(&TREE.replace("=C", "=c")));
    assert_ne!(part(TREE), part(&TREE.replace("=Z", "=z")));
}

fn unfollowed() {
    let site = Site::new().context("f =F\n l -> f\n d/\n d/g =G\n ld -> d\n gone -> nowhere");
    site.check("COPY --no-follow l /t", "t -> f");
    site.check("COPY --no-follow ld /t/", "t/ @now\n t/ld -> d");
    site.check("COPY --no-follow gone /t", "t -> nowhere");
    site.check("COPY --no-follow ld/g /t", "t =G");
    site.check("COPY ld /t/", "t/\n t/g =G");
    assert_ne!(site.keys("COPY --no-follow l /t").unwrap()[1], site.keys("COPY l /t").unwrap()[1]);
}

fn folders_themselves() {
    let site = Site::new().context("d/ 0711 @5\n d/f =F\n x =X").base("there/ 0700 @3\n l -> there\n there/d2/");
    site.check("COPY --itself d /there", "(there/) 0700 @3\n there/d/ 0711 @5\n there/d/f =F");
    site.check("COPY --itself d /l", "(there/) 0700 @3\n there/d/ 0711 @5\n there/d/f =F");
    site.check("COPY --itself d /new", "new/ 0711 @5\n new/f =F");
    site.check("COPY --itself d /new/", "new/ @now\n new/d/ 0711 @5\n new/d/f =F");
    site.check("COPY --itself / /there", "(there/) 0700 @3\n there/d/ 0711 @5\n there/d/f =F\n there/x =X");
    site.check("COPY --itself x /there", "(there/) 0700 @3\n there/x =X");
}

fn missing_parents() {
    let site = Site::new().context("f =F\n d/\n d/g =G").base("there/\n");
    site.check("COPY --no-parents f /there/x", "(there/)\n there/x =F");
    site.check("COPY --no-parents f /x", "x =F");
    site.check("COPY --no-parents d /there/x", "(there/)\n there/x/\n there/x/g =G");
    site.check("COPY --no-parents f /none/x", "UserInput: /none: no such file or directory");
    site.check("COPY --no-parents d /a/b", "UserInput: /a: no such file or directory");
}

fn empty_wildcards() {
    let site = Site::new().context("f =F\n l -> nowhere");
    site.check("COPY --no-empty f* /t/", "t/ @now\n t/f =F");
    site.check("COPY --no-empty g* /t/", "UserInput: g* not found");
    site.check("COPY --no-empty l* /t/", "UserInput: l* not found");
}

fn replacing() {
    let site = Site::new()
        .context("f =F\n d/\n d/x =X\n d/y/z =Z\n d/y/\n n/d =N\n n/")
        .base("t/ 0711 @3\n t/f/old =O\n t/f/\n t/d =D\n t/d2/x/deep =E\n t/d2/x/\n t/d2/y =Y\n t/d2/\n t/l -> d2");
    site.check("COPY f /t/f/", "(t/) 0711 @3\n (t/f/)\n t/f/f =F");
    site.check("COPY d /t/d2", "UserInput: cannot replace to directory /t/d2/x with file");
    site.check("COPY --replace d /t/d2", "(t/) 0711 @3\n (t/d2/)\n t/d2/x =X\n t/d2/y/\n t/d2/y/z =Z");
    site.check("COPY --replace d /t/d", "(t/) 0711 @3\n t/d/\n t/d/x =X\n t/d/y/\n t/d/y/z =Z");
    site.check("COPY --replace f d /t/d2/", "(t/) 0711 @3\n (t/d2/)\n t/d2/f =F\n t/d2/x =X\n t/d2/y/\n t/d2/y/z =Z");
    // The folder of a base comes back as nothing but what was copied.
    let folder = Site::new().context("s/x/new =N\n s/x/\n s/").base("x -> y\n y/old =O\n y/");
    folder.check("COPY s /", "UserInput: cannot copy to non-directory: /x");
    folder.check("COPY --replace s /", "x/\n x/new =N");
}
