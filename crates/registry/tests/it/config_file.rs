use forge_registry::DockerConfig;
use forge_session::{Credentials, Redacted};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tempfile::TempDir;

fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic { username: username.to_owned(), password: Redacted::new(password) }
}

fn config(text: &str) -> (TempDir, DockerConfig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, text).unwrap();
    (folder, DockerConfig::open(path))
}

/// A helper that keeps one entry in a file.
fn install_helper(folder: &Path) {
    let script = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo "$1" >> calls
case "$1" in
get) read -r server || true; [ -f entry ] || { echo "credentials not found in native keychain"; exit 1; }; cat entry;;
store) cat > entry;;
erase) rm -f entry;;
esac
"#;
    write_program(&folder.join("docker-credential-test"), script);
    write_program(
        &folder.join("docker-credential-broken"),
        "#!/bin/sh\nprintf 'the keyring \\033[2J is locked'; exit 3\n",
    );
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn entries_are_found_by_exact_host() {
    let (_folder, config) = config(
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "r.test:5000": {"auth": "YTpiOmM="},
            "https://old.test/v2/": {"auth": "b2xkOnB3"},
            "i.test": {"auth": "eDp5", "identitytoken": "tok"},
            "t.test": {"registrytoken": "raw"},
            "n.test": {"username": "u", "password": "p"},
            "e.test": {}
        }}"#,
    );
    let find = async |registry: &str| config.credentials(registry).await.unwrap();
    assert_eq!(find("docker.io").await, Some(basic("hub", "pw")));
    assert_eq!(find("r.test:5000").await, Some(basic("a", "b:c")));
    assert_eq!(find("old.test").await, Some(basic("old", "pw")));
    assert_eq!(find("i.test").await, Some(Credentials::RefreshToken(Redacted::new("tok"))));
    assert_eq!(find("t.test").await, Some(Credentials::Bearer(Redacted::new("raw"))));
    assert_eq!(find("n.test").await, Some(basic("u", "p")));
    // a77: ports, look-alikes and parents are other hosts.
    for other in ["e.test", "r.test", "r.test:5001", "xr.test:5000", "test", "index.docker.io.evil.test"] {
        assert_eq!(find(other).await, None, "{other}");
    }
}

#[tokio::test]
async fn a_missing_file_is_empty_and_a_broken_one_an_error_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let missing = DockerConfig::open(folder.path().join("none/config.json"));
    assert_eq!(missing.credentials("r.test").await.unwrap(), None);
    for text in [r#"{"auths": {"r.test": {"auth": "geheim"}}"#, "[]", r#"{"auths": {"r.test": {"auth": "geheim!"}}}"#] {
        let (_folder, config) = config(text);
        let error = config.credentials("r.test").await.unwrap_err();
        assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
    }
}

#[tokio::test]
async fn storing_keeps_what_it_does_not_know() {
    let text = r#"{"HttpHeaders": {"X": "y"}, "auths": {"a.test": {"auth": "YTpi", "email": "e"}, "https://r.test/v1/": {}}, "psFormat": "table"}"#;
    let (folder, config) = config(text);
    config.store("r.test", &basic("u", "p")).await.unwrap();
    config.store("docker.io", &Credentials::RefreshToken(Redacted::new("tok"))).await.unwrap();
    let written = fs::read_to_string(config.path()).unwrap();
    let expect = r#"{
	"HttpHeaders": {
		"X": "y"
	},
	"auths": {
		"a.test": {
			"auth": "YTpi",
			"email": "e"
		},
		"r.test": {
			"auth": "dTpw"
		},
		"https://index.docker.io/v1/": {
			"identitytoken": "tok"
		}
	},
	"psFormat": "table"
}"#;
    assert_eq!(written, expect);
    assert_eq!(fs::metadata(config.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(config.erase("r.test").await.unwrap());
    assert!(!config.erase("r.test").await.unwrap());
    assert_eq!(config.credentials("r.test").await.unwrap(), None);
    assert_eq!(config.credentials("a.test").await.unwrap(), Some(basic("a", "b")));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[tokio::test]
async fn a_symbolic_link_stays_one_and_a_new_folder_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real.json"), folder.path().join("config.json"));
    fs::write(&real, "{}").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    DockerConfig::open(&link).store("r.test", &basic("u", "p")).await.unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&real).unwrap().contains("dTpw"));
    let fresh = folder.path().join("new/.docker/config.json");
    DockerConfig::open(&fresh).store("r.test", &basic("u", "p")).await.unwrap();
    assert_eq!(fs::metadata(fresh.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn helpers_keep_credentials() {
    let (folder, config) = config(r#"{"credsStore": "broken", "credHelpers": {"r.test": "test"}}"#);
    install_helper(folder.path());
    let config = config.with_helper_directory(folder.path());
    assert_eq!(config.credentials("r.test").await.unwrap(), None);
    config.store("r.test", &basic("u", "geheim")).await.unwrap();
    assert_eq!(config.credentials("r.test").await.unwrap(), Some(basic("u", "geheim")));
    assert!(!fs::read_to_string(config.path()).unwrap().contains("geheim"));
    let kept = fs::read_to_string(folder.path().join("entry")).unwrap();
    assert_eq!(kept, r#"{"ServerURL":"r.test","Username":"u","Secret":"geheim"}"#);
    config.store("r.test", &Credentials::RefreshToken(Redacted::new("tok"))).await.unwrap();
    assert_eq!(config.credentials("r.test").await.unwrap(), Some(Credentials::RefreshToken(Redacted::new("tok"))));
    assert!(config.erase("r.test").await.unwrap());
    assert!(!config.erase("r.test").await.unwrap());
    assert_eq!(config.credentials("r.test").await.unwrap(), None);
}

#[tokio::test]
async fn a_failing_helper_is_named() {
    let (folder, config) = config(r#"{"credsStore": "broken"}"#);
    install_helper(folder.path());
    let config = config.with_helper_directory(folder.path());
    let error = config.credentials("r.test").await.unwrap_err().to_string();
    assert_eq!(
        error,
        "credential helper docker-credential-broken failed: the keyring \\x1b[2J is locked (exit status: 3)"
    );
    for name in ["absent", "../../evil"] {
        fs::write(config.path(), format!(r#"{{"credsStore": "{name}"}}"#)).unwrap();
        assert!(config.credentials("r.test").await.is_err());
    }
}
