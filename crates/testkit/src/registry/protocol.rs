use super::state::{Access, Repository, State, pairs};
use super::{Received, Reply};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forge_image::{Digest, Hasher};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Answers a request as a good registry does (distribution specification 1.1).
pub(super) fn answer(state: &mut State, request: &Received) -> Reply {
    if request.path == "/token" {
        return token(state, request);
    }
    let Some(rest) = request.path.strip_prefix("/v2/") else { return error(404, "NOT_FOUND") };
    let place = place(rest);
    if let Some(refusal) = refuse(state, request, place.as_ref().map(|place| place.repository)) {
        return refusal;
    }
    let Some(place) = place else {
        return if rest.is_empty() { Reply::status(200).body("{}") } else { error(404, "NAME_UNKNOWN") };
    };
    let repository = place.repository.to_owned();
    match (place.kind, request.method.as_str()) {
        ("manifests", "GET" | "HEAD") => get_manifest(state, &repository, place.name),
        ("manifests", "PUT") => put_manifest(state, &repository, place.name, request),
        ("blobs/uploads", "POST") => begin_upload(state, &repository, request),
        ("blobs/uploads", _) => upload(state, &repository, place.name, request),
        ("blobs", "GET" | "HEAD") => get_blob(state, &repository, place.name, request),
        ("tags", "GET") => {
            let tags: Vec<&String> =
                state.repositories.get(&repository).map(|r| r.tags.keys().collect()).unwrap_or_default();
            Reply::status(200).body(json!({"name": repository, "tags": tags}).to_string())
        }
        _ => error(405, "UNSUPPORTED"),
    }
}

struct Place<'a> {
    repository: &'a str,
    kind: &'static str,
    name: &'a str,
}

fn place(rest: &str) -> Option<Place<'_>> {
    ["blobs/uploads", "blobs", "manifests", "tags"].into_iter().find_map(|kind| {
        let at = rest.rfind(&format!("/{kind}/"))?;
        Some(Place { repository: &rest[..at], kind, name: &rest[at + kind.len() + 2..] })
    })
}

fn error(status: u16, code: &str) -> Reply {
    let body = json!({"errors": [{"code": code, "message": code.to_lowercase().replace('_', " ")}]});
    Reply::status(status).header("content-type", "application/json").body(body.to_string())
}

fn login(request: &Received) -> Option<(String, String)> {
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

fn refuse(state: &State, request: &Received, repository: Option<&str>) -> Option<Reply> {
    match &state.access {
        Access::Everyone => None,
        Access::Basic { user, password } => {
            let fits = login(request) == Some((user.clone(), password.clone()));
            (!fits).then(|| error(401, "UNAUTHORIZED").header("www-authenticate", "Basic realm=\"test\""))
        }
        Access::Bearer { realm, .. } => {
            let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            let life = state.token_life.unwrap_or(Duration::MAX);
            let granted = token.and_then(|token| state.tokens.get(token));
            let granted = granted.filter(|(_, since)| since.elapsed() < life).map(|(scopes, _)| scopes);
            let action = if matches!(request.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" };
            let allowed = match (granted, repository) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(scopes), Some(repository)) => allows(scopes, repository, action),
            };
            let realm = realm.clone().unwrap_or_else(|| format!("{}/token", state.origin));
            let scope = repository.map(|name| format!(",scope=\"repository:{name}:{action}\"")).unwrap_or_default();
            let challenge = format!("Bearer realm=\"{realm}\",service=\"test\"{scope}");
            (!allowed).then(|| error(401, "UNAUTHORIZED").header("www-authenticate", &challenge))
        }
    }
}

fn allows(scopes: &[String], repository: &str, action: &str) -> bool {
    scopes.iter().any(|scope| {
        let words: Vec<&str> = scope.split(':').collect();
        matches!(words[..], ["repository", name, actions] if name == repository && actions.split(',').any(|a| a == action))
    })
}

/// Gives tokens by GET with user and password, by POST with the refresh token `refresh-USER`, or to anyone for pulls.
fn token(state: &mut State, request: &Received) -> Reply {
    let Access::Bearer { user, password, anonymous_pull, .. } = state.access.clone() else {
        return error(404, "NOT_FOUND");
    };
    let form = pairs(&String::from_utf8_lossy(&request.body));
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let (known, asked) = match request.method.as_str() {
        "POST" => (
            field("refresh_token") == Some(format!("refresh-{user}")),
            field("scope").unwrap_or_default().split(' ').map(str::to_owned).collect(),
        ),
        _ => (login(request) == Some((user.clone(), password)), request.queried("scope")),
    };
    let sent_proof = request.method == "POST" || request.header("authorization").is_some();
    if !known && (sent_proof || !anonymous_pull) {
        return Reply::status(401).body(json!({"details": "incorrect username or password"}).to_string());
    }
    let scopes = if known { asked } else { asked.iter().map(|scope| scope.replace(":pull,push", ":pull")).collect() };
    let token = format!("token-{}", state.number());
    state.tokens.insert(token.clone(), (scopes, Instant::now()));
    let mut document = json!({"token": token, "expires_in": 300});
    if request.queried("offline_token") == ["true"] && known {
        document["refresh_token"] = format!("refresh-{user}").into();
    }
    Reply::status(200).header("content-type", "application/json").body(document.to_string())
}

fn find<'a>(state: &'a State, repository: &str, name: &str) -> Option<(Digest, &'a (String, Vec<u8>))> {
    let repository = state.repositories.get(repository)?;
    let digest = name.parse::<Digest>().ok().or_else(|| repository.tags.get(name).cloned())?;
    repository.manifests.get(&digest).map(|manifest| (digest, manifest))
}

fn get_manifest(state: &State, repository: &str, name: &str) -> Reply {
    match find(state, repository, name) {
        None => error(404, "MANIFEST_UNKNOWN"),
        Some((digest, (media_type, bytes))) => Reply::status(200)
            .header("content-type", media_type)
            .header("docker-content-digest", digest.as_str())
            .body(bytes.clone()),
    }
}

fn put_manifest(state: &mut State, name: &str, reference: &str, request: &Received) -> Reply {
    let digest = Digest::sha256(&request.body);
    let media_type = request.header("content-type").unwrap_or_default().to_owned();
    let Ok(document) = serde_json::from_slice::<Value>(&request.body) else { return error(400, "MANIFEST_INVALID") };
    let repository = state.repositories.entry(name.to_owned()).or_default();
    if let Some(missing) = missing(repository, &document) {
        return error(400, "MANIFEST_BLOB_UNKNOWN").header("x-missing", &missing);
    }
    match reference.parse::<Digest>() {
        Ok(wanted) if wanted != digest => return error(400, "DIGEST_INVALID"),
        Ok(_) => {}
        Err(_) => drop(repository.tags.insert(reference.to_owned(), digest.clone())),
    }
    repository.manifests.insert(digest.clone(), (media_type, request.body.clone()));
    Reply::status(201)
        .header("location", &format!("/v2/{name}/manifests/{digest}"))
        .header("docker-content-digest", digest.as_str())
}

/// The first thing that a manifest or an index refers to and the repository has not.
fn missing(repository: &Repository, document: &Value) -> Option<String> {
    let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    // Those with addresses of their own are fetched there.
    let layers = list("layers").into_iter().filter(|layer| layer.get("urls").is_none());
    let blobs = layers.chain(document.get("config").cloned());
    let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
    let has_blob = |text: &String| text.parse().is_ok_and(|digest: Digest| repository.blobs.contains_key(&digest));
    let has_manifest =
        |text: &String| text.parse().is_ok_and(|digest: Digest| repository.manifests.contains_key(&digest));
    let no_blob = blobs.map(|descriptor| digest(&descriptor)).find(|text| !has_blob(text));
    no_blob.or_else(|| list("manifests").iter().map(digest).find(|text| !has_manifest(text)))
}

fn get_blob(state: &State, repository: &str, name: &str, request: &Received) -> Reply {
    let digest = name.parse::<Digest>().ok();
    let repository = state.repositories.get(repository);
    let Some(bytes) = digest.as_ref().and_then(|digest| repository?.blobs.get(digest)) else {
        return error(404, "BLOB_UNKNOWN");
    };
    let range = request.header("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = bytes.len().saturating_sub(1);
        Some((start.parse::<usize>().ok()?, end.parse::<usize>().map_or(last, |end| end.min(last))))
    });
    match range {
        Some((start, end)) if start < bytes.len() && start <= end => Reply::status(206)
            .header("content-range", &format!("bytes {start}-{end}/{}", bytes.len()))
            .body(&bytes[start..=end]),
        Some(_) => Reply::status(416),
        None => Reply::status(200).header("docker-content-digest", name).body(bytes.clone()),
    }
}

fn begin_upload(state: &mut State, name: &str, request: &Received) -> Reply {
    let mount = request.queried("mount").first().and_then(|digest| digest.parse::<Digest>().ok());
    let from = request.queried("from");
    if let (Some(digest), Some(from)) = (mount, from.first())
        && let Some(bytes) = state.repositories.get(from).and_then(|other| other.blobs.get(&digest)).cloned()
    {
        state.repositories.entry(name.to_owned()).or_default().blobs.insert(digest.clone(), bytes);
        return Reply::status(201).header("location", &format!("/v2/{name}/blobs/{digest}"));
    }
    let id = state.number().to_string();
    state.uploads.insert(id.clone(), Vec::new());
    // Real registries keep state in the query: clients must not lose it.
    Reply::status(202)
        .header("location", &format!("/v2/{name}/blobs/uploads/{id}?_state=a%2Fb%3D&n=0"))
        .header("range", "0-0")
}

fn upload(state: &mut State, name: &str, id: &str, request: &Received) -> Reply {
    if request.queried("_state") != ["a/b="] {
        return error(400, "BLOB_UPLOAD_INVALID");
    }
    let Some(received) = state.uploads.get_mut(id) else { return error(404, "BLOB_UPLOAD_UNKNOWN") };
    let location = format!("/v2/{name}/blobs/uploads/{id}?_state=a%2Fb%3D&n={}", received.len());
    let range = |length: usize| format!("0-{}", length.saturating_sub(1));
    match request.method.as_str() {
        "PATCH" => {
            let start =
                request.header("content-range").and_then(|range| range.split('-').next()?.parse::<usize>().ok());
            if start.is_some_and(|start| start != received.len()) {
                return Reply::status(416).header("location", &location).header("range", &range(received.len()));
            }
            received.extend_from_slice(&request.body);
            Reply::status(202).header("location", &location).header("range", &range(received.len()))
        }
        "GET" => Reply::status(204).header("location", &location).header("range", &range(received.len())),
        "PUT" => {
            received.extend_from_slice(&request.body);
            let bytes = received.clone();
            commit(state, name, id, bytes, request)
        }
        "DELETE" => {
            state.uploads.remove(id);
            Reply::status(204)
        }
        _ => error(405, "UNSUPPORTED"),
    }
}

fn commit(state: &mut State, name: &str, id: &str, bytes: Vec<u8>, request: &Received) -> Reply {
    let mut hasher = Hasher::new();
    hasher.update(&bytes);
    let digest = hasher.finish();
    if request.queried("digest") != [digest.to_string()] {
        return error(400, "DIGEST_INVALID");
    }
    state.uploads.remove(id);
    state.repositories.entry(name.to_owned()).or_default().blobs.insert(digest.clone(), bytes);
    Reply::status(201)
        .header("location", &format!("/v2/{name}/blobs/{digest}"))
        .header("docker-content-digest", digest.as_str())
}
