use std::fmt;

/// Bytes that are shown to nobody but the process they are meant for. `Debug` shows nothing of them; they are
/// serialised only as part of the message between the two sides of the set-up, which never leaves memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(Vec<u8>);

impl Hidden {
    /// Hides bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

pub(crate) mod one {
    use super::Hidden;
    use crate::wire;
    use serde::{Deserializer, Serializer};
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    pub(crate) fn serialize<S: Serializer>(value: &Hidden, to: S) -> Result<S::Ok, S::Error> {
        wire::one::serialize(&OsStr::from_bytes(&value.0), to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Hidden, D::Error> {
        wire::one::deserialize(from).map(|bytes: OsString| Hidden(bytes.into_vec()))
    }
}

pub(crate) mod many {
    use super::Hidden;
    use crate::wire;
    use serde::{Deserializer, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    pub(crate) fn serialize<S: Serializer>(values: &[Hidden], to: S) -> Result<S::Ok, S::Error> {
        let values: Vec<OsString> = values.iter().map(|value| OsString::from_vec(value.0.clone())).collect();
        wire::many::serialize(&values, to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Hidden>, D::Error> {
        let values: Vec<OsString> = wire::many::deserialize(from)?;
        Ok(values.into_iter().map(|bytes| Hidden(bytes.into_vec())).collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Hidden, MountSource, MountSpec, ProcessSpec, RootFs, SandboxSpec};

    #[test]
    fn hidden_bytes_cross_the_wire_and_are_not_shown() {
        let secret: Vec<u8> = b"hunter2\0".iter().copied().chain(0..=255).collect();
        let mut process = ProcessSpec::new(["sh"]);
        process.secret_env.push(Hidden::new("TOKEN=hunter2"));
        let mut spec = SandboxSpec::for_root(RootFs::Directory("/r".into()), process);
        let source = MountSource::Secret { content: Hidden::new(secret.clone()), mode: 0o400, uid: 0, gid: 0 };
        spec.mounts.push(MountSpec::new("/s", source, true));
        let text = serde_json::to_string(&spec).expect("serialises");
        let back: SandboxSpec = serde_json::from_str(&text).expect("parses");
        assert_eq!(back.process.secret_env[0].reveal(), b"TOKEN=hunter2");
        assert!(matches!(&back.mounts[0].source, MountSource::Secret { content, .. } if content.reveal() == secret));
        let shown = format!("{spec:?}");
        assert!(!shown.contains("hunter2") && shown.contains("****"), "{shown}");
    }
}
