//! Registries as pipelines meet them: mirrors with and without a path, retries, immutable tags, digest files of every kind.
//! All through the binary.

use std::process::Command;
use std::sync::Arc;

use kiln_integration::kiln;
use kiln_integration::registry::{Registry, Setup};
use kiln_integration::work::{Work, text};
use kiln_testkit::{Fault, Route, StandIn, TestAuthority, TestRegistry};

fn once() -> Work {
    Work::new(&["--image-download-retry=0", "--push-retry=0"])
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

const SMALL: &str = "FROM scratch\nCOPY f /f\n";

#[test]
fn mirrors_serve_base_images_with_and_without_a_path() {
    let work = once();
    work.bench.file("f", "1");
    let origin = Registry::start();
    work.builds("FROM scratch\nCOPY f /f\n", &["-d", &format!("{}/library/base:1", origin.host)]);
    work.builds("FROM scratch\nCOPY f /f\n", &["-d", &format!("{}/hub/library/base:1", origin.host)]);
    let pull_through =
        Registry::with(&Setup { mirrors: Some(&format!("http://{}", origin.host)), ..Setup::default() });
    let (through, path) = (pull_through.host.clone(), format!("{}/hub", origin.host));
    for flags in [
        vec![format!("--registry-mirror={through}")],
        vec![format!("--registry-mirror={path}")],
        vec!["--registry-mirror=127.0.0.1:1".to_owned(), format!("--registry-mirror={through}")],
        vec![format!("--registry-map=index.docker.io={through}")],
        vec![format!("--registry-map=quay.io=127.0.0.1:1;docker.io={path}")],
    ] {
        let mut all = vec!["--no-push", "--skip-default-registry-fallback"];
        all.extend(flags.iter().map(String::as_str));
        work.builds("FROM base:1\nCOPY f /g\n", &all);
    }
    let output = work
        .command("FROM base:1\nCOPY f /g\n", &["--no-push", "--skip-default-registry-fallback"])
        .env("KANIKO_REGISTRY_MAP", format!("docker.io={through}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    // What a mirror lacks comes from the registry itself, unless that is not to be asked.
    let (from, empty) = (format!("FROM {}/library/base:1\n", origin.host), Registry::start());
    let map = format!("--registry-map={}={}", origin.host, empty.host);
    let log = work.builds(&from, &["--no-push", &map]);
    assert!(log.contains(&format!("asking {}", origin.host)), "{log}");
    work.fails(&from, &["--no-push", &map, "--skip-default-registry-fallback"], &empty.host);
    let only = format!("--registry-mirror={through}");
    let flags = ["--no-push", "--skip-default-registry-fallback", &only];
    work.fails("FROM nothere:1\n", &flags, "a mirror of docker.io");
    assert!(pull_through.log().contains("library/base"), "the mirror was asked: {}", pull_through.log());
}

#[test]
fn digests_go_to_files_devices_web_addresses_and_cloud_build() {
    let work = once();
    work.bench.file("f", "1");
    let (registry, runtime) = (Registry::start(), runtime());
    let authority = Arc::new(TestAuthority::new());
    let web = runtime.block_on(StandIn::start_tls(&authority));
    web.answer("PUT", "/digest", 201, "");
    let ca = work.file("web.pem", &authority.ca);
    let (one, two) = (format!("{}/app:1", registry.host), format!("{}/other/app", registry.host));
    let url = format!("{}/digest?signature=hunter2", web.url());
    let (names, tags) = (work.path("deep/names"), work.path("tags"));
    let (names_text, tags_text) = (names.display().to_string(), tags.display().to_string());
    let flags = [
        "-d",
        &one,
        "-d",
        &two,
        "--digest-file",
        &url,
        "--image-name-with-digest-file",
        &names_text,
        "--image-name-tag-with-digest-file",
        &tags_text,
    ];
    let output = work
        .command(SMALL, &flags)
        .env("SSL_CERT_FILE", &ca)
        .env("BUILDER_OUTPUT", work.path("cloud"))
        .env("UPSTREAM_CLIENT_TYPE", "my-pipeline")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let put = web.asked().pop().unwrap();
    assert!(put.body.starts_with("sha256:") && put.body.len() == 71, "{put:?}");
    let digest = put.body;
    let host = &registry.host;
    assert_eq!(
        std::fs::read_to_string(names).unwrap(),
        format!("{host}/app@{digest}\n{host}/other/app@{digest}\n")
    );
    assert_eq!(
        std::fs::read_to_string(tags).unwrap(),
        format!("{host}/app:1@{digest}\n{host}/other/app:latest@{digest}\n")
    );
    let cloud = std::fs::read_to_string(work.path("cloud/images")).unwrap();
    assert_eq!(cloud.lines().count(), 2);
    let line: serde_json::Value = serde_json::from_str(cloud.lines().next().unwrap()).unwrap();
    assert_eq!(line["digest"], digest);
    assert!(registry.log().contains("my-pipeline"), "the user agent names the caller");
    let output = work.build(SMALL, &["--no-push", "--digest-file", "/dev/stdout"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("sha256:"), "{}", text(&output));
    web.answer("PUT", "/refused", 403, "");
    let refused = format!("{}/refused?signature=hunter2", web.url());
    let output = work
        .command(SMALL, &["--no-push", "--digest-file", &refused])
        .env("SSL_CERT_FILE", &ca)
        .output()
        .unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("/refused") && !said.contains("hunter2"), "{said}");
}

#[test]
fn retries_are_as_many_as_the_flags_say() {
    let (work, runtime) = (once(), runtime());
    work.bench.file("f", "1");
    let registry = runtime.block_on(TestRegistry::start());
    let image = format!("{}/app:1", registry.host());
    let push = |retries: &str| work.build(SMALL, &["-d", &image, "--skip-push-permission-check", retries]);
    registry.on(Route::ManifestPut, [Fault::Status(503)]);
    // The flag comes twice: the last one counts, as with kaniko.
    let output = push("--push-retry=0");
    assert!(!output.status.success(), "{}", text(&output));
    assert!(registry.tags("app").is_empty(), "nothing stands under the tag");
    registry.on(Route::ManifestPut, [Fault::Status(503), Fault::RetryAfter(429, 1)]);
    let began = std::time::Instant::now();
    let output = push("--push-retry=2");
    assert!(output.status.success(), "{}", text(&output));
    assert!(began.elapsed() >= std::time::Duration::from_secs(2), "one second each: {:?}", began.elapsed());
    registry.on(Route::Manifest, [Fault::Status(500)]);
    let from = format!("FROM {image}\nCOPY f /g\n");
    assert!(!work.build(&from, &["--no-push", "--image-download-retry=0"]).status.success());
    registry.on(Route::Manifest, [Fault::Status(500)]);
    work.builds(&from, &["--no-push", "--image-download-retry=1"]);
}

#[test]
fn an_immutable_tag_is_a_success_only_if_asked_for() {
    let (work, runtime) = (once(), runtime());
    work.bench.file("f", "1");
    let registry = runtime.block_on(TestRegistry::builder().immutable_tags().start());
    let image = format!("{}/app:1", registry.host());
    work.builds(SMALL, &["-d", &image, "--reproducible"]);
    work.bench.file("f", "2");
    work.fails(SMALL, &["-d", &image], "immutable");
    let log = work.builds(SMALL, &["-d", &image, "--push-ignore-immutable-tag-errors"]);
    assert!(log.contains("may not change"), "{log}");
}

#[test]
fn each_registry_s_words_for_an_immutable_tag_are_understood() {
    let (work, runtime) = (once(), runtime());
    work.bench.file("f", "1");
    let answer = |status: u16, code: &str, message: &str| {
        Fault::Answer(status, serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string())
    };
    let words = [
        answer(
            400,
            "TAG_INVALID",
            "The image tag '1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.",
        ),
        answer(412, "PRECONDITION", "Failed to process request due to 'app:1' configured as immutable."),
        answer(
            403,
            "DENIED",
            "Not enough permissions to delete/overwrite artifact 'app/1' (user 'ci' needs DELETE permission).",
        ),
        answer(400, "INVALID_ARGUMENT", "Cannot update tag 1. The repository has enabled tag immutability"),
    ];
    for words in words {
        let registry = runtime.block_on(TestRegistry::start());
        let image = format!("{}/app:1", registry.host());
        registry.on(Route::ManifestPut, [words.clone(), words]);
        work.fails(SMALL, &["-d", &image], "the tag exists and is immutable");
        let log = work.builds(SMALL, &["-d", &image, "--push-ignore-immutable-tag-errors"]);
        assert!(log.contains("may not change"), "{log}");
    }
    // A refusal of any other kind stays one.
    let registry = runtime.block_on(TestRegistry::start());
    let image = format!("{}/app:1", registry.host());
    registry.on(Route::ManifestPut, [answer(403, "DENIED", "requested access is denied")]);
    work.fails(SMALL, &["-d", &image, "--push-ignore-immutable-tag-errors"], "denied");
}

#[test]
fn a_warmer_takes_logins_mirrors_and_retries_as_the_executor_does() {
    let (work, runtime) = (once(), runtime());
    work.bench.file("f", "1");
    let closed = Registry::with_login();
    work.log_in(&closed.host);
    work.builds(SMALL, &["-d", &format!("{}/hub/library/base:1", closed.host)]);
    let warm = |image: &str, flags: &[&str], variables: &[(&str, &str)]| {
        let volume = tempfile::tempdir_in(work.bench.directory.path()).unwrap();
        let mut command = Command::new(kiln());
        command.args(["warmer", "--image", image, "--cache-dir"]).arg(volume.path()).args(flags);
        command.env("DOCKER_CONFIG", work.path("docker")).envs(variables.iter().copied());
        command.output().unwrap()
    };
    let good = |image: &str, flags: &[&str], variables: &[(&str, &str)]| {
        let output = warm(image, flags, variables);
        assert!(output.status.success(), "{flags:?}: {}", text(&output));
    };
    let (path, only) = (format!("{}/hub", closed.host), "--skip-default-registry-fallback");
    good("base:1", &[only, &format!("--registry-mirror={path}")], &[]);
    good("quay.io/library/base:1", &[only, &format!("--registry-map=quay.io={path}")], &[]);
    good("base:1", &[only], &[("KANIKO_REGISTRY_MIRROR", &path)]);
    let map = format!("docker.io={path}");
    good("base:1", &[only], &[("KANIKO_REGISTRY_MAP", &map)]);
    let config = closed.config_json();
    let image = format!("{}/hub/library/base:1", closed.host);
    good(&image, &[], &[("DOCKER_CONFIG", "/nonexistent"), ("DOCKER_AUTH_CONFIG", &config)]);
    let output = warm(&image, &["--image-download-retry=0"], &[("DOCKER_CONFIG", "/nonexistent")]);
    assert!(text(&output).contains("not authorised"), "{}", text(&output));
    // And it tries again as often as it is told.
    let open = runtime.block_on(TestRegistry::start());
    let image = format!("{}/app:1", open.host());
    work.builds(SMALL, &["-d", &image]);
    open.on(Route::Manifest, [Fault::Status(500)]);
    assert_eq!(warm(&image, &["--image-download-retry=0"], &[]).status.code(), Some(1));
    open.on(Route::Manifest, [Fault::Status(500)]);
    good(&image, &["--image-download-retry=1"], &[]);
}

#[test]
fn a_plan_is_printed_before_the_build_where_the_variable_asks_for_it() {
    let (work, registry) = (once(), Registry::start());
    work.bench.file("f", "1");
    let flags = ["-d", &format!("{}/app:1", registry.host)];
    let printed = |value: &str| {
        let output = work.command(SMALL, &flags).env("KANIKO_PRINT_PLAN", value).output().unwrap();
        assert!(output.status.success() && text(&output).contains("Pushed"), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let planned = work.command(SMALL, &[&flags[..], &["--dryrun"]].concat()).output().unwrap();
    let plan = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(plan.contains("COPY f /f"), "{plan}");
    assert_eq!(printed("true"), plan);
    assert_eq!(printed("false"), "");
    // What can be read once only is read once.
    let archive = work.text_path("c.tar");
    kiln_integration::work::ok("tar", &["-cf", &archive, "-C", work.bench.context().to_str().unwrap(), "f"]);
    let mut command = work.command(SMALL, &["-c", "tar://stdin", "--no-push"]);
    command.env("KANIKO_PRINT_PLAN", "1").stdin(std::fs::File::open(&archive).unwrap());
    let output = command.output().unwrap();
    assert!(output.status.success() && text(&output).contains("1 to run"), "{}", text(&output));
}

#[test]
fn versions_and_completions_are_printed_under_both_names() {
    let work = once();
    let link = work.path("executor");
    std::os::unix::fs::symlink(kiln(), &link).unwrap();
    let said = Command::new(&link).arg("version").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("Kaniko version :  v"), "{}", text(&said));
    for shell in ["bash", "zsh", "fish"] {
        let script = Command::new(&link).args(["completion", shell]).output().unwrap();
        assert!(script.status.success() && text(&script).contains("digest-file"), "{shell}");
    }
}
