//! F06: the power fails at a random moment of builds, names given and taken, loads and prunes.
//!
//! The store lies on an ext4 file system of its own that writes nothing by itself. The shutdown ioctl then does what a power
//! cut does: what is not on the disk never gets there. The kernel does not boot again, so that each cycle shows forge
//! another boot id, mounted over the kernel's in a mount namespace of its own.
//!
//! What a command has acknowledged must be there afterwards, to the byte; of the command that was cut off, all or nothing.

use crate::busybox;
use crate::command::{command, output, text};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DOCKERFILE: &str = "FROM busybox
ARG NUMBER
COPY files /files
RUN echo $NUMBER > /number && head -c 400000 /dev/urandom > /data && sha256sum /data /files/* > /sums
";

/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
const CUT: &str =
    r#"open(my $f, "<", $ARGV[0]) or die $!; my $flags = pack("L", 2); ioctl($f, 0x8004587D, $flags) or die $!"#;

/// What a name stands for: the number that its image was built with.
type Names = BTreeMap<String, u64>;

/// Cuts the power so many times.
pub fn run(binary: PathBuf, cycles: usize, seed: u64) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "power cuts need root: they are done to a mounted file system");
    fs::create_dir_all("target")?;
    let scratch = tempfile::Builder::new().prefix("power-").tempdir_in("target")?;
    let mut machine = Machine::new(binary, std::path::absolute(scratch.path())?, seed)?;
    for cycle in 1..=cycles {
        machine.cycle().with_context(|| format!("power cut {cycle} of seed {seed}"))?;
    }
    let (cut, acknowledged) = (machine.cut_off, machine.acknowledged);
    println!(
        "power: {cycles} cuts of seed {seed}, {cut} within a command, {acknowledged} commands acknowledged, none lost"
    );
    Ok(())
}

struct Machine {
    binary: PathBuf,
    folder: PathBuf,
    is_mounted: bool,
    random: Random,
    boots: u32,
    names: Names,
    built: u64,
    acknowledged: usize,
    cut_off: usize,
}

/// What a command does to names once it is acknowledged.
enum Effect {
    Sets(String, u64),
    Removes(String),
    Nothing,
}

impl Machine {
    fn new(binary: PathBuf, folder: PathBuf, seed: u64) -> Result<Self> {
        let mut machine = Self {
            binary,
            folder,
            is_mounted: false,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            boots: 0,
            names: Names::new(),
            built: 0,
            acknowledged: 0,
            cut_off: 0,
        };
        let files = machine.folder.join("context/files");
        fs::create_dir_all(&files)?;
        (0..10).try_for_each(|name| fs::write(files.join(name.to_string()), name.to_string().repeat(5000)))?;
        fs::write(machine.folder.join("context/Dockerfile"), DOCKERFILE)?;
        busybox::write_archive(&machine.folder.join("busybox.tar"))?;
        let disk = machine.folder.join("disk");
        fs::File::create(&disk)?.set_len(1 << 30)?;
        output(command("mkfs.ext4 -q -m 0").arg(&disk))?;
        fs::create_dir(machine.mount_point())?;
        machine.mount()?;
        fs::remove_dir(machine.mount_point().join("lost+found"))?;
        machine.boot()?;
        let archive = machine.folder.join("busybox.tar");
        machine.must(&format!("load -q -i {}", archive.display()))?;
        Ok(machine)
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.join("mount")
    }

    fn mount(&mut self) -> Result<()> {
        // Nothing is written because time has passed.
        output(command("mount -o loop,commit=1000").arg(self.folder.join("disk")).arg(self.mount_point()))?;
        self.is_mounted = true;
        Ok(())
    }

    /// What died with the power may hold the mount for a moment, in a mount namespace of its own too: mounted again before
    /// that is gone, it would be the same broken file system.
    fn unmount(&mut self) -> Result<()> {
        let begin = Instant::now();
        let is_late = || begin.elapsed() > Duration::from_secs(10);
        while let Err(error) = output(command("umount").arg(self.mount_point())) {
            ensure!(!is_late(), "{error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.is_mounted = false;
        while !text(command("losetup -j").arg(self.folder.join("disk")))?.trim().is_empty() {
            ensure!(!is_late(), "a process that should be dead holds the disk");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn boot(&mut self) -> Result<()> {
        self.boots += 1;
        Ok(fs::write(self.folder.join("boot_id"), format!("00000000-0000-4000-8000-{:012}\n", self.boots))?)
    }

    /// A command of forge's, after the latest boot.
    fn forge(&self, line: &str) -> Command {
        let mut unshare = Command::new("unshare");
        let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
        unshare.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]);
        unshare.arg(self.folder.join("boot_id")).arg(&self.binary).args(line.split_whitespace());
        unshare.env("FORGE_ROOT", self.mount_point().join("store")).stdin(Stdio::null());
        unshare
    }

    fn must(&self, line: &str) -> Result<String> {
        Ok(String::from_utf8(output(&mut self.forge(line))?.stdout)?)
    }

    fn cycle(&mut self) -> Result<()> {
        let cut_at = Instant::now() + Duration::from_millis(100 + self.random.below(3000));
        let before = self.names.clone();
        let (running, effect) = self.work_until(cut_at)?;
        output(Command::new("perl").args(["-e", CUT]).arg(self.mount_point()))?;
        let effect = self.end_of(running, effect)?;
        self.unmount()?;
        self.mount()?;
        self.boot()?;
        self.check(&effect).with_context(|| format!("names before: {before:?}, expected: {:?}", self.names))
    }

    /// Runs commands until that time; the one that runs then, and what it is to do.
    fn work_until(&mut self, cut_at: Instant) -> Result<(Child, Effect)> {
        loop {
            let (line, effect) = self.next_command();
            let mut child = self.forge(&line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            while child.try_wait()?.is_none() {
                if Instant::now() >= cut_at {
                    return Ok((child, effect));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let ended = child.wait_with_output()?;
            ensure!(ended.status.success(), "{line}: {}", String::from_utf8_lossy(&ended.stderr));
            self.acknowledge(effect);
        }
    }

    fn next_command(&mut self) -> (String, Effect) {
        let name = format!("app{}", self.random.below(4));
        let context = self.folder.join("context");
        let some: Vec<(String, u64)> = self.names.clone().into_iter().collect();
        match (self.random.below(10), some.is_empty()) {
            (0, false) => {
                let (removed, _) = &some[self.random.below(some.len() as u64) as usize];
                (format!("rmi -f {removed}"), Effect::Removes(removed.clone()))
            }
            (1, false) => {
                let (from, number) = &some[self.random.below(some.len() as u64) as usize];
                (format!("tag {from} {name}"), Effect::Sets(name, *number))
            }
            (2, _) => ("prune -f".to_owned(), Effect::Nothing),
            (3, _) => ("prune -af".to_owned(), Effect::Nothing),
            (4, _) => {
                let archive = self.folder.join("busybox.tar");
                (format!("load --replace -q -i {}", archive.display()), Effect::Nothing)
            }
            _ => {
                self.built += 1;
                let line = format!("build -q --build-arg NUMBER={} -t {name} {}", self.built, context.display());
                (line, Effect::Sets(name, self.built))
            }
        }
    }

    fn acknowledge(&mut self, effect: Effect) {
        self.acknowledged += 1;
        match effect {
            Effect::Sets(name, number) => _ = self.names.insert(name, number),
            Effect::Removes(name) => _ = self.names.remove(&name),
            Effect::Nothing => {}
        }
    }

    /// The end of what ran when the power failed: whoever says even then that all is well must be right.
    fn end_of(&mut self, mut running: Child, effect: Effect) -> Result<Effect> {
        let begin = Instant::now();
        while running.try_wait()?.is_none() && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
        // Its steps die with it.
        let _ = running.kill();
        if running.wait()?.success() {
            self.acknowledge(effect);
            return Ok(Effect::Nothing);
        }
        self.cut_off += 1;
        Ok(effect)
    }

    /// Names and their images, a build, the store.
    fn check(&mut self, cut_off: &Effect) -> Result<()> {
        self.settle(cut_off)?;
        self.check_names().context("after the power cut")?;
        self.built += 1;
        let context = self.folder.join("context");
        self.must(&format!("build -q --build-arg NUMBER={} -t after {}", self.built, context.display()))?;
        self.names.insert("after".to_owned(), self.built);
        // What nobody acknowledged may be lost: it is named and taken out.
        let repaired = self.forge("store verify --full --repair").output()?;
        ensure!(matches!(repaired.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&repaired.stderr));
        self.must("store verify --full").context("after the repair")?;
        self.check_names().context("after the repair")
    }

    /// The name that was being changed stands for what it stood for, or for what it was to stand for.
    fn settle(&mut self, cut_off: &Effect) -> Result<()> {
        let (name, new) = match cut_off {
            Effect::Sets(name, number) => (name, Some(*number)),
            Effect::Removes(name) => (name, None),
            Effect::Nothing => return Ok(()),
        };
        let found = self.number_of(name)?;
        let old = self.names.get(name).copied();
        ensure!(found == old || found == new, "{name} is {found:?}, neither {old:?} nor {new:?}");
        match found {
            Some(number) => _ = self.names.insert(name.clone(), number),
            None => _ = self.names.remove(name),
        }
        Ok(())
    }

    fn check_names(&self) -> Result<()> {
        let listed = self.must("images --format {{.Repository}}")?;
        let listed: Vec<&str> = listed.lines().filter(|name| !matches!(*name, "busybox" | "<none>")).collect();
        let expected: Vec<&String> = self.names.keys().collect();
        ensure!(listed.len() == expected.len(), "there are {listed:?}, and should be {expected:?}");
        for (name, number) in &self.names {
            let found = self.number_of(name)?;
            ensure!(found == Some(*number), "{name} is {found:?} instead of {number}");
        }
        Ok(())
    }

    /// The number that an image was built with, once its files were compared with their sums.
    fn number_of(&self, name: &str) -> Result<Option<u64>> {
        let listed = self.must("images --format {{.Repository}}")?;
        if !listed.lines().any(|line| line == name) {
            return Ok(None);
        }
        let line = format!(
            "run --rm --network none {name} sh -c sha256sum${{IFS}}-c${{IFS}}-s${{IFS}}/sums&&cat${{IFS}}/number"
        );
        let number = self.must(&line)?;
        match number.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{name} printed {number:?}"),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.is_mounted {
            // The folder stays then, for whoever looks into it.
            let _ = self.unmount();
        }
    }
}

/// xorshift64: the same seed cuts at the same moments of the same commands, as far as a machine allows.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}
