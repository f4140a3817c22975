use forge_engine::EngineError;
use forge_image::ErrorKind;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:///path`.
    Unix(PathBuf),
    /// `tcp://host:port`.
    Tcp(String),
}

impl FromStr for Address {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        match text.split_once("://") {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", host)) if host.contains(':') => Ok(Self::Tcp(host.to_owned())),
            _ => {
                let message = format!("invalid address {text:?} of a daemon: expected unix:///path or tcp://host:port");
                Err(EngineError::new(ErrorKind::UserInput, message))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scheme_and_a_place() {
        assert_eq!("unix:///run/x".parse::<Address>().unwrap(), Address::Unix("/run/x".into()));
        assert_eq!("tcp://[::1]:80".parse::<Address>().unwrap().to_string(), "tcp://[::1]:80");
        for wrong in ["", "x", "unix://", "tcp://host", "http://x:1", "ssh://x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
