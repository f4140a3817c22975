//! Private networks on machines with a firewall. The machine is a network namespace of its own, and so are the world beyond
//! it and a container of docker's; docker's rules are set as dockerd sets them, without it.

use crate::fixture::{self, Forge, Outcome};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What dockerd 20.10 makes of an empty table, in `iptables-save`'s words.
const DOCKER: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
";
/// A firewall of somebody who wants nothing forwarded.
const CLOSED: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

const WORLD: &str = "203.0.113.9";
const OF_DOCKER: &str = "172.17.0.2";

/// Processes that keep namespaces.
struct Machine {
    host: Child,
    others: Vec<Child>,
    /// The process that keeps the namespace of docker's container.
    of_docker: u32,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in self.others.iter_mut().chain([&mut self.host]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process in new namespaces that says when it is ready.
fn keeper(flags: &[&str], script: &str) -> Child {
    let script = format!("set -e; {script}; echo ready; exec sleep 600");
    let mut command = Command::new("unshare");
    command.args(flags).args(["sh", "-c", &script]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{script}");
    child
}

impl Machine {
    /// The host has a default route to the world, and a bridge with a container that nobody may reach. Both serve a line.
    fn new() -> Self {
        // The file system of settings is that of the namespace it was mounted in.
        let host = keeper(
            &["--net", "--mount", "--propagation", "private"],
            "d=$(mktemp -d); mount --rbind /sys/fs/cgroup $d; mount -t sysfs sysfs /sys; mount --move $d /sys/fs/cgroup; \
             rmdir $d; ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward",
        );
        let mut machine = Self { host, others: Vec::new(), of_docker: 0 };
        machine.add("world0", "203.0.113.1/24", &format!("{WORLD}/24"));
        machine.ip("route add default via 203.0.113.9");
        machine.ip("link add docker0 type bridge");
        machine.ip("link set docker0 up");
        machine.of_docker = machine.add("vethd", "", &format!("{OF_DOCKER}/16"));
        machine.ip("link set vethd master docker0");
        machine.ip("addr add 172.17.0.1/16 dev docker0");
        machine
    }

    fn ip(&self, words: &str) {
        let outcome = self.call("ip", &words.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!(outcome.code, 0, "ip {words}: {}", outcome.stderr);
    }

    /// Another machine at the end of a wire; the process that keeps its namespace.
    fn add(&mut self, name: &str, own: &str, other: &str) -> u32 {
        let end = keeper(&["--net"], "ip link set lo up");
        self.ip(&format!("link add {name} type veth peer name eth0 netns {}", end.id()));
        self.ip(&format!("link set {name} up"));
        if !own.is_empty() {
            self.ip(&format!("addr add {own} dev {name}"));
        }
        let pid = end.id().to_string();
        let serve = format!(
            "ip link set eth0 up && ip addr add {other} dev eth0 && \
             {{ [ {other} != {OF_DOCKER}/16 ] || ip route add default via 172.17.0.1; }} && \
             exec busybox nc -ll -p 80 -e /bin/busybox echo served",
        );
        let server = Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-c", &serve]).spawn().unwrap();
        let keeper = end.id();
        self.others.extend([end, server]);
        keeper
    }

    /// A script in docker's container.
    fn in_docker(&self, script: &str) -> Outcome {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.of_docker.to_string(), "-n", "busybox", "sh", "-c", script]);
        fixture::run(&mut command, b"")
    }

    /// A program on the host.
    fn call(&self, program: &str, words: &[&str], input: &[u8]) -> Outcome {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.host.id().to_string(), "-n", "-m", program]).args(words);
        fixture::run(&mut command, input)
    }

    fn load(&self, program: &str, rules: &str) {
        let outcome = self.call(&format!("{program}-restore"), &[], rules.as_bytes());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    }

    /// All rules, without their numbers.
    fn rules(&self, program: &str) -> String {
        let outcome = self.call(program, &["-w", "5", "-S"], b"");
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        outcome.stdout
    }

    fn command(&self, forge: &Forge, words: &[&str]) -> Command {
        let plain = forge.command(words);
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.host.id().to_string(), "-n", "-m"]).arg(plain.get_program()).args(plain.get_args());
        command.env_clear().stdin(Stdio::null()).current_dir(plain.get_current_dir().unwrap());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    fn forge(&self, forge: &Forge, words: &[&str]) -> Outcome {
        fixture::run(&mut self.command(forge, words), b"")
    }

    /// What containers reach, each told by the line that is served there; the host's own network would be no answer.
    fn reached(&self, forge: &Forge) -> (Vec<&'static str>, String) {
        let script = format!(
            "ip addr show dev eth0 >/dev/null || echo none; \
             for a in {WORLD} {OF_DOCKER}; do sleep 1 | nc -w 2 $a 80 2>/dev/null | sed s/served/$a/; done"
        );
        let ran = self.forge(forge, &["run", "--rm", "busybox", "sh", "-c", &script]);
        assert!(ran.code == 0 || ran.code == 1, "{}", ran.stderr);
        (
            ["none", WORLD, OF_DOCKER]
                .into_iter()
                .filter(|word| ran.stdout.lines().any(|line| line == *word))
                .collect(),
            ran.stderr,
        )
    }
}

fn machine(test: &str, program: &str) -> Option<(Forge, Machine)> {
    let forge = Forge::privileged(test)?;
    if !fixture::have(test, &["unshare", "nsenter", "ip", "busybox", program]) {
        return None;
    }
    let machine = Machine::new();
    // Kernels are built without one or the other.
    if machine.call(program, &["-w", "5", "-S"], b"").code != 0 {
        println!("SKIPPED (needs {program}): {test}");
        return None;
    }
    Some((forge, machine))
}

fn beside_docker(test: &str, program: &str) {
    let Some((forge, machine)) = machine(test, program) else { return };
    machine.load(program, DOCKER);
    let before = machine.rules(program);
    let (reached, errors) = machine.reached(&forge);
    assert_eq!((reached, errors.as_str()), (vec![WORLD], ""));
    assert_eq!(machine.rules(program), before, "nothing is left");

    // What somebody who was killed left is used, and goes with the last.
    let mark = ["-A", "FORWARD", "-m", "mark", "--mark", "0x666f7267", "-j", "ACCEPT"];
    if program.ends_with("nft") {
        machine.call(program, &mark, b"");
        assert_eq!(machine.reached(&forge).0, [WORLD]);
        assert_eq!(machine.rules(program), before, "nothing is left");
    }
    steps(&forge, &machine, program);
    assert_eq!(machine.rules(program), before, "nothing is left");
}

/// The rule is made again when somebody empties the chain, and lies behind all of docker's.
fn steps(forge: &Forge, machine: &Machine, program: &str) {
    let reach = format!("sleep 1 | nc -w 2 {WORLD} 80 | grep served");
    let file = format!("FROM busybox\nRUN {reach} && ip addr show dev eth0\nRUN sleep 3\nRUN {reach}\n");
    let context = forge.context("context", &[("Dockerfile", &file)]);
    let words = ["build", "--progress", "plain", &context];
    let mut command = machine.command(forge, &words);
    let build = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let own = loop {
        let rules = machine.rules(program);
        let last = rules.lines().rfind(|line| line.starts_with("-A FORWARD")).unwrap().to_owned();
        if last.contains("--mark 0x666f7267") {
            break last;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{rules}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(own.contains("from and to forge") && own.ends_with("-j ACCEPT"), "{own}");
    std::thread::sleep(Duration::from_secs(2));
    let removed = machine.call(program, &["-w", "5", "-D", "FORWARD", "7"], b"");
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    let ended = build.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && !told.contains("the host's network is used"), "{told}");
}

/// Seen to fail (the host's network was used) before there was a rule for it; the container of docker's was reached with
/// marks for whatever comes from containers.
#[test]
fn privileged_docker_s_firewall_lets_containers_out_to_the_world_alone() {
    beside_docker("docker_s_firewall_lets_containers_out", "iptables-nft");
}

/// The same with the older generation of tables.
#[test]
fn privileged_docker_s_older_firewall_lets_containers_out_to_the_world_alone() {
    beside_docker("docker_s_older_firewall_lets_containers_out", "iptables-legacy");
}

/// What another firewall drops is not forge's to let through, and the way to do it is told: it works, too.
#[test]
fn privileged_a_firewall_that_drops_is_told_with_what_opens_it() {
    let test = "a_firewall_that_drops_is_told";
    for program in ["iptables-nft", "iptables-legacy"] {
        let Some((forge, machine)) = machine(test, program) else { continue };
        machine.load(program, CLOSED);
        let (reached, errors) = machine.reached(&forge);
        assert!(reached.starts_with(&["none", WORLD]), "{reached:?}");
        let line = errors.lines().find(|line| line.contains("the host's network is used")).unwrap_or_default();
        assert!(line.contains("firewall drops forwarded packets"), "{errors}");
        assert_eq!(machine.rules(program).lines().count(), 3);
        let commands: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        assert_eq!(commands.len(), 2, "{errors}");
        for command in commands {
            let words: Vec<&str> = command.split(' ').skip(1).collect();
            assert_eq!(machine.call(program, &words, b"").code, 0, "{command}");
        }
        assert_eq!(machine.reached(&forge), (vec![WORLD, OF_DOCKER], String::new()));
    }
}

/// ufw itself, with settings of the machine's own. The command that is told opens it; a shut one is named again.
#[test]
fn privileged_ufw_is_told_with_what_opens_it() {
    let test = "ufw_is_told";
    if !fixture::have(test, &["ufw"]) {
        return;
    }
    let Some((forge, machine)) = machine(test, "iptables-nft") else { return };
    let own = "mount -t tmpfs none /mnt && cp -a /etc/ufw /mnt && mount --bind /mnt/ufw /etc/ufw && \
               mount -t tmpfs none /run && ufw --force enable";
    let enabled = machine.call("sh", &["-c", own], b"");
    assert_eq!(enabled.code, 0, "{}{}", enabled.stdout, enabled.stderr);
    let told = || {
        let (reached, errors) = machine.reached(&forge);
        (reached.contains(&"none"), errors.split('`').nth(1).unwrap_or_default().to_owned())
    };
    let opened = (true, "ufw route allow from 10.209.0.0/16".to_owned());
    assert_eq!(told(), opened);
    let words = |line: &str| line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let ufw = |line: &str| {
        let words = words(line);
        let outcome = machine.call("ufw", &words.iter().map(String::as_str).collect::<Vec<_>>(), b"");
        assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
    };
    ufw(&opened.1);
    assert_eq!(told(), (false, String::new()));
    ufw("ufw route delete allow from 10.209.0.0/16");
    assert_eq!(told(), opened);
}

/// Each of several tries again and again whether packets come through, and none is misled by the others. Seen to fail where each
/// table ended the probes that it had counted, before the others could.
#[test]
fn privileged_firewalls_are_tried_by_several_at_once() {
    let Some((forge, machine)) = machine("firewalls_are_tried_by_several", "iptables-nft") else { return };
    let builds: Vec<Child> = (0..3)
        .map(|number| {
            let file =
                format!("FROM busybox\n{}", format!("RUN sleep 1.1 && ip addr show dev eth0 # {number}\n").repeat(3));
            let context = forge.context(&format!("context-{number}"), &[("Dockerfile", &file)]);
            let mut command = machine.command(&forge, &["build", "--progress", "plain", &context]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for build in builds {
        let ended = build.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && !told.contains("the host's network is used"), "{told}");
    }
}

/// A host that forwards nothing forwards for containers alone, whoever else of forge comes later, and whatever address a packet
/// says that it is from. Seen to fail where the later process took the wires of the earlier one for the host's (the first did not
/// reach the world), and where it knew them by their addresses (docker's container did).
#[test]
fn privileged_a_host_that_forwards_nothing_forwards_for_containers_alone() {
    let Some((forge, machine)) = machine("a_host_that_forwards_nothing", "iptables-nft") else { return };
    let off = machine.call("sh", &["-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"], b"");
    assert_eq!(off.code, 0, "{}", off.stderr);
    let reach = format!("sleep 1 | nc -w 2 {WORLD} 80");
    let begin = |script: &str| {
        let script = format!("echo begun; {script}");
        let mut command = machine.command(&forge, &["run", "--rm", "-i", "busybox", "sh", "-c", &script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        (child, output)
    };
    // Each goes on when its standard input ends.
    let (mut first, mut output) = begin(&format!("cat; {reach}"));
    let (mut second, _rest) = begin("cat");

    // What the container is not: its address, on a wire of the host's.
    machine.ip("route add 10.209.77.77/32 dev docker0");
    let disguised = format!(
        "ip addr add 10.209.77.77/32 dev eth0; ip route replace default via 172.17.0.1 src 10.209.77.77; {reach}"
    );
    for script in [&reach, &disguised] {
        let outcome = machine.in_docker(script);
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", "nc: timed out\n"), "{script}");
    }
    drop(first.stdin.take());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "served\n");
    drop(second.stdin.take());
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
}
