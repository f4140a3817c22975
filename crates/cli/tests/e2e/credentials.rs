//! Logging in to a registry that wants it, with docker's configuration and with a credential helper.

use crate::fixture::{Forge, Outcome, may_run, run};
use crate::registry::{PASSWORD, Registry, USER};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// A helper that keeps what it is given in files beside itself, and writes down what it was asked.
const HELPER: &str = "#!/bin/sh
folder=$(dirname \"$0\")
input=$(cat)
echo \"$1\" >> \"$folder/asked\"
case $1 in
store) printf '%s' \"$input\" > \"$folder/kept\" ;;
get) cat \"$folder/kept\" 2>/dev/null || { echo 'credentials not found in native keychain'; exit 1; } ;;
erase) rm -f \"$folder/kept\" ;;
esac
";

fn login(command: &mut Command, password: &str) -> Outcome {
    run(command, format!("{password}\n").as_bytes())
}

fn login_words(registry: &Registry) -> [&str; 5] {
    ["login", "-u", USER, "--password-stdin", &registry.host]
}

#[track_caller]
fn never_shown(outcome: &Outcome, password: &str) {
    assert!(!format!("{}{}", outcome.stdout, outcome.stderr).contains(password), "{outcome:?}");
}

#[test]
fn privileged_dockers_configuration_keeps_a_login() {
    let test = "dockers_configuration_keeps_a_login";
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start_private(test) else { return };
    let name = format!("{}/team/app:1", registry.host);
    let config = forge.path(".docker/config.json");
    forge.ok(&["tag", "busybox", &name]);
    let refused = forge.fails(1, &["push", &name]);
    assert!(refused.stderr.contains(&format!("forge login {}", registry.host)), "{}", refused.stderr);

    let wrong = login(&mut forge.command(&login_words(&registry)), "close sesame");
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""), "{}", wrong.stderr);
    never_shown(&wrong, "close sesame");
    assert!(!config.exists(), "refused credentials are not kept");

    let accepted = login(&mut forge.command(&login_words(&registry)), PASSWORD);
    assert_eq!((accepted.code, accepted.stdout.as_str()), (0, "Login Succeeded\n"), "{}", accepted.stderr);
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert!(kept["auths"][&registry.host]["auth"].is_string(), "{kept}");
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);

    never_shown(&forge.ok(&["push", &name]), PASSWORD);
    let other = Forge::new();
    other.fails(1, &["pull", &name]);
    fs::create_dir(other.path(".docker")).unwrap();
    fs::copy(&config, other.path(".docker/config.json")).unwrap();
    other.ok(&["pull", &name]);
    let context = other.context("context", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
    other.build(&["--pull", "--push", "-t", &format!("{}/team/built:1", registry.host), &context]);

    let removed = forge.ok(&["logout", &registry.host]).stdout;
    assert_eq!(removed, format!("Removing login credentials for {}\n", registry.host));
    assert_eq!(forge.ok(&["logout", &registry.host]).stdout, format!("Not logged in to {}\n", registry.host));
    forge.fails(1, &["push", &name]);
}

#[test]
fn privileged_a_credential_helper_keeps_a_login() {
    let test = "a_credential_helper_keeps_a_login";
    if !may_run(test) {
        return;
    }
    let Some(forge) = Forge::privileged(test) else { return };
    let Some(registry) = Registry::start_private(test) else { return };
    let name = format!("{}/app:1", registry.host);
    forge.ok(&["tag", "busybox", &name]);
    forge.context("bin", &[("docker-credential-fake", HELPER)]);
    fs::set_permissions(forge.path("bin/docker-credential-fake"), fs::Permissions::from_mode(0o755)).unwrap();
    forge.context(".docker", &[("config.json", "{\"credsStore\": \"fake\"}")]);
    let path = format!("{}:/usr/bin:/bin", forge.path("bin").display());
    let with_helper = |words: &[&str]| {
        let mut command = forge.command(words);
        command.env("PATH", &path);
        command
    };
    let push = || run(&mut with_helper(&["push", &name]), b"");
    assert_eq!(push().code, 1, "the helper has nothing yet");

    let accepted = login(&mut with_helper(&login_words(&registry)), PASSWORD);
    assert_eq!((accepted.code, accepted.stdout.as_str()), (0, "Login Succeeded\n"), "{}", accepted.stderr);
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(forge.path("bin/kept")).unwrap()).unwrap();
    assert_eq!((kept["Username"].as_str(), kept["Secret"].as_str()), (Some(USER), Some(PASSWORD)));
    let config = fs::read_to_string(forge.path(".docker/config.json")).unwrap();
    assert!(!config.contains("\"auth\""), "{config}");
    let pushed = push();
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    never_shown(&pushed, PASSWORD);

    assert_eq!(run(&mut with_helper(&["logout", &registry.host]), b"").code, 0);
    assert!(!forge.path("bin/kept").exists());
    assert_eq!(push().code, 1);
    let asked = fs::read_to_string(forge.path("bin/asked")).unwrap();
    assert!(["store", "get", "erase"].iter().all(|verb| asked.lines().any(|line| line == *verb)), "{asked}");
}
