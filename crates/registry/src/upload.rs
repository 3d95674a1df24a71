//! One upload, from POST to the last PUT (OCI distribution-spec 1.1, "Pushing blobs"). A blob goes in one request until
//! that breaks; then the registry is asked how much it has, and the rest follows in PATCH requests, smaller ones if it
//! finds them too large.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{Method, StatusCode};
use kiln_oci::Descriptor;
use oci_client::RegistryOperation;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use url::Url;

use crate::answer::Answer;
use crate::bearer::Scope;
use crate::blob::BlobSource;
use crate::registry::{Registry, scope};
use crate::retry::{Again, Failure};
use crate::route::Place;
use crate::transport::{Ask, Pace, Payload, To};
use crate::{Attempt, Event, RegistryError};

pub(crate) const OCTETS: &str = "application/octet-stream";
/// How much is read from the source at a time.
const PIECE: usize = 128 * 1024;
/// The first and the smallest size of chunks, after the registry refused a larger request.
const FIRST_CHUNK: u64 = 32 << 20;
const SMALLEST_CHUNK: u64 = 256 << 10;
/// How often a registry may want one blob's bytes elsewhere.
const MOST_DETOURS: u32 = 100;

/// An upload that is under way.
pub(crate) struct Upload<'a> {
    registry: &'a Registry,
    place: &'a Place,
    descriptor: &'a Descriptor,
    source: &'a dyn BlobSource,
    scopes: BTreeSet<Scope>,
    at: Attempt,
    chunk: Option<u64>,
    /// Whether a request broke. Some registries forget an upload whose PUT broke off and keep one whose PATCH did;
    /// Debian's (distribution 2.8) forgets both.
    careful: bool,
    detours: u32,
    session: Option<Session>,
}

/// What the registry gave us to upload to.
struct Session {
    url: Url,
    /// Where the next bytes are wanted instead, this once.
    detour: Option<Url>,
    /// How much the registry has.
    offset: u64,
    /// Whether PATCH is used: in chunks, or because a request broke.
    patching: bool,
    /// Whether `offset` has to be asked for.
    unsure: bool,
    /// The smallest chunk that the registry takes.
    least: u64,
}

/// What a try of an upload led to.
enum Outcome {
    Done,
    /// The state changed: go on at once.
    Again,
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        registry: &'a Registry,
        place: &'a Place,
        descriptor: &'a Descriptor,
        source: &'a dyn BlobSource,
    ) -> Self {
        Self {
            registry,
            place,
            descriptor,
            source,
            scopes: scope(&place.path, RegistryOperation::Push),
            at: place.attempt("push", format!("{}/{}@{}", place.host, place.path, descriptor.digest)),
            chunk: registry.transport().options.chunk_size,
            careful: false,
            detours: 0,
            session: None,
        }
    }

    /// Begins before it is known whether the upload is wanted. What fails is left to [`Upload::run`], which begins again.
    pub(crate) async fn begin_early(&mut self) {
        self.session = self.begin().await.ok();
    }

    /// Where an upload was begun that nobody goes on with.
    pub(crate) fn abandon(self) -> Option<Url> {
        self.session.map(|session| session.url)
    }

    pub(crate) async fn run(mut self) -> Result<(), RegistryError> {
        let mut tries = self.registry.tries(self.registry.transport().options.retries.push);
        let mut mark = 0;
        loop {
            match self.advance().await {
                Ok(Outcome::Done) => return Ok(()),
                Ok(Outcome::Again) => {}
                Err(failure) => {
                    let offset = self.session.as_ref().map_or(0, |session| session.offset);
                    if offset > mark {
                        tries.progressed();
                        mark = offset;
                    }
                    self.careful = true;
                    if let Some(session) = &mut self.session {
                        session.unsure = true;
                        session.patching = true;
                    }
                    tries.after(failure).await?;
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<Outcome, Failure> {
        let Some(session) = self.session.take() else {
            self.session = Some(self.begin().await?);
            return Ok(Outcome::Again);
        };
        if session.unsure {
            return self.ask_status(session).await;
        }
        let size = self.descriptor.size;
        if session.patching && session.offset < size {
            let length = self.chunk.map_or(size, |chunk| chunk.max(session.least)).min(size - session.offset);
            self.patch(session, length).await
        } else {
            self.finish(session).await
        }
    }

    async fn begin(&self) -> Result<Session, Failure> {
        let path = format!("/v2/{}/blobs/uploads/", self.place.path);
        let ask = Ask::new(Method::POST, To::Path(path), &self.scopes, &self.at);
        let answer = self.registry.transport().send(self.place, ask).await?.success().await?;
        let url = location(&answer)?
            .ok_or_else(|| Failure::never(answer.protocol("it began an upload and did not say where")))?;
        let least = answer.header("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let patching =
            self.careful || self.chunk.is_some_and(|chunk| chunk.max(least) < self.descriptor.size);
        Ok(Session { url, detour: None, offset: 0, patching, unsure: false, least })
    }

    /// Asks how much of the blob has arrived.
    async fn ask_status(&mut self, mut session: Session) -> Result<Outcome, Failure> {
        let ask = Ask::new(Method::GET, To::Url(session.url.clone()), &self.scopes, &self.at);
        let answer = match self.registry.transport().send(self.place, ask).await {
            Ok(answer) => answer,
            Err(failure) => {
                self.session = Some(session);
                return Err(failure);
            }
        };
        match answer.status().as_u16() {
            200..=299 => {
                session.offset = received(&answer).unwrap_or(0).min(self.descriptor.size);
                session.url = location(&answer)?.unwrap_or(session.url);
                session.unsure = false;
                self.session = Some(session);
                Ok(Outcome::Again)
            }
            429 | 500..=599 => {
                self.session = Some(session);
                Err(answer.failure().await)
            }
            // The registry has forgotten the upload; perhaps because it was complete and only its answer got lost.
            _ => {
                drop(answer);
                let digest = &self.descriptor.digest;
                let there =
                    self.registry.blob_exists_once(self.place, digest, RegistryOperation::Push).await?;
                Ok(if there { Outcome::Done } else { Outcome::Again })
            }
        }
    }

    async fn patch(&mut self, mut session: Session, length: u64) -> Result<Outcome, Failure> {
        let end = session.offset + length;
        let url = session.detour.take().unwrap_or_else(|| session.url.clone());
        let mut ask = Ask::new(Method::PATCH, To::Url(url), &self.scopes, &self.at)
            .header(CONTENT_TYPE, OCTETS)
            .carries(length)
            .commits(length);
        if session.offset > 0 || length < self.descriptor.size {
            ask = ask.header(CONTENT_RANGE, &format!("{}-{}", session.offset, end - 1));
        }
        let stream = Stream::open(self, session.offset, length)?;
        let sent = self.registry.transport().send(self.place, ask.payload(stream.payload())).await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(failure) => return Err(self.broken(session, stream.blame(failure, &self.at))),
        };
        match answer.status().as_u16() {
            200..=299 => {
                let offset = received(&answer).filter(|offset| *offset > 0).unwrap_or(end);
                if offset <= session.offset || offset > self.descriptor.size {
                    let what = format!("it got bytes {}-{end} and says that it has {offset}", session.offset);
                    let failure = Failure::later(answer.protocol(what));
                    self.session = Some(session);
                    return Err(failure);
                }
                session.offset = offset;
                session.url = location(&answer)?.unwrap_or(session.url);
                self.session = Some(session);
                Ok(Outcome::Again)
            }
            413 => self.shrink(session, answer).await,
            307 | 308 => self.turn(session, answer).await,
            // What it has is not what we thought (416), or the upload is gone (404): ask, or begin again.
            404 | 416 => {
                let mut failure = answer.failure().await;
                failure.again = Again::Later(None);
                self.session = Some(session);
                Err(failure)
            }
            _ => {
                self.session = Some(session);
                Err(answer.failure().await)
            }
        }
    }

    /// The last PUT: with the whole blob, or with nothing after PATCH requests.
    async fn finish(&mut self, mut session: Session) -> Result<Outcome, Failure> {
        // The address of a detour has the digest in it already.
        let url = session.detour.take().unwrap_or_else(|| {
            let mut url = session.url.clone();
            url.query_pairs_mut().append_pair("digest", &self.descriptor.digest.to_string());
            url
        });
        let mut ask = Ask::new(Method::PUT, To::Url(url), &self.scopes, &self.at)
            .header(CONTENT_TYPE, OCTETS)
            .commits(self.descriptor.size);
        let whole = !session.patching && self.descriptor.size > 0;
        let stream = if whole { Some(Stream::open(self, 0, self.descriptor.size)?) } else { None };
        if let Some(stream) = &stream {
            ask = ask.carries(self.descriptor.size).payload(stream.payload());
        }
        let answer = match self.registry.transport().send(self.place, ask).await {
            Ok(answer) => answer,
            Err(failure) => {
                let failure = match &stream {
                    Some(stream) => stream.blame(failure, &self.at),
                    None => failure,
                };
                return Err(self.broken(session, failure));
            }
        };
        match answer.status() {
            status if status.is_success() => Ok(Outcome::Done),
            StatusCode::PAYLOAD_TOO_LARGE if whole => self.shrink(session, answer).await,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
                self.turn(session, answer).await
            }
            // A resumed upload that was put together wrongly is begun again; a blob sent in one piece is wrong itself.
            StatusCode::BAD_REQUEST if session.patching => {
                let mut failure = answer.failure().await;
                failure.again = Again::Later(None);
                Err(failure)
            }
            _ => {
                self.session = Some(session);
                Err(answer.failure().await)
            }
        }
    }

    /// The registry wants the bytes elsewhere. Should they not get through there, the next try begins at the registry
    /// again.
    async fn turn(&mut self, mut session: Session, answer: Answer) -> Result<Outcome, Failure> {
        let to = location(&answer)?;
        self.detours += 1;
        if to.is_none() || self.detours > MOST_DETOURS {
            return Err(answer.failure().await);
        }
        session.detour = to;
        self.session = Some(session);
        Ok(Outcome::Again)
    }

    /// Keeps the session for the next try. A large request that broke off makes the next ones smaller: a proxy may have
    /// cut it for its size without saying so.
    fn broken(&mut self, session: Session, failure: Failure) -> Failure {
        let repeated = session.patching || self.chunk.is_some();
        if repeated && matches!(failure.error, RegistryError::Unreachable { .. }) {
            self.chunk = Some(self.smaller());
        }
        self.session = Some(session);
        failure
    }

    fn smaller(&self) -> u64 {
        self.chunk.map_or(FIRST_CHUNK.min(self.descriptor.size / 2), |chunk| chunk / 4).max(SMALLEST_CHUNK)
    }

    /// The registry (or a proxy before it) finds the request too large.
    async fn shrink(&mut self, mut session: Session, answer: Answer) -> Result<Outcome, Failure> {
        let next = self.smaller().max(session.least);
        if self.chunk.is_some_and(|chunk| next >= chunk) || next >= self.descriptor.size {
            return Err(answer.failure().await);
        }
        self.chunk = Some(next);
        session.patching = true;
        session.unsure = true;
        self.session = Some(session);
        Ok(Outcome::Again)
    }
}

/// Where the upload goes on. An address without TLS on the registry's own host means that a proxy speaks TLS for it.
pub(crate) fn location(answer: &Answer) -> Result<Option<Url>, Failure> {
    let Some(text) = answer.header(LOCATION.as_str()) else { return Ok(None) };
    let here = answer.response.url();
    let mut url = here
        .join(text)
        .map_err(|_| Failure::never(answer.protocol("it continues the upload at what is no URL")))?;
    if here.scheme() == "https" && url.scheme() == "http" {
        if url.host() != here.host() || url.set_scheme("https").is_err() {
            return Err(Failure::never(answer.protocol("it continues the upload at a place without TLS")));
        }
        if url.port() == Some(80) {
            let _ = url.set_port(here.port());
        }
    }
    Ok(Some(url))
}

/// How many bytes the registry has, by its `Range` header (`0-99`: a hundred). Distribution says `0-0` for none, too.
pub(crate) fn received(answer: &Answer) -> Option<u64> {
    length_of(answer.header(RANGE.as_str())?)
}

fn length_of(range: &str) -> Option<u64> {
    let (_, last) = range.trim_start_matches("bytes=").split_once('-')?;
    match last.trim().parse::<u64>().ok()? {
        0 => Some(0),
        last => last.checked_add(1),
    }
}

/// A stretch of the source on its way to the registry.
struct Stream {
    body: Mutex<Option<reqwest::Body>>,
    length: u64,
    pace: Arc<Pace>,
    fault: Arc<Mutex<Option<io::Error>>>,
}

impl Stream {
    fn open(upload: &Upload<'_>, offset: u64, length: u64) -> Result<Self, Failure> {
        let reader = upload.source.open(offset).map_err(|source| {
            Failure::never(RegistryError::Read { at: Box::new(upload.at.clone()), source })
        })?;
        let pace = Arc::new(Pace::default());
        let fault = Arc::new(Mutex::new(None));
        let observer = upload.registry.transport().options.observer.clone();
        let (digest, size) = (upload.descriptor.digest.clone(), upload.descriptor.size);
        let state = Reading { reader, left: length, pace: Arc::clone(&pace), fault: Arc::clone(&fault) };
        let stream = futures::stream::try_unfold(state, move |mut state| {
            let (observer, digest) = (observer.clone(), digest.clone());
            async move {
                let Some(piece) = state.next().await? else { return Ok(None) };
                if let Some(observer) = observer {
                    let bytes = offset + state.pace.sent.load(Ordering::Relaxed);
                    observer(Event::Sent { digest, bytes, of: size });
                }
                Ok::<_, io::Error>(Some((piece, state)))
            }
        });
        let body = Mutex::new(Some(reqwest::Body::wrap_stream(stream)));
        Ok(Self { body, length, pace, fault })
    }

    fn payload(&self) -> Payload {
        match self.body.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(body) => Payload::Stream { body, length: Some(self.length), pace: Arc::clone(&self.pace) },
            None => Payload::Nothing,
        }
    }

    /// If it was our own reading that failed, says so instead.
    fn blame(&self, failure: Failure, at: &Attempt) -> Failure {
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(source) => Failure::never(RegistryError::Read { at: Box::new(at.clone()), source }),
            None => failure,
        }
    }
}

struct Reading {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    left: u64,
    pace: Arc<Pace>,
    fault: Arc<Mutex<Option<io::Error>>>,
}

impl Reading {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE);
        let mut piece = BytesMut::with_capacity(most);
        self.pace.starving.store(true, Ordering::Relaxed);
        let read = match (&mut self.reader).take(most as u64).read_buf(&mut piece).await {
            Ok(0) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than its descriptor says"))
            }
            other => other,
        };
        self.pace.starving.store(false, Ordering::Relaxed);
        match read {
            Ok(count) => {
                self.left -= count as u64;
                self.pace.sent.fetch_add(count as u64, Ordering::Relaxed);
                Ok(Some(piece.freeze()))
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(copy)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_how_many_bytes_are_there() {
        for (range, length) in [
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("0-0", Some(0)),
            ("99", None),
            ("0-", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(length_of(range), length, "{range}");
        }
    }
}
