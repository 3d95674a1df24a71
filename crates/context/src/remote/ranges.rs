//! An object in parts that are asked for side by side and read in their order. A part that breaks is asked for again from
//! where it broke; an object that changes meanwhile is an error.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap};
use reqwest::{Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{Requests, is_lasting, refusal, said};
use crate::git::Progress;
use crate::{Access, Event};

/// The size of a part. With those that are under way, they bound the memory that is used.
const PART: u64 = 2 << 20;
const SIDE_BY_SIDE: usize = 4;
/// How often a part is asked for again without a byte having come.
pub(crate) const TRIES: u32 = 5;

/// Bytes that come from a task.
pub(crate) struct Pieces {
    pub(super) runtime: Handle,
    pub(super) receiver: mpsc::Receiver<io::Result<Bytes>>,
    pub(super) left: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.runtime.block_on(self.receiver.recv()) {
                None => return Ok(0),
                Some(piece) => self.left = piece?,
            }
        }
        let length = buffer.len().min(self.left.len());
        buffer[..length].copy_from_slice(&self.left.split_to(length));
        Ok(length)
    }
}

/// Starts reading an object. Errors come out of the reader.
pub(super) fn read(requests: Box<dyn Requests>, access: &Access, progress: &Progress) -> Pieces {
    let (sender, receiver) = mpsc::channel(1);
    let (access, progress) = (access.clone(), progress.clone());
    let runtime = access.runtime.clone();
    runtime.spawn(async move {
        let work = Object { requests: Arc::from(requests), access, progress };
        if let Err(why) = work.send_all(&sender).await {
            let _ = sender.send(Err(io::Error::other(why))).await;
        }
    });
    Pieces { runtime, receiver, left: Bytes::new() }
}

struct Object {
    requests: Arc<dyn Requests>,
    access: Access,
    progress: Progress,
}

/// What the first answer says of the whole.
struct Whole {
    size: u64,
    tag: Option<String>,
}

impl Object {
    async fn send_all(mut self, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), String> {
        let Some((response, whole)) = self.first().await? else { return Ok(()) };
        let first = self.collect(response, 0, PART.min(whole.size), &whole).await?;
        if sender.send(Ok(first)).await.is_err() {
            return Ok(());
        }
        let (object, whole) = (&self, &whole);
        let starts = (1..).map(|number| number * PART).take_while(|start| *start < whole.size);
        let parts = futures::stream::iter(starts)
            .map(|start| async move { object.part(start, PART.min(whole.size - start), whole).await });
        let mut parts = std::pin::pin!(parts.buffered(SIDE_BY_SIDE));
        while let Some(part) = parts.next().await {
            // Nobody reads any more.
            if sender.send(Ok(part?)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The answer to the first request, and what it says of the whole; nothing for an empty object.
    async fn first(&mut self) -> Result<Option<(Response, Whole)>, String> {
        for attempt in 0.. {
            let response = match self.requests.part(0, PART - 1)?.send().await {
                Ok(response) => response,
                Err(error) => {
                    self.pause(0, &said(&error.without_url()), attempt).await?;
                    continue;
                }
            };
            let status = response.status();
            if let Some(other) = self.requests.moved(status, response.headers()) {
                self.requests = Arc::from(other);
                continue;
            }
            if is_passing(status) && attempt < TRIES {
                self.pause(0, &format!("the server answers {status}"), attempt).await?;
                continue;
            }
            let tag = tag(response.headers());
            return match status {
                StatusCode::RANGE_NOT_SATISFIABLE => Ok(None),
                StatusCode::PARTIAL_CONTENT => {
                    let size = total(response.headers()).ok_or("the server does not say how long it is")?;
                    Ok(Some((response, Whole { size, tag })))
                }
                // The server gives all at once; a part that breaks can still be asked for.
                StatusCode::OK => {
                    let size = response.content_length().ok_or("the server does not say how long it is")?;
                    if size > PART {
                        return Err("the server gives no parts of it".to_owned());
                    }
                    Ok(Some((response, Whole { size, tag })))
                }
                _ => {
                    let body = response.text().await.unwrap_or_default();
                    Err(refusal(self.requests.as_ref(), status, &body))
                }
            };
        }
        Ok(None)
    }

    async fn part(&self, start: u64, length: u64, whole: &Whole) -> Result<Bytes, String> {
        let response = self.ask(start, start + length - 1, whole).await?;
        self.collect(response, start, length, whole).await
    }

    /// Asks for a range until it is given.
    async fn ask(&self, first: u64, last: u64, whole: &Whole) -> Result<Response, String> {
        for attempt in 0.. {
            let why = match self.requests.part(first, last)?.send().await {
                Err(error) => said(&error.without_url()),
                Ok(response) => {
                    let status = response.status();
                    if status == StatusCode::PARTIAL_CONTENT {
                        if tag(response.headers()) != whole.tag
                            || total(response.headers()) != Some(whole.size)
                        {
                            return Err("it was replaced while it was read; build again".to_owned());
                        }
                        return Ok(response);
                    }
                    if !is_passing(status) {
                        let body = response.text().await.unwrap_or_default();
                        return Err(refusal(self.requests.as_ref(), status, &body));
                    }
                    format!("the server answers {status}")
                }
            };
            self.pause(first, &why, attempt).await?;
        }
        Err("the server gives no answer".to_owned())
    }

    /// Reads an answer's body, and what is missing of it if it breaks.
    async fn collect(
        &self,
        mut response: Response,
        start: u64,
        length: u64,
        whole: &Whole,
    ) -> Result<Bytes, String> {
        let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
        let mut attempt = 0;
        while (bytes.len() as u64) < length {
            self.progress.check().map_err(|error| error.to_string())?;
            let why = match response.chunk().await {
                Ok(Some(chunk)) => {
                    let room = usize::try_from(length).unwrap_or(usize::MAX) - bytes.len();
                    bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
                    self.progress.add(chunk.len().min(room) as u64);
                    attempt = 0;
                    continue;
                }
                Ok(None) => "it ended too early".to_owned(),
                Err(error) => said(&error.without_url()),
            };
            let at = start + bytes.len() as u64;
            self.pause(at, &why, attempt).await?;
            attempt += 1;
            response = self.ask(at, start + length - 1, whole).await?;
        }
        Ok(bytes.freeze())
    }

    async fn pause(&self, at: u64, why: &str, attempt: u32) -> Result<(), String> {
        pause(&self.access, self.progress.source(), at, why, attempt).await
    }
}

/// Waits before another attempt, or gives up with the reason.
pub(super) async fn pause(
    access: &Access,
    source: &str,
    at: u64,
    why: &str,
    attempt: u32,
) -> Result<(), String> {
    if is_lasting(why) {
        return Err(why.to_owned());
    }
    if attempt >= TRIES || (access.cancelled)() {
        return Err(format!("{why}; given up after {TRIES} more attempts, at byte {at}"));
    }
    let after = Duration::from_millis(200 << attempt);
    (access.on)(Event::Resuming { source: source.to_owned(), at, why: why.to_owned(), after });
    tokio::time::sleep(after).await;
    Ok(())
}

/// Whether a status may be another one soon.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

fn tag(headers: &HeaderMap) -> Option<String> {
    headers.get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned)
}

/// The size in `bytes 0-4194303/73400320`.
pub(super) fn total(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}
