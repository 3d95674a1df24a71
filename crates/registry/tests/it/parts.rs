//! Large blobs in pieces over several connections: what may go wrong with one piece, and the way back to one stream.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use kiln_oci::{Digest, Hasher};
use kiln_registry::{Ahead, BlobSink, Ranges, RegistryError, RegistryOptions};
use kiln_testkit::{Fault, Route, TestRegistry};

use super::{bytes, observed, options, repository};

/// A sink that takes bytes out of order, as a file does.
struct Placed {
    taken: Vec<u8>,
    ahead: BTreeMap<u64, Vec<u8>>,
    hasher: Hasher,
    /// How often something was put ahead.
    put: usize,
    /// The disk is full after so many of those.
    room: usize,
}

impl Placed {
    fn new() -> Self {
        Self { taken: Vec::new(), ahead: BTreeMap::new(), hasher: Hasher::sha256(), put: 0, room: usize::MAX }
    }
}

impl BlobSink for Placed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.taken.extend_from_slice(bytes);
        self.hasher.update(bytes);
        Ok(())
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.hasher.clone().finish())
    }

    fn ahead(&mut self) -> Option<&mut dyn Ahead> {
        Some(self)
    }
}

impl Ahead for Placed {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(offset > self.taken.len() as u64, "what is next is written");
        if self.put == self.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.put += 1;
        self.ahead.insert(offset, bytes.to_vec());
        Ok(())
    }

    fn take_in(&mut self, end: u64) -> io::Result<()> {
        while (self.taken.len() as u64) < end {
            let bytes = self.ahead.remove(&(self.taken.len() as u64)).expect("there is no gap");
            self.write(&bytes)?;
        }
        assert_eq!(self.taken.len() as u64, end);
        Ok(())
    }

    fn forget(&mut self) -> io::Result<()> {
        self.ahead.clear();
        Ok(())
    }
}

/// Pieces of 100,000 bytes, as soon as the first bytes of a stream are there.
fn eager() -> RegistryOptions {
    let ranges = Ranges { least: 200_000, piece: 100_000, patience: Duration::ZERO, fast: u64::MAX };
    RegistryOptions { ranges, ..options() }
}

struct World {
    server: TestRegistry,
    blob: Vec<u8>,
    sink: Placed,
}

impl World {
    /// A registry with a blob of a million bytes, whose answers meet `faults`.
    async fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        let server = TestRegistry::start().await;
        let blob = bytes(1_000_000);
        server.on(Route::Blob, faults);
        Self { server, blob, sink: Placed::new() }
    }

    async fn pull(&mut self, options: RegistryOptions) -> Result<(), RegistryError> {
        let descriptor = self.server.put_blob("app", self.blob.clone());
        let (registry, _) = observed(options);
        registry.pull_blob(&repository(&self.server, "app"), &descriptor, 0, &mut self.sink).await
    }

    /// The ranges that were asked for, in their order.
    fn ranges(&self) -> Vec<String> {
        let seen = self.server.seen();
        seen.iter().filter(|s| s.route == Route::Blob).map(|s| s.header("range").to_owned()).collect()
    }
}

#[tokio::test]
async fn a_slow_stream_gives_way_to_several() {
    let mut world = World::new([]).await;
    // One connection takes two and a half seconds for it.
    world.server.always(Route::Blob, Fault::Slow(400_000));
    let ranges = Ranges { patience: Duration::from_millis(150), ..eager().ranges };
    let began = Instant::now();
    world.pull(RegistryOptions { ranges, ..eager() }).await.unwrap();
    assert!(world.sink.taken == world.blob);
    assert!(began.elapsed() < Duration::from_millis(1800), "{:?}", began.elapsed());
    let asked = world.ranges();
    assert_eq!(asked[0], "");
    assert_eq!(asked.last().unwrap(), "bytes=900000-999999");
    assert!(world.sink.put > 0, "{asked:?}");
}

#[tokio::test]
async fn a_stream_that_is_fast_is_left_alone() {
    for ranges in [
        Ranges { fast: 1, ..eager().ranges },
        Ranges { least: 1_000_001, ..eager().ranges },
        Ranges { patience: Duration::from_secs(60), ..eager().ranges },
    ] {
        let mut world = World::new([]).await;
        world.pull(RegistryOptions { ranges, ..eager() }).await.unwrap();
        assert_eq!(world.ranges(), [""], "{ranges:?}");
    }
    let mut world = World::new([]).await;
    world.pull(RegistryOptions { max_concurrency: 1, ..eager() }).await.unwrap();
    assert_eq!(world.ranges(), [""], "one connection is allowed");
}

#[tokio::test]
async fn a_piece_that_breaks_goes_on_where_it_broke() {
    let faults = [Fault::Serve, Fault::CutAfter(40_000), Fault::Serve, Fault::Status(503), Fault::Reset];
    let mut world = World::new(faults).await;
    world.pull(eager()).await.unwrap();
    assert!(world.sink.taken == world.blob);
    let asked = world.ranges();
    assert!(!asked[1..].iter().any(|range| range.ends_with('-')), "never one stream again: {asked:?}");
    let inside = |range: &&String| {
        let start: u64 = range.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap();
        start % 100_000 == 40_000 || !start.is_multiple_of(100_000)
    };
    assert!(
        asked[1..].iter().filter(inside).count() >= 2,
        "the first piece, and the one that broke: {asked:?}"
    );
}

#[tokio::test]
async fn a_piece_of_a_wrong_length_is_asked_for_again() {
    let faults = [Fault::Serve, Fault::WrongLength(50), Fault::Truncate(1000), Fault::Truncate(0)];
    let mut world = World::new(faults).await;
    world.pull(eager()).await.unwrap();
    assert!(world.sink.taken == world.blob);
}

#[tokio::test]
async fn a_registry_that_ignores_a_range_sends_one_stream() {
    let mut world = World::new([Fault::Serve, Fault::Serve, Fault::IgnoreRange]).await;
    world.pull(eager()).await.unwrap();
    assert!(world.sink.taken == world.blob);
    let asked = world.ranges();
    assert!(asked.last().unwrap().ends_with('-'), "{asked:?}");
    assert_eq!(asked.iter().filter(|range| range.ends_with('-')).count(), 1, "{asked:?}");
    assert!(world.sink.ahead.is_empty(), "what lay ahead was forgotten");
}

#[tokio::test]
async fn a_registry_that_refuses_ranges_sends_one_stream() {
    for status in [403, 416, 501] {
        let mut world = World::new([Fault::Serve, Fault::Status(status)]).await;
        world.pull(eager()).await.unwrap();
        assert!(world.sink.taken == world.blob, "{status}");
        assert!(world.ranges().last().unwrap().ends_with('-'));
    }
}

#[tokio::test]
async fn a_wrong_byte_in_a_piece_is_never_a_success() {
    let mut world = World::new([Fault::Serve, Fault::Serve, Fault::WrongBytes]).await;
    let error = world.pull(eager()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_disk_that_fills_up_ends_all_pieces() {
    let mut world = World::new([]).await;
    world.sink.room = 2;
    let error = world.pull(eager()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Write { .. }), "{error}");
    assert!(!world.ranges().last().unwrap().ends_with('-'), "{:?}", world.ranges());
}

#[tokio::test]
async fn pieces_keep_to_the_number_of_connections() {
    let mut world = World::new(vec![Fault::Serve, Fault::Stall(10), Fault::Stall(10)]).await;
    let mut options = RegistryOptions { max_concurrency: 2, ..eager() };
    options.retries.pull = 1;
    world.pull(options).await.unwrap();
    assert!(world.sink.taken == world.blob);
    // Both connections were silent for half a second, and no third one was made meanwhile: what is asked for next is the
    // rest of either piece, whichever is given up first.
    let asked = world.ranges();
    let end = |request: usize| asked[request].split('-').next_back();
    assert!([end(1), end(2)].contains(&end(3)), "{asked:?}");
}
