//! Who we are to a registry: logins over TLS with an authority of its own, client certificates, every place that pipelines
//! keep logins in, token servers, rights to push. All through the binary.

use std::process::Command;

use kiln_integration::kiln;
use kiln_integration::registry::{LOGIN, Registry, Setup};
use kiln_integration::token_server::{Asked, REFRESH, TokenServer};
use kiln_integration::work::{Work, text};
use kiln_testkit::TestAuthority;

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
    work.log_in(&registry.host);
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
    // The variable beats the file.
    work.file("docker/config.json", &registry.config_json().replace("auth\":\"", "auth\":\"AAAA"));
    assert!(!run(&[], &[]).status.success(), "the file's login is wrong");
    let output = run(&ways[0], &[]);
    assert!(output.status.success(), "{}", text(&output));
    std::fs::remove_file(work.path("docker/config.json")).unwrap();
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
    work.log_in(&registry.host);
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
fn no_login_is_in_the_log_however_much_is_asked_for() {
    use base64::Engine as _;
    let (work, tokens) = (Secure::new(), TokenServer::start());
    work.bench.file("f", "1");
    let tls = Some(work.authority.server_pem());
    let setup = Setup { tls, tokens: Some((&tokens.realm, &tokens.certificate)), ..Setup::default() };
    let closed = Registry::with(&Setup { tls, login: true, ..Setup::default() });
    let registry = Registry::with(&setup);
    let ca = work.file("ca.pem", &work.authority.ca);
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let entries = [
        (&closed, serde_json::json!({"auth": basic})),
        (&registry, serde_json::json!({"username": LOGIN.0, "password": LOGIN.1})),
        (&registry, serde_json::json!({"identitytoken": REFRESH})),
    ];
    for (registry, entry) in entries {
        let config = serde_json::json!({"auths": {&registry.host: entry}}).to_string();
        let image = format!("{}/team/app:1", registry.host);
        for dockerfile in [SMALL.to_owned(), format!("FROM {image}\nCOPY f /g\n")] {
            for form in ["text", "json"] {
                let flags = ["-d", &image, "--verbosity=trace", "--log-format", form];
                let mut command = work.command(&dockerfile, &flags);
                command.env("SSL_CERT_FILE", &ca).env("DOCKER_AUTH_CONFIG", &config);
                let output = command.output().unwrap();
                let log = text(&output);
                assert!(output.status.success(), "{log}");
                for secret in [LOGIN.1, REFRESH, &basic, "Bearer ey", "Basic "] {
                    assert!(!log.contains(secret), "{entry}: {secret} is in the log: {log}");
                }
            }
        }
    }
}
