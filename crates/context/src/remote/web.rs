//! An archive at a URL, read from one end to the other. A transfer that breaks goes on by Range, if the server can; if it
//! can't, what was read before is skipped.

use std::io;
use std::path::Path;

use bytes::Bytes;
use reqwest::header::{ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use url::Url;

use super::ranges::{Pieces, is_passing, pause, total};
use super::said;
use crate::fetch::{Arrived, Pin, Source};
use crate::git::Progress;
use crate::{Access, ContextError, archive};

/// A tar archive at a URL.
pub(crate) struct WebArchive(pub(crate) Url);

impl Source for WebArchive {
    /// The URL without login and query: signed URLs carry their signature there.
    fn name(&self) -> String {
        let mut url = self.0.clone();
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.set_fragment(None);
        url.to_string()
    }

    fn fetch(&self, into: &Path, access: &Access) -> Result<Arrived, ContextError> {
        let progress = Progress::new(self.name(), access);
        let (sender, receiver) = mpsc::channel(8);
        let download = Download { url: self.0.clone(), access: access.clone(), progress: progress.clone() };
        access.runtime.spawn(async move {
            if let Err(why) = download.send_all(&sender).await {
                let _ = sender.send(Err(io::Error::other(why))).await;
            }
        });
        let reader = Pieces { runtime: access.runtime.clone(), receiver, left: Bytes::new() };
        let digest = archive::unpack_stream(reader, &self.name(), into, access.digests)?;
        let pin = Pin::archive(self.name(), digest);
        Ok(Arrived { root: into.to_owned(), bytes: progress.bytes(), pin })
    }
}

struct Download {
    url: Url,
    access: Access,
    progress: Progress,
}

/// What tells one version of a file from another.
#[derive(Clone, PartialEq)]
struct Version {
    tag: Option<String>,
    modified: Option<String>,
    length: Option<u64>,
}

impl Version {
    fn of(headers: &HeaderMap, length: Option<u64>) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { tag: text(ETAG), modified: text(LAST_MODIFIED), length }
    }

    /// What `If-Range` takes: a weak tag says nothing of bytes.
    fn validator(&self) -> Option<&str> {
        self.tag.as_deref().filter(|tag| !tag.starts_with("W/")).or(self.modified.as_deref())
    }
}

impl Download {
    async fn send_all(&self, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), String> {
        let (mut done, mut attempt) = (0, 0);
        let mut version: Option<Version> = None;
        loop {
            self.progress.check().map_err(|error| error.to_string())?;
            let why = match self.ask(done, version.as_ref()).await? {
                Err(why) => why,
                Ok((mut response, mut skip)) => {
                    if version.is_none() {
                        version = Some(Version::of(response.headers(), response.content_length()));
                    }
                    loop {
                        match response.chunk().await {
                            Err(error) => break said(&error.without_url()),
                            Ok(None) => match version.as_ref().and_then(|version| version.length) {
                                Some(length) if done < length => break "it ended too early".to_owned(),
                                _ => return Ok(()),
                            },
                            Ok(Some(mut chunk)) => {
                                let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                                let _ = chunk.split_to(skipped);
                                skip -= skipped as u64;
                                if chunk.is_empty() {
                                    continue;
                                }
                                done += chunk.len() as u64;
                                attempt = 0;
                                self.progress.add(chunk.len() as u64);
                                // Nobody reads any more.
                                if sender.send(Ok(chunk)).await.is_err() {
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
            };
            pause(&self.access, self.progress.source(), done, &why, attempt).await?;
            attempt += 1;
        }
    }

    /// An answer, and how much of its body was read before; or why to ask again; or why not to.
    async fn ask(
        &self,
        done: u64,
        version: Option<&Version>,
    ) -> Result<Result<(Response, u64), String>, String> {
        let mut request = self.access.client_for(&self.url).get(self.url.clone());
        if done > 0 {
            request = request.header(RANGE, format!("bytes={done}-"));
            if let Some(validator) = version.and_then(Version::validator) {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = match request.send().await {
            Err(error) => return Ok(Err(said(&error.without_url()))),
            Ok(response) => response,
        };
        let changed = || Err("it was replaced while it was read; build again".to_owned());
        match response.status() {
            StatusCode::PARTIAL_CONTENT if done > 0 => {
                let whole = Version::of(response.headers(), total(response.headers()));
                match version {
                    Some(before)
                        if whole.tag != before.tag
                            || (before.length.is_some() && whole.length != before.length) =>
                    {
                        changed()
                    }
                    _ => Ok(Ok((response, 0))),
                }
            }
            StatusCode::OK => {
                let whole = Version::of(response.headers(), response.content_length());
                match version {
                    Some(before) if *before != whole => changed(),
                    _ => Ok(Ok((response, done))),
                }
            }
            status if is_passing(status) => Ok(Err(format!("the server answers {status}"))),
            status => Err(match status.as_u16() {
                401 | 403 => format!(
                    "the server answers {status}: a login or a signature in the URL is missing, wrong or too old"
                ),
                404 => format!(
                    "the server answers {status}: there is no such file; a git repository's address begins with \
                     git:// or ends with .git"
                ),
                _ => format!("the server answers {status}"),
            }),
        }
    }
}
