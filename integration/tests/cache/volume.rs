//! The warmer on a schedule, flag by flag, on a volume that executors read meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_integration::{Bench, Built, kiln};
use kiln_testkit::{Fault, Route, TestRegistry};

use crate::{Remote, pushed, reused, warnings};

/// A volume, and a registry with images for it.
struct Volume {
    bench: Bench,
    remote: Remote,
}

impl Volume {
    /// With the images `one:1` and `two:1`.
    fn new() -> Self {
        let (bench, remote) = (Bench::new(), Remote::start());
        for name in ["one", "two"] {
            push_image(&bench, &remote, name, name);
        }
        Self { bench, remote }
    }

    fn path(&self) -> PathBuf {
        self.bench.directory.path().join("volume")
    }

    fn image(&self, name: &str) -> String {
        format!("--image={}/{name}:1", self.remote.host())
    }

    fn warm(&self, flags: &[&str]) -> Built {
        let output = Command::new(kiln())
            .args(["warmer", "--cache-dir"])
            .arg(self.path())
            .args(flags)
            .output()
            .unwrap();
        Built { output, layout: PathBuf::new() }
    }

    /// The images that the volume can build from, with the registry out of reach.
    fn holds(&self, name: &str) -> bool {
        let text = format!("FROM {}/{name}:1\nCOPY base.tar /copy\n", self.remote.host());
        self.executor(&text, &["--offline", "--no-push"]).output().unwrap().status.success()
    }

    fn executor(&self, dockerfile: &str, flags: &[&str]) -> Command {
        let directory = tempfile::tempdir_in(self.bench.directory.path()).unwrap().keep();
        std::fs::write(directory.join("Dockerfile"), dockerfile).unwrap();
        let mut command = Command::new(kiln());
        command
            .arg("executor")
            .arg("-c")
            .arg(self.bench.context())
            .arg("-f")
            .arg(directory.join("Dockerfile"));
        command
            .arg("--scratch-dir")
            .arg(directory.join("scratch"))
            .arg("--cache-dir")
            .arg(self.path())
            .args(flags);
        command
    }

    fn blobs(&self) -> Vec<PathBuf> {
        files(&self.path().join("blobs/sha256"))
    }

    fn largest(&self) -> PathBuf {
        self.blobs().into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// An image with a layer of its own, of some size, besides the base's.
fn push_image(bench: &Bench, remote: &TestRegistry, name: &str, content: &str) {
    let text = format!("FROM scratch\nADD base.tar /\nCOPY <<EOF /{name}\n{content}\nEOF\nENV PATH=/bin\n");
    pushed(bench, remote, &text, &["--cache=false", &format!("--destination={}/{name}:1", remote.host())]);
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // Under the same name, as a broken disk does it.
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_tag_means_what_it_meant_for_as_long_as_the_ttl_where_nobody_can_be_asked() {
    let mut volume = Volume::new();
    let one = volume.image("one");
    volume.warm(&[&one]).succeeded();
    // Nothing is fetched again that is there.
    volume.remote.forget();
    let again = volume.warm(&[&one]);
    assert!(again.succeeded().log().contains("Image already in cache"), "{}", again.log());
    assert_eq!(volume.remote.count(Route::Blob), 0);
    assert!(volume.remote.seen().len() <= 3, "{:#?}", volume.remote.seen());
    // A tag that moved is noticed, however young the last answer.
    push_image(&volume.bench, &volume.remote, "one", "moved");
    volume.warm(&[&one]).succeeded();
    assert!(volume.remote.count(Route::Blob) >= 2, "{:#?}", volume.remote.seen());
    volume.remote.stop();
    let quick = ["--image-download-retry=0", one.as_str()];
    let young = volume.warm(&quick);
    assert!(young.succeeded().log().contains("what the volume has is taken"), "{}", young.log());
    std::thread::sleep(Duration::from_millis(1500));
    let old = volume.warm(&["--cache-ttl=1s", quick[0], quick[1]]);
    assert_eq!(old.output.status.code(), Some(1), "{}", old.log());
    let wanted = volume.warm(&["--force", quick[0], quick[1]]);
    assert_eq!(wanted.output.status.code(), Some(1), "{}", wanted.log());
}

#[test]
fn every_image_is_tried_and_one_that_failed_makes_the_exit_code_1() {
    let volume = Volume::new();
    let flags = [volume.image("missing"), volume.image("two")];
    let built = volume.warm(&[&flags[0], &flags[1]]);
    assert_eq!(built.output.status.code(), Some(1), "{}", built.log());
    assert!(built.log().contains("missing"), "{}", built.log());
    assert!(volume.holds("two") && !volume.holds("one"));
}

#[test]
fn what_was_not_used_for_long_goes_and_what_was_asked_for_stays() {
    let volume = Volume::new();
    let (one, two) = (volume.image("one"), volume.image("two"));
    volume.warm(&["--unpack", &one, &two]).succeeded();
    let unpacked = || files(&volume.path().join("kiln/unpacked/sha256")).len();
    let before = (volume.blobs().len(), unpacked());
    std::thread::sleep(Duration::from_millis(2100));
    let pruned = volume.warm(&["--unpack", &two, "--prune-unused=2s"]);
    assert!(pruned.succeeded().log().contains("/one:1"), "{}", pruned.log());
    assert!(volume.holds("two") && !volume.holds("one"));
    // What both shared stays: the base's layer.
    assert_eq!((volume.blobs().len(), unpacked()), (before.0 - 3, before.1 - 1));
    // A schedule may only prune.
    std::thread::sleep(Duration::from_millis(1100));
    volume.warm(&["--prune-unused=1s"]).succeeded();
    assert_eq!((volume.blobs().len(), unpacked()), (0, 0));
}

#[test]
fn what_does_not_fit_goes_the_least_recently_used_first() {
    let volume = Volume::new();
    let (one, two) = (volume.image("one"), volume.image("two"));
    volume.warm(&[&one]).succeeded();
    let size = |volume: &Volume| -> u64 {
        volume.blobs().iter().map(|path| std::fs::metadata(path).unwrap().len()).sum()
    };
    let limit = size(&volume);
    std::thread::sleep(Duration::from_millis(1100));
    volume.warm(&[&two, &format!("--max-size={}", limit + 500)]).succeeded();
    assert!(volume.holds("two") && !volume.holds("one"));
    assert!(size(&volume) <= limit + 500);
    volume.warm(&["--max-size=20GB"]).succeeded();
    assert!(volume.holds("two"));
    volume.warm(&["--max-size=1"]).succeeded();
    assert!(volume.blobs().is_empty());
}

#[test]
fn nothing_goes_that_a_running_build_reads() {
    let volume = Volume::new();
    let one = volume.image("one");
    volume.warm(&["--unpack", &one]).succeeded();
    // The second stage begins with the image when the first has slept, and its layers are read for the copy then.
    let image = format!("{}/one:1", volume.remote.host());
    let text = format!(
        "FROM {image} AS first\nRUN echo began; sleep 4; echo x > /x\nFROM {image}\nCOPY --from=first /x /x\nRUN cat /one /x > /y\n"
    );
    let layout = volume.bench.directory.path().join("layout");
    let flag = format!("--oci-layout-path={}", layout.display());
    let mut running = volume.executor(&text, &["--no-push", "--offline", &flag]);
    let running = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    // Everything is older than that, and nothing fits.
    for flags in [["--prune-unused=1ms", "--max-size=1"], ["--max-size=1", "--force=false"]] {
        let pruned = volume.warm(&flags);
        assert!(pruned.succeeded().log().contains("in use"), "{}", pruned.log());
    }
    assert_eq!(volume.blobs().len(), 4, "manifest, config, two layers");
    let built = Built { output: running.wait_with_output().unwrap(), layout };
    assert!(warnings(built.succeeded()).is_empty(), "{}", built.log());
    assert!(
        built.files().iter().any(|line| line.starts_with("/y ") && line.contains("one\\nx\\n")),
        "{:?}",
        built.files()
    );
    volume.warm(&["--max-size=1"]).succeeded();
    assert!(volume.blobs().is_empty() && files(&volume.path().join("kiln/unpacked/sha256")).is_empty());
}

#[test]
fn what_is_not_what_its_name_says_is_repaired_and_the_exit_code_is_1() {
    let mut volume = Volume::new();
    let one = volume.image("one");
    volume.warm(&["--unpack", &one]).succeeded();
    assert!(volume.warm(&["--verify"]).output.status.success());
    flip_a_bit(&volume.largest());
    let repaired = volume.warm(&["--verify"]);
    assert_eq!(repaired.output.status.code(), Some(1));
    assert!(repaired.log().contains("repaired"), "{}", repaired.log());
    volume.warm(&["--verify"]).succeeded();
    assert!(volume.holds("one"));
    // What can't be had again is taken away, so that nobody meets it.
    let bad = volume.largest();
    flip_a_bit(&bad);
    volume.remote.stop();
    let removed = volume.warm(&["--verify", "--image-download-retry=0"]);
    assert_eq!(removed.output.status.code(), Some(1));
    assert!(removed.log().contains("removed") && !bad.exists(), "{}", removed.log());
}

#[test]
fn a_layout_on_disk_is_a_cache_repository_for_the_warmer_too() {
    let volume = Volume::new();
    let cache = volume.bench.directory.path().join("cache");
    let repository = format!("--cache-repo=oci:{}", cache.display());
    volume.bench.file("f", "1");
    let base = format!("{}/one:1", volume.remote.host());
    let text = format!("FROM {base}\nRUN echo first > /first\nCOPY f /f\nRUN cat /f > /second\n");
    let flags = ["--no-push", "--reproducible", "--cache", "--cache-copy-layers"];
    let build = |more: &str| {
        let flags: Vec<&str> = flags.iter().copied().chain([more]).collect();
        let output = volume.executor(&text, &flags).output().unwrap();
        let built = Built { output, layout: PathBuf::new() };
        built.succeeded();
        built
    };
    build(&repository);
    let file = volume.bench.directory.path().join("Dockerfile");
    std::fs::write(&file, &text).unwrap();
    let dockerfile = format!("--dockerfile={}", file.display());
    let warmed = volume.warm(&[&dockerfile, &repository, "--unpack"]);
    assert!(warmed.succeeded().log().contains("cached layers: 3 warmed"), "{}", warmed.log());
    assert!(warnings(&warmed).is_empty(), "{}", warmed.log());
    let again = volume.warm(&[&dockerfile, &repository]);
    assert!(again.succeeded().log().contains("cached layers: 0 warmed, 3 already there"), "{}", again.log());
    // Without the layout, and with a registry that gives nothing but manifests, all steps are found.
    let aside = volume.bench.directory.path().join("aside");
    std::fs::rename(&cache, &aside).unwrap();
    volume.remote.always(Route::Blob, Fault::Status(404));
    assert_eq!(reused(&build(&format!("--cache-repo={}/none", volume.remote.host()))), 3);
    volume.remote.always(Route::Blob, Fault::Serve);
    let missing = volume.warm(&[&dockerfile, &repository]);
    assert_eq!(missing.output.status.code(), Some(1), "{}", missing.log());
    assert!(missing.log().contains(&cache.display().to_string()), "{}", missing.log());
    // A damaged layer of a layout is not taken over.
    std::fs::rename(&aside, &cache).unwrap();
    for blob in files(&cache.join("blobs/sha256")) {
        if std::fs::read(&blob).unwrap().starts_with(&[0x1f, 0x8b]) {
            flip_a_bit(&blob);
        }
    }
    let other = Volume { bench: Bench::new(), remote: Remote::start() };
    let damaged = other.warm(&[&dockerfile, &repository]);
    assert_eq!(damaged.output.status.code(), Some(1), "{}", damaged.log());
    other.warm(&["--verify"]).succeeded();
}

/// Waiting is bounded: a warmer that prunes never waits for a build, nor a build for a warmer.
#[test]
fn pruning_waits_for_nobody() {
    let volume = Volume::new();
    let one = volume.image("one");
    volume.warm(&[&one]).succeeded();
    let text = format!("FROM {}/one:1\nRUN sleep 6\n", volume.remote.host());
    let mut running = volume.executor(&text, &["--no-push", "--offline"]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    let began = Instant::now();
    volume.warm(&["--max-size=1"]).succeeded();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(running.try_wait().unwrap().is_none());
    assert!(running.wait().unwrap().success());
}
