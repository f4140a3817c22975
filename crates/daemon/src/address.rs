use crate::DaemonError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:///path`.
    Unix(PathBuf),
    /// `tcp://host:port`.
    Tcp(String),
    /// `fd://`: what whoever started the daemon has bound.
    Inherited,
}

impl FromStr for Address {
    type Err = DaemonError;

    fn from_str(text: &str) -> Result<Self, DaemonError> {
        let refused = || DaemonError::Address { address: text.to_owned() };
        let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
        match (scheme, rest) {
            ("fd", "") => Ok(Self::Inherited),
            (_, "") => Err(refused()),
            ("unix", path) => Ok(Self::Unix(path.into())),
            ("tcp", host) => Ok(Self::Tcp(host.to_owned())),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Inherited => f.write_str("fd://"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scheme_that_can_be_listened_on() {
        assert_eq!("unix:///run/x.sock".parse::<Address>().unwrap(), Address::Unix("/run/x.sock".into()));
        assert_eq!("tcp://127.0.0.1:1".parse::<Address>().unwrap().to_string(), "tcp://127.0.0.1:1");
        assert_eq!("fd://".parse::<Address>().unwrap(), Address::Inherited);
        for wrong in ["", "/run/x.sock", "unix://", "npipe:////./pipe/x", "http://x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
