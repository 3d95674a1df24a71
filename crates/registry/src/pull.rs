//! Blobs, downwards: streamed, verified, and resumed where they broke, on the next mirror too, because a blob is the
//! same everywhere.

use std::time::Instant;

use bytes::Bytes;
use http::header::RANGE;
use http::{Method, StatusCode};
use kiln_oci::{Descriptor, Digest, Hasher, Repository};
use oci_client::RegistryOperation;

use crate::answer::Answer;
use crate::blob::BlobSink;
use crate::parts::Pace;
use crate::registry::{Registry, scope};
use crate::retry::Failure;
use crate::route::Place;
use crate::transport::{Ask, To};
use crate::{Event, RegistryError};

/// Progress of this many bytes makes earlier failures forgotten.
pub(crate) const PROGRESS: u64 = 1 << 20;

/// Who works out the digest of what came.
enum Hashing {
    /// Nobody here: the first bytes came before us.
    Nobody,
    /// The sink, which does it anyway.
    Sink,
    Ours(Hasher),
}

impl Hashing {
    fn new(digest: &Digest, sink: &dyn BlobSink) -> Self {
        match sink.digest() {
            Some(found) if found.algorithm() == digest.algorithm() => Self::Sink,
            _ => Self::Ours(Hasher::new(digest.algorithm())),
        }
    }
}

/// How far a download has come.
pub(crate) struct Download<'a> {
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) sink: &'a mut dyn BlobSink,
    pub(crate) position: u64,
    /// Hashes what came.
    hashing: Hashing,
    /// Pieces were tried, and didn't do.
    pub(crate) one_stream: bool,
}

/// How a stream ended that didn't fail.
enum Ended {
    Whole,
    /// It came slowly, and the rest may come faster in pieces.
    Slow,
}

impl Registry {
    /// Fetches a blob from byte `offset` on into `sink`, through mirrors, with retries; a broken transfer goes on where
    /// it stopped.
    ///
    /// From offset 0 the bytes are verified: success means that the sink has the whole blob. From any other offset the
    /// caller, who has the first bytes, checks the digest. Fails with [`RegistryError`]; the sink then holds a
    /// beginning of the blob, or, with [`RegistryError::Corrupt`] or [`RegistryError::Length`], rubbish.
    pub async fn pull_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        offset: u64,
        sink: &mut dyn BlobSink,
    ) -> Result<(), RegistryError> {
        let hashing = match offset {
            0 => Hashing::new(&descriptor.digest, sink),
            _ => Hashing::Nobody,
        };
        let mut download = Download { descriptor, sink, position: offset, hashing, one_stream: false };
        let mut walk = self.walk(repository);
        while let Some((place, allowed)) = walk.next() {
            match self.pull_from(&place, allowed, &mut download).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let ours = matches!(error, RegistryError::Write { .. });
                    let spoilt =
                        matches!(error, RegistryError::Corrupt { .. } | RegistryError::Length { .. });
                    walk.failed(&place, error);
                    if ours || (spoilt && !download.restart(offset)) {
                        break;
                    }
                }
            }
        }
        Err(walk.finish())
    }

    /// Fetches a small blob, such as a config, into memory.
    ///
    /// Fails as [`Registry::pull_blob`] does, and with [`RegistryError::Length`] if it is longer than `most` bytes.
    pub async fn pull_bytes(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        most: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > most {
            let at = Place::origin(repository, crate::route::Direction::Pull)
                .attempt("fetch", subject(repository, &descriptor.digest));
            return Err(RegistryError::Length { at: Box::new(at), expected: most, found: descriptor.size });
        }
        let mut bytes = Vec::new();
        self.pull_blob(repository, descriptor, 0, &mut bytes).await?;
        Ok(bytes)
    }

    async fn pull_from(
        &self,
        place: &Place,
        allowed: u32,
        download: &mut Download<'_>,
    ) -> Result<(), RegistryError> {
        let mut tries = self.tries(allowed);
        let mut mark = download.position;
        loop {
            match self.pull_once(place, download).await {
                Ok(Ended::Whole) => return Ok(()),
                Ok(Ended::Slow) => download.one_stream = !self.pull_parts(place, allowed, download).await?,
                Err(failure) => {
                    if download.position >= mark + PROGRESS {
                        tries.progressed();
                    }
                    mark = download.position;
                    tries.after(failure).await?;
                }
            }
        }
    }

    async fn pull_once(&self, place: &Place, download: &mut Download<'_>) -> Result<Ended, Failure> {
        let Descriptor { digest, size, .. } = download.descriptor;
        let known = *size > 0 || *digest == Digest::of(b"");
        let at = place.attempt("fetch", format!("{}/{}@{digest}", place.host, place.path));
        if known && download.position == *size {
            return download.finish(at);
        }
        let scopes = scope(&place.path, RegistryOperation::Pull);
        let path = format!("/v2/{}/blobs/{digest}", place.path);
        let mut ask = Ask::new(Method::GET, To::Path(path), &scopes, &at)
            .queued(self.is_queued())
            .brings(if known { size.saturating_sub(download.position) } else { u64::MAX });
        if !self.is_queued() {
            ask = ask.apart();
        }
        if download.position > 0 {
            ask = ask.header(RANGE, &format!("bytes={}-", download.position));
        }
        let mut answer = self.transport().send(place, ask).await?.success().await?;
        let mut skip = skipped(&answer, download.position)?;
        let mut pace = Pace::new(self.transport().options.ranges, download.position);
        while let Some(chunk) = answer.chunk().await? {
            let behind = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= behind as u64;
            let news = chunk.slice(behind..);
            if news.is_empty() {
                continue;
            }
            let found = download.position + news.len() as u64;
            if known && found > *size {
                let at = Box::new(answer.at.clone());
                return Err(Failure::never(RegistryError::Length { at, expected: *size, found }));
            }
            let full = Instant::now();
            download.room(&answer).await?;
            pace.waited(full.elapsed());
            download.take(news, &answer)?;
            self.transport().observe(Event::Received { digest: digest.clone(), bytes: found, of: *size });
            if known && pace.is_slow(found) && self.may_split(download, &answer) {
                return Ok(Ended::Slow);
            }
        }
        if known && download.position < *size {
            let why = format!("the connection ended after {} of {size} bytes", download.position);
            return Err(Failure::later(RegistryError::Unreachable { at: Box::new(answer.at.clone()), why }));
        }
        download.finish(answer.at.clone())
    }
}

fn subject(repository: &Repository, digest: &Digest) -> String {
    format!("{repository}@{digest}")
}

/// How many bytes of the answer we have already: none if it begins at `position`, all before it if the registry knows no
/// ranges.
fn skipped(answer: &Answer, position: u64) -> Result<u64, Failure> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(position);
    }
    match answer.range() {
        Some((start, _)) if start <= position => Ok(position - start),
        _ => {
            let range = answer.header("content-range").unwrap_or_default();
            let what = format!("asked for bytes from {position} on, it sent {range:?}");
            Err(Failure::never(answer.protocol(what)))
        }
    }
}

impl Download<'_> {
    /// Waits until the sink has room.
    async fn room(&mut self, answer: &Answer) -> Result<(), Failure> {
        let room = std::future::poll_fn(|context| self.sink.poll_room(context)).await;
        room.map_err(|source| answer.not_written(source))
    }

    /// Whether each byte must pass here, because the sink doesn't work out the digest.
    pub(crate) fn is_hashed_here(&self) -> bool {
        matches!(self.hashing, Hashing::Ours(_))
    }

    pub(crate) fn take(&mut self, bytes: Bytes, answer: &Answer) -> Result<(), Failure> {
        if let Hashing::Ours(hasher) = &mut self.hashing {
            hasher.update(&bytes);
        }
        let length = bytes.len() as u64;
        self.sink.take(bytes).map_err(|source| answer.not_written(source))?;
        self.position += length;
        Ok(())
    }

    fn finish(&mut self, at: crate::Attempt) -> Result<Ended, Failure> {
        let expected = self.descriptor.digest.clone();
        let found = match &self.hashing {
            Hashing::Nobody => return Ok(Ended::Whole),
            // A sink that can't say it any more has not verified anything.
            Hashing::Sink => self.sink.digest().unwrap_or_else(|| Digest::of(b"")),
            Hashing::Ours(hasher) => hasher.clone().finish(),
        };
        if found == expected {
            return Ok(Ended::Whole);
        }
        Err(Failure::never(RegistryError::Corrupt { at: Box::new(at), expected, found }))
    }

    /// Begins again, because what came was wrong. Gives whether the sink can do that.
    fn restart(&mut self, offset: u64) -> bool {
        let fresh = offset == 0 && self.sink.restart().unwrap_or(false);
        if fresh {
            self.position = 0;
            self.hashing = Hashing::new(&self.descriptor.digest, self.sink);
        }
        fresh
    }
}
