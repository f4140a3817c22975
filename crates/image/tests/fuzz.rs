//! P09 and the part of P10 that this crate parses: documents and names from strangers.

#[path = "../../testkit/src/fuzz.rs"]
#[allow(dead_code, reason = "targets use parts of it")]
mod fuzz;

use forge_image::{Digest, ImageConfig, Index, Manifest, Platform, Reference};
use serde_json::Value;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn documents() -> [String; 3] {
    let blob = |kind: &str| {
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{DIGEST}","size":7,"x":1}}"#)
    };
    [
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}],"annotations":{{"a":"b"}},"later":{{"y":[1]}}}}"#,
            blob("config.v1+json"),
            blob("layer.v1.tar+gzip")
        ),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}],"later":null}}"#,
            blob("manifest.v1+json")
        ),
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"],"Later":true}},"rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}},"history":[{{"created_by":"x","empty_layer":true}}],"later":1}}"#
        ),
    ]
}

const PIECES: [&str; 22] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "-1",
    "1e400",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "sha256:",
    "\"size\"",
    "\"digest\"",
    "\"mediaType\"",
    "\"config\"",
    "\"layers\"",
    "\"rootfs\"",
    "é",
];

/// What was read is written so that it reads as the same again, and fields that nobody knows stay.
fn check(bytes: &[u8], again: impl Fn(&[u8]) -> Option<Vec<u8>>) -> bool {
    let Some(written) = again(bytes) else { return false };
    assert_eq!(again(&written).as_deref(), Some(&written[..]), "{}", written.escape_ascii());
    let (before, after) = (serde_json::from_slice::<Value>(bytes), serde_json::from_slice::<Value>(&written));
    if let (Ok(before), Ok(after)) = (before, after) {
        assert_eq!(before.get("later"), after.get("later"), "{}", bytes.escape_ascii());
    }
    true
}

#[test]
fn fuzz_p09_documents_are_read_or_refused_and_keep_what_is_unknown() {
    let documents = documents();
    let (mut taken, mut cases) = (0, 0);
    fuzz::run("P09", |random| {
        let one = random.below(3);
        let bytes = match random.below(8) {
            0 => documents[one].clone().into_bytes(),
            _ => random.mutated(documents[one].as_bytes(), &PIECES),
        };
        let read = match one {
            0 => check(&bytes, |bytes| Some(Manifest::from_json(bytes, None).ok()?.to_json())),
            1 => check(&bytes, |bytes| Some(Index::from_json(bytes, None).ok()?.to_json())),
            _ => check(&bytes, |bytes| Some(ImageConfig::from_json(bytes).ok()?.to_json())),
        };
        taken += usize::from(read);
        cases += 1;
    });
    assert!(cases < 100 || taken > cases / 20, "{taken} of {cases} were taken");
}

const NAME_PIECES: [&str; 20] = [
    "a",
    "B",
    "0",
    "/",
    "//",
    ":",
    "@",
    ".",
    "..",
    "-",
    "_",
    "__",
    "localhost",
    "r.test:5000",
    "[::1]:80",
    "latest",
    DIGEST,
    "\u{1b}",
    "é",
    "\0",
];

/// Names, digests and platforms are refused, or they read as what they are written as; none holds what a path or a header
/// could be led astray by.
#[test]
fn fuzz_p10_names_are_refused_or_round_trip() {
    fuzz::run("P10", |random| {
        let text = random.text(&NAME_PIECES, 8);
        if let Ok(name) = text.parse::<Reference>() {
            let written = name.to_string();
            assert_eq!(written.parse::<Reference>().as_ref(), Ok(&name), "{text:?}");
            let parts = written.split(['/', ':', '@']).all(|part| !matches!(part, "" | "." | ".."));
            assert!(parts || written.contains('['), "{written:?}");
            assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written:?}");
            assert_eq!(name.familiar().parse::<Reference>().as_ref(), Ok(&name), "{text:?}");
        }
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
            assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse::<Platform>().ok(), Some(platform), "{text:?}");
        }
    });
}
