//! Builds against Debian's docker-registry, started for real on a free port.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kiln_integration::registry::Registry;
use kiln_integration::{Bench, kiln};

fn run(arguments: &[&str]) -> Output {
    Command::new(kiln()).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

struct Build<'a> {
    bench: &'a Bench,
    scratch: String,
}

impl<'a> Build<'a> {
    fn new(bench: &'a Bench) -> Self {
        Self { scratch: bench.directory.path().join("scratch").display().to_string(), bench }
    }

    fn build(&self, dockerfile: &str, flags: &[&str]) -> Output {
        let file = self.bench.directory.path().join("Dockerfile");
        std::fs::write(&file, dockerfile).unwrap();
        let context = self.bench.context().display().to_string();
        let file = file.display().to_string();
        let mut arguments =
            vec!["executor", "-c", &context, "-f", &file, "--scratch-dir", &self.scratch, "--reproducible"];
        arguments.extend(flags);
        run(&arguments)
    }

    fn succeeds(&self, dockerfile: &str, flags: &[&str]) -> String {
        let output = self.build(dockerfile, flags);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }
}

fn base(build: &Build<'_>, host: &str) {
    build.succeeds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &format!("{host}/base:1")]);
}

fn digest_file(bench: &Bench) -> String {
    std::fs::read_to_string(bench.directory.path().join("digest")).unwrap()
}

#[test]
fn an_image_is_pushed_and_the_next_build_begins_with_it() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let build = Build::new(&bench);
    base(&build, &registry.host);
    let digest = bench.directory.path().join("out/digest").display().to_string();
    let log = build.succeeds(
        &format!("FROM {}/base:1\nRUN echo x > /x\n", registry.host),
        &[
            "-d",
            &format!("{}/team/app:1", registry.host),
            "-d",
            &format!("{}/team/app:latest", registry.host),
            "--digest-file",
            &digest,
        ],
    );
    let digest = std::fs::read_to_string(digest).unwrap();
    assert!(digest.starts_with("sha256:") && !digest.ends_with('\n'), "{digest:?}");
    assert!(log.contains(&format!("Pushed {}/team/app@{digest}", registry.host)), "{log}");
    let used = build.succeeds(
        &format!("FROM {0}/team/app:latest@{digest}\nRUN test -f /x\n", registry.host),
        &["--no-push"],
    );
    assert!(used.contains("built"), "{used}");
}

#[test]
fn a_cached_build_downloads_no_layer_and_makes_no_tree() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let build = Build::new(&bench);
    base(&build, &registry.host);
    bench.file("f", "1");
    let dockerfile = format!("FROM {}/base:1\nRUN echo made > /made\nCOPY f /f\nRUN cat /f\n", registry.host);
    let destination = format!("{}/app:1", registry.host);
    let digest = bench.directory.path().join("digest").display().to_string();
    let flags = ["--cache", "--cache-copy-layers", "-d", &destination, "--digest-file", &digest];
    build.succeeds(&dockerfile, &flags);
    let first = digest_file(&bench);
    let log = build.succeeds(&dockerfile, &flags);
    assert_eq!(first, digest_file(&bench));
    assert_eq!(log.matches("Using caching version of cmd").count(), 3, "{log}");
    assert!(!log.contains("isolation:") && !log.contains("pull "), "{log}");
    bench.file("f", "2");
    let log = build.succeeds(&dockerfile, &flags);
    assert_eq!(log.matches("Using caching version of cmd").count(), 1, "{log}");
    assert_ne!(first, digest_file(&bench));
}

#[test]
fn a_warmed_volume_serves_builds_when_the_registry_is_gone() {
    let (mut registry, bench) = (Registry::start(), Bench::new());
    let build = Build::new(&bench);
    base(&build, &registry.host);
    let volume = bench.directory.path().join("volume").display().to_string();
    let image = format!("{}/base:1", registry.host);
    for unpack in ["--unpack=false", "--unpack"] {
        let output = run(&["warmer", "--cache-dir", &volume, "--image", &image, unpack]);
        assert!(output.status.success(), "{}", text(&output));
    }
    let again = run(&["warmer", "--cache-dir", &volume, "--image", &image]);
    assert!(text(&again).contains("Image already in cache"), "{}", text(&again));
    let dockerfile = format!("FROM {image}\nRUN echo x > /x\n");
    let online = build.succeeds(&dockerfile, &["--no-push", "--cache-dir", &volume]);
    assert!(online.contains("Found sha256:"), "{online}");
    registry.stop();
    let unreachable =
        build.succeeds(&dockerfile, &["--no-push", "--cache-dir", &volume, "--image-download-retry=0"]);
    assert!(unreachable.contains("WARN"), "{unreachable}");
    let offline = build.succeeds(&dockerfile, &["--no-push", "--cache-dir", &volume, "--offline"]);
    assert!(!offline.contains("WARN"), "{offline}");
}

#[test]
fn a_flipped_bit_in_the_volume_is_named_and_the_registrys_blob_is_used() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let build = Build::new(&bench);
    base(&build, &registry.host);
    let volume = bench.directory.path().join("volume");
    let volume_text = volume.display().to_string();
    let image = format!("{}/base:1", registry.host);
    let output = run(&["warmer", "--cache-dir", &volume_text, "--image", &image]);
    assert!(output.status.success(), "{}", text(&output));
    let blobs = std::fs::read_dir(volume.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = blobs.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&layer).unwrap();
    std::fs::write(&layer, bytes).unwrap();
    let log = build.succeeds(
        &format!("FROM {image}\nRUN cat /etc/group\n"),
        &["--no-push", "--cache-dir", &volume_text],
    );
    assert!(log.contains(&layer.display().to_string()), "the file is named: {log}");
    let output = run(&["warmer", "--cache-dir", &volume_text, "--image", &image, "--verify"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let output = run(&["warmer", "--cache-dir", &volume_text, "--image", &image, "--verify"]);
    assert!(output.status.success(), "repaired: {}", text(&output));
}

#[test]
fn failures_push_nothing_and_exit_with_1() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let build = Build::new(&bench);
    base(&build, &registry.host);
    let destination = format!("{}/never:1", registry.host);
    for dockerfile in [
        format!("FROM {}/nosuch:1\n", registry.host),
        format!("FROM {}/base:1\nCOPY nope /\n", registry.host),
    ] {
        let output = build.build(&dockerfile, &["-d", &destination, "--image-download-retry=0"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("Dockerfile:"), "the line is shown: {}", text(&output));
    }
    let output =
        build.build(&format!("FROM {}/base:1\nRUN sh -c 'exit 7'\n", registry.host), &["-d", &destination]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    let output = build.build(&format!("FROM {destination}\n"), &["--no-push", "--image-download-retry=0"]);
    assert_eq!(output.status.code(), Some(1), "nothing was pushed: {}", text(&output));
}

#[test]
fn a_cancelled_build_stops_within_seconds_and_leaves_nothing() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let build = Build::new(&bench);
    base(&build, &registry.host);
    let file = bench.directory.path().join("Slow");
    std::fs::write(&file, format!("FROM {}/base:1\nRUN echo started; sleep 300\n", registry.host)).unwrap();
    let destination = format!("{}/slow:1", registry.host);
    let mut child = Command::new(kiln())
        .args(["executor", "-d", &destination, "--scratch-dir", &build.scratch, "-c"])
        .arg(bench.context())
        .arg("-f")
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "started\n");
    let began = std::time::Instant::now();
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let left: Vec<_> =
        std::fs::read_dir(&build.scratch).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_warmer_says_in_words_what_it_could_not_do() {
    let volume = tempfile::tempdir().unwrap();
    let volume = volume.path().to_str().unwrap();
    let retry = "--image-download-retry=0";
    let output = run(&["warmer", "--image", "127.0.0.1:1/none:1", retry, "--cache-dir", volume]);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("127.0.0.1:1/none:1 is not warmed: "), "{log}");
    assert!(!log.contains(" { "), "an event as Rust writes it: {log}");
}
