use crate::args::BuildArgs;
use anyhow::bail;
use forge_engine::{BuildContext, BuildRequest, NamedContext};
use std::path::PathBuf;

/// Where a definition is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefinitionFile {
    /// A file of that path.
    Path(PathBuf),
    /// Standard input.
    Stdin,
}

/// The context that front ends read the Dockerfile from, which definitions may read too.
const DOCKERFILE_CONTEXT: &str = "dockerfile";

/// What `--llb` names; `None` where a Dockerfile is built.
///
/// # Errors
/// Another flag is about Dockerfiles.
pub fn definition_file(args: &BuildArgs) -> anyhow::Result<Option<DefinitionFile>> {
    let Some(file) = &args.llb else { return Ok(None) };
    let others = [
        ("file", args.file.is_some()),
        ("build-arg", !args.build_args.is_empty()),
        ("target", args.target.is_some()),
        ("no-cache-filter", !args.no_cache_filter.is_empty()),
        ("pull", args.pull),
        ("network", args.network != "default"),
        ("add-host", !args.add_hosts.is_empty()),
        ("ulimit", !args.limits.ulimits.is_empty()),
        ("shm-size", args.limits.shm_size.is_some()),
        ("cgroup-parent", !args.limits.cgroup_parent.is_empty()),
        ("call", args.call.is_some()),
        ("check", args.check),
    ];
    if let Some((flag, _)) = others.iter().find(|(_, used)| *used) {
        bail!("--{flag} is about Dockerfiles and cannot be used with --llb");
    }
    if args.context == "-" {
        bail!("--llb takes its files from a folder or an address, not from standard input");
    }
    Ok(Some(match file.as_str() {
        "-" => DefinitionFile::Stdin,
        path => DefinitionFile::Path(path.into()),
    }))
}

/// The contexts that definitions of BuildKit's clients name: `dockerfile` is the main context where nothing else is
/// said.
pub fn with_dockerfile_context(mut request: BuildRequest) -> BuildRequest {
    if let BuildContext::Directory(folder) = &request.context {
        let folder = NamedContext::Directory(folder.clone());
        request.named_contexts.entry(DOCKERFILE_CONTEXT.to_owned()).or_insert(folder);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use std::ffi::OsString;

    fn read(line: &str) -> anyhow::Result<Option<DefinitionFile>> {
        let words = ["forge", "build"].into_iter().chain(line.split(' ')).map(OsString::from);
        let Command::Build(args) = Cli::read(words).unwrap().command else { panic!() };
        definition_file(&args)
    }

    #[test]
    fn a_definition_takes_no_flags_of_dockerfiles() {
        assert_eq!(read(".").unwrap(), None);
        assert_eq!(read("--llb - .").unwrap(), Some(DefinitionFile::Stdin));
        let path = DefinitionFile::Path("x.pb".into());
        assert_eq!(read("--llb x.pb -t a --platform linux/amd64 --no-cache .").unwrap(), Some(path));
        let flags = "-f=x --build-arg=A=1 --target=a --no-cache-filter=a --pull --network=host --add-host=a:1.2.3.4 --check --call=outline --ulimit=nofile=1 --shm-size=1m --cgroup-parent=/a";
        for flag in flags.split(' ') {
            let error = read(&format!("--llb x {flag} .")).unwrap_err().to_string();
            assert!(error.ends_with("is about Dockerfiles and cannot be used with --llb"), "{flag}: {error}");
        }
        assert!(read("--llb x -").is_err());
    }
}
