//! What WORKDIR and heredocs come to: folders and files made without a source.

use crate::Test;
use crate::site::{Site, copy_action, owner};
use crate::tree_text::trimmed;
use forge_llb::{
    CopyAction, FileAction, FileInput, FileKind, FileOp, MkdirAction, MkfileAction, Op, RmAction, SymlinkAction,
};

pub const TESTS: &[Test] = &[
    ("privileged_folders_are_made_with_owner", folders),
    ("privileged_heredocs_are_files_that_are_copied", heredocs),
    ("privileged_several_actions_end_in_one_layer", several_actions),
    ("privileged_what_is_removed_is_hidden", removals),
    ("privileged_links_are_made", links),
    ("privileged_parents_that_are_not_made_must_be_there", parents_that_must_be_there),
    ("privileged_a_tree_can_be_used_more_than_once", continuations),
    ("privileged_the_files_of_a_context_can_be_changed", context_as_base),
    ("privileged_an_empty_tree_can_be_copied", empty_trees),
];

fn mkdir(path: &str, owner_text: Option<&str>) -> MkdirAction {
    let owner = owner_text.map(owner);
    MkdirAction { path: path.to_owned(), mode: 0o755, make_parents: true, owner, timestamp: None }
}

fn mkfile(path: &str, data: &str, owner_text: Option<&str>) -> MkfileAction {
    let owner = owner_text.map(owner);
    MkfileAction { path: path.to_owned(), mode: 0o644, data: data.into(), owner, timestamp: Some(9) }
}

fn action(base: FileInput, kind: FileKind) -> FileAction {
    FileAction { base, kind }
}

fn check(site: &Site, actions: Vec<FileAction>, expected: &str) {
    assert_eq!(site.shown(site.execute_op(FileOp { actions })), trimmed(expected));
}

fn folders() {
    let base = "etc/passwd =app:x:1000:1001::/home:/bin/sh\n etc/\n there/ 0700 5:6 @7\n link -> there\n file =F";
    let site = Site::new().base(base);
    let made = |path: &str, owner| vec![action(FileInput::Input(0), FileKind::Mkdir(mkdir(path, owner)))];
    check(&site, made("/a/b", None), "a/ @now\n a/b/ @now");
    check(&site, made("/a/b", Some("app")), "a/ 1000:1001 @now\n a/b/ 1000:1001 @now");
    check(&site, made("/there", Some("app")), "");
    check(&site, made("/there/x", None), "(there/) 0700 5:6 @7\n there/x/ @now");
    check(&site, made("/link/x", None), "(there/) 0700 5:6 @7\n there/x/ @now");
    check(&site, made("/", None), "");
    check(&site, made("/../../x", None), "x/ @now");
    check(&site, made("/file", None), "UserInput: cannot copy to non-directory: /file");
    check(&site, made("/file/x", None), "UserInput: cannot copy to non-directory: /file");
    let timed = MkdirAction { timestamp: Some(3), mode: 0o1777, ..mkdir("/t/u", None) };
    check(&site, vec![action(FileInput::Input(0), FileKind::Mkdir(timed))], "t/ 1777 @3\n t/u/ 1777 @3");
}

/// A heredoc becomes a file of its own tree, which a COPY then reads.
fn heredoc(name: &str, instruction: &str, owner_text: Option<&str>) -> Vec<FileAction> {
    let mut copy = copy_action(instruction);
    copy.from = FileInput::Action(0);
    vec![
        action(FileInput::Scratch, FileKind::Mkfile(mkfile(name, "text\n", owner_text))),
        action(FileInput::Input(0), FileKind::Copy(copy)),
    ]
}

fn heredocs() {
    let site = Site::new().base("d/ 0711").context("EOF =other");
    check(&site, heredoc("/EOF", "COPY EOF /d/", None), "(d/) 0711\n d/EOF =text\\n @9");
    check(&site, heredoc("/EOF", "COPY EOF /d/name", None), "(d/) 0711\n d/name =text\\n @9");
    check(&site, heredoc("/EOF", "COPY --chmod=755 --chown=1:2 EOF /x", None), "x =text\\n 0755 1:2 @9");
    check(&site, heredoc("/EOF", "COPY EOF /x", Some("3:4")), "x =text\\n 3:4 @9");
    check(&site, heredoc("/EOF", "COPY none /x", None), "UserInput: \"/none\": not found");
}

fn several_actions() {
    let site = Site::new().base("d/ 0711 @5").context("f =F\n g =G");
    let copy = |instruction| FileKind::Copy(copy_action(instruction));
    let actions = vec![
        action(FileInput::Input(0), FileKind::Mkdir(mkdir("/d/new", None))),
        action(FileInput::Action(0), copy("COPY f /d/new/")),
        action(FileInput::Action(1), copy("COPY g /d/new/f")),
        action(FileInput::Action(2), copy("COPY f /d/")),
    ];
    check(&site, actions, "(d/) 0711 @5\n d/f =F\n d/new/ @now\n d/new/f =G");
}

fn rm(path: &str) -> FileKind {
    FileKind::Rm(RmAction { path: path.to_owned(), allow_not_found: false, allow_wildcard: false })
}

fn rm_matching(path: &str) -> FileKind {
    FileKind::Rm(RmAction { path: path.to_owned(), allow_not_found: true, allow_wildcard: true })
}

fn on_base(kinds: Vec<FileKind>) -> Vec<FileAction> {
    let base = |at: usize| if at == 0 { FileInput::Input(0) } else { FileInput::Action(at - 1) };
    kinds.into_iter().enumerate().map(|(at, kind)| action(base(at), kind)).collect()
}

fn copy(instruction: &str) -> FileKind {
    FileKind::Copy(copy_action(instruction))
}

fn removals() {
    let site = Site::new()
        .context("f =F\n d/sub/x =X\n d/sub/\n d/")
        .base("d/ 0711 @5\n d/a =A\n d/b =B\n d/sub/y =Y\n d/sub/\n l -> d\n gone -> nowhere\n other =");
    check(&site, on_base(vec![rm("/d/a")]), "(d/) 0711 @5\n d/a deleted");
    check(&site, on_base(vec![rm("/l/a")]), "(d/) 0711 @5\n d/a deleted");
    check(&site, on_base(vec![rm("/d")]), "d deleted");
    check(&site, on_base(vec![rm("/l")]), "l deleted");
    check(&site, on_base(vec![rm("/gone")]), "gone deleted");
    check(&site, on_base(vec![rm("/none")]), "UserInput: \"/none\": not found");
    check(&site, on_base(vec![rm("/d/a/x")]), "UserInput: \"/d/a/x\": not found");
    check(&site, on_base(vec![rm("/")]), "UserInput: the root folder cannot be removed");
    check(&site, on_base(vec![rm_matching("/none*")]), "");
    check(&site, on_base(vec![rm_matching("/d/?")]), "(d/) 0711 @5\n d/a deleted\n d/b deleted");
    check(&site, on_base(vec![rm_matching("/*")]), "d deleted\n gone deleted\n l deleted\n other deleted");
    // What was made just now goes without a trace, and what is made again hides what was there.
    check(&site, on_base(vec![copy("COPY f /new/x"), rm("/new")]), "");
    check(&site, on_base(vec![copy("COPY f /d/a"), rm("/d/a")]), "(d/) 0711 @5\n d/a deleted");
    check(&site, on_base(vec![rm("/d/a"), copy("COPY f /d/a")]), "(d/) 0711 @5\n d/a =F");
    check(&site, on_base(vec![rm("/d"), copy("COPY d /d")]), "d/ opaque\n d/sub/\n d/sub/x =X");
    check(&site, on_base(vec![rm("/d"), copy("COPY d /d"), rm("/d/sub")]), "d/ opaque");
    check(&site, on_base(vec![rm("/d"), copy("COPY f /d")]), "d =F");
    check(&site, on_base(vec![rm("/d"), rm("/d")]), "UserInput: \"/d\": not found");
}

fn links() {
    let site =
        Site::new().base("etc/passwd =app:x:7:8::/:\n etc/\n d/ 0711 @5\n d/f =F\n d/old -> x\n l -> d\n file =");
    let link = |path: &str, owner_text: Option<&str>| {
        let (target, owner) = ("../any where".to_owned(), owner_text.map(owner));
        on_base(vec![FileKind::Symlink(SymlinkAction { target, path: path.to_owned(), owner, timestamp: Some(9) })])
    };
    check(&site, link("/x", None), "x -> ../any where @9");
    check(&site, link("/d/x", Some("app")), "(d/) 0711 @5\n d/x -> ../any where 7:8 @9");
    check(&site, link("/l/x", None), "(d/) 0711 @5\n d/x -> ../any where @9");
    check(&site, link("/d/old", None), "(d/) 0711 @5\n d/old -> ../any where @9");
    check(&site, link("/l", None), "l -> ../any where @9");
    check(&site, link("/file", None), "file -> ../any where @9");
    check(&site, link("/../../x", None), "x -> ../any where @9");
    check(&site, link("/d", None), "UserInput: cannot replace to directory /d with file");
    check(&site, link("/", None), "UserInput: cannot replace to directory / with file");
    check(&site, link("/none/x", None), "UserInput: /none: no such file or directory");
}

fn parents_that_must_be_there() {
    let site = Site::new().base("d/");
    let bare = |path: &str| on_base(vec![FileKind::Mkdir(MkdirAction { make_parents: false, ..mkdir(path, None) })]);
    check(&site, bare("/d/x"), "(d/)\n d/x/ @now");
    check(&site, bare("/d"), "");
    check(&site, bare("/none/x"), "UserInput: /none: no such file or directory");
}

/// Each use of a tree sees it as the action left it, whatever others did to it since.
fn continuations() {
    let site = Site::new().base("d/ 0711 @5\n d/a =A\n d/b =B").context("f =F");
    let from = |action: usize, instruction: &str| {
        FileKind::Copy(CopyAction { from: FileInput::Action(action), ..copy_action(instruction) })
    };
    let two = vec![
        action(FileInput::Input(0), copy("COPY f /d/new")),
        action(FileInput::Action(0), rm("/d/a")),
        action(FileInput::Action(0), rm("/d/b")),
    ];
    check(&site, two, "(d/) 0711 @5\n d/b deleted\n d/new =F");
    let read_later = vec![
        action(FileInput::Input(0), copy("COPY f /d/new")),
        action(FileInput::Action(0), rm("/d")),
        action(FileInput::Action(1), from(0, "COPY d/new /kept")),
    ];
    check(&site, read_later, "d deleted\n kept =F");
    let onto_itself = vec![
        action(FileInput::Scratch, FileKind::Mkdir(mkdir("/d", None))),
        action(FileInput::Action(0), FileKind::Mkfile(mkfile("/d/x", "X", None))),
        action(FileInput::Action(1), from(1, "COPY / /d/inside")),
    ];
    let inside = "d/\n d/inside/\n d/inside/d/\n d/inside/d/x =X @9\n d/x =X @9";
    assert_eq!(site.shown(site.execute_op(FileOp { actions: onto_itself })).replace(" @now", ""), trimmed(inside));
    // It is one layer, however it came about.
    let steps = vec![
        action(FileInput::Input(0), rm("/d/a")),
        action(FileInput::Action(0), rm("/d/b")),
        action(FileInput::Action(0), copy("COPY f /d/b")),
    ];
    let result = site.run(Op::File(FileOp { actions: steps })).unwrap();
    assert_eq!(result.layers().len(), site.base.layers().len() + 1);
}

fn context_as_base() {
    let site = Site::new().context("d/ 0700 @5\n d/f =F 0600 @6\n d/g =G\n ignored =I").ignore(&["ignored"]);
    let actions = vec![action(FileInput::Input(1), rm("/d/g"))];
    check(&site, actions, "d/ 0700 @5\n d/f =F 0600 @6");
}

fn empty_trees() {
    let site = Site::new();
    let copy = |paths: &str| FileKind::Copy(CopyAction { from: FileInput::Scratch, ..copy_action(paths) });
    assert_eq!(site.shown(site.execute_op(FileOp { actions: on_base(vec![copy("COPY / /x")]) })), "x/ @0\n");
    check(&site, on_base(vec![copy("COPY / /")]), "");
    check(&site, on_base(vec![copy("COPY f /")]), "UserInput: lstat /f: no such file or directory");
    check(&site, on_base(vec![copy("COPY f* /")]), "");
    site.check("COPY --from=stage / /", "");
    let site = Site::new().base("d/");
    let from_base = |paths: &str| FileKind::Copy(CopyAction { from: FileInput::Input(0), ..copy_action(paths) });
    check(&site, on_base(vec![from_base("COPY f /g")]), "UserInput: lstat /f: no such file or directory");
}
