//! Builds without a step that runs: they look at a few names in their base, and need no more of it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use kiln_integration::registry::{Registry, Setup};
use kiln_integration::servers::FileServer;
use kiln_integration::work::{Work, text};
use kiln_testkit::{RegistryBuilder, Route, TestAuthority, TestRegistry};

struct Site {
    registry: TestRegistry,
    other: TestRegistry,
    work: Work,
    // Last: the registries run on it.
    _runtime: tokio::runtime::Runtime,
}

/// A registry that has a base with some megabytes and links, and another one that has nothing.
fn site(builder: RegistryBuilder) -> Site {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let work = Work::new(&["--push-retry=0"]);
    work.bench.file("f", "1").file("link/away", "2");
    let noise: String =
        (0..200_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    work.bench.file("noise", &noise);
    fs::create_dir(work.bench.context().join("links")).unwrap();
    std::os::unix::fs::symlink("/srv/real", work.bench.context().join("links/opt")).unwrap();
    let registry = runtime.block_on(builder.start());
    let other = runtime.block_on(TestRegistry::start());
    let site = Site { registry, other, work, _runtime: runtime };
    site.work.builds(
        "FROM scratch\nADD base.tar /\nCOPY noise /noise\nCOPY link /srv/real\nCOPY links /\nENV PATH=/bin\n",
        &["-d", &site.base()],
    );
    site.registry.forget();
    site
}

impl Site {
    fn base(&self) -> String {
        format!("{}/base:1", self.registry.host())
    }

    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry.host())
    }

    /// The layers of an image that was pushed.
    fn layers(registry: &TestRegistry, repository: &str) -> Vec<kiln_oci::Digest> {
        let (_, raw) = registry.manifest(repository, "1").expect("the image was pushed");
        let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        let layers: Vec<kiln_oci::Digest> =
            layers.map(|layer| layer["digest"].as_str().unwrap().parse().unwrap()).collect();
        for layer in &layers {
            assert!(registry.blob(repository, layer).is_some(), "{repository} lacks {layer}");
        }
        layers
    }

    /// How often each of the base's layers was fetched.
    fn fetched(&self) -> Vec<usize> {
        let layers = Self::layers(&self.registry, "base");
        let seen = self.registry.seen();
        let of = |layer: &kiln_oci::Digest| {
            let gets = seen.iter().filter(|seen| seen.route == Route::Blob && seen.method == "GET");
            gets.filter(|seen| seen.path.ends_with(&layer.to_string())).count()
        };
        layers.iter().map(of).collect()
    }

    /// Builds, and gives which of the base's layers lay in a file meanwhile.
    fn kept(&self, dockerfile: &str, flags: &[&str]) -> Vec<bool> {
        let build = self.work.command(dockerfile, flags);
        let trace = self.work.path("trace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-s", "4096", "-e", "trace=openat,openat2,open,creat", "-o"]).arg(&trace);
        strace
            .arg(build.get_program())
            .args(build.get_args())
            .envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = strace.output().expect("strace is installed: integration/scripts/install-test-tools");
        assert!(output.status.success(), "{}", text(&output));
        let trace = fs::read_to_string(&trace).unwrap();
        let layers = Self::layers(&self.registry, "base");
        let is_made = |hex: &str| trace.lines().any(|call| call.contains("O_CREAT") && call.contains(hex));
        layers.iter().map(|layer| is_made(&layer.hex())).collect()
    }
}

#[test]
fn a_base_that_is_only_looked_at_comes_once_and_lies_nowhere() {
    let site = site(TestRegistry::builder());
    let dockerfile = format!("FROM {}\nWORKDIR /app\nCOPY f /app/f\nCOPY f /bin/g\n", site.base());
    let name = site.name("out");
    for flags in [vec!["-d", name.as_str()], vec!["--no-push"]] {
        site.registry.forget();
        assert_eq!(site.kept(&dockerfile, &flags), [false; 4], "{flags:?}");
        assert_eq!(site.fetched(), [1; 4], "{flags:?}");
    }
    assert_eq!(Site::layers(&site.registry, "out").len(), 4 + 3);
}

#[test]
fn a_base_that_another_registry_wants_too_comes_once() {
    let site = site(TestRegistry::builder());
    let dockerfile = format!("FROM {}\nCOPY f /app/f\n", site.base());
    let name = format!("{}/out:1", site.other.host());
    assert_eq!(site.kept(&dockerfile, &["-d", &name]), [true; 4]);
    assert_eq!(site.fetched(), [1; 4]);
    assert_eq!(Site::layers(&site.other, "out").len(), 5);
    // The second time it has them.
    site.registry.forget();
    let dockerfile = format!("{dockerfile}COPY f /app/g\n");
    assert_eq!(site.kept(&dockerfile, &["-d", &name]), [false; 4]);
    assert_eq!(site.fetched(), [1; 4]);
}

#[test]
fn a_base_that_can_not_be_mounted_comes_once_and_its_beginning_twice() {
    let site = site(TestRegistry::builder().no_mounts());
    let dockerfile = format!("FROM {}\nCOPY f /app/f\n", site.base());
    assert_eq!(site.kept(&dockerfile, &["-d", &site.name("out")]), [true; 4]);
    // Before that was known, the layers were taken to be mounted, and to pass by.
    assert!(site.fetched().into_iter().all(|count| (1..=2).contains(&count)), "{:?}", site.fetched());
    assert_eq!(Site::layers(&site.registry, "out").len(), 5);
}

#[test]
fn a_base_that_a_file_or_a_list_is_made_of_comes_once() {
    let site = site(TestRegistry::builder());
    let dockerfile = format!("FROM {}\nCOPY f /app/f\n", site.base());
    let (layout, archive) = (site.work.text_path("layout"), site.work.text_path("image.tar"));
    let name = site.name("out");
    for flags in [
        vec!["--no-push", "--oci-layout-path", &layout],
        vec!["--no-push", "--tar-path", &archive, "-d", &name],
        vec!["-d", &name, "--sbom"],
    ] {
        site.registry.forget();
        site.work.builds(&dockerfile, &flags);
        assert_eq!(site.fetched(), [1; 4], "{flags:?}");
    }
}

#[test]
fn a_base_of_several_stages_that_only_look_comes_once() {
    let site = site(TestRegistry::builder());
    let base = site.base();
    let dockerfile = format!("FROM {base} AS a\nCOPY f /app/f\nFROM a\nCOPY f /app/g\n");
    assert_eq!(site.kept(&dockerfile, &["-d", &site.name("out")]), [true; 4]);
    assert_eq!(site.fetched(), [1; 4]);
    // A stage that does nothing looks at nothing.
    site.registry.forget();
    let dockerfile = format!("FROM {base} AS a\nENV A=1\nFROM a\nCOPY f /app/h\n");
    assert_eq!(site.kept(&dockerfile, &["-d", &site.name("out")]), [false; 4]);
    assert_eq!(site.fetched(), [1; 4]);
}

#[test]
fn a_link_that_leads_elsewhere_is_followed_though_the_base_went_by() {
    let site = site(TestRegistry::builder());
    let dockerfile = format!("FROM {}\nCOPY f /opt/f\nCOPY f /opt/away\n", site.base());
    site.work.builds(&dockerfile, &["-d", &site.name("out"), "--reproducible"]);
    assert_eq!(site.fetched(), [2; 4], "once to find the link, once to see where it leads");
    let layout = site.work.text_path("layout");
    site.work.builds(&dockerfile, &["--no-push", "--reproducible", "--oci-layout-path", &layout]);
    let image = kiln_integration::flat::Image::read(Path::new(&layout));
    let layers = image.layers_text(4);
    assert!(layers.contains("srv/real/f"), "{layers}");
    // Whether the base was kept or not shows in nothing.
    let index = fs::read_to_string(Path::new(&layout).join("index.json")).unwrap();
    let (_, pushed) = site.registry.manifest("out", "1").unwrap();
    assert!(index.contains(&kiln_oci::Digest::of(&pushed).to_string()), "{index}");
}

/// How a program ends; nothing if it has to be ended after so many seconds.
fn ends(child: &mut Child, seconds: u64) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn uploads_and_downloads_of_one_registry_do_not_wait_for_each_other() {
    let site = site(TestRegistry::builder().no_mounts());
    let many: String = (0..12).map(|number| format!("COPY noise /{number}\n")).collect();
    let base = site.name("many");
    site.work.builds(&format!("FROM scratch\nADD base.tar /\nENV PATH=/bin\n{many}"), &["-d", &base]);
    for (repository, step) in [("copied", "COPY f /app/f"), ("run", "RUN echo 1 > /f")] {
        let name = site.name(repository);
        let mut build =
            site.work.command(&format!("FROM {base}\n{step}\n"), &["-d", &name, "--max-concurrency=2"]);
        let status = ends(&mut build.spawn().unwrap(), 30);
        assert!(status.is_some_and(|status| status.success()), "{step}");
        assert_eq!(Site::layers(&site.registry, repository).len(), 14, "{step}");
    }
}

/// What is kept of a layer before its turn is bounded; a stream that nobody reads meanwhile must not hold up the others.
#[test]
fn layers_that_wait_for_their_turn_hold_up_no_other() {
    let (work, authority) = (Work::new(&[]), TestAuthority::new());
    let ca = work.file("ca.pem", &authority.ca);
    let registry = Registry::with(&Setup { tls: Some(authority.server_pem()), ..Setup::default() });
    let trust = format!("--registry-certificate={}={ca}", registry.host);
    let mut state = 1_u64;
    let mut noise = |bytes: usize| -> String {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b' ' + u8::try_from((state >> 40) % 90).unwrap())
        };
        (0..bytes).map(|_| next()).collect()
    };
    let mut base = "FROM scratch\n".to_owned();
    for layer in 0..6 {
        for number in 0..3 {
            work.bench.file(&format!("{layer}/{number}"), &noise(3_000_000));
        }
        base.push_str(&format!("COPY {layer} /srv/\n"));
    }
    let (name, out) = (format!("{}/base:1", registry.host), format!("{}/out:1", registry.host));
    work.builds(&base, &["-d", &name, &trust]);
    let web = FileServer::start(&work.bench.context());
    // Nobody knows what is in the archive: all that is below /srv is of interest.
    let dockerfile = format!("FROM {name}\nADD --unpack=true {}/base.tar /srv/\n", web.address);
    let mut child = work.command(&dockerfile, &["-d", &out, &trust]).spawn().unwrap();
    let status = ends(&mut child, 60);
    assert!(status.is_some_and(|status| status.success()));
}
