//! What lies between us and a registry: faults of every kind before Debian's docker-registry, proxies that take no large
//! requests, hosts far away without TLS or with certificates that nobody trusts, IPv6. All through the binary.

use std::process::Output;

use kiln_integration::registry::{LOGIN, Registry, Setup};
use kiln_integration::servers::{Faulty, Forward, Nginx, Wrong};
use kiln_integration::token_server::{REFRESH, TokenServer};
use kiln_integration::work::{Work, ok, text};
use kiln_testkit::TestAuthority;

const SMALL: &str = "FROM scratch\nCOPY f /f\n";

/// What a name means in a registry; nothing if it means nothing there.
fn digest_of(name: &str) -> Option<String> {
    let words = ["inspect", "--tls-verify=false", "--format={{.Digest}}", &format!("docker://{name}")];
    let output = kiln_integration::work::run("skopeo", &words);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Content that no compression makes small.
fn noise(size: usize) -> String {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + u8::try_from((state >> 40) % 90).unwrap())
    };
    (0..size).map(|_| next()).collect()
}

/// What can go wrong with an answer, and whether another try overcomes it.
fn faults() -> Vec<(Wrong, bool)> {
    vec![
        (Wrong::Cut(0), true),
        (Wrong::Cut(100), true),
        (Wrong::Lost, true),
        (Wrong::Status(500), true),
        (Wrong::Status(502), true),
        (Wrong::RetryAfter(429, 1), true),
        (Wrong::Slow(20_000), true),
        (Wrong::TooShort(50), true),
        (Wrong::OtherBytes, false),
        (Wrong::Truncated(60), true),
        (Wrong::Endless, false),
        (Wrong::Elsewhere("http://127.0.0.1:9/nowhere".to_owned()), false),
    ]
}

/// The build either succeeded, or said in one line what is wrong and where.
fn judge(what: &str, output: &Output, host: &str, hopeful: bool) {
    let log = text(output);
    if output.status.success() {
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{what}: {log}");
    assert!(!hopeful, "{what} should have been overcome: {log}");
    let errors: Vec<&str> =
        log.lines().filter(|line| line.contains("ERROR") || line.starts_with("error")).collect();
    assert_eq!(errors.len(), 1, "{what}: {log}");
    assert!(log.contains(host), "{what}: the registry is named: {log}");
}

#[test]
fn a_fault_of_a_pull_is_overcome_or_one_clear_error() {
    let registry = Registry::start();
    let base = Work::new(&["--reproducible"]);
    base.bench.file("f", &noise(200_000));
    base.builds(SMALL, &["-d", &format!("{}/base:1", registry.host)]);
    let expected = {
        let from = format!("FROM scratch\nCOPY --from={}/base:1 /f /g\n", registry.host);
        let path = base.text_path("digest");
        base.builds(&from, &["--no-push", "--digest-file", &path]);
        std::fs::read_to_string(path).unwrap()
    };
    let one = |part: &str, wrong: &Wrong, hopeful: bool| {
        let (work, proxy) = (Work::new(&["--reproducible", "--no-push"]), Faulty::start(&registry.host));
        proxy.on("GET", part, wrong.clone());
        let path = work.text_path("digest");
        let from = format!("FROM scratch\nCOPY --from={}/base:1 /f /g\n", proxy.host);
        let output = work.build(&from, &["--digest-file", &path]);
        let what = format!("{wrong:?} of {part}");
        judge(&what, &output, &proxy.host, hopeful);
        assert!(proxy.is_done(), "{what}: nothing was asked for: {}", text(&output));
        if output.status.success() {
            assert_eq!(std::fs::read_to_string(path).unwrap(), expected, "{what}");
        }
    };
    std::thread::scope(|scope| {
        for part in ["/manifests/", "/blobs/"] {
            for half in faults().chunks(4) {
                let (half, one) = (half.to_vec(), &one);
                scope.spawn(move || half.iter().for_each(|(wrong, hopeful)| one(part, wrong, *hopeful)));
            }
        }
    });
}

#[test]
fn a_fault_of_a_push_leaves_nothing_half_under_the_tag() {
    let registry = Registry::start();
    let requests = [("POST", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/"), ("HEAD", "/blobs/")];
    let one = |number: usize, (method, part): (&str, &str), wrong: &Wrong, hopeful: bool| {
        let (work, proxy) = (Work::new(&["--reproducible"]), Faulty::start(&registry.host));
        // Another file each time: what is there already isn't sent.
        let repository = format!("push-{number}-{}", method.to_lowercase() + &part.replace('/', ""));
        work.bench.file("f", &(noise(100_000) + &repository));
        proxy.on(method, part, wrong.clone());
        let path = work.text_path("digest");
        let output =
            work.build(SMALL, &["-d", &format!("{}/{repository}:1", proxy.host), "--digest-file", &path]);
        let what = format!("{wrong:?} of {method} {part}");
        judge(&what, &output, &proxy.host, hopeful);
        let there = digest_of(&format!("{}/{repository}:1", registry.host));
        if output.status.success() {
            assert_eq!(there, Some(std::fs::read_to_string(path).unwrap()), "{what}");
            let copy = format!("dir:{}", work.text_path("copy"));
            let name = format!("docker://{}/{repository}:1", registry.host);
            ok("skopeo", &["copy", "--src-tls-verify=false", &name, &copy]);
        } else {
            // The answer to the last request may be the one that got lost: then the image is whole.
            assert!(there.is_none() || part == "/manifests/", "{what}: {}", text(&output));
        }
    };
    let mut wrongs: Vec<(Wrong, bool)> = faults();
    wrongs.extend([
        (Wrong::CutRequest(0), true),
        (Wrong::CutRequest(40_000), true),
        (Wrong::SlowRequest(20_000), true),
        (Wrong::ChangedRequest, false),
    ]);
    std::thread::scope(|scope| {
        for request in requests {
            let (wrongs, one) = (wrongs.clone(), &one);
            scope.spawn(move || {
                // What stands in the answer to a push is of no interest: only how it ends.
                let bodies =
                    |wrong: &Wrong| matches!(wrong, Wrong::OtherBytes | Wrong::Truncated(_) | Wrong::Slow(_));
                for (number, (wrong, hopeful)) in
                    wrongs.iter().enumerate().filter(|(_, (wrong, _))| !bodies(wrong))
                {
                    one(number, request, wrong, *hopeful);
                }
            });
        }
    });
}

#[test]
fn a_fault_of_a_token_server_is_overcome_or_one_clear_error() {
    let tokens = TokenServer::start();
    let server = tokens.realm.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/token")).unwrap();
    let one = |number: usize, refresh: bool, wrong: &Wrong, hopeful: bool| {
        let (work, proxy) = (Work::new(&["--reproducible"]), Faulty::start(server));
        let realm = format!("http://{}/token", proxy.host);
        let setup = Setup { tokens: Some((&realm, &tokens.certificate)), ..Setup::default() };
        let registry = Registry::with(&setup);
        work.bench.file("f", "1");
        let (method, entry) = if refresh {
            ("POST", serde_json::json!({"identitytoken": REFRESH}))
        } else {
            ("GET", serde_json::json!({"username": LOGIN.0, "password": LOGIN.1}))
        };
        work.file("docker/config.json", &serde_json::json!({"auths": {&registry.host: entry}}).to_string());
        let image = format!("{}/team/app-{number}:1", registry.host);
        for dockerfile in [SMALL.to_owned(), format!("FROM {image}\nCOPY f /g\n")] {
            proxy.on(method, "/token", wrong.clone());
            let output = work.build(&dockerfile, &["-d", &image]);
            let what = format!("{wrong:?} of {method} /token");
            judge(&what, &output, &registry.host, hopeful);
            assert!(proxy.is_done(), "{what}: nothing was asked for: {}", text(&output));
            let log = text(&output);
            assert!(!log.contains(LOGIN.1) && !log.contains(REFRESH), "{what}: {log}");
            if !output.status.success() {
                assert!(log.contains(&format!("token server {}", proxy.host)), "{what}: {log}");
                let data = registry.directory.path().join("data/docker/registry/v2/repositories");
                assert!(!data.join(format!("team/app-{number}/_manifests/tags")).exists(), "{what}");
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for refresh in [false, true] {
            for half in faults().chunks(6) {
                let (half, one) = (half.to_vec(), &one);
                scope.spawn(move || {
                    let wrongs = half.iter().enumerate();
                    wrongs.for_each(|(number, (wrong, hopeful))| {
                        // A token of which a bit is another is no JSON any more, and is asked for again.
                        one(number, refresh, wrong, *hopeful || *wrong == Wrong::OtherBytes);
                    });
                });
            }
        }
    });
}

#[test]
fn a_token_that_is_refused_in_the_middle_of_an_upload_is_renewed() {
    let tokens = TokenServer::start_hasty(2);
    let setup = Setup { tokens: Some((&tokens.realm, &tokens.certificate)), ..Setup::default() };
    let (registry, work) = (Registry::with(&setup), Work::new(&[]));
    let proxy = Faulty::start(&registry.host);
    let entry = serde_json::json!({"username": LOGIN.0, "password": LOGIN.1});
    let config = serde_json::json!({"auths": {&proxy.host: &entry, &registry.host: &entry}});
    work.file("docker/config.json", &config.to_string());
    work.bench.file("f", &noise(2_000_000));
    // Half a megabyte in two and a half seconds.
    for _ in 0..3 {
        proxy.on("PATCH", "/uploads/", Wrong::SlowRequest(10_000));
    }
    let image = format!("{}/team/app:1", proxy.host);
    work.builds(SMALL, &["-d", &image, "--push-chunk-size=500000"]);
    assert!(proxy.is_done());
    let scope = "repository:team/app:pull,push".to_owned();
    let asked = tokens.asked().into_iter().filter(|asked| asked.scopes.contains(&scope)).count();
    assert!(asked >= 4, "one to begin with, and one for each chunk after a slow one: {asked}");
    work.builds(&format!("FROM {}/team/app:1\nCOPY f /g\n", registry.host), &["--no-push"]);
}

#[test]
fn a_registry_that_names_a_time_is_asked_again_then() {
    let (registry, work) = (Registry::start(), Work::new(&[]));
    work.bench.file("f", "1");
    work.builds(SMALL, &["-d", &format!("{}/base:1", registry.host)]);
    let proxy = Faulty::start(&registry.host);
    let image = format!("{}/base:1", proxy.host);
    // Without it, the first pause is a second and a quarter at most.
    for (method, part) in [("GET", "/manifests/"), ("PUT", "/uploads/"), ("PUT", "/manifests/")] {
        work.bench.file("g", part);
        proxy.on(method, part, Wrong::RetryAt(503, 3));
        let began = std::time::Instant::now();
        work.builds(&format!("FROM {image}\nCOPY g /g\n"), &["-d", &format!("{}/app:1", proxy.host)]);
        assert!(began.elapsed().as_secs_f64() >= 2.0, "{method} {part}: {:?}", began.elapsed());
        assert!(proxy.is_done());
    }
}

#[test]
fn a_registry_with_tls_is_spoken_to_by_http_2_unless_that_is_turned_off() {
    let (work, authority) = (Work::new(&[]), TestAuthority::new());
    let ca = work.file("ca.pem", &authority.ca);
    for (off, expected, other) in [("", "HTTP/2.0", "HTTP/1.1"), ("1", "HTTP/1.1", "HTTP/2.0")] {
        let registry = Registry::with(&Setup { tls: Some(authority.server_pem()), ..Setup::default() });
        work.bench.file("f", &noise(300_000));
        let image = format!("{}/app:1", registry.host);
        let trust = format!("--registry-certificate={}={ca}", registry.host);
        // A base that is kept: what only passes by has connections of its own.
        let layout = work.text_path(&format!("layout{off}"));
        for dockerfile in [SMALL.to_owned(), format!("FROM {image}\nCOPY f /g\n")] {
            let mut command =
                work.command(&dockerfile, &["-d", &image, &trust, "--oci-layout-path", &layout]);
            let output = command.env("FF_KANIKO_DISABLE_HTTP2", off).output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        let log = registry.access();
        assert!(log.contains(expected) && !log.contains(other), "{log}");
    }
}

#[test]
fn a_blob_that_lies_with_another_host_is_fetched_there_without_the_login() {
    let (registry, work) = (Registry::with_login(), Work::new(&["--reproducible"]));
    let proxy = Faulty::start(&registry.host);
    let login = registry.config_json();
    let both = login
        .replace("{\"auths\":{", &format!("{{\"auths\":{{{},", entry(&login, &registry.host, &proxy.host)));
    work.file("docker/config.json", &both);
    work.bench.file("f", "1");
    let layout = work.text_path("layout");
    work.builds(SMALL, &["-d", &format!("{}/base:1", registry.host), "--oci-layout-path", &layout]);
    let blob = |digest: &str| {
        let path = work.path("layout/blobs/sha256").join(digest.trim_start_matches("sha256:"));
        std::fs::read_to_string(path).unwrap()
    };
    let listed: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(work.path("layout/index.json")).unwrap()).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_str(&blob(listed["manifests"][0]["digest"].as_str().unwrap())).unwrap();
    let digest = manifest["config"]["digest"].as_str().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let elsewhere = runtime.block_on(kiln_testkit::StandIn::start());
    elsewhere.answer("GET", "/storage/config", 200, blob(digest));
    proxy.on(
        "GET",
        &format!("/blobs/{digest}"),
        Wrong::Elsewhere(format!("{}/storage/config?x=y", elsewhere.url())),
    );
    work.builds(&format!("FROM {}/base:1\nCOPY f /g\n", proxy.host), &["--no-push"]);
    let asked = elsewhere.asked();
    assert_eq!((asked.len(), asked[0].header("authorization")), (1, ""), "{asked:?}");
    assert!(proxy.is_done());
}

/// A line of a config.json for `new`, with the login that the file has for `old`.
fn entry(config: &str, old: &str, new: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(config).unwrap();
    format!("\"{new}\":{}", value["auths"][old])
}

#[test]
fn what_a_proxy_finds_too_large_is_sent_in_smaller_requests() {
    let (registry, work) = (Registry::start(), Work::new(&[]));
    work.bench.file("f", &noise(3_000_000));
    let place = work.path("nginx");
    std::fs::create_dir(&place).unwrap();
    let nginx = Nginx::before(&place, &registry.host, 700_000);
    let image = |name: &str| format!("127.0.0.1:{}/{name}:1", nginx.port);
    let direct = |name: &str| format!("{}/{name}:1", registry.host);
    // By itself, and as it is told.
    work.builds(SMALL, &["-d", &image("by-itself")]);
    work.builds(SMALL, &["-d", &image("told"), "--push-chunk-size=500000"]);
    for name in ["by-itself", "told"] {
        let copy = format!("dir:{}", work.text_path(name));
        ok("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{}", direct(name)), &copy]);
    }
    let log = registry.log();
    let is_chunk = |line: &&str| line.contains("method=PATCH") && line.contains("/v2/told/");
    assert!(log.lines().filter(is_chunk).count() >= 5, "3 MB by half a megabyte: {log}");
    // Where nothing is small enough, nothing stands under the tag.
    let place = work.path("tiny");
    std::fs::create_dir(&place).unwrap();
    let tiny = Nginx::before(&place, &registry.host, 1000);
    let image = format!("127.0.0.1:{}/never:1", tiny.port);
    let log = work.fails(SMALL, &["-d", &image, "--push-retry=0"], "413");
    assert!(digest_of(&direct("never")).is_none(), "{log}");
}

/// A host that is neither this machine nor in a private network, as far as its name tells.
const FAR: &str = "registry.example.com:5000";

#[test]
fn a_host_far_away_is_spoken_to_without_tls_only_where_a_flag_says_so() {
    let (registry, work) = (Registry::start(), Work::new(&["--push-retry=0", "--image-download-retry=0"]));
    work.bench.file("f", "1");
    let forward = Forward::start(&registry.host);
    let image = format!("{FAR}/app:1");
    let from = format!("FROM {image}\nCOPY f /g\n");
    let run = |dockerfile: &str, flags: &[&str]| {
        work.command(dockerfile, flags).envs(forward.variables()).output().unwrap()
    };
    let of_host = format!("--insecure-registry={FAR}");
    let good = |dockerfile: &str, flags: &[&str]| {
        let output = run(dockerfile, flags);
        assert!(output.status.success(), "{flags:?}: {}", text(&output));
    };
    let bad = |dockerfile: &str, flags: &[&str]| {
        let output = run(dockerfile, flags);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {}", text(&output));
        assert!(text(&output).contains(FAR), "{}", text(&output));
    };
    bad(SMALL, &["-d", &image]);
    bad(SMALL, &["-d", &image, "--insecure-pull"]);
    bad(SMALL, &["-d", &image, "--insecure-registry=other.example.com:5000"]);
    assert!(digest_of(&format!("{}/app:1", registry.host)).is_none());
    good(SMALL, &["-d", &image, "--insecure"]);
    good(SMALL, &["-d", &image, &of_host]);
    // To push is not to pull.
    bad(&from, &["--no-push"]);
    bad(&from, &["--no-push", "--insecure"]);
    good(&from, &["--no-push", "--insecure-pull"]);
    good(&from, &["--no-push", &of_host]);
    assert!(forward.tunnels() >= 5, "HTTPS is tried first, whatever is allowed");
    let warm = |flags: &[&str]| {
        let mut command = std::process::Command::new(kiln_integration::kiln());
        command.args(["warmer", "--image", &image, "--image-download-retry=0", "--cache-dir"]);
        command.arg(work.path("volume")).args(flags).envs(forward.variables()).output().unwrap()
    };
    assert_eq!(warm(&[]).status.code(), Some(1));
    for flag in ["--insecure", "--insecure-pull", &of_host] {
        let output = warm(&[flag, "--force"]);
        assert!(output.status.success(), "{flag}: {}", text(&output));
    }
}

#[test]
fn a_certificate_that_nobody_trusts_is_passed_over_only_where_a_flag_says_so() {
    let work = Work::new(&["--push-retry=0", "--image-download-retry=0"]);
    work.bench.file("f", "1");
    let authority = TestAuthority::new();
    let registry = Registry::with(&Setup { tls: Some(authority.server_pem()), ..Setup::default() });
    let forward = Forward::start(&registry.host);
    let image = format!("{FAR}/app:1");
    let from = format!("FROM {image}\nCOPY f /g\n");
    let run = |dockerfile: &str, flags: &[&str]| {
        work.command(dockerfile, flags).envs(forward.variables()).output().unwrap()
    };
    let of_host = format!("--skip-tls-verify-registry={FAR}");
    for flags in [&[][..], &["--skip-tls-verify-pull"], &["--skip-tls-verify-registry=other.example.com"]] {
        let output = run(SMALL, &[&["-d", &image], flags].concat());
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {}", text(&output));
        assert!(text(&output).contains("certificate"), "{flags:?}: {}", text(&output));
    }
    for flag in ["--skip-tls-verify", &of_host] {
        let output = run(SMALL, &["-d", &image, flag]);
        assert!(output.status.success(), "{flag}: {}", text(&output));
    }
    assert_eq!(run(&from, &["--no-push"]).status.code(), Some(1));
    for flag in ["--skip-tls-verify", "--skip-tls-verify-pull", &of_host] {
        let output = run(&from, &["--no-push", flag]);
        assert!(output.status.success(), "{flag}: {}", text(&output));
    }
}

#[test]
fn a_registry_is_named_by_its_ipv6_address() {
    let work = Work::new(&[]);
    work.bench.file("f", "1");
    let registry = Registry::with(&Setup { ipv6: true, ..Setup::default() });
    assert!(registry.host.starts_with("[::1]:"), "{}", registry.host);
    let (image, names) = (format!("{}/team/app:1", registry.host), work.text_path("names"));
    let log = work.builds(SMALL, &["-d", &image, "--image-name-with-digest-file", &names]);
    let named = std::fs::read_to_string(names).unwrap();
    assert!(named.starts_with(&format!("{}/team/app@sha256:", registry.host)), "{named}: {log}");
    work.builds(&format!("FROM {}\nCOPY f /g\n", named.trim()), &["--no-push"]);
    let listed = ok("curl", &["-sfg", &format!("http://{}/v2/team/app/tags/list", registry.host)]);
    assert_eq!(listed.trim(), r#"{"name":"team/app","tags":["1"]}"#);
    // With TLS, the certificate is one for the address.
    let authority = TestAuthority::new();
    let tls = Registry::with(&Setup { tls: Some(authority.server_pem()), ipv6: true, ..Setup::default() });
    let trust = format!("--registry-certificate={}={}", tls.host, work.file("ca.pem", &authority.ca));
    work.builds(SMALL, &["-d", &format!("{}/app:1", tls.host), &trust]);
}
