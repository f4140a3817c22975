use super::output::csv;
use crate::args::BuildArgs;
use crate::environment::Environment;
use crate::sanitise;
use anyhow::{Context, bail};
use forge_client::CacheEntry;
use forge_engine::{EngineError, SharedCaches};
use std::collections::HashMap;

/// Reads `--cache-from` and `--cache-to`: a reference, or `type=…,key=value` in CSV as buildx takes it. What services need and
/// their users have in the environment is taken from there.
///
/// # Errors
/// Names the type or key that forge does not have, or the value that is none.
pub(super) fn caches(from: &[String], to: &[String], environment: &Environment) -> anyhow::Result<SharedCaches> {
    let mut caches = SharedCaches::default();
    let told = |flag: &str, error: EngineError| {
        let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        anyhow::anyhow!("--{flag} {}{hint}", sanitise::line(&error.to_string()))
    };
    for text in from.iter().filter(|text| !text.is_empty()) {
        let (kind, attributes) = fields("cache-from", text, environment)?;
        caches.add_import(&kind, attributes).map_err(|error| told("cache-from", error))?;
    }
    for text in to.iter().filter(|text| !text.is_empty()) {
        let (kind, attributes) = fields("cache-to", text, environment)?;
        caches.add_export(&kind, attributes).map_err(|error| told("cache-to", error))?;
    }
    Ok(caches)
}

/// What a daemon is told of the caches of a build, those that are asked first; it reads the attributes itself. `is_inline` says
/// that the image is to have one in it.
///
/// # Errors
/// A cache whose keys would have to be on the daemon's machine.
pub fn cache_entries(
    args: &BuildArgs,
    environment: &Environment,
    is_inline: bool,
) -> anyhow::Result<(Vec<CacheEntry>, Vec<CacheEntry>)> {
    let entries = |flag: &str, texts: &[String]| -> anyhow::Result<Vec<CacheEntry>> {
        let texts = texts.iter().filter(|text| !text.is_empty());
        texts
            .map(|text| {
                let (kind, attributes) = fields(flag, text, environment)?;
                let is_file = |(name, _): &&(String, String)| matches!(name.as_str(), "sign-key" | "verify-key");
                if let Some((name, _)) = attributes.iter().find(is_file) {
                    bail!("--{flag} {name} is not supported for a build by a daemon or a front end image");
                }
                Ok(CacheEntry { kind, attributes: attributes.into_iter().collect() })
            })
            .collect()
    };
    let imports = entries("cache-from", &args.cache_from)?;
    let mut exports = entries("cache-to", &args.cache_to)?;
    if is_inline && exports.iter().all(|entry| entry.kind != "inline") {
        exports.push(CacheEntry { kind: "inline".to_owned(), attributes: HashMap::new() });
    }
    Ok((imports, exports))
}

type Pairs = Vec<(String, String)>;

fn fields(flag: &str, text: &str, environment: &Environment) -> anyhow::Result<(String, Pairs)> {
    if !text.contains('=') {
        return Ok(("registry".to_owned(), vec![("ref".to_owned(), text.to_owned())]));
    }
    let pair = |field: String| -> anyhow::Result<(String, String)> {
        let pair = field.split_once('=');
        let (key, value) = pair.with_context(|| format!("--{flag}: {field:?} is not key=value"))?;
        Ok((key.trim().to_ascii_lowercase(), value.to_owned()))
    };
    let mut pairs = csv(text)?.into_iter().map(pair).collect::<anyhow::Result<Pairs>>()?;
    let place = pairs.iter().position(|(key, _)| key == "type");
    let kind = pairs.remove(place.with_context(|| format!("--{flag}: type is missing"))?).1;
    add_from_environment(&kind, &mut pairs, environment);
    Ok((kind, pairs))
}

fn add_from_environment(kind: &str, pairs: &mut Pairs, environment: &Environment) {
    let mut add = |name: &str, variable: &str| {
        if let Some(value) = environment.filled(variable).filter(|_| pairs.iter().all(|(key, _)| key != name)) {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    };
    match kind {
        "s3" => {
            add("bucket", "AWS_BUCKET");
            add("region", "AWS_REGION");
            // All of one source or nothing: a key with another one's token would be refused.
            if pairs.iter().all(|(key, _)| key != "access_key_id" && key != "secret_access_key") {
                let mut add = |name: &str, variable: &str| {
                    pairs.extend(environment.filled(variable).map(|value| (name.to_owned(), value.to_owned())));
                };
                add("access_key_id", "AWS_ACCESS_KEY_ID");
                add("secret_access_key", "AWS_SECRET_ACCESS_KEY");
                add("session_token", "AWS_SESSION_TOKEN");
            }
        }
        "gha" => {
            add("url_v2", "ACTIONS_RESULTS_URL");
            add("token", "ACTIONS_RUNTIME_TOKEN");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forge_engine::{CachePlace, Transport};

    fn told(from: &str, to: &str) -> String {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match caches(&list(from), &list(to), &Environment::default()) {
            Ok(_) => "fine".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn places_and_how_they_are_written() {
        let caches = caches(&["r.test/app".to_owned()], &[], &Environment::default()).unwrap();
        assert_eq!(caches.from[0].place, CachePlace::Registry("r.test/app".parse().unwrap(), Transport::Configured));
        assert_eq!(told("", "type=local,dest=a type=local,dest=b type=inline"), "fine");
        assert_eq!(told("", "r.test/a,type=registry"), "--cache-to: \"r.test/a\" is not key=value");
        assert_eq!(told("", "mode=max"), "--cache-to: type is missing");
        assert!(told("", "type=azblob").starts_with("--cache-to type=azblob is not supported"));
        assert_eq!(told("", "type=local"), "--cache-to type=local: dest is missing");
        assert_eq!(told("", "r.test/a r.test/a"), "--cache-to duplicated cache exports to the same place");
        assert!(told("UPPER", "").contains("UPPER"), "{}", told("UPPER", ""));
    }

    #[test]
    fn services_are_known_from_the_environment() {
        let environment = Environment::from([
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
            ("ACTIONS_RESULTS_URL", "https://results.test/"),
            ("ACTIONS_RUNTIME_TOKEN", "token"),
        ]);
        let from = ["type=s3,bucket=b".to_owned(), "type=gha".to_owned(), "type=s3,bucket=b,region=r".to_owned()];
        let caches = caches(&from, &[], &environment).unwrap();
        let CachePlace::S3(place) = &caches.from[0].place else { panic!("{caches:?}") };
        assert_eq!(place.region, "eu-west-1");
        assert_eq!(place.credentials.as_ref().unwrap().access_key_id, "id");
        let CachePlace::Gha(place) = &caches.from[1].place else { panic!("{caches:?}") };
        assert_eq!((place.url.as_str(), place.token.reveal()), ("https://results.test/", "token"));
        let CachePlace::S3(place) = &caches.from[2].place else { panic!("{caches:?}") };
        assert_eq!(place.region, "r");
    }
}
