use crate::error::Refusal;
use crate::{attributes as attr, pb};
use forge_image::{Digest, Reference};
use forge_llb::{
    BlobSource, CompareFiles, GitForm, GitMtime, GitRemote, GitSource, HttpSource, ImageSource, LocalSource,
    OciLayoutSource, ResolveMode, SourceOp, check_git_reference, checked_git_checksum, cleaned_git_subdir,
    is_whole_commit,
};
use std::collections::BTreeMap;
use std::fmt::Display;

type Attributes = BTreeMap<String, String>;

pub fn decode(source: &pb::SourceOp) -> Result<SourceOp, Refusal> {
    let Some((scheme, place)) = source.identifier.split_once("://") else {
        return Refusal::malformed("the source has no scheme");
    };
    match scheme {
        "docker-image" => image(place, &source.attrs).map(SourceOp::Image),
        "local" => local(place, &source.attrs).map(SourceOp::Local),
        "oci-layout" => layout(place, &source.attrs).map(SourceOp::OciLayout),
        "git" => git(place, &source.attrs).map(SourceOp::Git),
        "docker-image+blob" => blob(place, &source.attrs, None).map(SourceOp::Blob),
        "oci-layout+blob" => blob(place, &source.attrs, Some(place)).map(SourceOp::Blob),
        "http" | "https" => http(&source.identifier, &source.attrs).map(SourceOp::Http),
        other => Refusal::unsupported(format!("a source of the kind {other}://")),
    }
}

fn image(place: &str, attributes: &Attributes) -> Result<ImageSource, Refusal> {
    let mut reference: Reference = read(place)?;
    let mut pinned = reference.digest().cloned();
    if let (Some(tag), Some(_)) = (reference.tag(), &pinned) {
        reference = reference.with_tag(tag).map_err(malformed)?;
    }
    let (mut resolve, mut checksum, mut layer_limit) = (ResolveMode::PreferLocal, None, None);
    for (name, value) in attributes {
        match name.as_str() {
            attr::IMAGE_RESOLVE_MODE => {
                resolve = match value.as_str() {
                    "" | "default" | "local" => ResolveMode::PreferLocal,
                    "pull" => ResolveMode::ForcePull,
                    _ => return Refusal::malformed(format!("{name} is {value:?}: expected default, pull or local")),
                }
            }
            // Of a name with a digest it is the manifest that the graph was made for.
            attr::IMAGE_CHECKSUM if pinned.is_some() => pinned = Some(read(value)?),
            attr::IMAGE_CHECKSUM => checksum = Some(read(value)?),
            attr::IMAGE_LAYER_LIMIT => {
                let limit = value.parse().ok().filter(|limit| *limit > 0);
                // The first words are BuildKit's.
                let wrong = || Refusal::Malformed(format!("invalid layer limit {value:.20}"));
                layer_limit = Some(limit.ok_or_else(wrong)?);
            }
            // What it is called in lists of disk usage.
            attr::IMAGE_RECORD_TYPE => {}
            _ => return unknown(name),
        }
    }
    Ok(ImageSource { reference, pinned, resolve, checksum, layer_limit })
}

fn local(place: &str, attributes: &Attributes) -> Result<LocalSource, Refusal> {
    let mut local = LocalSource::new(place);
    let (mut metadata_only, mut except) = (false, Vec::new());
    for (name, value) in attributes {
        match name.as_str() {
            attr::LOCAL_INCLUDE => local.include = patterns(name, value)?,
            attr::LOCAL_EXCLUDE => local.exclude = patterns(name, value)?,
            attr::LOCAL_FOLLOW => local.follow = patterns(name, value)?,
            attr::LOCAL_METADATA => {
                metadata_only = matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
            }
            attr::LOCAL_METADATA_EXCEPT => except = patterns(name, value)?,
            attr::LOCAL_DIFFER => {
                local.compare = match value.as_str() {
                    "" | "metadata" => CompareFiles::Metadata,
                    "none" => CompareFiles::Never,
                    _ => return Refusal::malformed(format!("{name} is {value:?}: expected none or metadata")),
                }
            }
            // Which client has the files, and how a transfer is kept.
            attr::LOCAL_SESSION | attr::LOCAL_UNIQUE | attr::LOCAL_SHARED_KEY_HINT => {}
            _ => return unknown(name),
        }
    }
    local.metadata_only = metadata_only.then_some(except);
    Ok(local)
}

fn layout(place: &str, attributes: &Attributes) -> Result<OciLayoutSource, Refusal> {
    let mut store = None;
    for (name, value) in attributes {
        match name.as_str() {
            attr::OCI_STORE => store = Some(value.as_str()).filter(|value| !value.is_empty()),
            attr::OCI_SESSION => {}
            _ => return unknown(name),
        }
    }
    let (name, digest) = match place.split_once('@') {
        Some((name, digest)) => (name, Some(read::<Digest>(digest)?)),
        None => (place, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.is_empty() && !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (name, None),
    };
    Ok(OciLayoutSource { name: store.unwrap_or(name).to_owned(), tag, digest })
}

/// A blob by its digest; `layout` names the layout that has it where nothing else does.
fn blob(place: &str, attributes: &Attributes, layout: Option<&str>) -> Result<BlobSource, Refusal> {
    let reference: Reference = read(place)?;
    let Some(digest) = reference.digest().cloned() else {
        return Refusal::malformed(format!("{place} is not the name of a blob: it has no digest"));
    };
    let named = layout.map(|place| place.split('@').next().unwrap_or(place).to_owned());
    let mut blob = BlobSource { reference, digest, layout: named, filename: None, mode: None, owner: None };
    let (mut uid, mut gid) = (None, None);
    for (name, value) in attributes {
        match name.as_str() {
            attr::HTTP_FILENAME => blob.filename = Some(value.clone()),
            attr::HTTP_PERM => blob.mode = Some(number(name, value)?).filter(|mode| *mode != 0),
            attr::HTTP_UID => uid = Some(number(name, value)?),
            attr::HTTP_GID => gid = Some(number(name, value)?),
            attr::OCI_STORE if layout.is_some() && !value.is_empty() => blob.layout = Some(value.clone()),
            attr::OCI_STORE | attr::OCI_SESSION if layout.is_some() => {}
            _ => return unknown(name),
        }
    }
    if uid.is_some() || gid.is_some() {
        blob.owner = Some((uid.unwrap_or(0), gid.unwrap_or(0)));
    }
    Ok(blob)
}

fn git(place: &str, attributes: &Attributes) -> Result<GitSource, Refusal> {
    let (address, fragment) = place.split_once('#').unwrap_or((place, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let address = match attributes.get(attr::GIT_FULL_URL) {
        Some(url) if !url.is_empty() => url.clone(),
        _ => address.to_owned(),
    };
    let (remote, credentials) = match GitRemote::parse(&address) {
        Ok(parsed) => parsed,
        // An address without a scheme is one of HTTPS.
        Err(error) if address.contains("://") => return Err(malformed(error)),
        Err(_) => GitRemote::parse(&format!("https://{address}")).map_err(malformed)?,
    };
    let mut git = GitSource {
        credentials,
        reference: (!reference.is_empty()).then(|| reference.to_owned()),
        subdir: cleaned_git_subdir(subdir).map_err(malformed)?,
        auth_token_secret: None,
        auth_header_secret: None,
        ..GitSource::new(remote.as_str())
    };
    git.reference.as_deref().map(check_git_reference).transpose().map_err(malformed)?;
    attributes.iter().try_for_each(|(name, value)| git_attribute(&mut git, name, value))?;
    git.bundle = bundle(attributes)?.map(Box::new);
    if git.bundle.is_some() && !git.checksum.as_deref().is_some_and(is_whole_commit) {
        return Refusal::malformed(format!("{} needs a whole commit in {}", attr::GIT_BUNDLE, attr::GIT_CHECKSUM));
    }
    if git.form == GitForm::Bundle && (git.keep_git_dir || !git.subdir.is_empty()) {
        return Refusal::malformed(format!("{} has neither .git nor folders", attr::GIT_CHECKOUT_BUNDLE));
    }
    match git.fetch_by_commit && !git.checksum.as_deref().is_some_and(is_whole_commit) {
        true => {
            Refusal::malformed(format!("{} needs a whole commit in {}", attr::GIT_FETCH_BY_COMMIT, attr::GIT_CHECKSUM))
        }
        false => Ok(git),
    }
}

/// The bundle that a repository's commit comes from: the address of a blob, with attributes of its own.
fn bundle(attributes: &Attributes) -> Result<Option<BlobSource>, Refusal> {
    let Some(address) = attributes.get(attr::GIT_BUNDLE).filter(|address| !address.is_empty()) else {
        return Ok(None);
    };
    let own = [attr::OCI_STORE, attr::OCI_SESSION];
    let own = attributes.iter().filter(|(name, _)| own.contains(&name.as_str()));
    let own: Attributes = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    match address.split_once("://") {
        Some(("docker-image+blob", place)) => blob(place, &Attributes::new(), None).map(Some),
        Some(("oci-layout+blob", place)) => blob(place, &own, Some(place)).map(Some),
        _ => Refusal::malformed(format!("{}: expected the address of a blob", attr::GIT_BUNDLE)),
    }
}

fn git_attribute(git: &mut GitSource, name: &str, value: &str) -> Result<(), Refusal> {
    let filled = || (!value.is_empty()).then(|| value.to_owned());
    match name {
        attr::GIT_FULL_URL => {}
        // Read by `bundle`.
        attr::GIT_BUNDLE | attr::OCI_STORE | attr::OCI_SESSION => {}
        attr::GIT_CHECKOUT_BUNDLE if value == "true" => git.form = GitForm::Bundle,
        attr::GIT_CHECKOUT_BUNDLE => {}
        attr::GIT_KEEP_DIR => git.keep_git_dir = value == "true",
        attr::GIT_SKIP_SUBMODULES => git.skip_submodules = value == "true",
        attr::GIT_FETCH_BY_COMMIT => git.fetch_by_commit = value == "true",
        attr::GIT_AUTH_TOKEN => git.auth_token_secret = filled(),
        attr::GIT_AUTH_HEADER => git.auth_header_secret = filled(),
        attr::GIT_KNOWN_HOSTS => git.known_hosts = filled(),
        attr::GIT_SSH => git.ssh = filled(),
        attr::GIT_CHECKSUM => {
            git.checksum = filled().map(|checksum| checked_git_checksum(&checksum)).transpose().map_err(malformed)?;
        }
        attr::GIT_MTIME => {
            git.mtime = match value {
                "" | "checkout" => GitMtime::Checkout,
                "commit" => GitMtime::Commit,
                _ => return Refusal::malformed(format!("{name} is {value:?}: expected checkout or commit")),
            }
        }
        _ => return unknown(name),
    }
    Ok(())
}

fn http(url: &str, attributes: &Attributes) -> Result<HttpSource, Refusal> {
    let mut http = HttpSource::new(url);
    let (mut uid, mut gid) = (None, None);
    for (name, value) in attributes {
        match name.as_str() {
            attr::HTTP_CHECKSUM => http.checksum = Some(read(value)?),
            attr::HTTP_FILENAME => http.filename = Some(value.clone()),
            attr::HTTP_PERM => http.mode = Some(number(name, value)?).filter(|mode| *mode != 0),
            attr::HTTP_UID => uid = Some(number(name, value)?),
            attr::HTTP_GID => gid = Some(number(name, value)?),
            attr::HTTP_AUTH_HEADER => http.auth_header_secret = Some(value.clone()),
            _ => match name.strip_prefix(attr::HTTP_HEADER) {
                Some(header @ ("accept" | "user-agent")) if is_header_value(value) => {
                    http.headers.insert(header.to_owned(), value.clone());
                }
                Some(_) => return Refusal::malformed(format!("{name}: only accept and user-agent can be set")),
                None => return unknown(name),
            },
        }
    }
    if uid.is_some() || gid.is_some() {
        http.owner = Some((uid.unwrap_or(0), gid.unwrap_or(0)));
    }
    Ok(http)
}

/// Whether a text can stand in a header: no line may end within it.
fn is_header_value(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' ' | b'\t' | 0x21..=0x7e))
}

/// A number as Go's `strconv.ParseInt` reads it with base 0.
fn number(name: &str, value: &str) -> Result<u32, Refusal> {
    let parsed = match (value.strip_prefix("0x"), value.strip_prefix("0o").or_else(|| value.strip_prefix('0'))) {
        (Some(digits), _) => u32::from_str_radix(digits, 16),
        (None, Some(digits)) if !digits.is_empty() => u32::from_str_radix(digits, 8),
        _ => value.parse(),
    };
    parsed.map_err(|_| Refusal::Malformed(format!("{name} is {value:?}: expected a number")))
}

fn patterns(name: &str, value: &str) -> Result<Vec<String>, Refusal> {
    serde_json::from_str(value).map_err(|_| Refusal::Malformed(format!("{name} is not a JSON list of texts")))
}

fn read<T: std::str::FromStr<Err: Display>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(malformed)
}

fn malformed(error: impl Display) -> Refusal {
    Refusal::Malformed(error.to_string())
}

fn unknown<T>(name: &str) -> Result<T, Refusal> {
    Refusal::unsupported(format!("the source attribute {name}"))
}
