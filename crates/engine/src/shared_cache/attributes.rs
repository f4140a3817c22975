//! Shared caches as users name them: a type and attributes, as buildx and BuildKit's clients write them.

use super::{AT_ONCE, CacheBundle, CacheExport, CacheImport, CacheMode, CachePlace, SharedCaches};
use crate::{EngineError, LayerCompression, Transport};
use forge_cache::remote::{GhaPlace, ReapiPlace, ReapiSecurity, S3Credentials, S3Place};
use forge_image::{ErrorKind, Reference};
use forge_session::Redacted;
use std::path::PathBuf;
use std::time::Duration;

/// The wait for GitHub's service, as BuildKit has it.
const GHA_TIMEOUT: Duration = Duration::from_secs(600);
/// How old blobs of a bucket may get, as BuildKit has it.
const TOUCH_REFRESH: Duration = Duration::from_secs(24 * 3600);

impl SharedCaches {
    /// Adds a cache that is asked.
    ///
    /// # Errors
    /// Names the type or attribute that forge does not have, or the value that is none.
    pub fn add_import(&mut self, kind: &str, attributes: Vec<(String, String)>) -> Result<(), EngineError> {
        let mut fields = Fields { kind, attributes };
        if kind == "inline" {
            return Err(fields.unsupported("", "an image with a cache in it is read by type=registry"));
        }
        let place = fields.place("src")?;
        let verify_keys = fields.take("verify-key").map(|keys| keys.split(';').map(PathBuf::from).collect());
        if fields.take("digest").is_some() {
            let why = "every step has a record of its own, and no digest stands for all";
            return Err(fields.unsupported(" digest", why));
        }
        let mounts = fields.mounts()?;
        // How fast a service is written is no matter here.
        _ = fields.number("upload_parallelism")?;
        fields.finish()?;
        self.from.push(CacheImport { place, verify_keys: verify_keys.unwrap_or_default(), mounts });
        Ok(())
    }

    /// Adds a cache that is told.
    ///
    /// # Errors
    /// As [`SharedCaches::add_import`]; the same place a second time.
    pub fn add_export(&mut self, kind: &str, attributes: Vec<(String, String)>) -> Result<(), EngineError> {
        self.add(None, Fields { kind, attributes })
    }

    /// Adds a cache that is told, of which nothing says where it is but the place itself.
    ///
    /// # Errors
    /// As [`SharedCaches::add_export`].
    pub fn add_export_into(
        &mut self,
        place: CachePlace,
        kind: &str,
        attributes: Vec<(String, String)>,
    ) -> Result<(), EngineError> {
        self.add(Some(place), Fields { kind, attributes })
    }

    fn add(&mut self, place: Option<CachePlace>, mut fields: Fields<'_>) -> Result<(), EngineError> {
        let mode = match fields.take("mode").as_deref() {
            None | Some("max") => CacheMode::Max,
            Some("min") => CacheMode::Min,
            Some(other) => return Err(invalid(format!("mode={}: expected min or max", other.escape_debug()))),
        };
        // No failure of a cache is one of the build, unless that is asked for.
        let required = !fields.flag("ignore-error", true)?;
        if fields.kind == "inline" {
            // Which steps' results are in the image is all that an image can say; more is no error to ask for.
            fields.finish()?;
            self.inline = true;
            return Ok(());
        }
        let place = place.map_or_else(|| fields.place("dest"), Ok)?;
        fields.only("reset", false, "others may be writing to the folder")?;
        let force_compression = fields.flag("force-compression", false)?;
        let compression = fields.compression()?;
        let mounts = fields.mounts()?;
        let bundle = fields.bundle()?;
        let sign_key = fields.take("sign-key").map(PathBuf::from);
        let at_once = fields.number("upload_parallelism")?.map_or(AT_ONCE, |number| number as usize);
        fields.finish()?;
        if self.to.iter().any(|other| other.place == place) {
            return Err(invalid("duplicated cache exports to the same place"));
        }
        self.to.push(CacheExport {
            place,
            mode,
            compression,
            force_compression,
            sign_key,
            at_once,
            mounts,
            bundle,
            required,
        });
        Ok(())
    }
}

fn invalid(message: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::UserInput, message)
}

struct Fields<'a> {
    kind: &'a str,
    attributes: Vec<(String, String)>,
}

impl Fields<'_> {
    fn place(&mut self, folder: &str) -> Result<CachePlace, EngineError> {
        match self.kind {
            "registry" => {
                let reference = self.need("ref")?;
                let reference: Result<Reference, _> = reference.parse();
                let reference = reference.map_err(|error| invalid(format!("type=registry: {error}")))?;
                let transport = match self.flag("registry.insecure", false)? {
                    true => Transport::Plain,
                    false => Transport::Configured,
                };
                Ok(CachePlace::Registry(reference, transport))
            }
            "local" => {
                let folder = self.need(folder)?.into();
                Ok(CachePlace::Local { folder, tag: self.take("tag").unwrap_or_else(|| "latest".to_owned()) })
            }
            "s3" => self.s3().map(CachePlace::S3),
            "gha" => self.gha().map(CachePlace::Gha),
            "reapi" => self.reapi().map(CachePlace::Reapi),
            _ => Err(self.unsupported("", "there are registry, local, inline, s3, gha and reapi")),
        }
    }

    fn s3(&mut self) -> Result<S3Place, EngineError> {
        let key = self.take("access_key_id").zip(self.take("secret_access_key"));
        let session_token = self.take("session_token").filter(|token| !token.is_empty()).map(Redacted::new);
        let credentials = key.map(|(access_key_id, secret)| S3Credentials {
            access_key_id,
            secret_access_key: Redacted::new(secret),
            session_token,
        });
        self.only("disable_accept_encoding", true, "none is sent")?;
        let names = self.take("name").unwrap_or_else(|| "buildkit".to_owned());
        Ok(S3Place {
            bucket: self.need("bucket")?,
            region: self.need("region")?,
            endpoint: self.take("endpoint_url").filter(|url| !url.is_empty()),
            path_style: self.flag("use_path_style", false)?,
            prefix: self.take("prefix").unwrap_or_default(),
            blobs_prefix: self.take("blobs_prefix").unwrap_or_else(|| "blobs/".to_owned()),
            records_prefix: self.take("manifests_prefix").unwrap_or_else(|| "manifests/".to_owned()),
            names: names.split(';').map(str::to_owned).collect(),
            credentials,
            touch_refresh: self.duration("touch_refresh")?.unwrap_or(TOUCH_REFRESH),
        })
    }

    fn gha(&mut self) -> Result<GhaPlace, EngineError> {
        let first = self.take("url");
        let second = self.take("url_v2").filter(|url| !url.is_empty());
        let asked = self.take("version");
        if asked.as_deref() == Some("1") || (second.is_none() && first.is_some()) {
            return Err(self.unsupported(" version=1", "GitHub has the second version of its service only"));
        }
        let Some(url) = second else {
            let hint =
                "it is in ACTIONS_RESULTS_URL, which steps of a workflow that are no actions do not see by themselves";
            return Err(invalid("type=gha: url_v2 is missing").with_hint(hint));
        };
        Ok(GhaPlace {
            url,
            token: Redacted::new(self.need("token")?),
            scope: self.take("scope").unwrap_or_else(|| "buildkit".to_owned()),
            timeout: self.duration("timeout")?.unwrap_or(GHA_TIMEOUT),
        })
    }

    fn reapi(&mut self) -> Result<ReapiPlace, EngineError> {
        let address = self.need("addr")?;
        let instance = self.take("instance").unwrap_or_default();
        let (authority, security) = match (address.strip_prefix("grpcs://"), address.strip_prefix("grpc://")) {
            (Some(authority), _) => (authority, self.tls()?),
            (_, Some(authority)) => (authority, ReapiSecurity::Plain),
            _ => {
                let address = address.escape_debug();
                return Err(invalid(format!("addr={address}: expected grpc://HOST:PORT or grpcs://HOST[:PORT]")));
            }
        };
        Ok(ReapiPlace { authority: authority.trim_end_matches('/').to_owned(), instance, security })
    }

    /// Certificates, under the names that Bazel's options have.
    fn tls(&mut self) -> Result<ReapiSecurity, EngineError> {
        let trusted = self.take("tls_certificate").map(PathBuf::from);
        let pair = ["tls_client_certificate", "tls_client_key"].map(|name| self.take(name).map(PathBuf::from));
        let client = match pair {
            [Some(certificate), Some(key)] => Some((certificate, key)),
            [None, None] => None,
            _ => return Err(invalid("tls_client_certificate and tls_client_key go together")),
        };
        Ok(ReapiSecurity::Tls { trusted, client })
    }

    /// `mounts`, and the scope of those.
    fn mounts(&mut self) -> Result<Option<String>, EngineError> {
        let scope = self.take("mounts-scope");
        match (self.flag("mounts", false)?, self.kind) {
            (true, "gha") => Err(self.unsupported(" mounts", "entries of GitHub's cache stay as they are")),
            (true, _) => Ok(Some(scope.unwrap_or_default())),
            (false, _) if scope.is_some() => Err(invalid("mounts-scope is of no use without mounts=true")),
            (false, _) => Ok(None),
        }
    }

    /// What the document is to look like that names all records; `None` where nobody says so.
    fn bundle(&mut self) -> Result<Option<CacheBundle>, EngineError> {
        let is_said =
            self.attributes.iter().any(|(key, _)| matches!(key.as_str(), "oci-mediatypes" | "image-manifest"));
        match self.kind {
            "registry" | "local" => {
                let (docker, index) = (!self.flag("oci-mediatypes", true)?, !self.flag("image-manifest", true)?);
                Ok(is_said.then_some(CacheBundle { index, docker }))
            }
            _ => {
                self.only("oci-mediatypes", true, "records are OCI manifests")?;
                self.only("image-manifest", true, "records are image manifests")?;
                Ok(None)
            }
        }
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let place = self.attributes.iter().position(|(name, _)| name == key)?;
        Some(self.attributes.remove(place).1)
    }

    fn need(&mut self, key: &str) -> Result<String, EngineError> {
        let value = self.take(key).filter(|value| !value.is_empty());
        value.ok_or_else(|| invalid(format!("type={}: {key} is missing", self.kind)))
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool, EngineError> {
        match self.take(key).as_deref() {
            None => Ok(default),
            Some("" | "true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(invalid(format!("{key}={}: expected true or false", other.escape_debug()))),
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>, EngineError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let number = text.parse().map_err(|_| invalid(format!("{key}={}: expected a number", text.escape_debug())))?;
        Ok(Some(number))
    }

    /// A duration as Go writes it, in whole units.
    fn duration(&mut self, key: &str) -> Result<Option<Duration>, EngineError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let found = duration(&text);
        let found = found.ok_or_else(|| invalid(format!("{key}={}: expected a duration", text.escape_debug())))?;
        Ok(Some(found))
    }

    /// Takes a switch that forge has only in one position.
    fn only(&mut self, key: &str, position: bool, why: &str) -> Result<(), EngineError> {
        match self.flag(key, position)? == position {
            true => Ok(()),
            false => Err(self.unsupported(&format!(" {key}={}", !position), why)),
        }
    }

    fn compression(&mut self) -> Result<Option<LayerCompression>, EngineError> {
        let level = self.take("compression-level");
        let number = |text: String| {
            let number: Result<i32, _> = text.parse();
            number.map_err(|_| invalid(format!("compression-level={}: expected a number", text.escape_debug())))
        };
        let gzip = |level: i32| {
            let level = u32::try_from(level).ok().filter(|level| *level <= 9);
            level.ok_or_else(|| invalid("compression-level: gzip has levels 0 to 9"))
        };
        Ok(match (self.take("compression").as_deref(), level.map(number).transpose()?) {
            (None, None) => None,
            (None | Some("gzip"), level) => Some(LayerCompression::Gzip(level.map(gzip).transpose()?)),
            (Some("zstd"), level) => Some(LayerCompression::Zstd(level)),
            (Some("uncompressed"), _) => Some(LayerCompression::Uncompressed),
            (Some(other), _) => {
                return Err(self.unsupported(&format!(" compression={}", other.escape_debug()), "see --help"));
            }
        })
    }

    fn unsupported(&self, what: &str, why: &str) -> EngineError {
        let kind = self.kind.escape_debug();
        let message = format!("type={kind}{what} is not supported by this version of forge: {why}");
        EngineError::new(ErrorKind::Unsupported, message)
    }

    fn finish(self) -> Result<(), EngineError> {
        match self.attributes.first() {
            Some((key, _)) => Err(self.unsupported(&format!(" {}", key.escape_debug()), "it has no such attribute")),
            None => Ok(()),
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|one: char| !one.is_ascii_digit()).unwrap_or(rest.len());
        let number: u32 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let letters = after.find(|one: char| one.is_ascii_digit()).unwrap_or(after.len());
        let unit = match &after[..letters] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = &after[letters..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        text.split_terminator(',')
            .map(|field| field.split_once('=').unwrap())
            .map(|(a, b)| (a.into(), b.into()))
            .collect()
    }

    fn told(kind: &str, text: &str) -> String {
        match SharedCaches::default().add_export(kind, pairs(text)) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn places_are_read() {
        let mut caches = SharedCaches::default();
        caches.add_import("local", pairs("src=in,tag=x,verify-key=a;b")).unwrap();
        assert_eq!(caches.from[0].place, CachePlace::Local { folder: "in".into(), tag: "x".to_owned() });
        assert_eq!(caches.from[0].verify_keys, [PathBuf::from("a"), PathBuf::from("b")]);
        caches
            .add_export("registry", pairs("ref=r.test/app:cache,mode=min,compression=zstd,ignore-error=true"))
            .unwrap();
        assert_eq!((caches.to[0].mode, caches.to[0].compression), (CacheMode::Min, Some(LayerCompression::Zstd(None))));
        assert_eq!((caches.to[0].bundle, caches.to[0].required), (None, false));
        let mut named = SharedCaches::default();
        named.add_export("registry", pairs("ref=r.test/x,image-manifest=false,ignore-error=false")).unwrap();
        assert_eq!(named.to[0].bundle, Some(CacheBundle { index: true, docker: false }));
        assert!(named.to[0].required);
        caches.add_export("inline", pairs("mode=max")).unwrap();
        assert!(caches.inline);
        let s3 =
            "bucket=b,region=r,name=x;y,access_key_id=i,secret_access_key=k,upload_parallelism=9,touch_refresh=1h30m";
        caches.add_export("s3", pairs(s3)).unwrap();
        let CachePlace::S3(place) = &caches.to[1].place else { panic!("{:?}", caches.to[1]) };
        assert_eq!((place.names.as_slice(), caches.to[1].at_once), (&["x".to_owned(), "y".to_owned()][..], 9));
        assert_eq!(place.touch_refresh, Duration::from_secs(5400));
        assert!(!format!("{place:?}").contains("\"k\""), "{place:?}");
        caches.add_import("gha", pairs("url=http://old,url_v2=http://new,token=t,scope=main,timeout=90s")).unwrap();
        let CachePlace::Gha(place) = &caches.from[1].place else { panic!("{:?}", caches.from[1]) };
        assert_eq!((place.scope.as_str(), place.timeout), ("main", Duration::from_secs(90)));
        let again = caches.add_export("registry", pairs("ref=r.test/app:cache")).unwrap_err();
        assert_eq!(again.to_string(), "duplicated cache exports to the same place");
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        assert!(told("azblob", "").starts_with("type=azblob is not supported"));
        assert!(told("local", "dest=x,reset=true").starts_with("type=local reset=true is not supported"));
        assert!(told("s3", "bucket=b,region=r,oci-mediatypes=false").starts_with("type=s3 oci-mediatypes=false is"));
        assert!(told("local", "dest=x,colour=red").starts_with("type=local colour is not supported"));
        assert!(told("gha", "url=http://old,token=t").starts_with("type=gha version=1 is not supported"));
        assert_eq!(told("reapi", "addr=grpcs://x,tls_certificate=ca.pem"), "fine");
        assert!(told("reapi", "addr=grpc://x:1,tls_certificate=a").starts_with("type=reapi tls_certificate is not"));
        let half = told("reapi", "addr=grpcs://x:1,tls_client_key=a");
        assert_eq!(half, "tls_client_certificate and tls_client_key go together");
        assert_eq!(told("reapi", "addr=x:1"), "addr=x:1: expected grpc://HOST:PORT or grpcs://HOST[:PORT]");
        assert_eq!(told("reapi", "addr=grpc://x:1,instance=main"), "fine");
        assert_eq!(told("local", ""), "type=local: dest is missing");
        assert!(told("gha", "url_v2=http://x,token=t,mounts=true").starts_with("type=gha mounts is not supported"));
        assert_eq!(told("local", "dest=x,mounts-scope=y"), "mounts-scope is of no use without mounts=true");
        assert_eq!(told("local", "dest=x,mounts=true,mounts-scope=y"), "fine");
        assert_eq!(told("s3", "region=x"), "type=s3: bucket is missing");
        assert_eq!(told("local", "dest=x,mode=most"), "mode=most: expected min or max");
        let refused = SharedCaches::default().add_import("local", pairs("src=x,digest=sha256:a")).unwrap_err();
        assert!(refused.to_string().starts_with("type=local digest is not supported"), "{refused}");
    }
}
