//! How requests to S3 are signed: AWS Signature Version 4.

use forge_image::Digest;
use forge_session::Redacted;
use ring::hmac;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Credentials {
    /// The id of the key.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: Redacted,
    /// There with a key that is valid for some time only.
    pub session_token: Option<Redacted>,
}

/// What is signed of a request.
pub(super) struct Signed<'a> {
    pub method: &'a str,
    /// Host, and port where it is not the scheme's.
    pub host: &'a str,
    /// With everything escaped that is not unreserved.
    pub path: &'a str,
    /// Names with their values, `a=1&b=`, in order and escaped likewise.
    pub query: &'a str,
    /// Beside those that every request has; names in lower case.
    pub headers: &'a [(&'static str, String)],
    /// The body's SHA-256 in hexadecimal.
    pub sha256: &'a str,
    pub region: &'a str,
    pub now: SystemTime,
}

/// The headers of a signed request, and its `Authorization`.
pub(super) fn sign(request: &Signed<'_>, who: &S3Credentials) -> (Vec<(&'static str, String)>, Redacted) {
    let time = amz_date(request.now);
    let mut headers = request.headers.to_vec();
    headers.push(("x-amz-content-sha256", request.sha256.to_owned()));
    headers.push(("x-amz-date", time.clone()));
    if let Some(token) = &who.session_token {
        headers.push(("x-amz-security-token", token.reveal().to_owned()));
    }
    let mut signed: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.trim())).collect();
    signed.push(("host", request.host));
    signed.sort_unstable();
    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let Signed { method, path, query, sha256, region, .. } = request;
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{sha256}");
    let scope = format!("{}/{region}/s3/aws4_request", &time[..8]);
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", Digest::sha256(canonical.as_bytes()).hex());
    let signature = hex::encode(keyed(&signing_key(who, &time[..8], region), &text));
    let who = &who.access_key_id;
    let value = format!("AWS4-HMAC-SHA256 Credential={who}/{scope},SignedHeaders={names},Signature={signature}");
    (headers, Redacted::new(value))
}

fn signing_key(who: &S3Credentials, day: &str, region: &str) -> Vec<u8> {
    let first = format!("AWS4{}", who.secret_access_key.reveal()).into_bytes();
    [day, region, "s3", "aws4_request"].iter().fold(first, |key, text| keyed(&key, text))
}

fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// `20130524T000000Z`.
fn amz_date(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last one.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Escapes a path as S3 does: everything but unreserved characters and slashes.
pub(super) fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte as char),
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The example `GET Object` of "Signature Calculations for the Authorization Header" of the Amazon S3 API reference.
    #[test]
    fn the_example_of_the_reference_is_signed_as_there() {
        let who = S3Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: Redacted::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        };
        let request = Signed {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: "",
            headers: &[("range", "bytes=0-9".to_owned())],
            sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            region: "us-east-1",
            now: UNIX_EPOCH + Duration::from_secs(1_369_353_600),
        };
        let (headers, authorization) = sign(&request, &who);
        assert_eq!(headers[2], ("x-amz-date", "20130524T000000Z".to_owned()));
        assert_eq!(
            authorization.reveal(),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// The example `GET Bucket (List Objects)` of the same page.
    #[test]
    fn a_query_is_signed_too() {
        let who = S3Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: Redacted::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
        };
        let request = Signed {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/",
            query: "max-keys=2&prefix=J",
            headers: &[],
            sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            region: "us-east-1",
            now: UNIX_EPOCH + Duration::from_secs(1_369_353_600),
        };
        let (_, authorization) = sign(&request, &who);
        let signature = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
        assert!(authorization.reveal().ends_with(signature), "{}", authorization.reveal());
    }

    #[test]
    fn moments_are_written_as_dates() {
        let at = |seconds| amz_date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_868_799), "20000229T235959Z");
        assert_eq!(at(1_735_689_600), "20250101T000000Z");
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("/a b/sha256:x~"), "/a%20b/sha256%3Ax~");
    }
}
