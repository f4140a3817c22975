//! Reads the Dockerfile and the ignore file that go with a build.

use crate::context::MainContext;
use crate::{DockerfileSource, EngineError};
use forge_image::ErrorKind;
use forge_session::{Context, ContextPath};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The parser refuses more; one byte beyond is read so that it can say so.
const LIMIT: u64 = (16 << 20) + 1;

/// A Dockerfile as it was read.
pub(crate) struct DockerfileText {
    /// As the user named it, for messages.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
}

/// Reads the Dockerfile that the user means.
pub(crate) fn read_dockerfile(source: &DockerfileSource, main: &MainContext) -> Result<DockerfileText, EngineError> {
    let context = &*main.files;
    match (source, &main.dockerfile) {
        (DockerfileSource::Default, Some(text)) | (DockerfileSource::Inline(text), None) => {
            Ok(DockerfileText { name: "Dockerfile".to_owned(), text: text.clone() })
        }
        (DockerfileSource::Remote(_), None) => {
            Err(EngineError::new(ErrorKind::Internal, "a Dockerfile from elsewhere was not fetched"))
        }
        (_, Some(_)) => {
            let message = "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles";
            Err(EngineError::new(ErrorKind::UserInput, message)
                .with_hint("with -f, the context has to be an archive with the files"))
        }
        (DockerfileSource::InContext(name), None) => match read_from_context(context, name)? {
            Some(text) => Ok(DockerfileText { name: name.clone(), text }),
            None => Err(with_near_name(missing(name), name, files_of(context, name))),
        },
        (DockerfileSource::File(path), None) => {
            let failed = |error| unreadable(path, error);
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            let text = open_regular(path).and_then(read_limited).map_err(failed)?;
            Ok(DockerfileText { name, text })
        }
        (DockerfileSource::Default, None) => {
            for name in ["Dockerfile", "dockerfile"] {
                if let Some(text) = read_from_context(context, name)? {
                    return Ok(DockerfileText { name: name.to_owned(), text });
                }
            }
            let place = match main.heeds_ignore_files {
                true => context.identity(),
                false => "the build context".to_owned(),
            };
            let error = missing("Dockerfile").with_hint(format!("there is no Dockerfile in {place}: name one with -f"));
            Err(with_near_name(error, "Dockerfile", files_of(context, "Dockerfile")))
        }
    }
}

fn missing(name: &str) -> EngineError {
    let message = format!("failed to read dockerfile: open {name}: no such file or directory");
    EngineError::new(ErrorKind::UserInput, message)
}

/// A file that the user named and that is not there is a mistake of the user.
fn unreadable(path: &Path, error: std::io::Error) -> EngineError {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::UserInput,
        _ => ErrorKind::Environment,
    };
    let error = EngineError::caused(kind, error).context(&format!("failed to read dockerfile {}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).take(MOST_NAMES);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if kind == ErrorKind::UserInput => with_near_name(error, name, names),
        _ => error,
    }
}

/// Names that are looked through for one that is near.
const MOST_NAMES: usize = 10_000;

/// The names beside a path of a context.
fn files_of(context: &dyn Context, path: &str) -> Vec<String> {
    let folder = ContextPath::clean(path.rsplit_once('/').map_or("", |(folder, _)| folder));
    let children = context.children(&folder).unwrap_or_default().into_iter().take(MOST_NAMES);
    children.map(|entry| entry.path.display().rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

/// Says which file there is instead: one that differs in case, or by a letter or two.
fn with_near_name(error: EngineError, path: &str, mut names: Vec<String>) -> EngineError {
    names.sort();
    let name = path.rsplit('/').next().unwrap_or(path);
    let other_case = names.iter().find(|other| other.to_lowercase() == name.to_lowercase());
    let near = other_case.cloned().or_else(|| forge_frontend::nearest(name, names.iter().map(String::as_str)));
    match near {
        Some(near) => {
            error.with_hint(format!("did you mean {}{near}? name it with -f", &path[..path.len() - name.len()]))
        }
        None => error,
    }
}

/// An ignore file as it was read; empty where there is none.
pub(crate) struct IgnoreText {
    /// Its name, for messages.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
}

impl IgnoreText {
    /// A context's own.
    pub fn of_context(context: &dyn Context) -> Result<Self, EngineError> {
        const NAME: &str = ".dockerignore";
        Ok(Self { name: NAME.to_owned(), text: read_from_context(context, NAME)?.unwrap_or_default() })
    }
}

/// Reads the ignore file: the one named after the Dockerfile, else the context's own.
pub(crate) fn read_ignore_file(source: &DockerfileSource, main: &MainContext) -> Result<IgnoreText, EngineError> {
    let context = &*main.files;
    if !main.heeds_ignore_files {
        return Ok(IgnoreText { name: String::new(), text: Vec::new() });
    }
    let beside = |name: &str| format!("{name}.dockerignore");
    let own = match source {
        DockerfileSource::File(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            read_beside(path)?.map(|text| (beside(&name), text))
        }
        DockerfileSource::Default => {
            read_from_context(context, &beside("Dockerfile"))?.map(|text| (beside("Dockerfile"), text))
        }
        DockerfileSource::InContext(name) => {
            read_from_context(context, &beside(name))?.map(|text| (beside(name), text))
        }
        DockerfileSource::Inline(_) | DockerfileSource::Remote(_) => None,
    };
    match own {
        Some((name, text)) => Ok(IgnoreText { name, text }),
        None => IgnoreText::of_context(context),
    }
}

fn read_beside(dockerfile: &Path) -> Result<Option<Vec<u8>>, EngineError> {
    let mut path = dockerfile.as_os_str().to_owned();
    path.push(".dockerignore");
    match open_regular(Path::new(&path)) {
        Ok(file) => Ok(Some(read_limited(file).map_err(EngineError::io)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::io(error).context(&format!("cannot read {}", path.display()))),
    }
}

/// Reads a file of the context; links are followed inside the context only (A31, A32).
pub(crate) fn read_from_context(context: &dyn Context, name: &str) -> Result<Option<Vec<u8>>, EngineError> {
    let Some(entry) = context.follow(&ContextPath::clean(name))? else {
        return Ok(None);
    };
    let doing = format!("cannot read {name}");
    let text = read_limited(context.open(&entry.path)?).map_err(|error| EngineError::io(error).context(&doing))?;
    Ok(Some(text))
}

/// Never waits for a pipe and never reads a device (A39).
fn open_regular(path: &Path) -> std::io::Result<File> {
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("not a regular file")),
    }
}

fn read_limited(file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_dockerfile_tells_of_one_that_is_nearly_called_so() {
        let hint = |path: &str, names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            with_near_name(missing(path), path, names).hint().map(str::to_owned)
        };
        assert_eq!(hint("Dockerfile", &["DOCKERFILE", "x"]).unwrap(), "did you mean DOCKERFILE? name it with -f");
        assert_eq!(
            hint("a/dev.Dockerfile", &["Dev.Dockerfile"]).unwrap(),
            "did you mean a/Dev.Dockerfile? name it with -f"
        );
        assert_eq!(hint("Dockerfile", &["Dokerfile"]).unwrap(), "did you mean Dokerfile? name it with -f");
        assert_eq!(hint("Dockerfile", &["Makefile"]), None);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("dockerfile.dev"), "").unwrap();
        let error = unreadable(&folder.path().join("Dockerfile.dev"), std::io::ErrorKind::NotFound.into());
        assert_eq!(error.hint().unwrap(), "did you mean dockerfile.dev? name it with -f");
    }
}
