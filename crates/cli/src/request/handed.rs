//! `--secret` and `--ssh`, as buildx reads them.

use super::output::csv;
use super::unsupported;
use crate::environment::Environment;
use crate::sanitise;
use anyhow::{Context, bail};
use forge_engine::{AgentSource, SecretSource};
use forge_session::Secret;
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// Reads all `--secret`: `id=ID[,src=FILE|,env=NAME][,type=file|env]`; without a source a variable of that name, else a
/// file. A later one takes the place of an earlier one of its id.
pub fn secrets(texts: &[String], environment: &Environment) -> anyhow::Result<BTreeMap<String, SecretSource>> {
    texts.iter().map(|text| secret(text, environment)).collect()
}

fn secret(text: &str, environment: &Environment) -> anyhow::Result<(String, SecretSource)> {
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in csv(text)? {
        let shown = sanitise::line(&field).into_owned();
        let Some((key, value)) = field.split_once('=') else {
            bail!("--secret: invalid field {shown:?} must be a key=value pair");
        };
        let value = value.to_owned();
        match key.to_ascii_lowercase().as_str() {
            "type" if matches!(value.as_str(), "file" | "env") => kind = Some(value),
            "type" => bail!("--secret: unsupported secret type {:?}", sanitise::line(&value)),
            "id" => id = Some(value),
            "source" | "src" => file = Some(value),
            "env" => variable = Some(value),
            _ => bail!("--secret: unexpected key {:?} in {shown:?}", sanitise::line(key)),
        }
    }
    let Some(id) = id.filter(|id| !id.is_empty()) else { bail!("--secret: secret missing ID") };
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    if file.is_none() && variable.is_none() {
        match environment.get(&id) {
            Some(_) if kind.as_deref() != Some("file") => variable = Some(id.clone()),
            _ => file = Some(id.clone()),
        }
    }
    let source = match variable {
        Some(name) => SecretSource::Value(limited(&id, environment.get(&name).unwrap_or_default())?),
        None => SecretSource::File(readable(&id, file.unwrap_or_default())?),
    };
    Ok((id, source))
}

fn limited(id: &str, value: &str) -> anyhow::Result<Secret> {
    require_size(id, value.len() as u64)?;
    Ok(Secret::new(value))
}

fn readable(id: &str, file: String) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(file);
    let found = std::fs::metadata(&path).with_context(|| format!("--secret: failed to stat {}", path.display()))?;
    if found.is_dir() {
        bail!("--secret: {} is a folder", path.display());
    }
    require_size(id, found.len())?;
    Ok(path)
}

fn require_size(id: &str, bytes: u64) -> anyhow::Result<()> {
    match bytes > Secret::MAX_BYTES as u64 {
        true => bail!("--secret: secret {} too big. max size 500KB", sanitise::line(id)),
        false => Ok(()),
    }
}

/// Reads all `--ssh`: `default` or `ID[=SOCKET|KEY,…]`. Without a path it is the agent of `SSH_AUTH_SOCK`.
pub fn agents(texts: &[String], environment: &Environment) -> anyhow::Result<BTreeMap<String, AgentSource>> {
    let mut agents = BTreeMap::new();
    for text in texts {
        let (id, paths) = text.split_once('=').unwrap_or((text, ""));
        let id = if id.is_empty() { "default" } else { id };
        let agent = match paths {
            "" => AgentSource::Socket(PathBuf::from(
                environment
                    .filled("SSH_AUTH_SOCK")
                    .context("--ssh: invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")?,
            )),
            paths => agent(text, paths)?,
        };
        if agents.insert(id.to_owned(), agent).is_some() {
            bail!("--ssh: duplicate ID {}", sanitise::line(id));
        }
    }
    Ok(agents)
}

/// One socket, or files of keys.
fn agent(text: &str, paths: &str) -> anyhow::Result<AgentSource> {
    let (mut sockets, mut keys) = (Vec::new(), Vec::new());
    for field in paths.split(',') {
        match field.split_once('=') {
            // What buildx knows besides paths: the agent without a filter, which forge never hands out.
            Some(("raw", "false")) => continue,
            Some(("raw", _)) => return Err(unsupported(&format!("--ssh {text} ({field:?})"))),
            _ => {}
        }
        let path = PathBuf::from(field);
        let found = std::fs::metadata(&path).with_context(|| format!("--ssh: failed to stat {}", path.display()))?;
        match found.file_type().is_socket() {
            true => sockets.push(path),
            false => keys.push(path),
        }
    }
    match (sockets.pop(), keys.is_empty()) {
        (Some(_), _) if !sockets.is_empty() => bail!("--ssh: only single socket allowed"),
        (Some(_), false) => bail!("--ssh: invalid combination of keys and sockets"),
        (Some(socket), true) => Ok(AgentSource::Socket(socket)),
        (None, _) => Ok(AgentSource::Keys(keys)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<(String, SecretSource), String> {
        let environment = [("TOKEN", "geheim"), ("both", "variable")].into();
        secret(text, &environment).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn secrets_come_from_files_and_variables() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let shown = file.display();
        let value = |text: &str| SecretSource::Value(Secret::new(text));
        assert_eq!(one("id=a,env=TOKEN"), Ok(("a".into(), value("geheim"))));
        assert_eq!(one("type=env,id=a,src=TOKEN"), Ok(("a".into(), value("geheim"))));
        assert_eq!(one("id=TOKEN"), Ok(("TOKEN".into(), value("geheim"))));
        assert_eq!(one("id=a,env=UNSET"), Ok(("a".into(), value(""))));
        assert_eq!(one(&format!("id=a,src={shown}")), Ok(("a".into(), SecretSource::File(file.clone()))));
        assert_eq!(
            one(&format!("type=file,\"source={shown}\",id=a")),
            Ok(("a".into(), SecretSource::File(file.clone())))
        );
        assert!(one("id=none").unwrap_err().starts_with("--secret: failed to stat none"));
        assert_eq!(one("src=x").unwrap_err(), "--secret: secret missing ID");
        assert_eq!(one("id").unwrap_err(), "--secret: invalid field \"id\" must be a key=value pair");
        assert_eq!(one("id=a,typ=x").unwrap_err(), "--secret: unexpected key \"typ\" in \"typ=x\"");
        assert_eq!(one("id=a,type=x").unwrap_err(), "--secret: unsupported secret type \"x\"");
        std::fs::File::create(&file).unwrap().set_len(500 * 1024 + 1).unwrap();
        assert_eq!(one(&format!("id=a,src={shown}")).unwrap_err(), "--secret: secret a too big. max size 500KB");
    }

    #[test]
    fn agents_are_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, key) = (folder.path().join("agent"), folder.path().join("key"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----").unwrap();
        let shown = socket.to_str().unwrap().to_owned();
        let read = |texts: &[String]| {
            agents(texts, &[("SSH_AUTH_SOCK", shown.as_str())].into()).map_err(|error| format!("{error:#}"))
        };
        let at = AgentSource::Socket(socket.clone());
        let expected = BTreeMap::from([("default".to_owned(), at.clone()), ("a".to_owned(), at)]);
        assert_eq!(read(&["default".into(), format!("a={shown}")]), Ok(expected));
        assert!(agents(&["default".to_owned()], &Environment::default()).is_err());
        assert!(read(&["default".into(), "default".into()]).unwrap_err().contains("duplicate ID default"));
        let keys = read(&[format!("default={0},{0}", key.display())]).unwrap();
        assert_eq!(keys["default"], AgentSource::Keys(vec![key.clone(), key.clone()]));
        let refused = |paths: &str| read(&[format!("default={paths}")]).unwrap_err();
        assert!(refused(&format!("{shown},{}", key.display())).contains("invalid combination of keys and sockets"));
        assert!(refused(&format!("{shown},{shown}")).contains("only single socket allowed"));
        assert!(read(&[format!("default={shown},raw=false")]).is_ok());
        assert!(read(&[format!("default={shown},raw=true")]).unwrap_err().contains("not supported"));
        assert!(read(&["default=/none".into()]).unwrap_err().contains("failed to stat"));
    }
}
