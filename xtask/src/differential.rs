//! Every example built by forge and by Debian's buildah: the images must hold the same files, the same configuration and
//! the same kinds of history entries, but for what `testdata/differential/differs` lists with its reason.

use crate::command::{command, output, text};
use crate::demo::{Forge, release_binary};
use crate::{busybox, packages};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where examples are: each folder with a Dockerfile is one.
const EXAMPLES: &[&str] = &["testdata/differential", "testdata/corpus", "testdata"];

/// What both builders are told to call the image.
const IMAGE: &str = "differential";

/// How an example came out.
enum Outcome {
    Same,
    Differs(Vec<String>),
    /// buildah cannot build it; its last words.
    Unsupported(String),
}

/// Compares all examples, or those of these names, and prints a table.
pub fn check(names: &[&str]) -> Result<()> {
    packages::ensure(packages::DIFFERENTIAL)?;
    std::fs::create_dir_all("target")?;
    let scratch = tempfile::Builder::new().prefix("differential-").tempdir_in("target")?;
    let folder = std::path::absolute(scratch.path())?;
    let builders = Builders::prepare(&folder)?;
    let known = Known::read("testdata/differential/differs".as_ref())?;
    let mut unexplained = 0;
    for example in examples()? {
        if !names.is_empty() && !names.contains(&example.name.as_str()) {
            continue;
        }
        unexplained += match builders.compare(&example) {
            Ok(outcome) => known.report(&example.name, &outcome),
            Err(error) => {
                println!("FAILED          {}: {error:#}", example.name);
                1
            }
        };
    }
    builders.clean();
    match unexplained {
        0 => Ok(()),
        count => bail!("{count} differences that testdata/differential/differs does not explain"),
    }
}

/// A build that both can be asked for.
struct Example {
    name: String,
    folder: PathBuf,
}

/// The examples that need no network.
fn examples() -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for place in EXAMPLES {
        let mut folders: Vec<PathBuf> =
            fs::read_dir(place)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        folders.sort();
        for folder in folders {
            let expect = fs::read_to_string(folder.join("expect")).unwrap_or_default();
            let needs_more = expect.lines().any(|line| line == "network" || line.starts_with("build "));
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if folder.join("Dockerfile").is_file() && !needs_more && name != "debian-python" {
                examples.push(Example { name, folder });
            }
        }
    }
    Ok(examples)
}

/// Both builders, with stores of their own and the same base image.
struct Builders {
    forge: Forge,
    folder: PathBuf,
}

impl Builders {
    fn prepare(folder: &Path) -> Result<Self> {
        let forge = Forge { binary: release_binary()?, root: folder.join("store") };
        let builders = Self { forge, folder: folder.to_owned() };
        let archive = folder.join("busybox.tar");
        busybox::write_archive(&archive)?;
        output(&mut builders.forge.command(&format!("load -i {}", archive.display())))?;
        output(builders.buildah().arg("pull").arg(format!("docker-archive:{}", archive.display())))?;
        Ok(builders)
    }

    fn buildah(&self) -> Command {
        let mut buildah = command("buildah --storage-driver vfs");
        buildah.arg("--root").arg(self.folder.join("buildah")).arg("--runroot").arg(self.folder.join("buildah-run"));
        buildah.env("BUILDAH_ISOLATION", "chroot").stdin(Stdio::null());
        buildah
    }

    fn compare(&self, example: &Example) -> Result<Outcome> {
        let mut build = self.buildah();
        build.args(["bud", "--layers", "--format", "docker", "--pull-never", "-t", IMAGE]).arg(&example.folder);
        let built = build.output()?;
        if !built.status.success() {
            let words = String::from_utf8_lossy(&built.stderr).lines().last().unwrap_or_default().to_owned();
            return Ok(Outcome::Unsupported(words));
        }
        let tree = self.folder.join("tree");
        let files = self.folder.join("tree.tar");
        let outputs = format!("-o type=image -o type=tar,dest={}", files.display());
        output(&mut self.forge.command(&format!("build -q -t {IMAGE} {outputs} {}", example.folder.display())))?;
        fs::create_dir(&tree)?;
        output(&mut command(&format!("tar --numeric-owner -xpf {} -C {}", files.display(), tree.display())))?;
        let mut differences = self.different_files(&tree)?;
        fs::remove_dir_all(&tree)?;
        differences.extend(self.different_documents()?);
        Ok(if differences.is_empty() { Outcome::Same } else { Outcome::Differs(differences) })
    }

    fn different_files(&self, ours: &Path) -> Result<Vec<String>> {
        let container = text(self.buildah().args(["from", "--pull-never", IMAGE]))?;
        let mounted = text(self.buildah().args(["mount", container.trim()]))?;
        let (ours, theirs) = (walk(ours)?, walk(mounted.trim().as_ref())?);
        output(self.buildah().args(["rm", container.trim()]))?;
        let nothing = "nothing".to_owned();
        let paths: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let pairs = paths
            .into_iter()
            .map(|path| (path, ours.get(path).unwrap_or(&nothing), theirs.get(path).unwrap_or(&nothing)));
        Ok(pairs
            .filter(|(_, ours, theirs)| ours != theirs)
            .map(|(path, ours, theirs)| format!("file {path}: {ours} / {theirs}"))
            .collect())
    }

    fn different_documents(&self) -> Result<Vec<String>> {
        let theirs: Value = serde_json::from_str(&text(self.buildah().args(["inspect", "--type", "image", IMAGE]))?)?;
        let ours: Value = serde_json::from_str(&text(&mut self.forge.command(&format!("inspect {IMAGE}")))?)?;
        let (theirs, ours) = (&theirs["Docker"], &ours[0]);
        let mut differences = Vec::new();
        for key in [
            "Env",
            "Cmd",
            "Entrypoint",
            "User",
            "WorkingDir",
            "ExposedPorts",
            "Volumes",
            "Labels",
            "StopSignal",
            "Healthcheck",
            "Shell",
            "OnBuild",
        ] {
            let (ours, theirs) = (plain(&ours["Config"][key]), plain(&theirs["config"][key]));
            if ours != theirs {
                differences.push(format!("config {key}: {ours} / {theirs}"));
            }
        }
        let (ours, theirs) = (self.our_history()?, empty_entries(&theirs["history"]));
        if ours != theirs {
            differences.push(format!("history {ours} / {theirs}"));
        }
        Ok(differences)
    }

    /// Which entries made a layer, as the image's own config says: it is in the archive.
    fn our_history(&self) -> Result<String> {
        let archive = self.folder.join("image.tar");
        output(&mut self.forge.command(&format!("save -o {} {IMAGE}", archive.display())))?;
        let file = |name: &str| text(command(&format!("tar xOf {} {name}", archive.display())).stdin(Stdio::null()));
        let manifest: Value = serde_json::from_str(&file("manifest.json")?)?;
        let config: Value = serde_json::from_str(&file(manifest[0]["Config"].as_str().context("no config")?)?)?;
        Ok(empty_entries(&config["history"]))
    }

    /// buildah leaves mounts where it was interrupted.
    fn clean(&self) {
        let _ = self.buildah().args(["rm", "--all"]).output();
    }
}

/// One letter for each entry: `L` made a layer, `.` did not.
fn empty_entries(history: &Value) -> String {
    let entries = history.as_array().into_iter().flatten();
    entries.map(|entry| if entry["empty_layer"] == true { '.' } else { 'L' }).collect()
}

/// A field as it is compared: absent and empty are the same, and some lists have no order.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(list) if list.is_empty() => String::new(),
        Value::Object(map) if map.is_empty() => String::new(),
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> =
                map.iter().filter(|(key, _)| *key != "io.buildah.version").collect();
            if sorted.is_empty() { String::new() } else { format!("{sorted:?}") }
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Every path of a tree with what is compared of it; times are not.
fn walk(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            found.insert(format!("/{name}"), describe(&path, &metadata)?);
        }
    }
    Ok(found)
}

fn describe(path: &Path, metadata: &fs::Metadata) -> Result<String> {
    let kind = metadata.file_type();
    let what = if kind.is_symlink() {
        return Ok(format!("link to {} {}:{}", fs::read_link(path)?.display(), metadata.uid(), metadata.gid()));
    } else if kind.is_dir() {
        "folder".to_owned()
    } else if kind.is_file() {
        format!("file {}", &hex::encode(Sha256::digest(fs::read(path)?))[..12])
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else {
        format!("device {}", metadata.rdev())
    };
    Ok(format!("{what} {:o} {}:{}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
}

/// The differences that are meant: `example: beginning of the difference # reason`.
struct Known(Vec<(String, String)>);

impl Known {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pair = |line: &str| {
            let (difference, reason) = line.rsplit_once(" # ").with_context(|| format!("{line:?} has no reason"))?;
            let (example, beginning) =
                difference.split_once(": ").with_context(|| format!("{line:?} names no example"))?;
            ensure!(!reason.trim().is_empty(), "{line:?} has no reason");
            Ok((example.to_owned(), beginning.to_owned()))
        };
        Ok(Self(lines.map(pair).collect::<Result<_>>()?))
    }

    fn explains(&self, example: &str, difference: &str) -> bool {
        self.0.iter().any(|(of, beginning)| (of == "*" || of == example) && difference.starts_with(beginning.as_str()))
    }

    /// Prints a line of the table, and what is not explained; gives how much that is.
    fn report(&self, example: &str, outcome: &Outcome) -> usize {
        let differences = match outcome {
            Outcome::Same => {
                println!("same            {example}");
                return 0;
            }
            Outcome::Unsupported(words) => {
                println!("not in buildah  {example}: {words}");
                return 0;
            }
            Outcome::Differs(differences) => differences,
        };
        let (meant, other): (Vec<_>, Vec<_>) = differences.iter().partition(|line| self.explains(example, line));
        let word = if other.is_empty() { "as documented" } else { "DIFFERS      " };
        println!("{word}   {example}: {} documented, {} not", meant.len(), other.len());
        other.iter().for_each(|line| println!("    {line}"));
        other.len()
    }
}
