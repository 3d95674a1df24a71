//! Large layers of RUN are sent while they are written.

use std::process::{Command, Output};

use kiln_integration::{Bench, kiln};
use kiln_testkit::{Fault, Route, TestRegistry};

const NOISE: &str =
    "FROM scratch\nADD base.tar /\nENV PATH=/bin\nRUN head -c 40000000 /dev/urandom > /noise\n";

struct Remote {
    registry: TestRegistry,
    _runtime: tokio::runtime::Runtime,
}

impl Remote {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        Self { registry: runtime.block_on(TestRegistry::start()), _runtime: runtime }
    }

    /// Builds and pushes; gives the digest of the last layer, which is the large one.
    fn build(&self, flags: &[&str]) -> kiln_oci::Digest {
        let bench = Bench::new();
        let file = bench.directory.path().join("Dockerfile");
        std::fs::write(&file, NOISE).unwrap();
        let layout = bench.directory.path().join("layout");
        let output: Output = Command::new(kiln())
            .args(["executor", "--destination", &format!("{}/app:1", self.registry.host())])
            .arg("--context")
            .arg(bench.context())
            .arg("--dockerfile")
            .arg(&file)
            .arg("--scratch-dir")
            .arg(bench.directory.path().join("scratch"))
            .arg("--oci-layout-path")
            .arg(&layout)
            .args(flags)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        let read = |path: std::path::PathBuf| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let index = read(layout.join("index.json"));
        let hex = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let manifest = read(layout.join("blobs/sha256").join(hex));
        let layers = manifest["layers"].as_array().unwrap();
        layers.last().unwrap()["digest"].as_str().unwrap().parse().unwrap()
    }

    /// The requests that sent something of no known length.
    fn early(&self) -> usize {
        let patches = self.registry.seen().into_iter().filter(|seen| seen.route == Route::UploadPatch);
        patches.filter(|seen| seen.header("content-length").is_empty()).count()
    }
}

#[test]
fn a_large_layer_of_a_run_is_sent_while_it_is_written() {
    let remote = Remote::start();
    let layer = remote.build(&[]);
    assert_eq!(remote.early(), 1);
    assert!(remote.registry.blob("app", &layer).is_some());
}

#[test]
fn what_did_not_arrive_early_is_sent_afterwards() {
    let remote = Remote::start();
    remote.registry.on(Route::UploadPatch, [Fault::CutAfter(1_000_000)]);
    let layer = remote.build(&[]);
    assert_eq!(remote.early(), 1);
    assert!(remote.registry.blob("app", &layer).is_some());
}

#[test]
fn what_may_be_there_already_is_asked_for_first() {
    let remote = Remote::start();
    remote.build(&["--reproducible"]);
    assert_eq!(remote.early(), 0);
}

#[test]
fn with_one_connection_or_small_requests_nothing_is_sent_early() {
    let remote = Remote::start();
    remote.build(&["--max-concurrency=1"]);
    remote.build(&["--push-chunk-size=8388608"]);
    assert_eq!(remote.early(), 0);
}
