//! Answers: reading a response's body without waiting for ever, and turning what is no success into a typed error.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use oci_client::errors::{OciEnvelope, OciErrorCode};
use tokio::sync::OwnedSemaphorePermit;

use crate::retry::{Again, Failure, retry_after};
use crate::{Attempt, RegistryError};

/// A response whose body has not been read. The registry's slot is taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: reqwest::Response,
    pub(crate) at: Attempt,
    pub(crate) stall: Duration,
    pub(crate) _slot: Option<OwnedSemaphorePermit>,
}

/// The most that is read of an error's body.
const MOST_OF_AN_ERROR: usize = 64 * 1024;

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The first and the last byte that a partial answer holds, as it says.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let range = self.header("content-range")?.trim().strip_prefix("bytes")?.trim();
        let (first, last) = range.split('/').next()?.split_once('-')?;
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    }

    /// The failure of a sink that didn't take this answer's bytes.
    pub(crate) fn not_written(&self, source: std::io::Error) -> Failure {
        Failure::never(RegistryError::Write { at: Box::new(self.at.clone()), source })
    }

    /// An error of this answer that says `what` is wrong with it.
    pub(crate) fn protocol(&self, what: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { at: Box::new(self.at.clone()), what: what.into() }
    }

    /// The next bytes of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(network(&self.at, error)),
            Err(_) => Err(stalled(&self.at, self.stall)),
        }
    }

    /// The whole body, if it is no longer than `most` bytes.
    pub(crate) async fn body(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > most {
                let what = format!("it is longer than {most} bytes");
                return Err(Failure::never(self.protocol(what)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// This answer, if it is a success, or else the error that it means.
    pub(crate) async fn success(self) -> Result<Self, Failure> {
        if self.status().is_success() { Ok(self) } else { Err(self.failure().await) }
    }

    /// The error that this answer means.
    pub(crate) async fn failure(mut self) -> Failure {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > MOST_OF_AN_ERROR {
                break;
            }
        }
        classify(&self.at, self.status(), self.headers(), &body)
    }
}

/// The error that a status and a body mean, and whether to try again.
pub(crate) fn classify(at: &Attempt, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let (detail, limited) = detail(body);
    let boxed = Box::new(at.clone());
    let error = match status.as_u16() {
        401 => RegistryError::Unauthorized { at: boxed, detail },
        429 => RegistryError::RateLimited { at: boxed, detail },
        _ if limited => RegistryError::RateLimited { at: boxed, detail },
        403 => RegistryError::Denied { at: boxed, detail },
        404 => RegistryError::NotFound { at: boxed, detail },
        code => RegistryError::Refused { at: boxed, status: code, detail },
    };
    let again = match &error {
        RegistryError::RateLimited { .. } => Again::Later(retry_after(headers)),
        RegistryError::Refused { status, .. }
            if matches!(status, 408 | 425 | 500..=599) && *status != 501 =>
        {
            Again::Later(retry_after(headers))
        }
        _ => Again::Never,
    };
    Failure { error, again }
}

/// What an error's body says, on one line, and whether it says that we ask too often.
fn detail(body: &[u8]) -> (String, bool) {
    if let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) {
        let limited = envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests);
        let mut text = String::new();
        for error in &envelope.errors {
            let code = serde_json::to_value(&error.code).unwrap_or_default();
            append(&mut text, code.as_str().unwrap_or_default(), &error.message);
            if let Some(more) = error.detail.as_str() {
                append(&mut text, "", more);
            }
        }
        return (shorten(&text), limited);
    }
    // Registries have codes of their own, which oci-client's list doesn't hold, and shapes of their own.
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) {
        let mut text = String::new();
        for error in value["errors"].as_array().into_iter().flatten().chain([&value]) {
            let word = |name: &str| error[name].as_str().unwrap_or_default();
            let message = [word("message"), word("error_description"), word("error"), word("details")];
            append(&mut text, word("code"), message.into_iter().find(|m| !m.is_empty()).unwrap_or_default());
        }
        return (shorten(&text), text.contains("TOOMANYREQUESTS"));
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    // A page is for browsers.
    if text.starts_with('<') { (String::new(), false) } else { (shorten(text), false) }
}

fn append(text: &mut String, code: &str, message: &str) {
    let gap = if text.is_empty() || (code.is_empty() && message.is_empty()) { "" } else { "; " };
    let colon = if code.is_empty() || message.is_empty() { "" } else { ": " };
    let _ = write!(text, "{gap}{code}{colon}{message}");
}

fn shorten(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= 400 { line } else { line.chars().take(400).chain(['…']).collect() }
}

/// The error that the network means. URLs are left out of it: they may be signed.
pub(crate) fn network(at: &Attempt, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let at = Box::new(at.clone());
    if error.is_builder() {
        return Failure::never(RegistryError::Protocol { at, what: chain(&error) });
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(rustls::Error::InvalidCertificate(why)) = unwrapped(inner).downcast_ref() {
            return Failure::never(RegistryError::Certificate { at, why: why.to_string() });
        }
        cause = inner.source();
    }
    Failure::later(RegistryError::Unreachable { at, why: chain(&error) })
}

/// What I/O errors wrap: they don't give it as their source, but its source.
fn unwrapped<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        error = inner;
    }
    error
}

/// The failure of a connection that was silent for `stall`.
pub(crate) fn stalled(at: &Attempt, stall: Duration) -> Failure {
    let why = format!("no byte came or went for {} s", stall.as_secs_f32());
    Failure::later(RegistryError::Unreachable { at: Box::new(at.clone()), why })
}

/// An error with its causes. Those that only repeat what was said are left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> (String, bool) {
        detail(body.as_bytes())
    }

    #[test]
    fn an_error_s_codes_and_messages_are_told() {
        assert_eq!(
            said(r#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#).0,
            "DENIED: requested access is denied"
        );
        assert_eq!(said(r#"{"errors":[{"code":"PROJECT_POLICY","message":"no"}]}"#).0, "PROJECT_POLICY: no");
        assert_eq!(said(r#"{"message":"slow down"}"#).0, "slow down");
        assert_eq!(said("<html><body>502</body></html>").0, "");
        assert_eq!(said("plain\n words").0, "plain words");
    }

    #[test]
    fn too_many_requests_may_come_under_another_status() {
        assert!(said(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"x"}]}"#).1);
    }
}
