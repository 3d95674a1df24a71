//! One blob over several connections: pieces of it, each asked for by its range, where one stream comes slower than it
//! could be used. Many registries hand blobs out at a rate per connection.
//!
//! Pieces are begun in the blob's order and each by one connection, so the front of the blob, which somebody may read
//! while it arrives, comes first. What arrives behind the front goes to its place in the sink at once, and is taken in
//! (and hashed) when the front gets there: nothing is kept in memory. A piece that breaks goes on where it broke.
//! Whatever is wrong with ranges, the single stream is the way back: it goes on from the front.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use http::header::RANGE;
use http::{Method, StatusCode};
use kiln_oci::Descriptor;
use oci_client::RegistryOperation;

use crate::answer::Answer;
use crate::options::Ranges;
use crate::pull::{Download, PROGRESS};
use crate::registry::{Registry, scope};
use crate::retry::{Again, Failure};
use crate::route::Place;
use crate::transport::{Ask, To};
use crate::{Event, RegistryError};

/// More connections than this at a time bring one blob no further.
const MOST: usize = 4;

/// Measures how fast a stream comes, over stretches of time.
pub(crate) struct Pace {
    rules: Ranges,
    began: Instant,
    position: u64,
}

impl Pace {
    /// Begins at `position`.
    pub(crate) fn new(rules: Ranges, position: u64) -> Self {
        Self { rules, began: Instant::now(), position }
    }

    /// So long nothing was read, because the sink had no room: that says nothing of the stream.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.began += time;
    }

    /// Whether the stream, which is at `position` now, came slowly in the stretch that ends now, if one ends.
    pub(crate) fn is_slow(&mut self, position: u64) -> bool {
        let took = self.began.elapsed();
        if took < self.rules.patience {
            return false;
        }
        let came = u128::from(position - self.position);
        (self.began, self.position) = (Instant::now(), position);
        came * Duration::from_secs(1).as_nanos() < u128::from(self.rules.fast) * took.as_nanos()
    }
}

/// A piece of a blob, on its way by one connection.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    at: u64,
    end: u64,
}

/// Why pieces are given up.
enum Stop {
    /// One stream may do better.
    OneStream,
    /// It makes no sense to go on.
    Failed(RegistryError),
}

/// A download in pieces. What lies ahead of the front when it is dropped is forgotten.
struct Pieces<'d, 's> {
    download: &'d mut Download<'s>,
    rules: Ranges,
    /// Where the next piece begins.
    next: u64,
    /// Pieces that were begun and are not wholly taken in, by their start: where they are, and where they end.
    begun: BTreeMap<u64, (u64, u64)>,
}

impl Drop for Pieces<'_, '_> {
    fn drop(&mut self) {
        if let Some(ahead) = self.download.sink.ahead() {
            // The file's length is what a later attempt goes by; it checks the digest, too.
            let _ = ahead.forget();
        }
    }
}

impl Pieces<'_, '_> {
    fn begin(&mut self) -> Option<Piece> {
        let (start, size) = (self.next, self.download.descriptor.size);
        if start >= size {
            return None;
        }
        // Pieces end at multiples of their size, wherever the first begins.
        let end = ((start / self.rules.piece + 1) * self.rules.piece).min(size);
        self.next = end;
        self.begun.insert(start, (start, end));
        Some(Piece { start, at: start, end })
    }

    /// Puts `bytes` where `piece` is.
    fn put(&mut self, piece: &mut Piece, bytes: Bytes, answer: &Answer) -> Result<(), Failure> {
        let length = bytes.len() as u64;
        if piece.at == self.download.position {
            self.download.take(bytes, answer)?;
        } else if let Some(ahead) = self.download.sink.ahead() {
            ahead.put(piece.at, &bytes).map_err(|error| answer.not_written(error))?;
        }
        piece.at += length;
        self.begun.insert(piece.start, (piece.at, piece.end));
        self.advance().map_err(|error| answer.not_written(error))
    }

    /// Moves the front as far as there are bytes without a gap.
    fn advance(&mut self) -> std::io::Result<()> {
        while let Some(first) = self.begun.first_entry() {
            let (at, end) = *first.get();
            if at > self.download.position
                && let Some(ahead) = self.download.sink.ahead()
            {
                ahead.take_in(at)?;
                self.download.position = at;
            }
            if at < end {
                break;
            }
            first.remove();
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Whether what is left of `download` could come in pieces from who gave `answer`.
    pub(crate) fn may_split(&self, download: &mut Download<'_>, answer: &Answer) -> bool {
        let options = &self.transport().options;
        let left = download.descriptor.size.saturating_sub(download.position);
        left >= options.ranges.least
            && options.max_concurrency > 1
            && !download.one_stream
            && !download.is_hashed_here()
            && answer.header("accept-ranges").is_none_or(|accepts| accepts.trim() != "none")
            && download.sink.ahead().is_some()
    }

    /// Fetches what is left of `download` in pieces. Gives whether that worked; where not, one stream is to go on.
    ///
    /// Fails only where the sink does.
    pub(crate) async fn pull_parts(
        &self,
        place: &Place,
        allowed: u32,
        download: &mut Download<'_>,
    ) -> Result<bool, RegistryError> {
        let options = &self.transport().options;
        let (next, rules) = (download.position, options.ranges);
        let pieces = Mutex::new(Pieces { download, rules, next, begun: BTreeMap::new() });
        let workers = options.max_concurrency.min(MOST);
        let all = try_join_all((0..workers).map(|_| self.pull_pieces(place, allowed, &pieces))).await;
        match all {
            Ok(_) => Ok(true),
            Err(Stop::OneStream) => Ok(false),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Fetches one piece after the other until all are begun.
    async fn pull_pieces(
        &self,
        place: &Place,
        allowed: u32,
        pieces: &Mutex<Pieces<'_, '_>>,
    ) -> Result<(), Stop> {
        loop {
            let begun = lock(pieces).begin();
            let Some(mut piece) = begun else { return Ok(()) };
            let mut tries = self.tries(allowed);
            let mut mark = piece.at;
            while piece.at < piece.end {
                let Err(failure) = self.pull_piece(place, &mut piece, pieces).await else { continue };
                match failure.error {
                    error @ RegistryError::Write { .. } => return Err(Stop::Failed(error)),
                    _ if failure.again == Again::Never => return Err(Stop::OneStream),
                    error => {
                        if piece.at >= mark + PROGRESS {
                            tries.progressed();
                        }
                        mark = piece.at;
                        let failure = Failure { error, again: failure.again };
                        tries.after(failure).await.map_err(|_| Stop::OneStream)?;
                    }
                }
            }
        }
    }

    /// Fetches what is left of `piece` by one request; success may leave something, where the registry gives less than it
    /// was asked for.
    async fn pull_piece(
        &self,
        place: &Place,
        piece: &mut Piece,
        pieces: &Mutex<Pieces<'_, '_>>,
    ) -> Result<(), Failure> {
        let Descriptor { digest, size, .. } = lock(pieces).download.descriptor.clone();
        let at = place.attempt("fetch", format!("{}/{}@{digest}", place.host, place.path));
        let scopes = scope(&place.path, RegistryOperation::Pull);
        let path = format!("/v2/{}/blobs/{digest}", place.path);
        let range = format!("bytes={}-{}", piece.at, piece.end - 1);
        let ask = Ask::new(Method::GET, To::Path(path), &scopes, &at).header(RANGE, &range).apart();
        let mut answer = self.transport().send(place, ask).await?.success().await?;
        let promised = match (answer.status(), answer.range()) {
            (StatusCode::PARTIAL_CONTENT, Some((start, last)))
                if start == piece.at && (start..size).contains(&last) =>
            {
                last + 1
            }
            _ => {
                let what = format!("asked for {range}, it sent something else");
                return Err(Failure::never(answer.protocol(what)));
            }
        };
        let end = promised.min(piece.end);
        while piece.at < end {
            let Some(chunk) = answer.chunk().await? else {
                let why = format!("the connection ended {} bytes early", end - piece.at);
                let at = Box::new(answer.at.clone());
                return Err(Failure::later(RegistryError::Unreachable { at, why }));
            };
            let most = usize::try_from(end - piece.at).unwrap_or(usize::MAX).min(chunk.len());
            let position = {
                let mut pieces = lock(pieces);
                pieces.put(piece, chunk.slice(..most), &answer)?;
                pieces.download.position
            };
            self.transport().observe(Event::Received { digest: digest.clone(), bytes: position, of: size });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_slow_by_what_came_in_the_last_stretch() {
        let rules = Ranges { patience: Duration::from_millis(20), fast: 1_000_000, ..Ranges::default() };
        let mut pace = Pace::new(rules, 100);
        assert!(!pace.is_slow(100), "too early to say");
        std::thread::sleep(Duration::from_millis(30));
        assert!(!pace.is_slow(10_000_000), "hundreds of MB/s");
        std::thread::sleep(Duration::from_millis(30));
        assert!(pace.is_slow(10_000_100), "a few kB/s since");
    }

    #[test]
    fn a_stream_is_not_slow_while_nobody_reads_it() {
        let rules = Ranges { patience: Duration::from_millis(1), fast: 1_000_000, ..Ranges::default() };
        let mut pace = Pace::new(rules, 0);
        std::thread::sleep(Duration::from_millis(5));
        pace.waited(Duration::from_secs(3600));
        assert!(!pace.is_slow(1));
        let mut pace = Pace::new(rules, 0);
        std::thread::sleep(Duration::from_millis(5));
        assert!(pace.is_slow(1));
    }
}
