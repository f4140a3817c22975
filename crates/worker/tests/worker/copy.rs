//! COPY, as docker does it.

use crate::Test;
use crate::site::Site;

pub const TESTS: &[Test] = &[
    ("privileged_a_file_goes_to_a_name_or_into_a_folder", names_and_folders),
    ("privileged_a_folder_gives_its_contents", folders),
    ("privileged_existing_folders_keep_or_take_metadata", existing_folders),
    ("privileged_wildcards", wildcards),
    ("privileged_missing_and_ignored_sources", missing),
    ("privileged_the_ignore_file_takes_in_again", taken_in_again),
    ("privileged_exclude_leaves_out", exclude),
    ("privileged_links_as_sources", source_links),
    ("privileged_links_in_the_destination", destination_links),
    ("privileged_what_replaces_what", replacing),
    ("privileged_hard_links_of_a_stage", hard_links),
    ("privileged_special_files", special_files),
    ("privileged_owners", owners),
    ("privileged_modes", modes),
    ("privileged_attributes_and_times", attributes),
    ("privileged_parents_are_made_or_implied", parents),
    ("privileged_names_of_any_bytes", names_of_any_bytes),
    ("privileged_layers_are_merged", merged_source),
];

fn names_and_folders() {
    let site = Site::new().context("a =A 0600\nb =B\nd/\nd/c =C").base("dir/\nfile =old");
    site.check("COPY a /x", "x =A 0600");
    site.check("COPY a /new/x", "new/ @now\n new/x =A 0600");
    site.check("COPY a /new/", "new/ @now\n new/a =A 0600");
    site.check("COPY a /new/.", "new/ @now\n new/a =A 0600");
    site.check("COPY a /", "a =A 0600");
    site.check("COPY a /dir", "(dir/)\n dir/a =A 0600");
    site.check("COPY a /file", "file =A 0600");
    site.check("COPY a b /new/", "new/ @now\n new/a =A 0600\n new/b =B");
    site.check("COPY a b d /dir/", "(dir/)\n dir/a =A 0600\n dir/b =B\n dir/c =C");
    site.check("COPY /d/../a //new//x", "new/ @now\n new/x =A 0600");
    site.check("COPY ../../a /x", "x =A 0600");
    // The same bytes and metadata are no change, but in the root folder, where the base need not be here to be compared.
    let again = Site::new().context("a =A").base("a =A\nd/\n d/a =A");
    again.check("COPY a /d", "");
    again.check("COPY a /", "a =A");
}

fn folders() {
    let site = Site::new().context("d/ 0750 @5\n d/e/ 0700 @6\n d/e/f =F\n d/l -> e/f\n d/empty/").base("dir/ 0711 @7");
    site.check("COPY d /dir/", "(dir/) 0711 @7\n dir/e/ 0700 @6\n dir/e/f =F\n dir/empty/\n dir/l -> e/f");
    site.check("COPY d /new", "new/ @5\n new/e/ 0700 @6\n new/e/f =F\n new/empty/\n new/l -> e/f");
    site.check("COPY d/ /", "e/ 0700 @6\n e/f =F\n empty/\n l -> e/f");
    site.check("COPY --itself d /new", "new/ 0750 @5\n new/e/ 0700 @6\n new/e/f =F\n new/empty/\n new/l -> e/f");
    site.check("COPY d/e /a/b", "a/ @now\n a/b/ @6\n a/b/f =F");
    site.check("COPY d/empty /a", "a/");
    // The root of a context is nobody's folder: neither its mode nor its time is the image's business.
    let root = Site::new().context("f =F");
    std::fs::set_permissions(root.path("context"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    root.check("COPY . /app", "app/ @now\n app/f =F");
}

fn existing_folders() {
    let site = Site::new()
        .context("d/ 0700\n d/sub/ 0711 @5\n d/sub/f =F")
        .base("t/ 0750 1:2 @3\n t/sub/ 0755 3:4 @4\n t/sub/old =O");
    site.check("COPY d /t", "(t/) 0750 1:2 @3\n t/sub/ 0711 @5\n t/sub/f =F");
    site.check("COPY --chown=7:8 d /t", "(t/) 0750 1:2 @3\n t/sub/ 0711 7:8 @5\n t/sub/f =F 7:8");
}

fn wildcards() {
    let site = Site::new()
        .context("a.txt =1\n b.txt =2\n c.md =3\n d1/x.txt =4\n d2/y.txt =5\n [lit] =6\n d3/z/ \n d3/z/w =7");
    site.check("COPY *.txt /t/", "t/ @now\n t/a.txt =1\n t/b.txt =2");
    site.check("COPY *.md /name", "name =3");
    site.check("COPY *.txt /name", "name =2");
    site.check("COPY d?/*.txt /t/", "t/ @now\n t/x.txt =4\n t/y.txt =5");
    site.check("COPY none* /t/", "");
    site.check("COPY none* c.md /t/", "t/ @now\n t/c.md =3");
    site.check("COPY [[]lit] /t/", "t/ @now\n t/[lit] =6");
    site.check("COPY d* /t/", "t/ @now\n t/x.txt =4\n t/y.txt =5\n t/z/\n t/z/w =7");
    site.check("COPY a[.txt /t/", "UserInput: syntax error in pattern \"a[.txt\"");
    // Wildcards match only what is there: a link that leads nowhere is nothing.
    let links = Site::new().context("a -> gone\n b =B");
    links.check("COPY ? /t/", "t/ @now\n t/b =B");
}

fn missing() {
    let site = Site::new()
        .context("a =A\n secret/key =K\n secret/\n d/\n d/f =F\n l -> secret/key")
        .ignore(&["secret", "d/f"]);
    site.check("COPY x /t/", "UserInput: \"/x\": not found");
    site.check("COPY a/x /t/", "UserInput: \"/a/x\": not found");
    site.check("COPY d/*/x /t/", "");
    site.check("COPY secret/key /t/", "UserInput: \"/secret/key\": not found: it is excluded by the ignore file");
    site.check("COPY secret /t/", "UserInput: \"/secret\": not found: it is excluded by the ignore file");
    site.check("COPY secret/k* /t/", "");
    site.check("COPY l /t/", "UserInput: \"/l\": not found: it is excluded by the ignore file");
    site.check("COPY d /t/", "t/");
    site.check("COPY . /t/", "t/ @now\n t/a =A\n t/d/\n t/l -> secret/key");
    // The key is made from the same selection, so it fails in the same words.
    let missing = "failed to calculate checksum of ref context::context: \"/x\": not found";
    assert_eq!(site.keys("COPY x /t/").unwrap_err(), format!("cannot read a cached result: {missing}"));
    // The stage is what is copied to: nothing, which no key was made of.
    site.check("COPY --from=stage x /t/", "UserInput: lstat /x: no such file or directory");
}

fn taken_in_again() {
    let text = "a/\n a/b/ 0700\n a/b/keep =K\n a/b/drop =D\n a/c/\n a/c/drop =D\n z =Z";
    let site = Site::new().context(text).ignore(&["a", "!a/b/keep"]);
    site.check("COPY . /t/", "t/ @now\n t/a/\n t/a/b/ 0700\n t/a/b/keep =K\n t/z =Z");
    site.check("COPY a /t", "t/\n t/b/ 0700\n t/b/keep =K");
    site.check("COPY a/c /t/", "UserInput: \"/a/c\": not found: it is excluded by the ignore file");
    let all = Site::new().context(text).ignore(&["*", "!z"]);
    all.check("COPY . /t/", "t/ @now\n t/z =Z");
}

fn exclude() {
    let site =
        Site::new().context("d/\n d/a.md =1\n d/b.txt =2\n d/s/\n d/s/c.md =3\n d/s/keep.md =4\n f.md =5\n g.txt =6");
    site.check("COPY --exclude=*.md d /t/", "t/\n t/b.txt =2\n t/s/\n t/s/c.md =3\n t/s/keep.md =4");
    site.check("COPY --exclude=**/*.md d /t/", "t/\n t/b.txt =2\n t/s/");
    site.check("COPY --exclude=s d /t/", "t/\n t/a.md =1\n t/b.txt =2");
    site.check("COPY --exclude=s --exclude=!s/keep.md d /t/", "t/\n t/a.md =1\n t/b.txt =2\n t/s/\n t/s/keep.md =4");
    site.check("COPY --exclude=*.md *.md *.txt /t/", "t/ @now\n t/g.txt =6");
    site.check("COPY --exclude=[ d /t/", "UserInput: syntax error in pattern: a '[' is not closed");
}

fn source_links() {
    let site = Site::new().context(
        "f =F\n l -> f\n d/\n d/x =X\n d/up -> ../f\n ld -> d\n abs -> /d/x\n dangling -> none\n loop -> loop",
    );
    site.check("COPY l /t/", "t/ @now\n t/l =F");
    site.check("COPY l /t", "t =F");
    site.check("COPY abs /t", "t =X");
    site.check("COPY ld /t/", "t/\n t/up -> ../f\n t/x =X");
    site.check("COPY ld/x /t", "t =X");
    site.check("COPY d/up /t", "t =F");
    site.check("COPY dangling /t", "UserInput: \"/dangling\": not found");
    site.check("COPY loop /t", "UserInput: too many levels of symbolic links at \"loop\" in the build context");
    let stage = Site::new().stage("f =F 5:6\n l -> /d/m\n d/\n d/m -> ../f");
    stage.check("COPY --from=stage l /t", "t =F 5:6");
    stage.check("COPY --from=stage d /t", "t/\n t/m -> ../f");
}

fn destination_links() {
    let site = Site::new()
        .context("f =F\n d/\n d/x =X")
        .base("real/ 0711\n real/deep/\n link -> real\n abs -> /real/deep\n fl -> real/target")
        .base("top -> link/deep");
    site.check("COPY f /link/", "(real/) 0711\n real/f =F");
    site.check("COPY f /link/n/f", "(real/) 0711\n real/n/ @now\n real/n/f =F");
    site.check("COPY f /abs", "(real/) 0711\n (real/deep/)\n real/deep/f =F");
    site.check("COPY d /top", "(real/) 0711\n (real/deep/)\n real/deep/x =X");
    site.check("COPY f /fl", "(real/) 0711\n real/target =F");
    // `..` is what it is in the file system, not in the text.
    site.check("COPY f /abs/../g", "(real/) 0711\n real/g =F");
}

fn replacing() {
    let site = Site::new()
        .context("f =F\n d/\n d/x =X\n tree/x/\n tree/x/y =Y\n tree/\n links/l -> x\n links/")
        .base("file =old 1:1 0600\n dir/\n dir/x/\n dir/x/z =Z\n other/x -> dir\n other/\n third/x =old\n third/\n fourth/l/\n fourth/");
    site.check("COPY f /file/x", "UserInput: cannot copy to non-directory: /file");
    site.check("COPY f /file/", "UserInput: cannot copy to non-directory: /file");
    site.check("COPY d /file", "UserInput: cannot copy to non-directory: /file");
    site.check("COPY f /file", "file =F");
    site.check("COPY d /dir", "UserInput: cannot replace to directory /dir/x with file");
    site.check("COPY tree /dir", "(dir/)\n (dir/x/)\n dir/x/y =Y");
    site.check("COPY d /other", "(other/)\n other/x =X");
    site.check("COPY tree /other", "UserInput: cannot copy to non-directory: /other/x");
    site.check("COPY tree /third", "UserInput: cannot copy to non-directory: /third/x");
    site.check("COPY links /fourth", "UserInput: cannot replace to directory /fourth/l with file");
    // Of several sources the last one wins.
    let both = Site::new().context("a/x =1\n b/x =2\n c/x -> y\n a/\n b/\n c/");
    both.check("COPY a b /t/", "t/\n t/x =2");
    both.check("COPY a c /t/", "t/\n t/x -> y");
    both.check("COPY c b /t/", "t/\n t/x =2");
}

fn hard_links() {
    let site = Site::new().stage("d/\n d/a =A 0755 1:2\n d/b == d/a\n d/s/\n d/s/c == d/a\n d/other =O");
    site.check("COPY --from=stage d /t", "t/\n t/a =A 0755 1:2\n t/b == t/a\n t/other =O\n t/s/\n t/s/c == t/a");
    site.check("COPY --from=stage d/a d/b /t/", "t/ @now\n t/a =A 0755 1:2\n t/b == t/a");
    site.check(
        "COPY --from=stage --chmod=0700 d /t",
        "t/ 0700\n t/a =A 0700 1:2\n t/b == t/a\n t/other =O 0700\n t/s/ 0700\n t/s/c == t/a",
    );
    // A first name that was overwritten meanwhile is nothing to link to.
    let site = Site::new().stage("one/\n one/x =old\n two/\n two/x =new\n two/y == one/x");
    site.check("COPY --from=stage one two /t/", "t/\n t/x =new\n t/y =old");
}

fn special_files() {
    let site = Site::new().context("d/\n d/f =F\n d/pipe fifo\n d/sock socket\n d/null char 1:3");
    site.check("COPY d /t", "t/\n t/f =F");
    site.check("COPY d/* /t/", "t/ @now\n t/f =F");
    site.check("COPY d/pipe /t", "UserInput: \"d/pipe\" is not a regular file");
    let stage = Site::new().stage("d/\n d/f =F\n d/pipe fifo 0600 1:2\n d/null char 1:3\n d/disk block 8:1 0640");
    stage.check(
        "COPY --from=stage d /t",
        "t/\n t/disk block 8:1 0640\n t/f =F\n t/null char 1:3\n t/pipe fifo 0600 1:2",
    );
}

fn owners() {
    let passwd = "root:x:0:0::/root:/bin/sh\\napp:x:1000:1001::/home/app:/bin/sh\\n7:x:77:78::/:/bin/sh\\nneg:x:4294967295:4294967295::/:/bin/sh\\n";
    let base = format!("etc/\n etc/passwd ={passwd}\n etc/group =root:x:0:\\nstaff:x:50:\\n");
    let site = Site::new().base(&base).context("f =F 12:34").stage("f =F 12:34 4755\n d/ 5:6\n d/x =X 7:8");
    site.check("COPY f /", "f =F");
    site.check("COPY --chown=app f /", "f =F 1000:1001");
    site.check("COPY --chown=app:staff f /", "f =F 1000:50");
    site.check("COPY --chown=1:2 f /", "f =F 1:2");
    site.check("COPY --chown=3 f /", "f =F 3:3");
    site.check("COPY --chown=7 f /", "f =F 7:7");
    site.check("COPY --chown=3:staff f /new/", "new/ 3:50 @now\n new/f =F 3:50");
    site.check("COPY --chown=nobody f /", "UserInput: unable to find user nobody: no matching entries in passwd file");
    site.check(
        "COPY --chown=0:nobody f /",
        "UserInput: unable to find group nobody: no matching entries in group file",
    );
    site.check("COPY --chown=-1 f /", "UserInput: user or group id -1 is out of range 0-2147483647");
    site.check("COPY --chown=neg f /", "UserInput: user or group id 4294967295 is out of range 0-2147483647");
    site.check("COPY --from=stage f /", "f =F 4755 12:34");
    site.check("COPY --from=stage d /new/", "new/\n new/x =X 7:8");
    site.check("COPY --from=stage --chown=0 f /", "f =F 4755");
    // A folder that hands its group on does so for processes, not for COPY.
    let setgid = Site::new().base("d/ 2755 0:9").context("f =F\n s/\n s/g =G\n l -> f");
    setgid.check("COPY f s /d/", "(d/) 2755 0:9\n d/f =F\n d/g =G");
    setgid.check("COPY s /d/new", "(d/) 2755 0:9\n d/new/\n d/new/g =G");
}

fn modes() {
    let site = Site::new().context("f =F 0600\n x =X 0755\n d/ 0700\n d/f =F 0640\n d/l -> f");
    site.check("COPY --chmod=444 f /", "f =F 0444");
    site.check("COPY --chmod=4755 f /", "f =F 4755");
    site.check("COPY --chmod=4755 --chown=1 f /", "f =F 4755 1:1");
    site.check("COPY --chmod=0 f /n/", "n/ 0000 @now\n n/f =F 0000");
    // Folders that are made for what is copied take the permissions of a number, and nothing of letters.
    site.check("COPY --chmod=3750 d /m/t", "m/ 0750 @now\n m/t/ 0750\n m/t/f =F 3750\n m/t/l -> f");
    site.check("COPY --chmod=a=r d /t", "t/\n t/f =F 0444\n t/l -> f");
    site.check("COPY --chmod=u=rwX,go=rX f x d /t/", "t/ @now\n t/f =F\n t/l -> f\n t/x =X 0755");
    site.check("COPY --chmod=u=rwX,go=rX d /t/", "t/\n t/f =F\n t/l -> f");
    site.check("COPY --chmod=a+x f /", "f =F 0711");
    site.check(
        "COPY --chmod=u~x f /",
        "UserInput: invalid mode \"u~x\": expected octal digits up to 7777 or changes like u=rwX,go=rX",
    );
}

fn attributes() {
    let site = Site::new()
        .stage("d/ user.d=1 @5\n d/f =F user.k=v @6\n d/l -> f @7")
        .context("f =F user.k=v @6\n d/ @8\n d/g =G @-5");
    site.check("COPY --from=stage d /t", "t/ @5\n t/f =F user.k=v @6\n t/l -> f @7");
    site.check("COPY --from=stage d/f /t", "t =F user.k=v @6");
    // What the machine of the build marks is not the image's.
    site.check("COPY f /", "f =F @6");
    site.check("COPY d /t/u", "t/ @now\n t/u/ @8\n t/u/g =G @-5");
    site.check("COPY --timestamp=9 d /t/u", "t/ @9\n t/u/ @9\n t/u/g =G @9");
    // A folder that was there loses attributes that the source does not have.
    let over = Site::new().base("t/ user.a=1\n t/s/ user.b=2").context("d/s/\n d/");
    over.check("COPY d /t", "(t/) user.a=1\n t/s/");
}

fn parents() {
    let a = "a/ 0700 1:2 @5\n a/b/ 1777 @6\n";
    let site = Site::new().context("f =F").base(&format!("{a} c/ @7")).base(&format!("{a} a/b/x =X"));
    site.check("COPY f /a/b/", "(a/) 0700 1:2 @5\n (a/b/) 1777 @6\n a/b/f =F");
    site.check("COPY f /c/d/e/", "(c/) @7\n c/d/ @now\n c/d/e/ @now\n c/d/e/f =F");
    site.check("COPY --chown=3:4 --chmod=600 f /c/d/", "(c/) @7\n c/d/ 0600 3:4 @now\n c/d/f =F 0600 3:4");
    // What the tree below is like afterwards: nobody else's time has changed.
    let record = site.execute("COPY f /a/b/").unwrap();
    let site = site.on_top(&record);
    let tree = site.store.layers().tree(site.base.layers()).unwrap();
    let time = |path: &str| tree.lookup(path.as_ref()).unwrap().unwrap().mtime;
    assert_eq!([time("/a").0, time("/c").0], [5, 7]);
}

fn names_of_any_bytes() {
    let site = Site::new().context("d/\n d/\\xff\\xfe =1\n d/line\\nbreak =2\n d/sp\\sace =3\n d/-rf =4");
    site.check(
        "COPY d /t",
        r"t/
        t/-rf =4
        t/line\nbreak =2
        t/sp ace =3
        t/\xff\xfe =1",
    );
    site.check(
        "COPY d/?? /t/",
        r"t/ @now
        t/\xff\xfe =1",
    );
}

fn merged_source() {
    let mut site = Site::new().stage("d/ 0700\n d/a =1\n d/gone =2").stage("d/ 0711\n d/b =3");
    site.stage = site.with_layer(&site.stage.clone(), |upper| {
        crate::tree_text::write(upper, "d/ 0711\n d/gone char 0:0");
    });
    site.check("COPY --from=stage d /t", "t/\n t/a =1\n t/b =3");
    // What was deleted below the destination stays so.
    let mut site = Site::new().base("t/\n t/x/\n t/x/old =O").context("d/x/f =F\n d/x/\n d/");
    site.base = site.with_layer(&site.base.clone(), |upper| crate::tree_text::write(upper, "t/\n t/x char 0:0"));
    site.check("COPY d /t", "(t/)\n t/x/\n t/x/f =F");
    let record = site.execute("COPY d /t").unwrap();
    let site = site.on_top(&record);
    let tree = site.store.layers().tree(site.base.layers()).unwrap();
    assert!(tree.lookup("/t/x/old".as_ref()).unwrap().is_none());
}
