//! The layer cache as a whole build meets it: a registry on a loopback address that counts requests and goes wrong as it
//! is told.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_integration::{Bench, Built};
use kiln_testkit::{Fault, Route, TestRegistry};

/// A registry that runs beside the test.
struct Remote {
    registry: Option<TestRegistry>,
    runtime: tokio::runtime::Runtime,
}

impl Remote {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let registry = runtime.block_on(TestRegistry::start());
        Self { registry: Some(registry), runtime }
    }

    fn stop(&mut self) {
        let registry = self.registry.take();
        let _inside = self.runtime.enter();
        drop(registry);
    }
}

impl std::ops::Deref for Remote {
    type Target = TestRegistry;
    fn deref(&self) -> &TestRegistry {
        self.registry.as_ref().unwrap()
    }
}

/// Builds with the cache in `remote`, without pushing.
fn cached(bench: &Bench, remote: &TestRegistry, dockerfile: &str, flags: &[&str]) -> Built {
    cached_at(bench, &remote.host(), dockerfile, flags)
}

fn cached_at(bench: &Bench, host: &str, dockerfile: &str, flags: &[&str]) -> Built {
    let repository = format!("--cache-repo={host}/cache");
    let mut all = vec!["--cache", "--cache-copy-layers", &repository];
    all.extend(flags);
    let built = bench.build(dockerfile, &all);
    built.succeeded();
    built
}

/// How many steps were taken from the cache, and how many the cache did not have.
fn reused(built: &Built) -> usize {
    built.log().matches("Using caching version of cmd").count()
}

fn warnings(built: &Built) -> Vec<String> {
    built
        .log()
        .lines()
        .filter(|line| line.contains("WARN") && !line.contains("; try "))
        .map(str::to_owned)
        .collect()
}

/// Whether a RUN step with this text ran.
fn ran(built: &Built, text: &str) -> bool {
    built.log().lines().any(|line| line.contains("] RUN") && line.contains(text) && !line.contains("done in"))
}

const TWO_STAGES: &str = "FROM base AS make
COPY source /source
RUN sh -c 'echo binary > /binary' # COMMENT
FROM base
COPY --from=make /binary /bin/program
RUN cat /bin/program > /used
";

#[test]
fn a_stage_that_makes_the_same_again_does_not_run_what_follows() {
    let (bench, remote) = (Bench::new(), Remote::start());
    bench.file("source", "1");
    let first = cached(&bench, &remote, TWO_STAGES, &[]);
    assert_eq!(reused(&first), 0, "{}", first.log());
    bench.file("source", "2");
    let second = cached(&bench, &remote, TWO_STAGES, &[]);
    assert!(ran(&second, "echo binary") && !ran(&second, "cat /bin/program"), "{}", second.log());
    assert_eq!(first.digest(), second.digest());
    // The result stands under its recipe's key now: nothing is made, and nothing but records is read.
    remote.forget();
    let third = cached(&bench, &remote, TWO_STAGES, &["--no-push-cache"]);
    assert!(!ran(&third, "echo binary"), "{}", third.log());
    assert!(!third.log().contains("isolation:"), "{}", third.log());
    bench.file("source", "3");
    let changed = cached(&bench, &remote, &TWO_STAGES.replace("echo binary", "echo other"), &[]);
    assert!(ran(&changed, "cat /bin/program"), "{}", changed.log());
    assert_ne!(changed.digest(), first.digest());
}

#[test]
fn what_is_mounted_from_a_stage_stops_the_ripple_too() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let text = |comment: &str| {
        format!(
            "FROM base AS make\nRUN mkdir /out; echo x > /out/x; : {comment}\nFROM base\n\
             RUN --mount=from=make,source=/out,target=/in cat /in/x > /used\n"
        )
    };
    cached(&bench, &remote, &text("one"), &[]);
    let second = cached(&bench, &remote, &text("two"), &[]);
    assert!(ran(&second, ": two") && !ran(&second, "/in/x"), "{}", second.log());
}

#[test]
fn a_hit_whose_blob_is_gone_is_made_again() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let text = "FROM base AS a\nRUN echo one > /one\nFROM base\nCOPY --from=a /one /\nRUN echo two > /two\nRUN echo three > /three\n";
    let first = cached(&bench, &remote, text, &[]);
    // Every layer of the final stage in turn: the one that a COPY made too, whose stage has to run again then.
    for layer in first.manifest()["layers"].as_array().unwrap().iter().skip(1) {
        let digest = layer["digest"].as_str().unwrap().parse().unwrap();
        assert!(remote.remove_blob("cache", &digest), "{digest} was cached");
        let again = cached(&bench, &remote, text, &[]);
        assert_eq!(again.files(), first.files());
        assert_eq!(warnings(&again).len(), 1, "{:?}", warnings(&again));
        assert!(remote.blob("cache", &digest).is_some(), "it is cached again: {}", again.log());
    }
}

#[test]
fn a_hit_that_vanishes_while_a_tree_is_made_is_made_again() {
    let (bench, remote) = (Bench::new(), Remote::start());
    bench.file("late", "1");
    let text =
        "FROM base\nRUN echo one > /one\nRUN echo two > /two\nCOPY late /\nRUN cat /one /two /late > /all\n";
    let first = cached(&bench, &remote, text, &[]);
    bench.file("late", "2");
    let layers = first.manifest()["layers"].clone();
    let digest = layers[2]["digest"].as_str().unwrap().parse().unwrap();
    assert!(remote.remove_blob("cache", &digest));
    let second = cached(&bench, &remote, text, &[]);
    assert!(second.files().iter().any(|line| line.contains("/all") && line.contains("one\\ntwo\\n2")));
    assert!(!ran(&second, "echo one") && ran(&second, "echo two"), "{}", second.log());
}

#[test]
fn one_layer_for_all_is_one_layer_with_hits_too() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let text = "FROM base\nRUN echo one > /one\nRUN echo two > /two\n";
    cached(&bench, &remote, text, &[]);
    let single = cached(&bench, &remote, text, &["--single-snapshot"]);
    assert_eq!(reused(&single), 4 - 1, "{}", single.log());
    assert_eq!(single.manifest()["layers"].as_array().unwrap().len(), 2, "the base's, and one");
}

#[test]
fn a_registry_that_may_not_be_written_is_complained_of_once() {
    let (bench, remote) = (Bench::new(), Remote::start());
    remote.always(Route::UploadStart, Fault::Status(403));
    let text = "FROM base\nRUN echo one > /one\nRUN echo two > /two\nRUN echo three > /three\n";
    let built = cached(&bench, &remote, text, &[]);
    assert_eq!(warnings(&built).len(), 1, "{:?}", warnings(&built));
}

const FIVE: &str = "FROM base\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN echo 3 > /3\nRUN echo 4 > /4\n";

#[test]
fn a_cache_that_fails_is_complained_of_once_and_the_build_ends_right() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let first = cached(&bench, &remote, FIVE, &[]);
    for fault in [Fault::Status(500), Fault::Reset, Fault::Answer(200, "rubbish".to_owned())] {
        remote.always(Route::Manifest, fault.clone());
        let built = cached(&bench, &remote, FIVE, &["--no-push-cache", "--image-download-retry=0"]);
        assert_eq!(built.files(), first.files());
        let entries = if matches!(fault, Fault::Answer(..)) { 5 } else { 1 };
        assert!((1..=entries).contains(&warnings(&built).len()), "{fault:?}: {:?}", warnings(&built));
    }
    remote.always(Route::Manifest, Fault::Serve);
    for fault in [Fault::WrongBytes, Fault::Truncate(7), Fault::Status(500), Fault::CutAfter(9)] {
        remote.always(Route::Blob, fault.clone());
        let built = cached(&bench, &remote, FIVE, &["--no-push-cache", "--image-download-retry=0"]);
        assert_eq!(built.files(), first.files(), "{fault:?}");
        assert!(!warnings(&built).is_empty(), "{fault:?}");
    }
}

#[test]
fn a_cache_that_asks_for_patience_is_waited_for() {
    let (bench, remote) = (Bench::new(), Remote::start());
    cached(&bench, &remote, FIVE, &[]);
    remote.on(Route::Manifest, vec![Fault::RetryAfter(429, 1); 3]);
    let built = cached(&bench, &remote, FIVE, &["--no-push-cache"]);
    assert_eq!((reused(&built), warnings(&built).len()), (5, 0), "{}", built.log());
}

#[test]
fn a_slow_cache_is_used_all_the_same() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let text =
        FIVE.replace("FROM base", "FROM scratch AS small\nCOPY f /\nFROM base\nCOPY --from=small /f /");
    bench.file("f", "x");
    cached(&bench, &remote, &text, &[]);
    remote.always(Route::Manifest, Fault::Slow(1000));
    let began = Instant::now();
    let built = cached(&bench, &remote, &text, &["--no-push-cache"]);
    assert!(reused(&built) >= 5, "{}", built.log());
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_cache_that_dies_in_the_middle_costs_one_warning_for_reading_and_one_for_writing() {
    let (bench, mut remote) = (Bench::new(), Remote::start());
    let first = cached(&bench, &remote, FIVE, &[]);
    let host = remote.host();
    // It dies when the second layer is asked for.
    remote.on(Route::Blob, [Fault::Serve]);
    remote.always(Route::Blob, Fault::Reset);
    let built = cached(&bench, &remote, &FIVE.replace("echo 4", "echo 5"), &["--image-download-retry=0"]);
    assert_eq!(built.files().len(), first.files().len());
    remote.stop();
    let built = cached_at(&bench, &host, FIVE, &["--image-download-retry=0", "--push-retry=0"]);
    assert_eq!(built.files(), first.files());
    assert!((1..=2).contains(&warnings(&built).len()), "{:?}", warnings(&built));
}

#[test]
fn the_context_is_not_hidden_from_a_copy_of_a_stage() {
    let (bench, remote) = (Bench::new(), Remote::start());
    bench.file("context-file", "x").file(".dockerignore", "*\n!base.tar\n!context-file\n");
    let text = "FROM base AS a\nRUN echo hidden > /hidden\nFROM scratch\nCOPY --from=a /hidden /\nCOPY context-file /\n";
    for _ in 0..2 {
        let built = cached(&bench, &remote, text, &[]);
        assert!(built.files().iter().any(|line| line.starts_with("/context-file")), "{:?}", built.files());
        assert_eq!(built.manifest()["layers"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn without_a_repository_the_cache_is_a_layout_in_the_scratch_directory() {
    let bench = Bench::new();
    let flags = ["--cache", "--cache-copy-layers"];
    let first = bench.build(FIVE, &flags);
    first.succeeded();
    let second = bench.build(FIVE, &flags);
    assert_eq!(reused(second.succeeded()), 5, "{}", second.log());
    assert_eq!(first.digest(), second.digest());
    let layout: &Path = &bench.directory.path().join("scratch/kiln-cache");
    assert!(layout.join("oci-layout").exists() && layout.join("kiln/layers").is_dir());
    // Damage in it is a miss.
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let third = bench.build(FIVE, &flags);
    assert_eq!(third.succeeded().files(), first.files());
    assert!(!warnings(&third).is_empty());
}
