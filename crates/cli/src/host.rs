//! The daemon that builds instead of this process: `--host`, `FORGE_HOST`, and the certificates that go with it.

use crate::args::{Cli, Command, GlobalArgs};
use crate::environment::Environment;
use crate::failure::Failure;
use anyhow::{Context, bail};
use forge_client::{Address, Client, TlsFiles};
use forge_engine::EngineError;
use std::path::Path;
use tokio_util::sync::CancellationToken;

const VARIABLE: &str = "FORGE_HOST";

/// A daemon, and how it is known and knows us.
pub struct Host {
    pub address: Address,
    pub tls: Option<TlsFiles>,
}

impl Host {
    /// Connects.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(&self) -> Result<Client, EngineError> {
        Client::connect(&self.address, self.tls.as_ref()).await
    }

    /// Connects, unless that takes longer than somebody wants it.
    ///
    /// # Errors
    /// As [`Client::connect`]; cancelled.
    pub async fn connect_until(&self, cancel: &CancellationToken) -> Result<Client, Failure> {
        let connected = cancel.run_until_cancelled(self.connect()).await;
        Ok(connected.ok_or_else(|| Failure::new("cancelled"))??)
    }
}

/// Whether there is one for that command.
pub fn is_named(cli: &Cli) -> bool {
    let named = cli.global.host.is_some() || Environment::of_process().filled(VARIABLE).is_some();
    named && !matches!(cli.command, Command::Daemon(_))
}

/// The daemon that a command is for.
///
/// # Errors
/// The command has no meaning elsewhere, or the address or a file is none.
pub fn host(global: &GlobalArgs, command: &Command, environment: &Environment) -> Result<Option<Host>, Failure> {
    let Some(named) = global.host.as_deref().or(environment.filled(VARIABLE)) else {
        return match tls_flag(global) {
            Some(flag) => Err(Failure::new(format!("--{flag} is for a daemon, which --host names"))),
            None => Ok(None),
        };
    };
    match command {
        Command::Build(_) | Command::Plan(_) | Command::Du(_) | Command::Prune(_) => {}
        // These are the same wherever builds run; a flag that was meant for them is another matter.
        Command::Version(_) | Command::Login(_) | Command::Logout(_) | Command::Imagetools(_)
            if global.host.is_none() =>
        {
            return Ok(None);
        }
        other => return Err(refused(other, global.host.is_some())),
    }
    if global.offline {
        return Err(Failure::new("--offline and --host cannot be used together"));
    }
    let address: Address = named.parse()?;
    let tls = tls(global)?;
    if tls.is_some() && matches!(address, Address::Unix(_)) {
        return Err(Failure::new("certificates are for tcp:// addresses: a Unix socket has an owner and a mode"));
    }
    Ok(Some(Host { address, tls }))
}

fn refused(command: &Command, by_flag: bool) -> Failure {
    let name = command.name();
    Failure::new(match by_flag {
        true => {
            format!("`forge {name}` works on this machine only: --host is for `forge build`, `plan`, `du` and `prune`")
        }
        false => format!("`forge {name}` works on this machine only, and {VARIABLE} names a daemon: unset it"),
    })
}

/// The first flag about certificates that was given.
fn tls_flag(global: &GlobalArgs) -> Option<&'static str> {
    let given = [
        ("tlscacert", global.tlscacert.is_some()),
        ("tlscert", global.tlscert.is_some()),
        ("tlskey", global.tlskey.is_some()),
        ("tlsdir", global.tlsdir.is_some()),
        ("tlsservername", global.tlsservername.is_some()),
    ];
    given.iter().find(|(_, is_given)| *is_given).map(|(name, _)| *name)
}

fn tls(global: &GlobalArgs) -> anyhow::Result<Option<TlsFiles>> {
    if tls_flag(global).is_none() {
        return Ok(None);
    }
    let (authority, certificate, key) = match &global.tlsdir {
        Some(folder) => {
            if global.tlscacert.is_some() || global.tlscert.is_some() || global.tlskey.is_some() {
                bail!("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time");
            }
            let present =
                |names: [&str; 2]| names.map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
            (present(["ca.pem", "ca.crt"]), present(["cert.pem", "tls.crt"]), present(["key.pem", "tls.key"]))
        }
        None => (global.tlscacert.clone(), global.tlscert.clone(), global.tlskey.clone()),
    };
    let authority = authority.context("--tlscacert is missing: without an authority any daemon would be believed")?;
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("--tlscert and --tlskey go together"),
    };
    Ok(Some(TlsFiles { authority, own, server_name: global.tlsservername.clone() }))
}

/// What tells this machine from others, and this user from others here.
pub fn this_machine() -> String {
    // A machine without a number is known by its name alone.
    let id = std::fs::read_to_string(Path::new("/etc/machine-id")).unwrap_or_default();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}:{name}:{}", id.trim(), rustix::process::getuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn of(line: &str, environment: &Environment) -> Result<Option<Host>, String> {
        let cli = Cli::read(line.split(' ').map(OsString::from)).unwrap();
        host(&cli.global, &cli.command, environment).map_err(|failure| failure.text("E"))
    }

    #[test]
    fn builds_may_be_elsewhere_and_nothing_else() {
        let none = Environment::default();
        let named = Environment::from([(VARIABLE, "unix:///s")]);
        assert!(of("forge build .", &none).unwrap().is_none());
        let host = of("forge --host tcp://h:1 --tlscacert=ca build .", &none).unwrap().unwrap();
        assert_eq!(host.address, Address::Tcp("h:1".into()));
        assert_eq!(host.tls.unwrap().authority, std::path::PathBuf::from("ca"));
        assert_eq!(of("forge build .", &named).unwrap().unwrap().address, Address::Unix("/s".into()));
        assert!(of("forge version", &named).unwrap().is_none());
        for (line, environment, words) in [
            ("forge --host unix:///s run x", &none, "`forge run` works on this machine only"),
            ("forge images", &named, "FORGE_HOST names a daemon"),
            ("forge --host unix:///s --tlscacert ca build .", &none, "for tcp:// addresses"),
            ("forge --tlskey k build .", &none, "which --host names"),
            ("forge --host tcp://h:1 --tlscert c build .", &none, "--tlscacert is missing"),
            ("forge --host tcp://h:1 --tlscacert a --tlscert c build .", &none, "go together"),
            ("forge --host tcp://h:1 --tlscacert a --tlsdir d build .", &none, "at the same time"),
            ("forge --offline --host tcp://h:1 build .", &none, "--offline and --host"),
            ("forge --host ssh://h build .", &none, "expected unix:///path or tcp://host:port"),
        ] {
            let error = of(line, environment).err().unwrap_or_default();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
