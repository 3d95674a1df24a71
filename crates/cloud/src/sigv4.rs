//! AWS Signature Version 4, for requests with a small body ("Create a signed AWS API request", AWS General Reference).

use std::fmt::Write as _;
use std::time::SystemTime;

use hmac::{Hmac, KeyInit as _, Mac as _};
use kiln_oci::Redacted;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use url::Url;

/// Keys that requests to AWS are signed with.
#[derive(Clone, Debug)]
pub struct AwsKeys {
    /// The access key's id.
    pub access: String,
    /// The secret access key.
    pub secret: Redacted<String>,
    /// The session's token, for temporary keys.
    pub session: Option<Redacted<String>>,
}

/// What is signed, and for which service.
pub struct Request<'a> {
    /// `GET`, `POST`.
    pub method: &'a str,
    /// The address, encoded as it is sent.
    pub url: &'a Url,
    /// Headers beside `host`, `x-amz-date` and `x-amz-security-token`; names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
    /// `eu-west-1`.
    pub region: &'a str,
    /// `ecr`, `s3`, `sts`.
    pub service: &'a str,
}

/// The headers to add: `x-amz-date`, `x-amz-security-token` where the keys have one, and `authorization`.
pub fn sign(request: &Request<'_>, keys: &AwsKeys, now: SystemTime) -> Vec<(&'static str, String)> {
    let now = OffsetDateTime::from(now);
    let time =
        now.format(format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap_or_default();
    let date = &time[..8.min(time.len())];
    let mut added = vec![("x-amz-date", time.clone())];
    if let Some(session) = &keys.session {
        added.push(("x-amz-security-token", session.expose().clone()));
    }
    let mut headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .chain(added.iter().map(|(name, value)| ((*name).to_owned(), value.clone())))
        .chain([("host".to_owned(), authority(request.url))])
        .collect();
    headers.sort();
    let names = headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let mut query: Vec<(&str, &str)> = request
        .url
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    query.sort_unstable();
    let query = query.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
    let mut canonical = format!("{}\n{}\n{query}\n", request.method, request.url.path());
    for (name, value) in &headers {
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let _ = write!(canonical, "\n{names}\n{}", hex(&Sha256::digest(request.body)));
    let scope = format!("{date}/{}/{}/aws4_request", request.region, request.service);
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{}", keys.secret.expose()).into_bytes();
    for part in [date, request.region, request.service, "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    let signature = hex(&hmac(&key, to_sign.as_bytes()));
    added.push((
        "authorization",
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            keys.access
        ),
    ));
    added
}

/// Host and port of `url`, as they stand in it.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// From AWS's Signature Version 4 test suite: one key, one time, one service for all cases.
    fn signature(method: &str, query: &str, headers: &[(&str, &str)], body: &str) -> String {
        let keys = AwsKeys {
            access: "AKIDEXAMPLE".into(),
            secret: Redacted::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
            session: None,
        };
        let url = Url::parse(&format!("https://example.amazonaws.com/{query}")).unwrap();
        let request = Request {
            method,
            url: &url,
            headers,
            body: body.as_bytes(),
            region: "us-east-1",
            service: "service",
        };
        // 2015-08-30T12:36:00Z
        let signed = sign(&request, &keys, SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160));
        assert_eq!(signed[0].1, "20150830T123600Z");
        signed.last().unwrap().1.rsplit_once('=').unwrap().1.to_owned()
    }

    #[test]
    fn the_published_test_vectors_are_met() {
        assert_eq!(
            signature("GET", "", &[], ""),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(
            signature("POST", "", &[], ""),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
        assert_eq!(
            signature("GET", "?Param2=value2&Param1=value1", &[], ""),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
        );
        assert_eq!(
            signature("POST", "", &[("content-type", "application/x-www-form-urlencoded")], "Param1=value1"),
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        );
    }
}
