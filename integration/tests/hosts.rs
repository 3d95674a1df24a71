//! Registries under the names that they have in the world: an HTTP proxy leads all of them to stand-ins with TLS on this
//! machine. Whose login goes where, through mirrors and maps too. All through the binary.

use std::process::{Command, Output};

use base64::Engine as _;
use kiln_integration::registry::Registry;
use kiln_integration::servers::{Forward, Front, registry_site};
use kiln_integration::site::push;
use kiln_integration::work::{Work, text};
use kiln_integration::{Bench, kiln};

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

const SMALL: &str = "FROM scratch\nCOPY f /f\n";
const ECR: &str = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";

/// The world: stand-ins behind a proxy.
struct World {
    work: Work,
    _front: Front,
    forward: Forward,
    ca: String,
}

impl World {
    fn new(sites: &[(&str, String)]) -> Self {
        let work = Work::new(&["--push-retry=0", "--image-download-retry=0"]);
        work.bench.file("f", "1");
        let folder = work.path("front");
        std::fs::create_dir(&folder).unwrap();
        let front = Front::start(&folder, sites);
        let forward = Forward::start(&format!("{}:443", front.address));
        let ca = work.file("ca.pem", &front.ca);
        Self { work, _front: front, forward, ca }
    }

    fn dressed(&self, mut command: Command, variables: &[(&str, &str)]) -> Output {
        command.env("HOME", self.work.path("home")).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("SSL_CERT_FILE", &self.ca).envs(self.forward.variables());
        command.envs(variables.iter().copied()).output().unwrap()
    }

    fn build(&self, dockerfile: &str, flags: &[&str], variables: &[(&str, &str)]) -> Output {
        self.dressed(self.work.command(dockerfile, flags), variables)
    }

    fn builds(&self, dockerfile: &str, flags: &[&str], variables: &[(&str, &str)]) {
        let output = self.build(dockerfile, flags, variables);
        assert!(output.status.success(), "{flags:?}: {}", text(&output));
    }
}

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "a secret key")];

/// Amazon's API in this region, which gives a token to who signs for it.
fn amazon(api: &str, region: &str) -> (String, String) {
    let token = base64("AWS:ecr-password");
    let data = format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}"}}]}}"#);
    let signed = format!(
        "location / {{ if ($http_authorization !~ \"Credential=AKIDEXAMPLE/[0-9]+/{region}/ecr/\") {{ return 403; }}\n\
           if ($http_x_amz_target !~ \"GetAuthorizationToken$\") {{ return 400; }} return 200 '{data}'; }}"
    );
    (api.to_owned(), signed)
}

#[test]
fn a_map_or_a_mirror_of_amazon_s_gets_amazon_s_login() {
    let registry = Registry::start();
    let base = "FROM scratch\nADD base.tar /\nENV PATH=/bin\n";
    push(&registry, &Bench::new(), base, "hub/library/base:1");
    let basic = format!("Basic {}", base64("AWS:ecr-password"));
    let site = || registry_site(&registry.host, &basic, "Basic realm=\"ecr\"");
    let dual = "123456789012.dkr-ecr-fips.us-east-1.on.aws";
    let (near, far) = (
        amazon("api.ecr.eu-central-1.amazonaws.com", "eu-central-1"),
        amazon("ecr-fips.us-east-1.api.aws", "us-east-1"),
    );
    let sites = [
        (near.0.as_str(), near.1),
        (far.0.as_str(), far.1),
        (ECR, site()),
        (dual, site()),
        // Looks like it, and is somebody else's.
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil.example", site()),
    ];
    let world = World::new(&sites);
    let (map, mirror) = (format!("--registry-map=quay.io={ECR}/hub"), format!("--registry-mirror={ECR}/hub"));
    let only = "--skip-default-registry-fallback";
    world.builds("FROM quay.io/library/base:1\nCOPY f /f\n", &["--no-push", only, &map], &KEYS);
    world.builds("FROM base:1\nCOPY f /f\n", &["--no-push", only, &mirror], &KEYS);
    let dual = format!("--registry-mirror={dual}/hub");
    world.builds("FROM base:1\nCOPY f /f\n", &["--no-push", only, &dual], &KEYS);
    // The warmer asks in the same way.
    let mut warmer = Command::new(kiln());
    warmer.env("DOCKER_CONFIG", world.work.path("docker"));
    warmer.args(["warmer", "--image=base:1", "--image-download-retry=0", only, &mirror, "--cache-dir"]);
    warmer.arg(world.work.path("volume"));
    let output = world.dressed(warmer, &KEYS);
    assert!(output.status.success(), "{}", text(&output));
    // Without keys, and for a host that only looks like Amazon's, there is no login.
    for (flag, variables) in [
        (mirror.clone(), &[][..]),
        (mirror.replace("amazonaws.com", "amazonaws.com.evil.example"), &KEYS[..]),
    ] {
        let output = world.build("FROM base:1\n", &["--no-push", only, &flag], variables);
        let log = text(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains("not authorised") && !log.contains("a secret key"), "{log}");
    }
}

#[test]
fn a_helper_program_comes_before_an_entry_and_its_failure_stops_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let (registry, open) = (Registry::start(), Registry::start());
    let basic = format!("Basic {}", base64("helped:s3cret"));
    let sites = [
        ("one.example.com", registry_site(&registry.host, &basic, "Basic realm=\"one\"")),
        ("open.example.com", format!("location / {{ proxy_pass http://{}; }}", open.host)),
    ];
    let world = World::new(&sites);
    let helper = |script: &str| {
        let path = world.work.file("bin/docker-credential-vault", &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let path = format!("{}:/usr/bin:/bin", world.work.path("bin").display());
    let path = [("PATH", path.as_str())];
    let entry = format!(r#""auths":{{"one.example.com":{{"auth":"{}"}}}}"#, base64("stale:wrong"));
    let good =
        r#"read host; test "$host" = one.example.com && echo '{"Username":"helped","Secret":"s3cret"}'"#;
    let image = ["-d", "one.example.com/app:1"];
    // Named for the host, or for all of them.
    for config in [r#""credHelpers":{"one.example.com":"vault"}"#, r#""credsStore":"vault""#] {
        world.work.file("docker/config.json", &format!("{{{entry},{config}}}"));
        helper(good);
        world.builds(SMALL, &image, &path);
        for (script, why) in [
            ("echo 'the vault is sealed'; exit 1", "the vault is sealed"),
            ("echo s3cret and no JSON", "did not answer with JSON"),
            ("exec head -c 3000000 /dev/zero", "docker-credential-vault failed"),
        ] {
            helper(script);
            let output = world.build(SMALL, &image, &path);
            let log = text(&output);
            assert_eq!(output.status.code(), Some(1), "{log}");
            assert!(log.contains(why) && !log.contains("s3cret"), "{log}");
        }
        // What is public is pushed to and pulled from all the same.
        world.builds(SMALL, &["-d", "open.example.com/app:1"], &path);
    }
}

#[test]
fn gitlab_s_login_goes_to_its_registry_and_to_no_other() {
    let registry = Registry::start();
    let basic = format!("Basic {}", base64("gitlab-ci-token:job"));
    let site = || registry_site(&registry.host, &basic, "Basic realm=\"gitlab\"");
    let names = ["registry.gitlab.example", "registry.gitlab.example.evil.example"];
    let world = World::new(&[(names[0], site()), (names[1], site())]);
    let variables = |registry| {
        [("CI_REGISTRY", registry), ("CI_REGISTRY_USER", "gitlab-ci-token"), ("CI_REGISTRY_PASSWORD", "job")]
    };
    let image = format!("{}/team/app:1", names[0]);
    world.builds(SMALL, &["-d", &image], &variables(names[0]));
    world.builds(SMALL, &["-d", &image, "--credential-helpers=gitlab"], &variables(names[0]));
    for (image, variables, flag) in [
        (format!("{}/team/app:1", names[1]), variables(names[0]), "--credential-helpers=gitlab"),
        (image.clone(), variables("http://registry.gitlab.example"), "--credential-helpers=gitlab"),
        (image.clone(), variables(names[0]), "--credential-helpers=env"),
        (image.clone(), variables(names[0]), "--credential-helpers="),
    ] {
        let output = world.build(SMALL, &["-d", &image, flag], &variables);
        assert_eq!(output.status.code(), Some(1), "{image} {flag}: {}", text(&output));
    }
    // kaniko's own variables, for a domain above the host.
    let kaniko =
        [("KANIKO_GITLAB_EXAMPLE_USER", "gitlab-ci-token"), ("KANIKO_GITLAB_EXAMPLE_PASSWORD", "job")];
    world.builds(SMALL, &["-d", &image], &kaniko);
    let output = world.build(SMALL, &["-d", &format!("{}/team/app:1", names[1])], &kaniko);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

#[test]
fn a_path_s_own_login_is_used_below_it_and_the_most_specific_wins() {
    let registry = Registry::start();
    // Each path has its own login, as on hosts that many teams share.
    let guarded = |path: &str, login: &str| {
        format!(
            "location ~ ^/v2/{path}/ {{ if ($http_authorization != \"Basic {}\") {{ return 401 '{{}}'; }}\n\
             proxy_pass http://{}; proxy_set_header Authorization \"\"; proxy_set_header Host $http_host;\n\
             proxy_set_header X-Forwarded-Proto https; }}",
            base64(login),
            registry.host
        )
    };
    let site = [
        guarded("team/app", "app:a"),
        guarded("team", "team:t"),
        guarded("other", "host:h"),
        "add_header WWW-Authenticate 'Basic realm=\"shared\"' always;".to_owned(),
    ];
    let world = World::new(&[("shared.example.com", site.join("\n"))]);
    let entry = |path: &str, login: &str| format!(r#""{path}":{{"auth":"{}"}}"#, base64(login));
    let entries = [
        entry("shared.example.com", "host:h"),
        entry("https://shared.example.com/team", "team:t"),
        entry("shared.example.com/team/app", "app:a"),
    ];
    world.work.file("docker/config.json", &format!("{{\"auths\":{{{}}}}}", entries.join(",")));
    for image in ["team/app", "team/web", "other/x"] {
        world.builds(SMALL, &["-d", &format!("shared.example.com/{image}:1")], &[]);
    }
}

#[test]
fn pull_and_push_logins_of_a_token_server_are_exchanged_where_the_registry_says() {
    let registry = Registry::start();
    let challenge = r#"Bearer realm="https://auth.example.com/token",service="reg.example.com""#;
    let sites = [
        ("reg.example.com", registry_site(&registry.host, "Bearer good-token", challenge)),
        // Another host than the registry's, as Docker's own is; it knows no POST.
        (
            "auth.example.com",
            format!(
                "location = /token {{ if ($request_method = POST) {{ return 404; }}\n\
                   if ($http_authorization != \"Basic {}\") {{ return 401 '{{\"details\":\"who are you\"}}'; }}\n\
                   return 200 '{}'; }}",
                base64("<token>:refresh"),
                r#"{"token":"good-token"}"#
            ),
        ),
    ];
    let world = World::new(&sites);
    let config = |token: &str| {
        let text = serde_json::json!({"auths": {"reg.example.com": {"identitytoken": token}}}).to_string();
        world.work.file("docker/config.json", &text);
    };
    config("refresh");
    world.builds(SMALL, &["-d", "reg.example.com/app:1"], &[]);
    // Each of the two hosts may have an authority of its own.
    let nobody = [("SSL_CERT_FILE", "/nonexistent")];
    let trust = |host: &str| format!("--registry-certificate={host}={}", world.ca);
    let flags = ["-d", "reg.example.com/app:1", &trust("reg.example.com")];
    let log = text(&world.build(SMALL, &flags, &nobody));
    assert!(log.contains("--registry-certificate auth.example.com=FILE"), "{log}");
    world.builds(SMALL, &[&flags[..], &[&trust("auth.example.com")]].concat(), &nobody);
    config("stale-secret");
    let output = world.build(SMALL, &["-d", "reg.example.com/app:1"], &[]);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("auth.example.com answers 401") && !log.contains("stale-secret"), "{log}");
}
