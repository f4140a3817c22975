//! `RUN --mount`, as it is written and as it is meant. Its variables can be expanded only when the step is
//! lowered; all that must be known before is what it takes its files from.

use crate::csv;
use crate::suggest::nearest;
use crate::{FrontendError, Problem, Token};
use forge_llb::CacheSharing;

/// One `--mount`, its variables not yet expanded.
#[derive(Clone, Debug)]
pub(crate) struct MountFlag {
    fields: Vec<String>,
    /// What it takes its files from; `None` for the main context, or nothing.
    pub from: Option<Token>,
    /// The flag.
    pub token: Token,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MountType {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// One `--mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub kind: MountType,
    /// `from`, as written; empty for none.
    pub from: String,
    pub source: String,
    pub target: String,
    pub readonly: bool,
    pub size: u64,
    pub id: String,
    pub sharing: Option<CacheSharing>,
    pub required: bool,
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

const TYPES: [(&str, MountType); 5] = [
    ("bind", MountType::Bind),
    ("cache", MountType::Cache),
    ("tmpfs", MountType::Tmpfs),
    ("secret", MountType::Secret),
    ("ssh", MountType::Ssh),
];

const SHARING: [(&str, CacheSharing); 3] =
    [("shared", CacheSharing::Shared), ("private", CacheSharing::Private), ("locked", CacheSharing::Locked)];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountType {
    pub fn name(self) -> &'static str {
        TYPES[self as usize].0
    }

    /// Whether it may have an owner and permission bits.
    fn has_owner(self) -> bool {
        matches!(self, Self::Cache | Self::Secret | Self::Ssh)
    }

    /// Whether the process may write where nothing else is said.
    fn is_writable(self) -> bool {
        matches!(self, Self::Cache | Self::Tmpfs)
    }
}

impl MountFlag {
    /// Splits the flag.
    ///
    /// # Errors
    /// It is no line of comma separated values, or has a variable in `from`.
    pub fn read(token: &Token) -> Result<Self, FrontendError> {
        let refuse = |reason: String| FrontendError::from(Problem::Flag { reason }).or_at(token.span);
        let fields =
            csv::fields(&token.text).map_err(|reason| refuse(format!("failed to parse csv mounts: {reason}")))?;
        let mut from = None;
        for (key, value) in fields.iter().filter_map(|field| field.split_once('=')) {
            if !key.eq_ignore_ascii_case("from") {
                continue;
            }
            if value.find('$').is_some_and(|at| at + 1 < value.len()) {
                let reason = "'from' doesn't support variable expansion, define alias stage instead";
                return Err(refuse(reason.to_owned()));
            }
            from = Some(Token { text: value.to_owned(), span: token.span }).filter(|from| !from.text.is_empty());
        }
        Ok(Self { fields, from, token: token.clone() })
    }

    /// Where it is mounted, as written.
    pub fn written_target(&self) -> &str {
        let pairs = self.fields.iter().filter_map(|field| field.split_once('='));
        let is_target = |key: &str| ["target", "dst", "destination"].iter().any(|name| key.eq_ignore_ascii_case(name));
        pairs.rev().find(|(key, _)| is_target(key)).map_or("", |(_, value)| value)
    }

    /// Reads the keys in order: what one allows may depend on the `type` before it.
    ///
    /// # Errors
    /// A key or value is wrong, or keys do not go together.
    pub fn resolve(&self, expand: impl Fn(&str) -> Result<String, FrontendError>) -> Result<Mount, FrontendError> {
        let mut mount = Mount::bind();
        let mut readonly = None;
        for field in &self.fields {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            match (key.as_str(), value) {
                ("readonly" | "ro", None) => readonly = Some(true),
                ("readwrite" | "rw", None) => readonly = Some(false),
                ("required", None) => mount.require(true)?,
                (_, None) => return wrong(format!("invalid field '{field}' must be a key=value pair")),
                ("readonly" | "ro", Some(value)) => readonly = Some(boolean(&key, &expand(value)?)?),
                ("readwrite" | "rw", Some(value)) => readonly = Some(!boolean(&key, &expand(value)?)?),
                ("from", Some(value)) => value.clone_into(&mut mount.from),
                (key, Some(value)) => mount.set(key, expand(value)?, field)?,
            }
        }
        mount.readonly = readonly.unwrap_or(!mount.kind.is_writable());
        mount.check()?;
        Ok(mount)
    }
}

fn wrong<T>(reason: String) -> Result<T, FrontendError> {
    Err(Problem::Value { reason }.into())
}

/// An error with what was probably meant.
fn misspelt<'a>(reason: String, name: &str, known: impl IntoIterator<Item = &'a str>) -> FrontendError {
    FrontendError { suggestion: nearest(name, known), ..Problem::Value { reason }.into() }
}

impl Mount {
    fn bind() -> Self {
        Self {
            kind: MountType::Bind,
            from: String::new(),
            source: String::new(),
            target: String::new(),
            readonly: true,
            size: 0,
            id: String::new(),
            sharing: None,
            required: false,
            env: None,
            mode: None,
            uid: None,
            gid: None,
        }
    }

    fn set(&mut self, key: &str, value: String, field: &str) -> Result<(), FrontendError> {
        match key {
            "type" => {
                let found = TYPES.iter().find(|(name, _)| value.eq_ignore_ascii_case(name));
                let unknown = || format!("unsupported mount type {value:?}");
                self.kind = found.ok_or_else(|| misspelt(unknown(), &value, TYPES.map(|(name, _)| name)))?.1;
            }
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "id" => self.id = value,
            "env" => self.env = Some(value),
            "required" => self.require(boolean(key, &value)?)?,
            "size" if self.kind == MountType::Tmpfs => match bytes(&value) {
                Some(size) => self.size = size,
                None => return wrong(format!("invalid value for size: {value}")),
            },
            "size" => return self.unexpected(key),
            "sharing" => {
                let found = SHARING.iter().find(|(name, _)| value.eq_ignore_ascii_case(name));
                let unknown = || format!("unsupported sharing value {value:?}");
                self.sharing = Some(found.ok_or_else(|| misspelt(unknown(), &value, SHARING.map(|(name, _)| name)))?.1);
            }
            "mode" => self.mode = Some(number(key, &value, 8)?),
            "uid" => self.uid = Some(number(key, &value, 10)?),
            "gid" => self.gid = Some(number(key, &value, 10)?),
            _ => return Err(misspelt(format!("unexpected key '{key}' in '{field}'"), key, KEYS)),
        }
        Ok(())
    }

    fn require(&mut self, required: bool) -> Result<(), FrontendError> {
        match self.kind {
            MountType::Secret | MountType::Ssh => {
                self.required = required;
                Ok(())
            }
            _ => self.unexpected("required"),
        }
    }

    fn unexpected(&self, key: &str) -> Result<(), FrontendError> {
        wrong(format!("unexpected key '{key}' for mount type '{}'", self.kind.name()))
    }

    /// Whether the keys go together.
    fn check(&self) -> Result<(), FrontendError> {
        let kind = self.kind;
        let owner = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
        if let Some((key, _)) = owner.iter().find(|(_, value)| value.is_some() && !kind.has_owner()) {
            return wrong(format!("{key} not allowed for {:?} type mounts", kind.name()));
        }
        if self.mode.is_some_and(|mode| mode > 0o7777) {
            return wrong("invalid value for mode: it is larger than 07777".to_owned());
        }
        if self.env.is_some() && kind != MountType::Secret {
            return wrong(format!("env not allowed for {:?} type mounts", kind.name()));
        }
        match kind {
            MountType::Secret if !self.from.is_empty() => wrong("secret mount should not have a from".to_owned()),
            MountType::Secret if self.sharing.is_some() => wrong("secret mount should not define sharing".to_owned()),
            MountType::Secret if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() => {
                wrong("invalid secret mount. one of source, target required".to_owned())
            }
            MountType::Secret if !self.source.is_empty() && !self.id.is_empty() => {
                wrong("both source and id can't be set".to_owned())
            }
            MountType::Ssh if !self.source.is_empty() => wrong("ssh does not support source".to_owned()),
            _ if self.sharing.is_some() && kind != MountType::Cache => {
                wrong(format!("invalid cache sharing set for {} mount", kind.name()))
            }
            _ => Ok(()),
        }
    }

    /// Whether it asks for an owner or permission bits.
    pub fn asks_for_owner(&self) -> bool {
        self.mode.is_some() || self.uid.is_some() || self.gid.is_some()
    }
}

/// A boolean as Go reads it.
fn boolean(key: &str, value: &str) -> Result<bool, FrontendError> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => wrong(format!("invalid value for {key}: {value}")),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, FrontendError> {
    match u32::from_str_radix(value, radix) {
        Ok(number) if !value.starts_with('+') => Ok(number),
        _ => wrong(format!("invalid value {value} for {key}")),
    }
}

/// A number of bytes: digits, perhaps a fraction, and a unit in powers of 1024 (`128m`, `1.5 GiB`).
fn bytes(text: &str) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' ')).map_or(0, |at| at + 1);
    let (number, unit) = text.split_at(end);
    let number = number.strip_suffix(' ').unwrap_or(number);
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let unit = unit.to_lowercase();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit == "ib" => return None,
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let size = number.parse::<f64>().ok()? * 1024f64.powi(power);
    // Beyond that, floats cannot be trusted to be what was written; no memory is as large.
    (size.is_finite() && size < 2f64.powi(53)).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;

    fn read(text: &str) -> Result<Mount, String> {
        let token = Token { text: text.to_owned(), span: Span::default() };
        let flag = MountFlag::read(&token).map_err(|error| error.to_string())?;
        flag.resolve(|value| Ok(value.replace("$V", "v"))).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refuse(text: &str, expect: &str) {
        let error = read(text).unwrap_err();
        assert!(error.ends_with(expect), "{text}: {error}");
    }

    #[test]
    fn keys_have_defaults_and_other_names() {
        let bind = read("target=/x").unwrap();
        assert_eq!((bind.kind, bind.readonly, bind.target.as_str()), (MountType::Bind, true, "/x"));
        assert_eq!(read("dst=/x").unwrap(), bind);
        assert_eq!(read("TYPE=Bind,destination=/x").unwrap(), bind);
        assert_eq!(read("target=/x,readwrite=false").unwrap(), bind);
        for writable in ["target=/x,rw", "target=/x,ro=0", "target=/x,ro,readwrite=1", "readonly=F,target=/x"] {
            assert!(!read(writable).unwrap().readonly, "{writable}");
        }
        let cache = read("type=cache,target=/$V,id=a,src=/s,sharing=LOCKED,mode=0700,uid=1,gid=2,from=x").unwrap();
        assert_eq!((cache.target.as_str(), cache.id.as_str(), cache.source.as_str()), ("/v", "a", "/s"));
        assert_eq!((cache.mode, cache.uid, cache.gid), (Some(0o700), Some(1), Some(2)));
        assert_eq!((cache.sharing, cache.readonly, cache.from.as_str()), (Some(CacheSharing::Locked), false, "x"));
        let secret = read("type=secret,id=aws,env=KEY,required").unwrap();
        assert_eq!((secret.env.as_deref(), secret.required, secret.readonly), (Some("KEY"), true, true));
        assert!(read("type=ssh,required=true").unwrap().required);
        assert_eq!(read("type=tmpfs,target=/t,size=1.5m").unwrap().size, 3 << 19);
        assert_eq!(read("\"source=a,b\",target=/x").unwrap().source, "a,b");
        assert_eq!(read("from=a$,target=/x").unwrap().from, "a$");
    }

    #[test]
    fn what_is_wrong_is_refused_in_the_words_that_clients_know() {
        refuse("typ=cache,target=/x", "unexpected key 'typ' in 'typ=cache' (did you mean type?)");
        refuse("type=tmp,target=/x", "unsupported mount type \"tmp\" (did you mean tmpfs?)");
        refuse("type=cache,sharing=share", "unsupported sharing value \"share\" (did you mean shared?)");
        refuse("target", "invalid field 'target' must be a key=value pair");
        refuse("required", "unexpected key 'required' for mount type 'bind'");
        refuse("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'");
        refuse("type=tmpfs,size=x", "invalid value for size: x");
        refuse("ro=maybe", "invalid value for ro: maybe");
        refuse("type=cache,mode=9", "invalid value 9 for mode");
        refuse("type=cache,mode=17777", "it is larger than 07777");
        refuse("type=cache,uid=-1", "invalid value -1 for uid");
        refuse("mode=7", "mode not allowed for \"bind\" type mounts");
        refuse("type=tmpfs,uid=7", "uid not allowed for \"tmpfs\" type mounts");
        refuse("env=X", "env not allowed for \"bind\" type mounts");
        refuse("sharing=locked", "invalid cache sharing set for bind mount");
        refuse("type=secret", "one of source, target required");
        refuse("type=secret,id=a,source=b", "both source and id can't be set");
        refuse("type=secret,id=a,from=b", "secret mount should not have a from");
        refuse("type=secret,id=a,sharing=locked", "secret mount should not define sharing");
        refuse("type=ssh,source=b", "ssh does not support source");
        refuse("from=$V", "'from' doesn't support variable expansion, define alias stage instead");
        refuse("a\"b", "column 2: bare \" in non-quoted-field");
        refuse("", "failed to parse csv mounts: EOF");
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(bytes(text), expect, "{text}");
        check("0", Some(0));
        check("17b", Some(17));
        check("1k", Some(1024));
        check("128 MB", Some(128 << 20));
        check("2GiB", Some(2 << 30));
        check(".5t", Some(1 << 39));
        for bad in ["", "k", "-1", "1ib", "1kk", "1x", "1 2", "nan", "inf", "1e3x", "99999p"] {
            check(bad, None);
        }
    }
}
