//! What WORKDIR and heredocs come to: folders and files made without a source.

use crate::Test;
use crate::site::{Site, copy_action, owner};
use crate::tree_text::trimmed;
use forge_llb::{FileAction, FileInput, FileKind, FileOp, MkdirAction, MkfileAction, RmAction};

pub const TESTS: &[Test] = &[
    ("privileged_folders_are_made_with_owner", folders),
    ("privileged_heredocs_are_files_that_are_copied", heredocs),
    ("privileged_several_actions_end_in_one_layer", several_actions),
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
    let rm = RmAction { path: "/d".to_owned(), allow_not_found: true, allow_wildcard: false };
    let removed = vec![action(FileInput::Input(0), FileKind::Rm(rm))];
    check(&site, removed, "Unsupported: removing files without a process is not supported by this version of forge");
}
