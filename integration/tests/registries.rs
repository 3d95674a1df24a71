//! Registries as pipelines meet them: logins over TLS with an authority of their own, client certificates, mirrors with and
//! without a path, digest files of every kind. All through the binary.

use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_integration::kiln;
use kiln_integration::registry::{LOGIN, Registry, Setup};
use kiln_integration::token_server::{Asked, REFRESH, TokenServer};
use kiln_integration::work::{Work, text};
use kiln_testkit::{Fault, Route, StandIn, TestAuthority, TestRegistry};

/// Builds that try everything once, and certificates for their registries.
struct Secure {
    work: Work,
    authority: TestAuthority,
}

impl std::ops::Deref for Secure {
    type Target = Work;

    fn deref(&self) -> &Work {
        &self.work
    }
}

fn once() -> Work {
    Work::new(&["--image-download-retry=0", "--push-retry=0"])
}

impl Secure {
    fn new() -> Self {
        Self { work: once(), authority: TestAuthority::new() }
    }
}

fn login(work: &Work, host: &str) {
    let mut child = Command::new(kiln())
        .env("DOCKER_CONFIG", work.path("docker"))
        .args(["executor", "login", host, "-u", LOGIN.0, "--password-stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), LOGIN.1.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

const SMALL: &str = "FROM scratch\nCOPY f /f\n";

#[test]
fn a_login_over_tls_with_an_authority_of_its_own() {
    let work = Secure::new();
    work.bench.file("f", "1");
    let tls = Some(work.authority.server_pem());
    let registry = Registry::with(&Setup { tls, login: true, ..Setup::default() });
    let (ca, image) = (work.file("ca.pem", &work.authority.ca), format!("{}/app:1", registry.host));
    let trust = format!("--registry-certificate={}={ca}", registry.host);
    work.fails(SMALL, &["-d", &image], "certificate");
    work.fails(SMALL, &["-d", &image, &trust], "login");
    login(&work, &registry.host);
    let log = work.builds(SMALL, &["-d", &image, &trust]);
    assert!(!log.contains(LOGIN.1), "{log}");
    let from = format!("FROM {image}\nCOPY f /g\n");
    work.builds(&from, &["--no-push", &trust]);
    // Each way to trust, and each way not to check.
    let output = work.command(&from, &["--no-push"]).env("SSL_CERT_FILE", &ca).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let directory = work.path("certs");
    work.file("certs/ca.pem", &work.authority.ca);
    let output = work.command(&from, &["--no-push"]).env("SSL_CERT_DIR", directory).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    work.file("kaniko/ssl/certs/ca.pem", &work.authority.ca);
    work.builds(&from, &["--no-push", &format!("--kaniko-dir={}", work.text_path("kaniko"))]);
    let skip = format!("--skip-tls-verify-registry={}", registry.host);
    for flag in ["--skip-tls-verify", "--skip-tls-verify-pull", &skip] {
        work.builds(&from, &["--no-push", flag]);
    }
    work.builds(SMALL, &["-d", &image, "--skip-tls-verify"]);
    work.fails(SMALL, &["-d", &image, "--skip-tls-verify-pull"], "certificate");
    // The warmer takes the same flags.
    let output = Command::new(kiln())
        .env("DOCKER_CONFIG", work.path("docker"))
        .args(["warmer", "--image", &image, &trust, "--cache-dir"])
        .arg(work.path("volume"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_registry_that_asks_for_a_client_certificate_gets_the_one_for_it() {
    let work = Secure::new();
    work.bench.file("f", "1");
    let (tls, clients) = (Some(work.authority.server_pem()), Some(work.authority.ca.as_str()));
    let registry = Registry::with(&Setup { tls, clients, ..Setup::default() });
    let ca = work.file("ca.pem", &work.authority.ca);
    let (certificate, key) = (
        work.file("client.pem", &work.authority.client),
        work.file("client.key", &work.authority.client_key),
    );
    let image = format!("{}/app:1", registry.host);
    let trust = format!("--registry-certificate={}={ca}", registry.host);
    let client = format!("--registry-client-cert={}={certificate},{key}", registry.host);
    let output = work.build(SMALL, &["-d", &image, &trust]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    work.builds(SMALL, &["-d", &image, &trust, &client]);
    work.builds(&format!("FROM {image}\nCOPY f /g\n"), &["--no-push", &trust, &client]);
    let elsewhere = format!("--registry-client-cert=other.example={certificate},{key}");
    assert!(!work.build(SMALL, &["-d", &image, &trust, &elsewhere]).status.success());
}

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
    let only = format!("--registry-mirror={through}");
    let flags = ["--no-push", "--skip-default-registry-fallback", &only];
    work.fails("FROM nothere:1\n", &flags, "a mirror of docker.io");
    assert!(pull_through.log().contains("library/base"), "the mirror was asked: {}", pull_through.log());
}

#[test]
fn logins_come_from_every_place_that_pipelines_use() {
    let work = once();
    work.bench.file("f", "1");
    let registry = Registry::with_login();
    let image = format!("{}/app:1", registry.host);
    work.fails(SMALL, &["-d", &image], "login");
    let run = |variables: &[(&str, String)], flags: &[&str]| {
        let mut command = work.command(SMALL, &[&["-d", image.as_str()], flags].concat());
        command.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        command.output().unwrap()
    };
    let file = work.file("auth.json", &registry.config_json());
    work.file("run/containers/auth.json", &registry.config_json());
    let run_dir = work.path("run").display().to_string();
    let (user, password) = (LOGIN.0.to_owned(), LOGIN.1.to_owned());
    let ways: Vec<Vec<(&str, String)>> = vec![
        vec![("DOCKER_AUTH_CONFIG", registry.config_json())],
        vec![("REGISTRY_AUTH_FILE", file)],
        vec![("XDG_RUNTIME_DIR", run_dir)],
        vec![
            ("CI_REGISTRY", registry.host.clone()),
            ("CI_REGISTRY_USER", user.clone()),
            ("CI_REGISTRY_PASSWORD", password.clone()),
        ],
    ];
    for way in &ways {
        let output = run(way, &[]);
        assert!(output.status.success(), "{way:?}: {}", text(&output));
        assert!(!text(&output).contains(LOGIN.1), "{}", text(&output));
    }
    assert!(
        !run(&ways[3], &["--credential-helpers="]).status.success(),
        "no built-in source was to be asked"
    );
    assert!(run(&ways[3], &["--credential-helpers=gitlab"]).status.success());
    // Without docker's variable: in the kaniko directory, in the home directory, and where podman keeps them there.
    let home = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = work.command(SMALL, &[&["-d", image.as_str()], flags].concat());
        command.env_remove("DOCKER_CONFIG").env("HOME", work.path("home"));
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let kaniko = work.text_path("kaniko");
    let flag = format!("--kaniko-dir={kaniko}");
    for (place, flags, variables) in [
        ("kaniko/.docker/config.json", vec![flag.as_str()], vec![]),
        ("kaniko/.docker/config.json", vec![], vec![("KANIKO_DIR", kaniko.as_str())]),
        ("home/.docker/config.json", vec![], vec![]),
        ("home/.config/containers/auth.json", vec![], vec![]),
    ] {
        assert!(!home(&flags, &variables).status.success(), "nothing is in {place} yet");
        work.file(place, &registry.config_json());
        let output = home(&flags, &variables);
        assert!(output.status.success(), "{place}: {}", text(&output));
        std::fs::remove_file(work.path(place)).unwrap();
    }
    let wrong = [("DOCKER_AUTH_CONFIG", registry.config_json().replace("auth\":\"", "auth\":\"AAAA"))];
    let output = run(&wrong, &[]);
    assert!(!output.status.success() && text(&output).contains("DOCKER_AUTH_CONFIG"), "{}", text(&output));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
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
    login(&work, &closed.host);
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
fn push_rights_are_checked_before_anything_is_built() {
    let work = once();
    let registry = Registry::with_login();
    let image = format!("{}/app:1", registry.host);
    let dockerfile = "FROM scratch\nADD base.tar /\nENV PATH=/bin\nRUN echo was-run\n";
    let output = work.build(dockerfile, &["-d", &image]);
    assert!(!output.status.success() && !text(&output).contains("was-run\n"), "{}", text(&output));
    let output = work.build(dockerfile, &["-d", &image, "--skip-push-permission-check"]);
    assert!(!output.status.success() && text(&output).contains("was-run"), "{}", text(&output));
}

#[test]
fn a_token_server_gives_tokens_for_what_is_done_and_no_more() {
    let work = once();
    work.bench.file("f", "1");
    let tokens = TokenServer::start();
    let setup = Setup { tokens: Some((&tokens.realm, &tokens.certificate)), ..Setup::default() };
    let registry = Registry::with(&setup);
    let (base, image) = (format!("{}/public/base:1", registry.host), format!("{}/team/app:1", registry.host));
    work.fails(SMALL, &["-d", &base], "login");
    login(&work, &registry.host);
    work.builds(SMALL, &["-d", &base]);
    // A mount needs a token for both repositories.
    let log = work.builds(&format!("FROM {base}\nCOPY f /g\n"), &["-d", &image]);
    assert!(!log.contains(LOGIN.1), "{log}");
    let both = |asked: &Asked| {
        let scopes = asked.scopes.join(" ");
        scopes.contains("team/app:pull,push") && scopes.contains("public/base:pull")
    };
    assert!(tokens.asked().iter().any(both), "{:?}", tokens.asked());
    // Anybody pulls what is public, and no more.
    std::fs::remove_dir_all(work.path("docker")).unwrap();
    work.builds(&format!("FROM {base}\nCOPY f /g\n"), &["--no-push"]);
    work.fails(&format!("FROM {image}\n"), &["--no-push"], "login");
    // A refresh token in place of a password.
    let auth = serde_json::json!({"auths": {&registry.host: {"identitytoken": REFRESH}}}).to_string();
    work.file("docker/config.json", &auth);
    let before = tokens.asked().len();
    work.builds(&format!("FROM {image}\nCOPY f /h\n"), &["-d", &format!("{}/team/other:1", registry.host)]);
    let since = tokens.asked()[before..].to_vec();
    assert!(since.iter().all(|asked| asked.method == "POST" && asked.who == LOGIN.0), "{since:?}");
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
