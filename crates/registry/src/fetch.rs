//! Plain files from the web, for ADD and for Dockerfiles that are given by a URL: the same trust and proxies as for
//! registries, and no login.

use futures::StreamExt as _;
use http::header::{LAST_MODIFIED, LOCATION};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use url::Url;

use crate::blob::BlobSink;
use crate::route::Direction;
use crate::{Event, Registry};

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;

/// A fetch that came to nothing: why, and whether another try may help.
struct Failed {
    why: String,
    again: bool,
}

impl Failed {
    fn never(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: false }
    }

    fn later(why: impl Into<String>) -> Self {
        Self { why: why.into(), again: true }
    }
}

impl Registry {
    /// Fetches `url` into `sink`, redirects followed. Gives the time of `Last-Modified`, in seconds since 1970.
    ///
    /// What breaks or stalls is tried again, as often as a download from a registry is; what came of it before is
    /// forgotten, if `sink` can do that. Fails with a sentence that says what went wrong.
    pub async fn fetch_url(&self, url: &str, sink: &mut dyn BlobSink) -> Result<Option<i64>, String> {
        let policy = self.transport().options.retries;
        let mut used = 0;
        loop {
            let mut begun = false;
            let failed = match self.fetch_once(url, sink, &mut begun).await {
                Ok(modified) => return Ok(modified),
                Err(failed) => failed,
            };
            let fresh = !begun || sink.restart().unwrap_or(false);
            if !failed.again || !fresh || used >= policy.pull {
                return Err(failed.why);
            }
            let pause = policy.base.saturating_mul(1 << used.min(10)).min(policy.longest);
            used += 1;
            self.transport().observe(Event::Retrying {
                // What stands behind the question mark may be a signature.
                what: format!("fetch {}", url.split('?').next().unwrap_or(url)),
                why: failed.why,
                attempt: used,
                of: policy.pull,
                after: pause,
            });
            tokio::time::sleep(pause).await;
        }
    }

    async fn fetch_once(
        &self,
        url: &str,
        sink: &mut dyn BlobSink,
        begun: &mut bool,
    ) -> Result<Option<i64>, Failed> {
        let stall = self.transport().options.retries.stall;
        let stalled = |_| Failed::later(format!("no byte came for {} s", stall.as_secs_f32()));
        // The address may hold a signature, and the caller knows how to name it.
        let broken = |error: reqwest::Error| Failed::later(said(&error.without_url()));
        let mut url: Url = url.parse().map_err(|error| Failed::never(format!("it is no URL: {error}")))?;
        for _ in 0..=MOST_REDIRECTS {
            let host = crate::bearer::authority(&url);
            let client = self.transport().client_of(&host, Direction::Pull, false);
            let client = client.map_err(|failure| Failed::never(failure.error.to_string()))?;
            let answer = tokio::time::timeout(stall, client.get(url.clone()).send());
            let answer = answer.await.map_err(stalled)?.map_err(broken)?;
            let status = answer.status();
            if status.is_redirection()
                && let Some(to) = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok())
            {
                url = url
                    .join(to)
                    .map_err(|error| Failed::never(format!("it redirects to what is no URL: {error}")))?;
                continue;
            }
            if !status.is_success() {
                let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
                return Err(Failed { why: format!("the server answers {status}"), again });
            }
            let modified = answer.headers().get(LAST_MODIFIED).and_then(|text| text.to_str().ok());
            let modified = modified.and_then(http_date);
            let mut body = answer.bytes_stream();
            while let Some(piece) = tokio::time::timeout(stall, body.next()).await.map_err(stalled)? {
                let piece = piece.map_err(broken)?;
                *begun = true;
                sink.write(&piece).map_err(|error| Failed::never(error.to_string()))?;
            }
            return Ok(modified);
        }
        Err(Failed::never(format!("it redirects more than {MOST_REDIRECTS} times")))
    }
}

impl Registry {
    /// Sends `text` to `url` by PUT, without a login: the address itself says that we may.
    ///
    /// Fails with a sentence that says what went wrong; the address is not in it.
    pub async fn put_url(&self, url: &str, text: String) -> Result<(), String> {
        let url: Url = url.parse().map_err(|error| format!("it is no URL: {error}"))?;
        let host = crate::bearer::authority(&url);
        let client =
            self.transport().client(&host, Direction::Push).map_err(|failure| failure.error.to_string())?;
        let stall = self.transport().options.retries.stall;
        let answer = tokio::time::timeout(stall, client.put(url).body(text).send()).await;
        let answer = answer.map_err(|_| format!("no answer came for {} s", stall.as_secs_f32()))?;
        let answer = answer.map_err(|error| said(&error.without_url()))?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("the server answers {}", answer.status()))
        }
    }
}

/// An error with its causes: reqwest's own text leaves them out.
fn said(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// `Tue, 15 Nov 1994 08:12:31 GMT`.
fn http_date(text: &str) -> Option<i64> {
    let text = text.trim().replace("GMT", "+0000");
    OffsetDateTime::parse(&text, &Rfc2822).ok().map(OffsetDateTime::unix_timestamp)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_servers_date_is_read() {
        assert_eq!(super::http_date("Tue, 15 Nov 1994 08:12:31 GMT"), Some(784_887_151));
        assert_eq!(super::http_date("yesterday"), None);
    }
}
