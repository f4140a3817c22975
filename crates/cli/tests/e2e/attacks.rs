//! Attacks that take a whole build or container, as root and as an ordinary user, by the ids of the catalogue. Each step of them is
//! followed by a look at the canary beside the store.

use crate::fixture::{Forge, Outcome};
use crate::rootless::User;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What lies in the file that nobody may read.
const TOKEN: &str = "b31c7d0f9a";

/// Who attacks, with a store and a canary beside it that they could read and change.
enum Attacker {
    Root(Forge),
    User(User),
}

impl Attacker {
    fn root(test: &str) -> Option<Self> {
        Forge::privileged(test).map(|forge| Self::Root(forge).with_canary())
    }

    fn user(test: &str) -> Option<Self> {
        let user = User::new(test)?;
        user.load();
        Some(Self::User(user).with_canary())
    }

    fn with_canary(self) -> Self {
        fs::create_dir_all(self.path("canary/sub")).unwrap();
        fs::write(self.path("canary/flag"), TOKEN).unwrap();
        if let Self::User(_) = self {
            ["canary", "canary/sub", "canary/flag"]
                .iter()
                .for_each(|name| chown(self.path(name), Some(4242), None).unwrap());
        }
        self
    }

    /// Where the tests find a file.
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Root(forge) => forge.path(name),
            Self::User(user) => user.path(name),
        }
    }

    /// Where the attacker's forge finds it.
    fn place(&self, name: &str) -> String {
        match self {
            Self::Root(forge) => forge.path(name).to_str().unwrap().to_owned(),
            Self::User(_) => format!("/mnt/{name}"),
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        match self {
            Self::Root(forge) => forge.command(words),
            Self::User(user) => user.command(words, "/usr/bin:/bin", ""),
        }
    }

    /// A folder with a Dockerfile, as the attacker's forge finds it.
    fn context(&self, name: &str, dockerfile: &str) -> String {
        fs::create_dir_all(self.path(name)).unwrap();
        fs::write(self.path(name).join("Dockerfile"), dockerfile).unwrap();
        self.place(name)
    }

    #[track_caller]
    fn forge(&self, words: &[&str]) -> Outcome {
        let outcome = crate::fixture::run(&mut self.command(words), b"");
        self.check(&outcome);
        outcome
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> Outcome {
        let outcome = self.forge(words);
        assert_eq!(outcome.code, 0, "forge {}\n{}{}", words.join(" "), outcome.stdout, outcome.stderr);
        outcome
    }

    /// The token was not read, and the canary is as it was.
    #[track_caller]
    fn check(&self, outcome: &Outcome) {
        let shown = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!shown.contains(TOKEN) && !shown.contains("panicked"), "{shown}");
        let names = |name: &str| -> Vec<String> {
            let entries = fs::read_dir(self.path(name)).unwrap().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!((names("canary"), names("canary/sub")), (vec!["flag".to_owned(), "sub".to_owned()], Vec::new()));
        assert_eq!(fs::read_to_string(self.path("canary/flag")).unwrap(), TOKEN);
        assert_eq!(fs::metadata(self.path("canary/flag")).unwrap().mode() & 0o7777, 0o644);
    }
}

/// Volumes of an image's configuration are read by nobody who makes folders: forge makes no anonymous volumes. Meant to fail
/// when it does, and joins a volume's path to a folder of the host.
fn a13(attacker: &Attacker) {
    let canary = attacker.place("canary");
    let up = format!("/../../../../../../../..{canary}");
    let dockerfile = format!(
        "FROM busybox\nRUN ln -s {canary} /l && ln -s ../../../../../../..{canary} /r\n\
         VOLUME [\"{up}/new\", \"{canary}/sub/new\", \"/l/sub/new\", \"/r/sub/new\", \"/proc/self/cwd\", \"\"]\n"
    );
    let context = attacker.context("a13", &dockerfile);
    let built = attacker.forge(&["build", "-q", "-t", "volumes", &context]);
    if built.code != 0 {
        assert!(built.stderr.contains("VOLUME"), "{}", built.stderr);
        let context = attacker.context("a13", &dockerfile.replace(", \"\"]", "]"));
        attacker.ok(&["build", "-q", "-t", "volumes", &context]);
    }
    let script =
        format!("cat /l/flag /r/flag {up}/flag {canary}/flag; ls /l/ {canary}; touch /l/made; mkdir -p /r/sub/made");
    let ran = attacker.forge(&["run", "--rm", "volumes", "sh", "-c", &script]);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
}

#[test]
fn privileged_a13_volumes_of_an_image_lead_nowhere() {
    if let Some(attacker) = Attacker::root("a13") {
        a13(&attacker);
    }
}

#[test]
fn rootless_a13_volumes_of_an_image_lead_nowhere() {
    if let Some(attacker) = Attacker::user("a13") {
        a13(&attacker);
    }
}

/// What other tools, and forge where it writes, take from labels and annotations.
const LABELS: [&str; 14] = [
    "org.opencontainers.image.title=../../canary/title",
    "org.opencontainers.image.ref.name=../../canary/name:../../x",
    "org.opencontainers.image.base.name=../../canary/base",
    "org.opencontainers.image.created=9999-99-99T99:99:99Z",
    "io.containerd.image.name=docker.io/library/busybox:latest",
    "cdi.k8s.io/forge=acme.com/x=a",
    "run.oci.handler=krun",
    "run.oci.hooks.stdout=/canary/hook",
    "run.oci.keep_original_groups=1",
    "org.criu.config=/etc/passwd",
    "org.systemd.property.ExecStartPost='/bin/touch'",
    "io.kubernetes.cri-o.userns-mode=host",
    "com.docker.official-images.bashbrew=x",
    "forge.store=../../canary",
];

/// Labels and annotations are data: an image that has every one runs, is saved and built upon as one that has none.
///
/// Meant to fail when one of them chooses a path, a device, a hook or a name.
fn a19(attacker: &Attacker) {
    let labels: String = LABELS
        .iter()
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            format!("LABEL \"{name}\"=\"{value}\"\n")
        })
        .collect();
    let see =
        "id; ls / /dev; env | sort; cat /proc/self/mountinfo | wc -l; cat /proc/self/status | grep -E 'Cap|Sec|NoNew'";
    let mut shown = Vec::new();
    for (name, labels) in [("plain", String::new()), ("labelled", labels)] {
        let base = attacker.context("a19-base", &format!("FROM busybox\n{labels}"));
        let annotations = LABELS.iter().map(|pair| format!("manifest:{pair}"));
        let annotations: Vec<String> = annotations.flat_map(|pair| ["--annotation".to_owned(), pair]).collect();
        let mut words = vec!["build", "-q", "-t", name];
        if name == "labelled" {
            words.extend(annotations.iter().map(String::as_str));
        }
        words.push(&base);
        attacker.ok(&words);
        let context = attacker.context("a19", &format!("FROM {name}\nRUN {see} >/seen\n"));
        let out = attacker.place(match attacker {
            Attacker::Root(_) => "out",
            Attacker::User(_) => "home/out",
        });
        attacker.ok(&["build", "-q", "-o", &format!("type=local,dest={out}"), &context]);
        let archive = format!("{out}.tar");
        attacker.ok(&["build", "-q", "-o", &format!("type=oci,dest={archive}"), &context]);
        attacker.ok(&["load", "-q", "-i", &archive]);
        let step = fs::read_to_string(attacker.path(match attacker {
            Attacker::Root(_) => "out/seen",
            Attacker::User(_) => "home/out/seen",
        }))
        .unwrap();
        let ran = attacker.ok(&["run", "--rm", "-h", "box", name, "sh", "-c", see]).stdout;
        shown.push((step, ran));
        let tag = attacker.ok(&["images", "-q", "--no-trunc", "busybox"]).stdout;
        assert_eq!(tag.lines().count(), 1, "no label gives a name: {tag}");
    }
    assert_eq!(shown[0], shown[1]);
}

#[test]
fn privileged_a19_labels_are_data() {
    if let Some(attacker) = Attacker::root("a19") {
        a19(&attacker);
    }
}

#[test]
fn rootless_a19_labels_are_data() {
    if let Some(attacker) = Attacker::user("a19") {
        a19(&attacker);
    }
}

/// One step swaps a folder of a shared cache for a link while those of another forge mount in it and read by it; a third has links
/// as sources of its mounts.
///
/// Meant to fail (the token was read) with mount points below a cache resolved by name from outside of the container.
fn a22_a23(attacker: &Attacker) {
    let rounds = crate::fixture::rounds(3);
    let canary = attacker.place("canary");
    let flip = format!(
        "FROM busybox\nARG N\nRUN --mount=type=cache,id=x,target=/c mkdir -p /c/dir; ln -sfn {canary} /c/link; echo flipping; i=0; \
         while [ $i -lt 1500 ]; do mv /c/dir /c/y; mv /c/link /c/dir; mv /c/dir /c/link; mv /c/y /c/dir; i=$((i+1)); done\n"
    );
    let flip = attacker.context("flip", &flip);
    let read = "cat /c/dir/flag /c/link/flag /c/dir/t/flag /s/flag 2>/dev/null; ls /c/dir/t >/dev/null 2>&1; true";
    let mount = "RUN --mount=type=cache,id=x,target=/c --mount=type=tmpfs,target=/c/dir/t --mount=type=bind,from=made,source=/d,target=/s,rw";
    let steps: String = (0..12)
        .map(|step| {
            format!("{mount} : {step}; rm -rf /s/l; ln -s {canary} /s/l; {read}; cat /s/l/flag 2>/dev/null || true\n")
        })
        .collect();
    let look = format!(
        "FROM busybox AS made\nRUN mkdir /d && ln -s {canary} /x && ln -s ../../../../../../..{canary} /d/up\nFROM busybox\nARG N\n{steps}"
    );
    let look = attacker.context("look", &look);
    for round in 0..rounds {
        let argument = format!("N={round}");
        let mut flipping = attacker
            .command(&["build", "--progress", "plain", "--no-cache", "--build-arg", &argument, &flip])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        crate::interrupt::read_until(flipping.stderr.take().unwrap(), " flipping");
        for _ in 0..2 {
            // A swap may be met that makes a mount impossible.
            attacker.forge(&["build", "--progress", "plain", "--no-cache", "--build-arg", &argument, &look]);
        }
        let _ = flipping.kill();
        flipping.wait().unwrap();
    }
    // What a stage's link names is looked up in the stage, where it is not there.
    for source in ["/x", "/x/flag", "/d/up", "/d/up/flag"] {
        for kind in ["type=bind,rw", "type=cache"] {
            let text = format!(
                "FROM busybox AS made\nRUN mkdir /d && ln -s {canary} /x && ln -s ../../../../../../..{canary} /d/up\n\
                               FROM busybox\nRUN --mount={kind},from=made,source={source},target=/s ls /s; cat /s /s/flag\n"
            );
            let context = attacker.context("links", &text);
            assert_ne!(attacker.forge(&["build", "--progress", "plain", &context]).code, 0, "{kind} {source}");
        }
    }
}

#[test]
fn privileged_a22_a23_mounts_of_shared_folders_that_change() {
    if let Some(attacker) = Attacker::root("a22_a23") {
        a22_a23(&attacker);
    }
}

#[test]
fn rootless_a22_a23_mounts_of_shared_folders_that_change() {
    if let Some(attacker) = Attacker::user("a22_a23") {
        a22_a23(&attacker);
    }
}

/// Modes that are not known, and those that nobody allowed. A step with the mode of a file of BuildKit's, changed byte by byte:
/// `a26_modes_of_security` of buildkit-proto.
fn a26(attacker: &Attacker) {
    let build = |flag: &str, allow: &[&str]| {
        let context = attacker
            .context("a26", &format!("FROM busybox\nRUN {flag} echo be\"\"gun; grep CapEff /proc/self/status\n"));
        attacker.forge(&[&["build", "--progress", "plain", "--no-cache"], allow, &[&context]].concat())
    };
    for flag in [
        "--security=insecure",
        "--security=INSECURE",
        "--security=2",
        "--security=255",
        "--security=-1",
        "--security=",
        "--security=unconfined",
        "--security=insecure --security=sandbox",
        "--network=host",
    ] {
        let refused = build(flag, &[]);
        assert!(refused.code != 0 && !refused.stderr.contains(" begun"), "{flag}: {}", refused.stderr);
    }
    let granted = build("--security=insecure", &["--allow", "security.insecure"]);
    assert!(granted.code == 0 && granted.stderr.contains("CapEff:\t000001ff"), "{}", granted.stderr);
    let sandbox = build("--security=sandbox", &["--allow", "security.insecure"]);
    assert!(sandbox.code == 0 && sandbox.stderr.contains("CapEff:\t00000000a80425fb"), "{}", sandbox.stderr);
    assert_ne!(build("", &["--allow", "security.everything"]).code, 0);
}

#[test]
fn privileged_a26_rights_are_given_by_name_only() {
    if let Some(attacker) = Attacker::root("a26") {
        a26(&attacker);
    }
}

#[test]
fn rootless_a26_rights_are_given_by_name_only() {
    if let Some(attacker) = Attacker::user("a26") {
        a26(&attacker);
    }
}

/// A step that fails and leaves a process, which exchanges a folder of what is to be removed for a link out of it. Seen to
/// fail where the step's processes are left: then it is found below. That the removal itself follows no link is shown with a
/// thread that stays, in `a66_a_folder_exchanged_for_a_link_is_never_followed` of the store.
fn a66(attacker: &Attacker) {
    let canary = attacker.place("canary");
    let marker = format!("outlives-{}", attacker.path("canary").display());
    let script = format!(
        "mkdir -p /t/d/e /t/x; ln -s {canary} /t/l; for n in $(seq 300); do echo $n > /t/d/e/$n; done; \
         (: {marker}; while :; do mv /t/d /t/x/d; mv /t/l /t/d; mv /t/d /t/l; mv /t/x/d /t/d; done) & "
    );
    for round in 0..5 {
        let failing = attacker.context("a66", &format!("FROM busybox\nRUN {script} sleep 0.0{round}; exit 7\n"));
        let failed = attacker.forge(&["build", "--progress", "plain", &failing]);
        assert!(failed.code != 0 && failed.stderr.contains("exit code: 7"), "{}", failed.stderr);
        let fine = attacker.context("a66", &format!("FROM busybox\nRUN {script} sleep 0.0{round}\nRUN rm -rf /t\n"));
        attacker.ok(&["build", "-q", "--no-cache", "-t", "outlived", &fine]);
        attacker.ok(&["rmi", "outlived"]);
        attacker.ok(&["prune", "-a", "-f"]);
        let left = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
            fs::read(process.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&marker))
        });
        assert_eq!(left.map(|process| process.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new(), "no process is left");
    }
}

#[test]
fn privileged_a66_a_process_that_outlives_its_step_leads_no_removal_astray() {
    if let Some(attacker) = Attacker::root("a66") {
        a66(&attacker);
    }
}

#[test]
fn rootless_a66_a_process_that_outlives_its_step_leads_no_removal_astray() {
    if let Some(attacker) = Attacker::user("a66") {
        a66(&attacker);
    }
}
