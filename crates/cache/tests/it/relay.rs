//! Layers that are sent on while they arrive.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_cache::{HitBytes, Patience, Relay, StepCache, StepPlace};
use kiln_oci::{DiffId, Digest, media_type};
use kiln_plan::{Hit, StepKey};
use kiln_registry::BlobSource as _;
use kiln_store::{Durability, Store};
use kiln_testkit::Fault;
use tokio::io::AsyncReadExt as _;

use crate::remote::{Remote, client, noise};

struct Bench {
    remote: Remote,
    cache: StepCache,
    hit: Hit,
    bytes: Vec<u8>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new(length: u32, patience: Patience) -> Self {
        let remote = Remote::start();
        let bytes = noise(3, length);
        remote.registry().put_blob("cache", bytes.clone());
        let digest = Digest::of(&bytes);
        let hit = Hit {
            key: StepKey([1; 32]),
            diff_id: DiffId::from_digest(&digest).unwrap(),
            digest,
            size: u64::from(length),
            media_type: media_type::OCI_LAYER_GZIP.to_owned(),
            origin: "cache".to_owned(),
            created: 0,
        };
        let repository = remote.reference("cache:x").repository;
        let place = StepPlace::Remote { registry: client(), repository };
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&warnings);
        let warn = Arc::new(move |text| heard.lock().unwrap().push(text));
        let cache = StepCache::new(vec![place], 1000, 0, warn).with_patience(patience);
        Self { remote, cache, hit, bytes, warnings }
    }

    async fn relay(&self) -> Relay {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Store::create(directory.path(), Durability::Scratch).unwrap();
        match self.cache.locate(&self.hit, &scratch).await {
            Some(HitBytes::There(relay)) => relay,
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, relay: &Relay, offset: usize) -> std::io::Result<bool> {
        let mut got = Vec::new();
        relay.open(offset as u64)?.read_to_end(&mut got).await?;
        Ok(got == self.bytes[offset..])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upload_does_not_take_is_not_asked_for() {
    let bench = Bench::new(64 << 20, Patience::default());
    let relay = bench.relay().await;
    let mut reader = relay.open(0).unwrap();
    let mut first = vec![0; 1000];
    assert!(bench.remote.requests().is_empty(), "nothing is asked before the first read");
    reader.read_exact(&mut first).await.unwrap();
    assert_eq!(first, bench.bytes[..1000]);
    let before = memory();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(memory() < before + (8 << 20), "{before} {}", memory());
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    assert!(rest == bench.bytes[1000..]);
    assert_eq!(bench.remote.downloads(&bench.hit.digest), 1);
}

/// The resident bytes of this process.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_goes_on_gets_the_rest_and_no_more_than_a_mark_twice() {
    let bench = Bench::new(5 << 20, Patience::default());
    let relay = bench.relay().await;
    assert!(bench.read(&relay, 0).await.unwrap());
    for offset in [1, 1 << 20, (3 << 20) + 17, (5 << 20) - 1] {
        bench.remote.requests();
        assert!(bench.read(&relay, offset).await.unwrap(), "{offset}");
        let seen = bench.remote.registry().seen();
        let begins: Vec<&str> =
            seen.iter().map(|seen| seen.header("range")).filter(|range| !range.is_empty()).collect();
        let begin = begins
            .first()
            .map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        assert!(begin <= offset && offset - begin < (2 << 20), "{begins:?} for {offset}");
    }
    // From a place that nobody was at yet, all is read, and the beginning only hashed.
    assert!(bench.read(&bench.relay().await, 4 << 20).await.unwrap());
    assert!(!relay.has_failed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_is_resumed_and_one_that_is_wrong_never_ends_well() {
    let bench = Bench::new(3 << 20, Patience::default());
    bench.remote.on_blobs([Fault::CutAfter(1 << 20), Fault::Status(500), Fault::Serve]);
    assert!(bench.read(&bench.relay().await, 0).await.unwrap());
    for fault in [Fault::WrongBytes, Fault::Truncate(100), Fault::Endless, Fault::Status(404)] {
        bench.remote.on_blobs(std::iter::repeat_n(fault.clone(), 3));
        let relay = bench.relay().await;
        let mut got = Vec::new();
        let result = relay.open(0).unwrap().read_to_end(&mut got).await;
        assert!(result.is_err() && got.len() < bench.bytes.len(), "{fault:?}");
        assert!(bench.cache.is_lost(&bench.hit, &relay), "{fault:?}");
        assert!(!bench.cache.is_lost(&bench.hit, &relay), "it is said once");
        bench.remote.registry().forget_script();
    }
    assert!(!bench.warnings.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_is_not_taken_for_a_slow_cache() {
    let patience = Patience { grace: Duration::from_millis(300), rest: Duration::from_millis(300) };
    let bench = Bench::new(4 << 20, patience);
    let relay = bench.relay().await;
    let mut reader = relay.open(0).unwrap();
    let mut piece = vec![0; 1 << 20];
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        reader.read_exact(&mut piece).await.unwrap();
    }
    bench.remote.on_blobs([Fault::Slow(100_000)]);
    let slow = bench.relay().await;
    assert!(bench.read(&slow, 0).await.is_err());
    assert!(bench.cache.is_lost(&bench.hit, &slow));
    assert!(bench.warnings.lock().unwrap().last().unwrap().contains("too slow"));
    // It is not found out twice: the next layer of that size is given up at once, a small one is not.
    let directory = tempfile::tempdir().unwrap();
    let scratch = Store::create(directory.path(), Durability::Scratch).unwrap();
    let large = Hit { size: 4 << 30, ..bench.hit.clone() };
    assert!(bench.cache.locate(&large, &scratch).await.is_none());
    let small = Hit { size: 10, ..bench.hit.clone() };
    assert!(bench.cache.locate(&small, &scratch).await.is_some());
}
