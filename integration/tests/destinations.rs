//! One image, several destinations: what a registry has in one repository is mounted into the next, not sent again.

use kiln_integration::work::{Work, text};
use kiln_testkit::{RegistryBuilder, Route, TestRegistry};

struct Site {
    registry: TestRegistry,
    runtime: tokio::runtime::Runtime,
    work: Work,
}

fn site(builder: RegistryBuilder) -> Site {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let work = Work::new(&["--push-retry=0"]);
    work.bench.file("f", "1");
    Site { registry: runtime.block_on(builder.start()), runtime, work }
}

impl Site {
    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry.host())
    }

    /// The layers of the image in each of these repositories, which must be whole and the same.
    fn layers(&self, repositories: &[&str]) -> Vec<kiln_oci::Digest> {
        let mut found = Vec::new();
        for repository in repositories {
            let (_, raw) = self.registry.manifest(repository, "1").expect("the image was pushed");
            let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
            let layers = manifest["layers"].as_array().unwrap().iter();
            found = layers.map(|layer| layer["digest"].as_str().unwrap().parse().unwrap()).collect();
            for layer in &found {
                assert!(self.registry.blob(repository, layer).is_some(), "{repository} lacks {layer}");
            }
        }
        found
    }

    /// The requests that would mount `layer`: where it should be taken from.
    fn mounts(&self, layer: &kiln_oci::Digest) -> Vec<(String, String)> {
        let digest = layer.to_string().replace(':', "%3A");
        let seen = self.registry.seen().into_iter().filter(|seen| seen.query.contains(&digest));
        let mounts = seen.filter(|seen| seen.route == Route::UploadStart && seen.query.contains("mount="));
        let from = |query: &str| query.split("from=").nth(1).unwrap_or_default().to_owned();
        mounts.map(|seen| (seen.path.clone(), from(&seen.query))).collect()
    }
}

const TWO: &str = "FROM scratch\nCOPY f /f\nCOPY base.tar /base\n";

#[test]
fn a_new_layer_for_three_repositories_of_a_registry_is_sent_once() {
    let site = site(TestRegistry::builder());
    let names = ["a", "team/b", "c"].map(|repository| site.name(repository));
    site.work.builds(TWO, &["-d", &names[0], "-d", &names[1], "-d", &names[2]]);
    let layers = site.layers(&["a", "team/b", "c"]);
    for layer in &layers {
        let mounts = site.mounts(layer);
        assert_eq!(mounts.len(), 2, "{mounts:?}");
    }
    // Two layers, and a config for each repository.
    assert_eq!(site.registry.count(Route::UploadPut), 5);
}

#[test]
fn a_registry_that_mounts_nothing_gets_the_layer_twice() {
    let site = site(TestRegistry::builder().no_mounts());
    site.work.builds(TWO, &["-d", &site.name("a"), "-d", &site.name("b")]);
    let layers = site.layers(&["a", "b"]);
    assert_eq!(site.mounts(&layers[0]).len(), 1);
    assert_eq!(site.registry.count(Route::UploadPut), 6);
    assert_eq!(site.registry.open_uploads(), 0);
}

#[test]
fn a_large_layer_that_went_early_to_the_first_is_mounted_for_the_second() {
    let site = site(TestRegistry::builder());
    let dockerfile =
        "FROM scratch\nADD base.tar /\nENV PATH=/bin\nRUN head -c 40000000 /dev/urandom > /noise\n";
    site.work.builds(dockerfile, &["-d", &site.name("a"), "-d", &site.name("b")]);
    let layers = site.layers(&["a", "b"]);
    assert_eq!(site.mounts(layers.last().unwrap()), [("/v2/b/blobs/uploads/".to_owned(), "a".to_owned())]);
    assert_eq!(site.registry.count(Route::UploadPatch), 1);
}

#[test]
fn a_base_of_another_registry_comes_once_for_two_repositories() {
    let site = site(TestRegistry::builder());
    let origin = site.runtime.block_on(TestRegistry::start());
    let base = format!("{}/base:1", origin.host());
    site.work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &base]);
    origin.forget();
    let from = format!("FROM {base}\nLABEL a=b\n");
    site.work.builds(&from, &["-d", &site.name("a"), "-d", &site.name("b")]);
    let layers = site.layers(&["a", "b"]);
    let fetched = origin.seen().into_iter().filter(|seen| seen.route == Route::Blob);
    let fetched = fetched.filter(|seen| seen.path.ends_with(&layers[0].to_string())).count();
    assert_eq!(fetched, 1, "and so it is with its bytes: {:?}", origin.seen());
    assert_eq!(site.mounts(&layers[0]).len(), 1);
}

#[test]
fn what_comes_from_elsewhere_comes_once_for_two_registries() {
    let site = site(TestRegistry::builder());
    let start = || site.runtime.block_on(TestRegistry::start());
    let (origin, other) = (start(), start());
    let base = format!("{}/base:1", origin.host());
    site.work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &base]);
    let dockerfile = format!("FROM {base}\nRUN seq 1 100000 > /numbers\n");
    let cache = format!("--cache-repo={}/cache", origin.host());
    let flags = ["--cache", &cache, "--no-push"];
    site.work.builds(&dockerfile, &flags);
    origin.forget();
    let names = [site.name("a"), format!("{}/a:1", other.host())];
    let log = site.work.builds(&dockerfile, &[&flags[..2], &["-d", &names[0], "-d", &names[1]]].concat());
    assert!(log.contains("Using caching version"), "{log}");
    let layers = site.layers(&["a"]);
    assert_eq!(layers.len(), 2);
    for layer in &layers {
        assert!(other.blob("a", layer).is_some());
        let seen = origin.seen().into_iter();
        let fetched =
            seen.filter(|seen| seen.route == Route::Blob && seen.path.ends_with(&layer.to_string()));
        assert_eq!(fetched.count(), 1, "{layer}: {:?}", origin.seen());
    }
}

#[test]
fn two_registries_each_get_the_whole_image() {
    let site = site(TestRegistry::builder());
    let other = site.runtime.block_on(TestRegistry::start());
    let names = [site.name("a"), format!("{}/a:1", other.host())];
    let output = site.work.build(TWO, &["-d", &names[0], "-d", &names[1]]);
    assert!(output.status.success(), "{}", text(&output));
    for layer in site.layers(&["a"]) {
        assert!(other.blob("a", &layer).is_some());
    }
    assert!(other.manifest("a", "1").is_some());
}
