//! A registry that is far away: what doesn't need each other's answer is asked at the same time, and nothing is asked in
//! vain. The registry holds answers back until the requests that have no reason to wait for them are there.

use std::fs;

use kiln_integration::work::Work;
use kiln_testkit::{Fault, Route, Seen, TestRegistry};

struct Site {
    registry: TestRegistry,
    work: Work,
    // Last: the registry runs on it.
    _runtime: tokio::runtime::Runtime,
}

fn site() -> Site {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let work = Work::new(&["--push-retry=0", "--skip-push-permission-check"]);
    for name in ["a", "b", "c"] {
        work.bench.file(name, name);
    }
    Site { registry: runtime.block_on(TestRegistry::start()), work, _runtime: runtime }
}

impl Site {
    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// All requests of these kinds are answered once so many of the kind are there.
    fn holds_back(&self, routes: &[(Route, usize)]) {
        for (route, count) in routes {
            self.registry.always(*route, Fault::AwaitOthers(*route, *count));
        }
    }

    /// Fails if a blob was sent to a repository more than once.
    fn nothing_was_sent_twice(&self) {
        let seen = self.registry.seen().into_iter().filter(|seen| seen.route == Route::UploadPut);
        let digest = |query: &str| query.split("digest=").nth(1).unwrap_or_default().to_owned();
        let repository = |path: &str| path.split("/blobs/").next().unwrap_or_default().to_owned();
        let mut sent: Vec<_> = seen.map(|seen| (repository(&seen.path), digest(&seen.query))).collect();
        sent.sort();
        let all = sent.len();
        sent.dedup();
        assert_eq!(sent.len(), all, "{sent:#?}");
        assert!(all > 0);
    }

    /// The requests about the layer cache.
    fn of_the_cache(&self) -> Vec<Seen> {
        self.registry.seen().into_iter().filter(|seen| seen.path.starts_with("/v2/cache/")).collect()
    }
}

#[test]
fn layers_and_config_go_up_together_and_so_do_the_tags() {
    let site = site();
    // Two layers and the config.
    site.holds_back(&[
        (Route::BlobHead, 3),
        (Route::UploadStart, 3),
        (Route::UploadPut, 3),
        (Route::ManifestPut, 2),
    ]);
    let dockerfile = "FROM scratch\nCOPY a /a\nCOPY b /b\n";
    site.work.builds(dockerfile, &["-d", &site.name("app:1"), "-d", &site.name("app:2")]);
    assert_eq!(site.registry.tags("app"), ["1", "2"]);
    assert_eq!(site.registry.count(Route::UploadPut), 3, "a repository with two tags gets each blob once");
}

#[test]
fn the_images_of_an_index_go_up_together() {
    let site = site();
    // One layer for both, two configs.
    site.holds_back(&[(Route::UploadPut, 3)]);
    site.registry.on(Route::ManifestPut, vec![Fault::AwaitOthers(Route::ManifestPut, 2); 2]);
    let platforms = "--platform=linux/amd64,linux/arm64";
    site.work.builds("FROM scratch\nCOPY a /a\n", &[platforms, "-d", &site.name("app:1")]);
    let seen = site.registry.seen();
    let puts: Vec<&str> =
        seen.iter().filter(|seen| seen.route == Route::ManifestPut).map(|seen| seen.path.as_str()).collect();
    assert_eq!(puts.len(), 3);
    assert_eq!(puts[2], "/v2/app/manifests/1", "the name comes last");
}

#[test]
fn a_base_comes_while_the_registry_is_asked_to_mount_it() {
    let site = site();
    site.work.builds("FROM scratch\nADD base.tar /\nCOPY a /a\n", &["-d", &site.name("base:1")]);
    site.registry.forget();
    // The base's config and its two layers.
    site.registry.on(Route::UploadStart, vec![Fault::AwaitOthers(Route::Blob, 3); 2]);
    let dockerfile = format!("FROM {}\nCOPY b /b\n", site.name("base:1"));
    site.work.builds(&dockerfile, &["-d", &site.name("app:1")]);
    assert_eq!(site.registry.count(Route::Blob), 3, "each came once");
    assert_eq!(site.registry.count(Route::UploadPut), 2, "the base was mounted");
}

#[test]
fn a_tag_is_one_request_where_no_volume_can_know_it() {
    let site = site();
    site.work.builds("FROM scratch\nADD base.tar /\n", &["-d", &site.name("base:1")]);
    site.registry.forget();
    let dockerfile = format!("FROM {}\nCOPY b /b\n", site.name("base:1"));
    site.work.builds(&dockerfile, &["--no-push"]);
    assert_eq!((site.registry.count(Route::ManifestHead), site.registry.count(Route::Manifest)), (0, 1));
}

#[test]
fn a_build_that_found_all_its_steps_writes_nothing_to_the_cache_and_asks_once() {
    let site = site();
    let stages: String =
        (0..6).map(|n| format!("FROM base AS s{n}\nCOPY a /{n}\nRUN echo {n} > /run\n")).collect();
    let copies: String = (0..6).map(|n| format!("COPY --from=s{n} /run /r{n}\n")).collect();
    site.work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &site.name("base:1")]);
    let dockerfile =
        format!("{stages}FROM base\n{copies}").replace("FROM base", &format!("FROM {}", site.name("base:1")));
    let (cache, out) = (format!("--cache-repo={}", site.name("cache")), site.name("app:1"));
    let flags = ["--cache", &cache, "-d", &out];
    site.work.builds(&dockerfile, &flags);
    for changed in ["b", "c"] {
        // What no step reads.
        fs::write(site.work.bench.context().join(changed), "changed").unwrap();
        site.registry.forget();
        site.work.builds(&dockerfile, &flags);
        let asked = site.of_the_cache();
        assert!(asked.iter().all(|seen| seen.method == "GET"), "{asked:#?}");
        // Results of COPY are not cached, so they are not looked for.
        let manifests = asked.iter().filter(|seen| seen.route == Route::Manifest).count();
        assert_eq!(manifests, 1, "the record of the last build says it all: {asked:#?}");
    }
}

#[test]
fn blobs_that_go_up_together_are_sent_once() {
    let site = site();
    // What is said about either image has the same config.
    let platforms = "--platform=linux/amd64,linux/arm64";
    let flags = [platforms, "--provenance", "-d", &site.name("app:1")];
    site.work.builds("FROM scratch\nCOPY a /a\n", &flags);
    site.nothing_was_sent_twice();
    site.registry.forget();
    // The last step is found under two keys.
    let (cache, out) = (format!("--cache-repo={}", site.name("cache")), site.name("other:1"));
    let dockerfile = "FROM scratch AS one\nCOPY a /a\nFROM scratch\nCOPY --from=one /a /b\n";
    site.work.builds(dockerfile, &["--cache", "--cache-copy-layers", &cache, "-d", &out]);
    let records = site.of_the_cache().iter().filter(|seen| seen.route == Route::ManifestPut).count();
    assert!(records >= 4, "two steps, one of them twice, and the build: {records}");
    site.nothing_was_sent_twice();
}

#[test]
fn for_an_image_that_is_there_nothing_is_begun() {
    let site = site();
    let (cache, out) = (format!("--cache-repo={}", site.name("cache")), site.name("app:1"));
    site.work.builds("FROM scratch\nADD base.tar /\n", &["-d", &site.name("base:1")]);
    let dockerfile = format!("FROM {}\nCOPY a /a\n", site.name("base:1"));
    let flags = ["--cache", "--cache-copy-layers", &cache, "-d", &out];
    site.work.builds(&dockerfile, &flags);
    site.registry.forget();
    site.work.builds(&dockerfile, &flags);
    let seen = site.registry.seen();
    assert!(seen.iter().all(|seen| matches!(seen.method.as_str(), "GET" | "HEAD")), "{seen:#?}");
    assert_eq!(site.registry.count(Route::BlobHead), 0, "{seen:#?}");
}
