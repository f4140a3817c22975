//! Submodules, fetched as the repositories that they are: git's own machinery for them never runs (A108).

use super::super::Asked;
use super::super::error::RemoteError;
use super::access::{Access, Whose};
use super::checkout::TREE;
use super::program::Run;
use super::repository::Repository;
use super::tree::{TreeKind, TreeLine};
use super::{Git, Pinned};
use crate::error::WorkError;
use forge_llb::{GitRemote, GitSource, GitTransport, is_whole_commit};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// So deep may submodules of submodules go, and so many may there be.
const DEEPEST: usize = 16;
const MOST: usize = 2000;

/// A submodule, as the tree and `.gitmodules` have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Submodule {
    /// Where it lies in its repository.
    path: String,
    url: String,
    commit: String,
}

/// The submodules of a commit.
///
/// # Errors
/// One has no address, or `.gitmodules` is damaged.
pub(super) async fn listed(
    repository: &Repository<'_>,
    entries: &[TreeLine],
    asked: &Asked<'_>,
) -> Result<Vec<Submodule>, RemoteError> {
    let links: Vec<&TreeLine> = entries.iter().filter(|entry| entry.kind == TreeKind::Submodule).collect();
    if links.is_empty() {
        return Ok(Vec::new());
    }
    let file = entries.iter().find(|entry| entry.path == ".gitmodules" && entry.kind == TreeKind::File);
    let known = match file {
        Some(file) => addresses(&settings(repository, &file.object, asked).await?),
        None => HashMap::new(),
    };
    let mut found = Vec::new();
    for link in links {
        match known.get(&link.path) {
            Some(Address::Unused) => {}
            Some(Address::Url(url)) if is_whole_commit(&link.object) => {
                found.push(Submodule { path: link.path.clone(), url: url.clone(), commit: link.object.clone() })
            }
            _ => return Err(repository.bad_tree(&link.path, "is a submodule that .gitmodules does not describe")),
        }
    }
    Ok(found)
}

async fn settings(repository: &Repository<'_>, object: &str, asked: &Asked<'_>) -> Result<Vec<u8>, RemoteError> {
    let blob = format!("--blob={object}");
    let pattern = r"^submodule\..*\.(path|url|update)$";
    let run = Run::new("read .gitmodules of", ["config", "-z", "--no-includes", &blob, "--get-regexp", pattern]);
    match repository.local()?.run(repository.shown(run), asked).await {
        // Nothing of the kind in the file.
        Err(RemoteError::Git { message, .. }) if message.is_empty() => Ok(Vec::new()),
        result => result,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Url(String),
    /// `update = none`
    Unused,
}

/// The addresses by path, of what `git config -z` prints: names and values, separated by a line break, ended by NUL.
fn addresses(printed: &[u8]) -> HashMap<String, Address> {
    // By name, so that of two with one path always the same counts.
    let mut modules: BTreeMap<String, HashMap<String, String>> = BTreeMap::new();
    for setting in printed.split(|byte| *byte == 0) {
        let text = String::from_utf8_lossy(setting).into_owned();
        let Some((key, value)) = text.split_once('\n') else { continue };
        let Some((name, field)) = key.rsplit_once('.') else { continue };
        // The first counts, as for git.
        modules.entry(name.to_owned()).or_default().entry(field.to_owned()).or_insert(value.to_owned());
    }
    let address = |mut fields: HashMap<String, String>| {
        let path = fields.remove("path")?;
        match fields.remove("update").as_deref() {
            Some("none") => Some((path, Address::Unused)),
            _ => Some((path, Address::Url(fields.remove("url")?))),
        }
    };
    modules.into_values().filter_map(address).collect()
}

/// Checks submodules out into the checkout that they belong to, and theirs into them.
///
/// # Errors
/// One is at an address that is not allowed, or cannot be had.
pub(super) async fn check_out(
    git: &Git<'_>,
    remote: &GitRemote,
    first: Vec<Submodule>,
    root: &Path,
    asked: &Asked<'_>,
) -> Result<(), WorkError> {
    let mut waiting: Vec<(usize, String, GitRemote, Submodule)> =
        first.into_iter().rev().map(|module| (1, TREE.to_owned(), remote.clone(), module)).collect();
    let mut done = 0;
    while let Some((depth, folder, parent, module)) = waiting.pop() {
        let refused = |reason| RemoteError::Tree { remote: parent.to_string(), path: module.path.clone(), reason };
        done += 1;
        if depth > DEEPEST || done > MOST {
            return Err(refused("is one submodule too many, or too deep").into());
        }
        let place = format!("{folder}/{}", module.path);
        let (address, further) = one(git, &parent, &module, root, &place, asked).await?;
        waiting.extend(further.into_iter().rev().map(|module| (depth + 1, place.clone(), address.clone(), module)));
    }
    Ok(())
}

async fn one(
    git: &Git<'_>,
    parent: &GitRemote,
    module: &Submodule,
    root: &Path,
    place: &str,
    asked: &Asked<'_>,
) -> Result<(GitRemote, Vec<Submodule>), WorkError> {
    let refused = |reason| RemoteError::Tree { remote: parent.to_string(), path: module.path.clone(), reason };
    let absolute = absolute(parent.as_str(), &module.url).ok_or_else(|| refused("has an address above the root"))?;
    let (remote, credentials) =
        GitRemote::parse(&absolute).map_err(|_| refused("has an address that is not allowed"))?;
    if remote.transport() == GitTransport::Git {
        return Err(refused("has an address that is not https, http or ssh").into());
    }
    let registry = git.sources.images.registry();
    if registry.is_private_host(remote.host()).await && !registry.is_wholly_private_host(parent.host()).await {
        return Err(refused("has an address of a private network").into());
    }
    let op = GitSource {
        credentials,
        known_hosts: git.op.known_hosts.clone(),
        auth_header_secret: git.op.auth_header_secret.clone(),
        auth_token_secret: git.op.auth_token_secret.clone(),
        ssh: (remote.transport() == GitTransport::Ssh).then(|| git.op.ssh.clone().unwrap_or("default".to_owned())),
        ..GitSource::new(remote.as_str())
    };
    let whose = whose(&git.remote()?, &remote);
    let access = Access::new(git.sources, &op, &remote, whose, asked).await?;
    let repository = Repository::open(git.sources, access, &module.commit, asked).await?;
    let pinned = Pinned { commit: module.commit.clone(), tag: None, name: None };
    repository.fetch(&pinned, &pinned.commit, asked).await?;
    let entries = repository.entries(&module.commit, asked).await?;
    repository.check_out(&module.commit, root, place, asked).await?;
    let further = listed(&repository, &entries, asked).await?;
    Ok((remote, further))
}

/// Which secrets the server of a submodule may be given, when the user named the repository `first`. Who else wrote
/// addresses on the way there plays no part.
fn whose(first: &GitRemote, remote: &GitRemote) -> Whose {
    // The one host whose repositories all take one token.
    let github = [first, remote].iter().all(|remote| remote.host() == "github.com");
    match remote.transport() {
        GitTransport::Http if first.transport() != GitTransport::Http => Whose::Unencrypted,
        _ if github => Whose::Named,
        _ => Whose::Nested,
    }
}

/// The address of a submodule; one that begins with `./` or `../` counts from that of its repository.
fn absolute(parent: &str, url: &str) -> Option<String> {
    if !url.starts_with("./") && !url.starts_with("../") {
        return Some(url.to_owned());
    }
    let mut base = parent.trim_end_matches('/').to_owned();
    let root = base.find("://").map_or(0, |at| at + 3);
    for part in url.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                let cut = base[root..].rfind(['/', ':']).map(|at| root + at)?;
                base.truncate(cut + usize::from(base.as_bytes()[cut] == b':'));
            }
            part if base.ends_with(':') => base += part,
            part => base = format!("{base}/{part}"),
        }
    }
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_addresses_count_from_the_repository() {
        let check =
            |parent: &str, url: &str, expected: &str| assert_eq!(absolute(parent, url).as_deref(), Some(expected));
        check("https://h/a/b.git", "../c.git", "https://h/a/c.git");
        check("https://h/a/b.git", "./c.git", "https://h/a/b.git/c.git");
        check("https://h/a/b.git/", "../../c/d.git", "https://h/c/d.git");
        check("git@h:a/b.git", "../c.git", "git@h:a/c.git");
        check("git@h:b.git", "../c.git", "git@h:c.git");
        check("https://h/a", "https://other/c", "https://other/c");
        assert_eq!(absolute("https://h/a", "../../../x"), None);
    }

    // Seen to fail without the arm for HTTP.
    #[test]
    fn a102_secrets_do_not_leave_encryption_or_the_host_they_are_for() {
        let check = |first: &str, remote: &str, expected: Whose| {
            let [first, remote] = [first, remote].map(|url| GitRemote::parse(url).unwrap().0);
            assert_eq!(whose(&first, &remote), expected, "{first} {remote}");
        };
        check("https://github.com/a/b", "https://github.com/c/d", Whose::Named);
        check("https://h/a", "https://github.com/c/d", Whose::Nested);
        check("https://h/a", "https://h/b", Whose::Nested);
        check("https://github.com/a/b", "http://github.com/c/d", Whose::Unencrypted);
        check("git@h:a.git", "http://h/b", Whose::Unencrypted);
        check("http://h/a", "http://h/b", Whose::Nested);
    }

    #[test]
    fn gitmodules_are_read_as_git_prints_them() {
        let printed =
            b"submodule.a.b.path\nlib/a\0submodule.a.b.url\n../x\0submodule.n.path\nn\0submodule.n.update\nnone\0\
            submodule.p.path\np\0submodule.a.b.url\nlater\0";
        let found = addresses(printed);
        assert_eq!(found.get("lib/a"), Some(&Address::Url("../x".to_owned())));
        assert_eq!(found.get("n"), Some(&Address::Unused));
        assert_eq!(found.get("p"), None);
    }
}
