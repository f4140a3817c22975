//! What strace saw: calls that change files of the store, make changes durable, or say something.

use std::collections::HashMap;

/// One call, or one thing said, in the order in which they ended. Paths are relative to the store's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    MakeFile(String),
    MakeFolder(String),
    Rename(String, String),
    Remove(String),
    Write {
        path: String,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate(String, usize),
    /// A file or a folder; what ended before number `begun` is durable then.
    Sync {
        path: String,
        begun: usize,
    },
    SyncAll {
        begun: usize,
    },
    Said(String),
}

/// The calls to trace. Any that changes files in a way that is not understood below is a reason to fail.
pub(super) const TRACED: &str = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,\
    linkat,symlink,symlinkat,mknodat,write,writev,pwrite64,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,\
    copy_file_range,sendfile,splice,fsync,fdatasync,syncfs,sync,sync_file_range,dup,dup2,dup3";

/// Reads the log of `strace -f -y -xx`: every byte of a string or a path is written `\xNN`, so that nothing in them looks
/// like syntax.
pub(super) fn read(log: &str, root: &str) -> Vec<Call> {
    let mut reader = Reader { root, calls: Vec::new(), offsets: HashMap::new() };
    let mut unfinished: HashMap<&str, (&str, usize)> = HashMap::new();
    for line in log.lines() {
        let (thread, text) = line.split_once(' ').expect("a thread and a call");
        let text = text.trim_start();
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (begun, reader.calls.len()));
        } else if text.starts_with("<... ") {
            let (_, rest) = text.split_once(" resumed>").expect("what was resumed");
            let (first, begun) = unfinished.remove(thread).expect("a beginning");
            reader.call(&format!("{first}{rest}"), begun);
        } else {
            reader.call(text, reader.calls.len());
        }
    }
    reader.calls
}

/// In the place of an offset. Files may be made so; nothing of the store is written so.
const APPENDS: usize = usize::MAX;

struct Reader<'a> {
    root: &'a str,
    calls: Vec<Call>,
    /// Where the next `write` to a descriptor goes.
    offsets: HashMap<String, usize>,
}

impl Reader<'_> {
    fn call(&mut self, text: &str, begun: usize) {
        // Results are put below each other where there is room.
        let Some((call, result)) = text.rsplit_once(" = ") else { return };
        let Some((name, arguments)) = call.trim_end().strip_suffix(')').and_then(|call| call.split_once('(')) else {
            return;
        };
        let result = result.trim_start();
        if result.starts_with(['-', '?']) {
            return;
        }
        let arguments: Vec<&str> = arguments.trim_end().split(", ").collect();
        let number = || result.split([' ', '<']).next().and_then(|text| text.parse::<usize>().ok()).expect("a number");
        match name {
            "openat" => self.opened(&arguments[2..], result),
            "open" => self.opened(&arguments[1..], result),
            "mkdir" => self.change(self.path(arguments[0]), Call::MakeFolder),
            "mkdirat" => self.change(self.path_at(arguments[0], arguments[1]), Call::MakeFolder),
            "rename" => self.renamed(self.path(arguments[0]), self.path(arguments[1])),
            "renameat" | "renameat2" => {
                assert!(!call.contains("RENAME_EXCHANGE") && !call.contains("RENAME_WHITEOUT"), "{call}");
                let (from, to) = (self.path_at(arguments[0], arguments[1]), self.path_at(arguments[2], arguments[3]));
                self.renamed(from, to);
            }
            "unlink" | "rmdir" => self.change(self.path(arguments[0]), Call::Remove),
            "unlinkat" => self.change(self.path_at(arguments[0], arguments[1]), Call::Remove),
            "write" => self.written(&arguments, number()),
            "pwrite64" => {
                let (bytes, offset) = (decoded(arguments[1]), arguments[3].parse().expect("an offset"));
                let write = |path| Call::Write { path, offset, bytes: bytes[..number()].to_vec() };
                self.change(self.path_of(arguments[0]), write);
            }
            "lseek" => {
                let descriptor = descriptor(arguments[0]);
                self.offsets.insert(descriptor, number());
            }
            "ftruncate" => {
                let length = arguments[1].parse().expect("a length");
                self.change(self.path_of(arguments[0]), |path| Call::Truncate(path, length));
            }
            "fsync" | "fdatasync" => self.change(self.path_of(arguments[0]), |path| Call::Sync { path, begun }),
            "syncfs" | "sync" => self.calls.push(Call::SyncAll { begun }),
            _ => assert!(!self.names_store(&arguments), "what does this call change? {call}"),
        }
    }

    fn opened(&mut self, flags: &[&str], result: &str) {
        let has = |flag: &str| flags[0].split('|').any(|it| it == flag);
        self.offsets.insert(descriptor(result), if has("O_APPEND") { APPENDS } else { 0 });
        let Some(path) = self.path_of(result) else { return };
        if has("O_CREAT") {
            self.calls.push(Call::MakeFile(path.clone()));
        }
        if has("O_TRUNC") {
            self.calls.push(Call::Truncate(path, 0));
        }
    }

    fn written(&mut self, arguments: &[&str], count: usize) {
        let bytes = decoded(arguments[1])[..count].to_vec();
        let offset = self.offsets.entry(descriptor(arguments[0])).or_default();
        let at = *offset;
        *offset = at.saturating_add(count);
        match self.path_of(arguments[0]) {
            Some(path) if at == APPENDS => panic!("appending to {path}"),
            Some(path) => self.calls.push(Call::Write { path, offset: at, bytes }),
            None => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let said = text.lines().filter_map(|line| line.split_once("said:"));
                self.calls.extend(said.map(|(_, text)| Call::Said(text.to_owned())));
            }
        }
    }

    fn change(&mut self, path: Option<String>, call: impl FnOnce(String) -> Call) {
        self.calls.extend(path.map(call));
    }

    fn renamed(&mut self, from: Option<String>, to: Option<String>) {
        match (from, to) {
            (Some(from), Some(to)) => self.calls.push(Call::Rename(from, to)),
            (None, None) => {}
            ends => panic!("into or out of the store: {ends:?}"),
        }
    }

    fn names_store(&self, arguments: &[&str]) -> bool {
        arguments.iter().any(|argument| self.path(argument).or_else(|| self.path_of(argument)).is_some())
    }

    /// A path in quotes, if it is below the root.
    fn path(&self, quoted: &str) -> Option<String> {
        let path = text(&decoded(quoted));
        self.relative(&path)
    }

    /// A path from a folder's descriptor.
    fn path_at(&self, folder: &str, quoted: &str) -> Option<String> {
        let path = text(&decoded(quoted));
        match path.starts_with('/') {
            true => self.relative(&path),
            false => self.relative(&format!("{}/{path}", text(&annotation(folder)?))),
        }
    }

    /// The path that strace shows beside a descriptor.
    fn path_of(&self, descriptor: &str) -> Option<String> {
        match descriptor.contains("(deleted)") {
            true => None,
            false => self.relative(&text(&annotation(descriptor)?)),
        }
    }

    fn relative(&self, path: &str) -> Option<String> {
        match path.strip_prefix(self.root)? {
            "" => Some(String::new()),
            below => below.strip_prefix('/').map(str::to_owned),
        }
    }
}

fn descriptor(text: &str) -> String {
    text.split('<').next().unwrap_or_default().trim().to_owned()
}

fn annotation(descriptor: &str) -> Option<Vec<u8>> {
    let (_, rest) = descriptor.split_once('<')?;
    Some(unescaped(rest.split_once('>')?.0))
}

fn decoded(quoted: &str) -> Vec<u8> {
    assert!(!quoted.ends_with("..."), "strace was told to show everything");
    unescaped(quoted.trim().trim_matches('"'))
}

fn unescaped(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits.map(|digits| u8::from_str_radix(&digits[..2], 16).expect("two digits")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn calls_are_read_as_strace_writes_them() {
    let hex = |text: &str| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let (root, file, folder) = (hex("/s"), hex("/s/a"), hex("/s/d"));
    let log = format!(
        "1 openat(AT_FDCWD<{root}>, \"{file}\", O_WRONLY|O_CREAT|O_TRUNC, 0644) = 3<{file}>\n\
         1 write(3<{file}>, \"{}\", 2) = 2\n\
         1 write(3<{file}>, \"{}\", 1 <unfinished ...>\n\
         2 fsync(4<{folder}>) = 0\n\
         1 <... write resumed>)        = 1\n\
         2 renameat2(AT_FDCWD<{root}>, \"{file}\", 4<{folder}>, \"{}\", RENAME_NOREPLACE) = 0\n\
         2 unlink(\"{file}\") = -1 ENOENT (No such file or directory)\n\
         2 write(1<\\x70>, \"{}\", 9)  = 9\n",
        hex("hi"),
        hex("!"),
        hex("b"),
        hex("said:yes\n"),
    );
    let write = |offset, text: &str| Call::Write { path: "a".into(), offset, bytes: text.into() };
    let expect = [
        Call::MakeFile("a".into()),
        Call::Truncate("a".into(), 0),
        write(0, "hi"),
        Call::Sync { path: "d".into(), begun: 3 },
        write(2, "!"),
        Call::Rename("a".into(), "d/b".into()),
        Call::Said("yes".into()),
    ];
    assert_eq!(read(&log, "/s"), expect);
}
