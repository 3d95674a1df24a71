//! The layer cache as a whole build meets it: a registry on a loopback address that counts requests and goes wrong as it
//! is told.

mod faults;
mod reasons;
mod relay;
mod volume;

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_integration::{Bench, Built};
use kiln_testkit::{Fault, RegistryBuilder, Route, TestRegistry};

/// A registry that runs beside the test.
struct Remote {
    registry: Option<TestRegistry>,
    runtime: tokio::runtime::Runtime,
}

impl Remote {
    fn start() -> Self {
        Self::with(|builder| builder)
    }

    /// One that is set up by `change`.
    fn with(change: impl FnOnce(RegistryBuilder) -> RegistryBuilder) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let registry = runtime.block_on(change(TestRegistry::builder()).start());
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
        let entries = if matches!(fault, Fault::Answer(..)) { 6 } else { 1 };
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

/// A build that pushes, with its base image in the registry.
fn pushed(bench: &Bench, remote: &TestRegistry, dockerfile: &str, flags: &[&str]) -> Built {
    let file = bench.directory.path().join("Pushed");
    std::fs::write(&file, dockerfile).unwrap();
    let output = std::process::Command::new(kiln_integration::kiln())
        .args(["executor", "--cache", "--cache-copy-layers", "-c"])
        .arg(bench.context())
        .arg("-f")
        .arg(&file)
        .arg("--scratch-dir")
        .arg(bench.directory.path().join("scratch"))
        .arg(format!("--destination={}/app:1", remote.host()))
        .args(flags)
        .output()
        .unwrap();
    let built = Built { output, layout: std::path::PathBuf::new() };
    built.succeeded();
    built
}

fn push_base(bench: &Bench, remote: &TestRegistry) -> String {
    let base = format!("{}/base:1", remote.host());
    let destination = format!("--destination={base}");
    pushed(bench, remote, "FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &[&destination]);
    base
}

fn ten_runs(base: &str) -> String {
    let steps: Vec<String> = (0..10).map(|step| format!("RUN echo {step} > /{step}\n")).collect();
    format!("FROM {base}\n{}", steps.concat())
}

#[test]
fn a_fully_cached_build_takes_a_handful_of_requests() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let base = push_base(&bench, &remote);
    let dockerfile = ten_runs(&base);
    pushed(&bench, &remote, &dockerfile, &[]);
    let first = remote.manifest("app", "1");
    // The clock goes on, and the image stays the same.
    std::thread::sleep(Duration::from_millis(1100));
    remote.forget();
    let again = pushed(&bench, &remote, &dockerfile, &[]);
    assert_eq!(remote.manifest("app", "1"), first, "{}", again.log());
    let seen = remote.seen();
    let lines: Vec<String> = seen.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    assert!(seen.len() <= 9, "{lines:#?}");
    // The config of the base is the only blob that is read.
    assert_eq!(remote.count(Route::Blob), 1, "{lines:#?}");
    assert_eq!(remote.count(Route::UploadPut) + remote.count(Route::UploadPatch), 0, "{lines:#?}");
    assert!(!again.log().contains("isolation:") && again.log().contains("Pushed "), "{}", again.log());
    // Under another tag the layers are there, and are not sent again.
    remote.forget();
    let tag = format!("--destination={}/other:2", remote.host());
    pushed(&bench, &remote, &dockerfile, &[&tag]);
    assert_eq!(remote.count(Route::Blob), 1);
    assert_eq!(remote.manifest("other", "2"), first);
}

#[test]
fn only_what_follows_a_late_change_runs() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let base = push_base(&bench, &remote);
    bench.file("late", "1");
    let copy = format!("{}COPY late /late\n", ten_runs(&base));
    pushed(&bench, &remote, &copy, &[]);
    bench.file("late", "2");
    let built = pushed(&bench, &remote, &copy, &[]);
    assert_eq!(reused(&built), 10, "{}", built.log());
    assert!(!built.log().contains("isolation:"), "a COPY needs no tree: {}", built.log());
    let run = format!("{copy}RUN cat /late > /later\n");
    pushed(&bench, &remote, &run, &[]);
    bench.file("late", "3");
    let built = pushed(&bench, &remote, &run, &[]);
    assert_eq!(reused(&built), 10, "{}", built.log());
    assert!(built.log().contains("isolation:"), "a RUN does: {}", built.log());
}

#[test]
fn a_dry_run_says_what_is_there_what_changed_and_what_would_come() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let base = push_base(&bench, &remote);
    bench.file("f", "1");
    let text = format!("FROM {base}\nARG A=one\nRUN echo first > /first\nCOPY f /f\nRUN echo $A > /second\n");
    let plan = |flags: &[&str]| {
        let mut all = vec!["--dryrun=json"];
        all.extend(flags);
        let built = pushed(&bench, &remote, &text, &all);
        let json: serde_json::Value = serde_json::from_slice(&built.output.stdout).unwrap();
        json
    };
    let empty = plan(&[]);
    assert_eq!(empty["stages"][0]["steps"][0]["reason"], "unknown");
    assert!(empty["downloadBytes"].as_u64().unwrap() > 100_000, "the base: {empty}");
    pushed(&bench, &remote, &text, &[]);
    let full = plan(&[]);
    assert_eq!(full["downloadBytes"], 0, "{full}");
    assert!(full["stages"][0]["steps"].as_array().unwrap().iter().all(|step| step["verdict"] == "hit"));
    bench.file("f", "2");
    let changed = plan(&["--build-arg=A=two"]);
    let steps = &changed["stages"][0]["steps"];
    // The build arg is seen by all that follow it.
    assert_eq!(steps[0]["changed"], serde_json::json!(["env A"]), "{changed}");
    assert_eq!(steps[1]["changed"], serde_json::json!(["from"]), "{changed}");
    assert_eq!(steps[2]["changed"], serde_json::json!(["env A"]), "{changed}");
    let tree = pushed(&bench, &remote, &text, &["--dryrun"]).log();
    assert!(tree.contains("changed since the last build: the files that it copies (f)"), "{tree}");
    assert!(tree.contains("hit in ") && tree.contains("2 to run, ") && tree.contains("downloads "), "{tree}");
    assert!(!tree.contains("isolation:"), "{tree}");
    let none = pushed(&bench, &remote, &text, &["--dryrun", "--cache=false"]).log();
    assert!(none.contains("no cache is asked"), "{none}");
}

#[test]
fn no_value_of_a_build_arg_is_in_the_cache_repository() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let base = push_base(&bench, &remote);
    let text = format!("FROM {base}\nARG TOKEN\nRUN echo done > /done\n");
    pushed(
        &bench,
        &remote,
        &text,
        &["--build-arg=TOKEN=hunter2secret", &format!("--cache-repo={}/c", remote.host())],
    );
    let tags = remote.tags("c");
    assert!(tags.len() >= 2, "a step and the build: {tags:?}");
    for tag in tags {
        let (_, raw) = remote.manifest("c", &tag).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
        let config = remote.blob("c", &config).unwrap();
        for bytes in [&raw[..], &config[..]] {
            assert!(!String::from_utf8_lossy(bytes).contains("hunter2secret"));
        }
    }
}

#[test]
fn a_warmed_volume_has_the_layers_that_a_build_hits() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let base = push_base(&bench, &remote);
    bench.file("f", "1");
    let text = format!("FROM {base}\nRUN echo first > /first\nCOPY f /f\nRUN cat /f > /second\n");
    pushed(&bench, &remote, &text, &["--reproducible"]);
    let volume = bench.directory.path().join("volume");
    let warm = |unpack: &str| {
        let output = std::process::Command::new(kiln_integration::kiln())
            .args(["warmer", unpack, "--cache-dir"])
            .arg(&volume)
            .arg("--dockerfile")
            .arg(bench.directory.path().join("Pushed"))
            .arg(format!("--cache-repo={}/app/cache", remote.host()))
            .output()
            .unwrap();
        let built = Built { output, layout: std::path::PathBuf::new() };
        built.succeeded();
        built.log()
    };
    let log = warm("--unpack=false");
    assert!(log.contains("cached layers: 3 warmed"), "{log}");
    let cache = format!("--cache-dir={}", volume.display());
    // All of the cache repository is gone.
    for tag in remote.tags("app/cache") {
        let (_, raw) = remote.manifest("app/cache", &tag).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            remote.remove_blob("app/cache", &layer["digest"].as_str().unwrap().parse().unwrap());
        }
    }
    let log = warm("--unpack");
    assert!(log.contains("cached layers: 0 warmed, 3 already there") && log.contains("unpacked"), "{log}");
    remote.forget();
    let built = pushed(&bench, &remote, &text, &["--reproducible", &cache]);
    assert_eq!(reused(&built), 3, "{}", built.log());
    assert!(
        remote.seen().iter().all(|seen| !seen.path.contains("app/cache/manifests")),
        "the volume knew them"
    );
    bench.file("f", "2");
    let built = pushed(&bench, &remote, &text, &["--reproducible", &cache, "--image-download-retry=0"]);
    assert_eq!((reused(&built), warnings(&built).len()), (1, 0), "{}", built.log());
}

#[test]
fn cache_mounts_survive_in_the_cache_repository() {
    let (bench, remote) = (Bench::new(), Remote::start());
    let text = |step: &str| {
        format!(
            "FROM base\nRUN --mount=type=cache,target=/c sh -c 'echo {step} >> /c/log; ln -sf log /c/link; cat /c/log' > /log\n"
        )
    };
    let log = |built: &Built| built.files().into_iter().find(|line| line.starts_with("/log ")).unwrap();
    let forget = || drop(std::fs::remove_dir_all(bench.directory.path().join("scratch")));
    let remote_mounts = "--cache-mounts=remote";
    cached(&bench, &remote, &text("one"), &[remote_mounts]);
    forget();
    let second = cached(&bench, &remote, &text("two"), &[remote_mounts]);
    assert!(log(&second).contains("one\\ntwo\\n"), "{}", log(&second));
    forget();
    // Without the flag, and where the cache is broken, the mount begins empty.
    let without = cached(&bench, &remote, &text("three"), &["--no-push-cache"]);
    assert!(!log(&without).contains("one"), "{}", log(&without));
    forget();
    remote.always(Route::Blob, Fault::WrongBytes);
    let broken = cached(&bench, &remote, &text("four"), &[remote_mounts, "--image-download-retry=0"]);
    assert!(!log(&broken).contains("one"), "{}", log(&broken));
    assert!(!warnings(&broken).is_empty());
    let refused = bench.build(&text("five"), &[remote_mounts]);
    assert_eq!(refused.output.status.code(), Some(1));
    assert!(refused.log().contains("give --cache"), "{}", refused.log());
}

#[test]
fn locked_cache_mounts_of_two_builds_wait_for_each_other() {
    let (one, two) = (Bench::new(), Bench::new());
    let volume = one.directory.path().join("mounts");
    let flag = format!("--cache-mount-dir={}", volume.display());
    // Names in both orders: neither build may hold one while it waits for the other.
    let text = |first: &str, second: &str| {
        let mount = |id: &str| format!("--mount=type=cache,sharing=locked,id={id},target=/{id}");
        format!(
            "FROM base\nRUN {} {} sh -c 'test ! -e /a/busy; touch /a/busy; sleep 1; rm /a/busy; echo x >> /a/log'\n",
            mount(first),
            mount(second)
        )
    };
    std::thread::scope(|scope| {
        for (bench, first, second) in [(&one, "a", "b"), (&two, "b", "a")] {
            let (flag, text) = (&flag, text(first, second));
            scope.spawn(move || {
                bench.build(&text, &[flag]).succeeded();
            });
        }
    });
    let logs = std::fs::read_dir(&volume).unwrap().flatten();
    let logs: Vec<String> =
        logs.filter_map(|entry| std::fs::read_to_string(entry.path().join("files/log")).ok()).collect();
    assert_eq!(logs, ["x\nx\n"]);
}
