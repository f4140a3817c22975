use crate::credential_helper::{CredentialHelper, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_session::{CredentialError, Credentials, Redacted};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// docker's `config.json`: where `docker login` keeps credentials.
///
/// ```text
/// {
///   "auths": { "host": { "auth": base64("user:password"), "identitytoken": "…", "registrytoken": "…" } },
///   "credsStore": "NAME",                 every host's credentials are kept by docker-credential-NAME
///   "credHelpers": { "host": "NAME" }     this host's are
/// }
/// ```
/// Docker Hub's key is `https://index.docker.io/v1/`. Everything else in the file (`HttpHeaders`, `proxies`, …) is kept
/// as it is and not used. The file is read anew at each call, so that a login of another process is seen; it is
/// written by atomic rename with mode 0600, through a symbolic link where it is one.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: PathBuf,
    helper_directory: Option<PathBuf>,
}

/// Docker Hub's name in image references, and its key in the file.
const HUB: (&str, &str) = ("docker.io", "https://index.docker.io/v1/");

/// A configuration is a few hundred bytes; this bounds what is read of something else.
const LARGEST: u64 = 8 << 20;

impl DockerConfig {
    /// Names the file. It need not exist.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), helper_directory: None }
    }

    /// Looks for `docker-credential-…` programs in a folder instead of along `PATH`.
    pub fn with_helper_directory(self, directory: impl Into<PathBuf>) -> Self {
        Self { helper_directory: Some(directory.into()), ..self }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The credentials for a registry's host with its port, as in a reference; `None` where there are none.
    ///
    /// The host must be equal to that of an entry (A77); schemes and paths of old entries (`https://host/v1/`)
    /// are overlooked, as docker does.
    ///
    /// # Errors
    /// The file cannot be read, or a helper fails for another reason than having no such credentials.
    pub async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, CredentialError> {
        let document = self.read()?;
        if let Some(helper) = self.helper(&document, registry) {
            return Ok(helper?.get(&key_of(registry)).await?.map(Secret::into_credentials));
        }
        match find_entry(&document, registry) {
            Some((key, entry)) => self.decode(key, entry),
            None => Ok(None),
        }
    }

    /// Keeps credentials for a registry: with a helper where one is configured, else in the file.
    ///
    /// # Errors
    /// The helper fails, or the file cannot be read or written.
    pub async fn store(&self, registry: &str, credentials: &Credentials) -> Result<(), CredentialError> {
        let mut document = self.read()?;
        let key = key_of(registry);
        let entry = match self.helper(&document, registry) {
            Some(helper) => {
                let helper = helper?;
                helper.store(&key, &Secret::from_credentials(credentials, helper.name())?).await?;
                Map::new()
            }
            None => encode(credentials),
        };
        remove_entries(&mut document, registry);
        object(&mut document, "auths").insert(key, Value::Object(entry));
        self.write(&document)
    }

    /// Forgets the credentials for a registry; says whether there were any.
    ///
    /// # Errors
    /// The helper fails, or the file cannot be read or written.
    pub async fn erase(&self, registry: &str) -> Result<bool, CredentialError> {
        let mut document = self.read()?;
        let mut erased = false;
        if let Some(helper) = self.helper(&document, registry) {
            let helper = helper?;
            erased = helper.get(&key_of(registry)).await?.is_some();
            if erased {
                helper.erase(&key_of(registry)).await?;
            }
        }
        if remove_entries(&mut document, registry) {
            self.write(&document)?;
            erased = true;
        }
        Ok(erased)
    }

    fn helper(
        &self,
        document: &Map<String, Value>,
        registry: &str,
    ) -> Option<Result<CredentialHelper, CredentialError>> {
        let own = document.get("credHelpers").and_then(|helpers| {
            let helpers = helpers.as_object()?;
            helpers.get(registry).or_else(|| helpers.get(&key_of(registry)))
        });
        let name = own.or_else(|| document.get("credsStore"))?.as_str()?;
        (!name.is_empty()).then(|| CredentialHelper::new(name, self.helper_directory.as_deref()))
    }

    fn decode(&self, key: &str, entry: &Map<String, Value>) -> Result<Option<Credentials>, CredentialError> {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credentials::Bearer(Redacted::new(token))));
        }
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::RefreshToken(Redacted::new(token))));
        }
        if let Some(auth) = text("auth") {
            let pair = decode_pair(auth);
            let broken = || self.error(format!("the entry {key:?} holds no base64 of user:password"));
            return pair.map(Some).ok_or_else(broken);
        }
        let pair = text("username").zip(text("password"));
        Ok(pair.map(|(user, password)| Credentials::Basic {
            username: user.to_owned(),
            password: Redacted::new(password),
        }))
    }

    fn read(&self) -> Result<Map<String, Value>, CredentialError> {
        let io = |source| CredentialError::Config { path: self.path.display().to_string(), source };
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => io::Read::read_to_end(&mut io::Read::take(file, LARGEST), &mut bytes).map_err(io)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(error) => return Err(io(error)),
        };
        if bytes.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        // A parser of `Value` never quotes the text in its errors, only line and column.
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(document)) => Ok(document),
            Ok(_) => Err(self.error("not a JSON object".to_owned())),
            Err(error) => Err(self.error(error.to_string())),
        }
    }

    fn error(&self, message: String) -> CredentialError {
        let source = io::Error::new(io::ErrorKind::InvalidData, message);
        CredentialError::Config { path: self.path.display().to_string(), source }
    }

    fn write(&self, document: &Map<String, Value>) -> Result<(), CredentialError> {
        self.replace(document)
            .map_err(|source| CredentialError::Config { path: self.path.display().to_string(), source })
    }

    fn replace(&self, document: &Map<String, Value>) -> io::Result<()> {
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let temporary = folder.join(format!(".config.json.{}.{}", std::process::id(), crate::retry::random()));
        let result = write_new(&temporary, document).and_then(|()| fs::rename(&temporary, &target));
        if result.is_err() {
            // The file may not have been made at all; the first error is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        result?;
        File::open(&folder)?.sync_all()
    }
}

fn write_new(path: &Path, document: &Map<String, Value>) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut formatted = Vec::new();
    let tab = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut formatted, tab);
    serde::Serialize::serialize(document, &mut serializer)?;
    file.write_all(&formatted)?;
    file.sync_all()
}

/// The key under which `docker login` stores a registry.
fn key_of(registry: &str) -> String {
    match registry == HUB.0 {
        true => HUB.1.to_owned(),
        false => registry.to_owned(),
    }
}

/// The host of an entry's key: without scheme and path, in lower case.
fn host_of(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default().to_ascii_lowercase()
}

/// Whether an entry is for a registry. Docker Hub goes by four names.
fn matches_registry(key: &str, registry: &str) -> bool {
    let host = host_of(key);
    match registry == HUB.0 {
        true => matches!(host.as_str(), "index.docker.io" | "docker.io" | "registry-1.docker.io"),
        false => host == registry.to_ascii_lowercase(),
    }
}

fn find_entry<'a>(document: &'a Map<String, Value>, registry: &str) -> Option<(&'a str, &'a Map<String, Value>)> {
    let auths = document.get("auths")?.as_object()?;
    let exact = auths.get_key_value(&key_of(registry));
    let found = exact.or_else(|| auths.iter().find(|(key, _)| matches_registry(key, registry)));
    found.and_then(|(key, entry)| Some((key.as_str(), entry.as_object()?)))
}

fn remove_entries(document: &mut Map<String, Value>, registry: &str) -> bool {
    let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) else { return false };
    let before = auths.len();
    auths.retain(|key, _| !matches_registry(key, registry));
    auths.len() != before
}

fn object<'a>(document: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = document.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made an object just now if it was none")
}

fn encode(credentials: &Credentials) -> Map<String, Value> {
    let field = |name: &str, value: String| Map::from_iter([(name.to_owned(), Value::String(value))]);
    match credentials {
        Credentials::Basic { username, password } => {
            field("auth", STANDARD.encode(format!("{username}:{}", password.reveal())))
        }
        Credentials::RefreshToken(token) => field("identitytoken", token.reveal().to_owned()),
        Credentials::Bearer(token) => field("registrytoken", token.reveal().to_owned()),
    }
}

fn decode_pair(auth: &str) -> Option<Credentials> {
    let bytes = STANDARD.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // docker pads the password with zero bytes in old files.
    let password = Redacted::new(password.trim_matches('\0'));
    Some(Credentials::Basic { username: username.to_owned(), password })
}
