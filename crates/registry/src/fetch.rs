//! Plain files from the web, for ADD and for Dockerfiles that are given by a URL: the same trust and proxies as for
//! registries, and no login.

use futures::StreamExt as _;
use http::header::{LAST_MODIFIED, LOCATION};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use url::Url;

use crate::Registry;
use crate::blob::BlobSink;
use crate::route::Direction;

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;

impl Registry {
    /// Fetches `url` into `sink`, redirects followed. Gives the time of `Last-Modified`, in seconds since 1970.
    ///
    /// Fails with a sentence that says what went wrong.
    pub async fn fetch_url(&self, url: &str, sink: &mut dyn BlobSink) -> Result<Option<i64>, String> {
        let mut url: Url = url.parse().map_err(|error| format!("it is no URL: {error}"))?;
        for _ in 0..=MOST_REDIRECTS {
            let host = crate::bearer::authority(&url);
            let client = self
                .transport()
                .client(&host, Direction::Pull)
                .map_err(|failure| failure.error.to_string())?;
            let answer = client.get(url.clone()).send().await.map_err(|error| said(&error))?;
            let status = answer.status();
            if status.is_redirection()
                && let Some(to) = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok())
            {
                url = url.join(to).map_err(|error| format!("it redirects to {to:?}: {error}"))?;
                continue;
            }
            if !status.is_success() {
                return Err(format!("the server answers {status}"));
            }
            let modified = answer.headers().get(LAST_MODIFIED).and_then(|text| text.to_str().ok());
            let modified = modified.and_then(http_date);
            let mut body = answer.bytes_stream();
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|error| said(&error))?;
                sink.write(&piece).map_err(|error| error.to_string())?;
            }
            return Ok(modified);
        }
        Err(format!("it redirects more than {MOST_REDIRECTS} times"))
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
        let answer = client.put(url).body(text).send().await.map_err(|error| said(&error.without_url()))?;
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
