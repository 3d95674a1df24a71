//! Archives elsewhere: at URLs and in object stores. They are unpacked while they come, in bounded memory, and a transfer
//! that breaks goes on where it was.

pub(crate) mod azure;
mod google;
mod ranges;
mod s3;
mod web;

use std::path::Path;

use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;

use crate::fetch::{Arrived, Pin, Source};
use crate::git::Progress;
use crate::{Access, ContextError, archive};

pub(crate) use ranges::{TRIES, is_passing};
pub(crate) use web::WebArchive;

/// An object store, and what it needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// Amazon's, or one that speaks its protocol (`S3_ENDPOINT`).
    S3,
    /// Google's, or its stand-in (`STORAGE_EMULATOR_HOST`).
    Google,
    /// An account of Azure's.
    Azure(azure::Account),
}

/// An object: an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// Where.
    pub store: Store,
    /// The bucket, or container.
    pub bucket: String,
    /// The object's name in it.
    pub key: String,
}

/// Makes requests for parts of one object, with credentials that were found before.
pub(crate) trait Requests: Send + Sync {
    /// A request for these bytes, both ends included.
    fn part(&self, first: u64, last: u64) -> Result<RequestBuilder, String>;

    /// Where the credentials came from, for messages; `None` is nobody's.
    fn credentials(&self) -> Option<&str>;

    /// What to do where there are no credentials.
    fn hint(&self) -> &'static str;

    /// The same for the place that an answer names instead (an S3 bucket's region).
    fn moved(&self, _status: StatusCode, _headers: &HeaderMap) -> Option<Box<dyn Requests>> {
        None
    }
}

impl Source for ObjectName {
    fn name(&self) -> String {
        match &self.store {
            Store::S3 => format!("s3://{}/{}", self.bucket, self.key),
            Store::Google => format!("gs://{}/{}", self.bucket, self.key),
            Store::Azure(account) => format!("{}{}/{}", account.base, self.bucket, self.key),
        }
    }

    fn fetch(&self, into: &Path, access: &Access) -> Result<Arrived, ContextError> {
        let fail = |why: String| ContextError::Fetch { context: self.name(), why };
        let requests: Box<dyn Requests> = access
            .runtime
            .block_on(async {
                Ok::<_, String>(match &self.store {
                    Store::S3 => {
                        Box::new(s3::open(&self.bucket, &self.key, access).await?) as Box<dyn Requests>
                    }
                    Store::Google => Box::new(google::open(&self.bucket, &self.key, access).await?),
                    Store::Azure(account) => {
                        Box::new(azure::open(account, &self.bucket, &self.key, access).await?)
                    }
                })
            })
            .map_err(fail)?;
        let progress = Progress::new(self.name(), access);
        let reader = ranges::read(requests, access, &progress);
        let digest = archive::unpack_stream(reader, &self.name(), into, access.digests)?;
        let pin = Pin::archive(self.name(), digest);
        Ok(Arrived { root: into.to_owned(), bytes: progress.bytes(), pin })
    }
}

/// An error with its causes: reqwest's own text leaves them out.
pub(crate) fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// Whether a request that failed so will fail so again: a certificate that nobody trusts, a redirect that is not followed.
pub(crate) fn is_lasting(why: &str) -> bool {
    why.contains("certificate") || why.contains("it redirects")
}

/// What a refusal means, from its status and the beginning of its body.
fn refusal(requests: &dyn Requests, status: StatusCode, body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let said = kiln_cloud::element(body, "Message")
        .or_else(|| kiln_cloud::element(body, "Code"))
        .or_else(|| json["error"]["message"].as_str())
        .unwrap_or_default();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
    let answers = format!("the server answers {status}{said}");
    match (status.as_u16(), requests.credentials()) {
        (401 | 403, Some(source)) => {
            format!("{answers}; asked with {source}: check that it is right and may read the object")
        }
        (401 | 403, None) => format!("{answers}; asked without credentials: {}", requests.hint()),
        (404, _) => format!("{answers}: there is no such object; check bucket and name"),
        _ => answers,
    }
}

/// A name as it stands in a URL's path: all but letters, digits, `-._~` and, if they stay, slashes is encoded.
fn encoded(name: &str, slashes: bool) -> String {
    use std::fmt::Write as _;
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'/' if slashes => text.push('/'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}
