//! Other programs' firewalls, which may drop what the host forwards for containers.
//!
//! An accept in a table of forge's own is of no help against a drop in another one, so whether packets come through is
//! tried (see [`super::passage`]), and what is done depends on whose firewall it is:
//!
//! - docker drops whatever it does not know by the *policy* of iptables' chain FORWARD, as a side effect of being there. One
//!   rule at the end of that chain, after everybody else's, accepts what has forge's mark. Docker leaves it there when it
//!   starts again. Nothing else is accepted by it: the mark is given by forge's own table alone and goes with that.
//! - Any other is somebody's decision, and told with the command that allows it.

use super::Reason;
use super::expression::{Verdict, count_here, decide, iptables_match, mark_information};
use super::firewall::{
    DELETE_RULE, FORWARD, GET_CHAIN, GET_RULE, IPV4, PASSING, batch, field, general, request, rule, text,
};
use super::netlink::{ACKNOWLEDGE, Attributes, DUMP, Netlink, Request, attributes};
use crate::profile::DEFAULT_PATH;
use rustix::io::Result;
use rustix::net::netlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
/// Chains that are docker's, of old and new versions.
const OF_DOCKER: [&str; 2] = ["DOCKER", "DOCKER-USER"];
const COMMENT: &str = "from and to forge containers";

/// A chain of nftables that packets of version 4 may meet.
struct Chain {
    family: &'static str,
    table: String,
    name: String,
    /// Whether packets meet it on their way through the host and are dropped at its end.
    drops: bool,
}

/// All chains; none where the kernel has no nftables.
fn chains() -> Vec<Chain> {
    let listed = Netlink::open(Some(netlink::NETFILTER)).and_then(|mut socket| {
        let structure = general(0, 0);
        socket.list(&Request { kind: GET_CHAIN, flags: DUMP, structure, attributes: Attributes::new() })
    });
    listed.unwrap_or_default().iter().filter_map(|message| chain(message)).collect()
}

fn chain(message: &[u8]) -> Option<Chain> {
    const INET: u8 = 1;
    let family = match *message.first()? {
        IPV4 => "ip",
        INET => "inet",
        _ => return None,
    };
    let fields = attributes(message.get(4..)?);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let hook = field(&fields, 4).and_then(|hook| number(field(&attributes(hook), 1)?));
    let policy = field(&fields, 5).and_then(number);
    Some(Chain {
        family,
        table: text(field(&fields, 1)?),
        name: text(field(&fields, 3)?),
        drops: hook == Some(FORWARD) && policy == Some(Verdict::Drop as u32),
    })
}

/// Whether chains of docker are in force, in either generation of the kernel's tables.
pub(super) fn has_docker() -> bool {
    is_docker_s(&chains()) || Legacy::find().is_some_and(|legacy| legacy.has_docker())
}

fn is_docker_s(chains: &[Chain]) -> bool {
    let of_docker = |chain: &Chain| OF_DOCKER.contains(&chain.name.as_str());
    chains.iter().any(|chain| chain.family == "ip" && chain.table == TABLE && of_docker(chain))
}

/// Accepts what has forge's mark wherever docker would drop it; `false` where docker drops nothing.
pub(super) fn admit() -> bool {
    let all = chains();
    let drops = all.iter().any(|chain| chain.drops && chain.table == TABLE && chain.name == CHAIN);
    let of_nftables = drops && is_docker_s(&all) && append().is_ok();
    let of_legacy = Legacy::find().is_some_and(|legacy| legacy.has_docker() && legacy.append());
    of_nftables || of_legacy
}

/// Takes the rules of [`admit`] away again.
pub(super) fn withdraw() {
    // What fails here is a rule that accepts nothing: nobody gives the mark any more.
    let _ = delete();
    if let Some(legacy) = Legacy::find() {
        legacy.delete();
    }
}

fn append() -> Result<()> {
    let mut socket = Netlink::open(Some(netlink::NETFILTER))?;
    if !own_rules(&mut socket)?.is_empty() {
        return Ok(());
    }
    let mut comment = [0; 256];
    comment[..COMMENT.len()].copy_from_slice(COMMENT.as_bytes());
    let expressions = vec![
        iptables_match("mark", 1, &mark_information(PASSING)),
        iptables_match("comment", 0, &comment),
        count_here(),
        decide(Verdict::Accept),
    ];
    socket.call(&batch(vec![rule(TABLE, CHAIN, expressions)]))
}

fn delete() -> Result<()> {
    let mut socket = Netlink::open(Some(netlink::NETFILTER))?;
    for handle in own_rules(&mut socket)? {
        let attributes = Attributes::new().text(1, TABLE).text(2, CHAIN).bytes(3, &handle);
        socket.call(&batch(vec![request(DELETE_RULE, ACKNOWLEDGE, attributes)]))?;
    }
    Ok(())
}

/// The handles of rules that match forge's mark.
fn own_rules(socket: &mut Netlink) -> Result<Vec<[u8; 8]>> {
    let attributes = Attributes::new().text(1, TABLE).text(2, CHAIN);
    let all = socket.list(&request(GET_RULE, DUMP, attributes))?;
    Ok(all.iter().filter_map(|message| own_rule(message)).collect())
}

fn own_rule(message: &[u8]) -> Option<[u8; 8]> {
    let fields = attributes(message.get(4..)?);
    let ours = attributes(field(&fields, 4)?).iter().any(|(_, expression)| matches_mark(expression).unwrap_or(false));
    ours.then(|| field(&fields, 3)?.try_into().ok()).flatten()
}

/// In iptables' form, or in that of nftables, which iptables makes of it when it writes a table anew.
fn matches_mark(expression: &[u8]) -> Option<bool> {
    let parts = attributes(expression);
    let data = attributes(field(&parts, 2)?);
    Some(match text(field(&parts, 1)?).as_str() {
        // How much of the padding is kept is the kernel's affair.
        "match" => text(field(&data, 1)?) == "mark" && field(&data, 3)?.get(..9) == mark_information(PASSING).get(..9),
        "cmp" => field(&attributes(field(&data, 3)?), 1)? == PASSING.to_ne_bytes(),
        _ => false,
    })
}

/// The older generation of tables, which are replaced as wholes: its own program does that, under its own lock.
struct Legacy(PathBuf);

impl Legacy {
    /// The program, where such a table is in force. Who fills one has the program.
    fn find() -> Option<Self> {
        has_legacy_table().then(|| {
            let named = |name: &str| {
                DEFAULT_PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
            };
            let old = |path: &PathBuf| !output(path, &["-V"]).is_some_and(|version| version.contains("nf_tables"));
            named("iptables-legacy").or_else(|| named("iptables").filter(old)).map(Self)
        })?
    }

    fn call(&self, words: &[&str]) -> Option<String> {
        output(&self.0, &[&["-w", "5", "-t", TABLE], words].concat())
    }

    fn has_docker(&self) -> bool {
        OF_DOCKER.iter().any(|chain| self.call(&["-S", chain]).is_some())
    }

    fn with_rule(&self, action: &str) -> bool {
        let mark = format!("{PASSING:#x}");
        let rule = ["-m", "mark", "--mark", &mark, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
        self.call(&[&[action, CHAIN][..], &rule].concat()).is_some()
    }

    fn append(&self) -> bool {
        self.with_rule("-C") || self.with_rule("-A")
    }

    fn delete(&self) {
        while self.with_rule("-C") && self.with_rule("-D") {}
    }
}

fn has_legacy_table() -> bool {
    let tables = std::fs::read_to_string("/proc/self/net/ip_tables_names").unwrap_or_default();
    tables.lines().any(|line| line == TABLE)
}

/// What a program says, if it succeeds.
fn output(program: &Path, words: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(words).env_clear().current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whose firewall drops packets from that network, and the command that allows them.
pub(super) fn explain([a, b]: [u8; 2]) -> Reason {
    let all = chains();
    let network = format!("{a}.{b}.0.0/16");
    let has = |wanted: fn(&Chain) -> bool| all.iter().any(wanted);
    if has(|chain| chain.table == "firewalld") {
        return format!(
            "firewalld drops forwarded packets; `firewall-cmd --zone=trusted --add-source={network}` allows them"
        );
    }
    if has(|chain| chain.name.starts_with("ufw-")) {
        return format!("ufw drops forwarded packets; `ufw route allow from {network}` allows them");
    }
    let iptables = format!(
        "`iptables -I FORWARD -s {network} -j ACCEPT` and `iptables -I FORWARD -d {network} -m conntrack --ctstate \
         ESTABLISHED,RELATED -j ACCEPT` allow them"
    );
    match all.iter().find(|chain| chain.drops) {
        Some(chain) if chain.family == "ip" && chain.table == TABLE && chain.name == CHAIN => {
            format!("the firewall drops forwarded packets (table ip {TABLE}, chain {CHAIN}); {iptables}")
        }
        Some(Chain { family, table, name, .. }) => format!(
            "the firewall drops forwarded packets (table {family} {table}, chain {name}); \
             `nft insert rule {family} {table} {name} ip saddr {network} accept` and `nft insert rule {family} {table} \
             {name} ip daddr {network} ct state established,related accept` allow them"
        ),
        None => format!("the host's firewall drops forwarded packets; {iptables}"),
    }
}
