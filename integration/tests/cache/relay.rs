//! Hit layers on their way to another registry than the cache's: straight through, asked for only where they are missing.

use std::process::Command;

use kiln_integration::{Bench, Built, kiln};
use kiln_testkit::{Fault, Route, TestRegistry};

use crate::{Remote, reused, warnings};

/// Three layers, the second of about a megabyte; the same bytes each time.
pub(crate) const THREE: &str = "FROM scratch
ADD base.tar /
ENV PATH=/bin
RUN seq 1 500000 > /numbers
RUN echo small > /small
";

/// Builds `dockerfile` with the cache in `cache`, and pushes it to `to`. With `limit`, a process that writes a file of more
/// than so many kilobytes is killed.
pub(crate) fn push(
    bench: &Bench,
    cache: &TestRegistry,
    to: &str,
    dockerfile: &str,
    flags: &[&str],
    limit: Option<u32>,
) -> Built {
    let file = bench.directory.path().join("Relayed");
    std::fs::write(&file, dockerfile).unwrap();
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let output = Command::new("bash")
        .args(["-c", "ulimit -f \"$0\"; exec \"$@\"", &limit])
        .arg(kiln())
        .args(["executor", "--reproducible", "--cache", "--cache-copy-layers", "-c"])
        .arg(bench.context())
        .arg("-f")
        .arg(&file)
        .arg("--scratch-dir")
        .arg(bench.directory.path().join("scratch"))
        .arg(format!("--cache-repo={}/cache", cache.host()))
        .arg(format!("--destination={to}"))
        .args(flags)
        .output()
        .unwrap();
    Built { output, layout: std::path::PathBuf::new() }
}

/// The layers of an image: digests and sizes.
fn layers(registry: &TestRegistry, repository: &str, tag: &str) -> Vec<(kiln_oci::Digest, u64)> {
    let (_, raw) = registry.manifest(repository, tag).expect("the image was pushed");
    let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
    let layer = |layer: &serde_json::Value| {
        (layer["digest"].as_str().unwrap().parse().unwrap(), layer["size"].as_u64().unwrap())
    };
    manifest["layers"].as_array().unwrap().iter().map(layer).collect()
}

#[test]
fn hit_layers_go_straight_to_another_registry_and_only_where_they_are_missing() {
    let (bench, one, two) = (Bench::new(), Remote::start(), Remote::start());
    // The base lies in the first registry too.
    let base = format!("{}/base:1", one.host());
    push(&bench, &one, &base, "FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &[], None).succeeded();
    let text = THREE.replace("scratch\nADD base.tar /\nENV PATH=/bin", &base);
    push(&bench, &one, &format!("{}/app:1", one.host()), &text, &[], None).succeeded();
    let wanted = layers(&one, "app", "1");
    assert_eq!(wanted.len(), 3);
    let total: u64 = wanted.iter().map(|(_, size)| size).sum();
    assert!(total > 500_000, "{total}");

    one.forget();
    let away = format!("{}/app:1", two.host());
    // No file of more than 64 kB may be written.
    let built = push(&bench, &one, &away, &text, &[], Some(64));
    assert_eq!(reused(built.succeeded()), 2, "{}", built.log());
    assert_eq!(two.manifest("app", "1"), one.manifest("app", "1"));
    assert_eq!(layers(&two, "app", "1"), wanted);
    // Each layer came once, and the base's config.
    let fetched = |registry: &TestRegistry| {
        let seen = registry.seen().into_iter().filter(|seen| seen.route == Route::Blob);
        let mut paths: Vec<String> = seen.map(|seen| seen.path).collect();
        paths.sort();
        paths
    };
    let got = fetched(&one);
    assert_eq!(got.len(), wanted.len() + 1, "{got:#?}");
    for (digest, size) in &wanted {
        assert_eq!(got.iter().filter(|path| path.ends_with(&digest.to_string())).count(), 1, "{got:#?}");
        assert_eq!(two.blob("app", digest).unwrap().len() as u64, *size);
    }
    // The destination was asked before anything was sent; layers and the config went there once.
    assert_eq!((two.count(Route::BlobHead), two.count(Route::UploadPut)), (4, 4));
    assert_eq!((two.count(Route::UploadPatch), two.count(Route::Blob)), (0, 0));
    assert_eq!(two.seen().last().unwrap().route, Route::ManifestPut);
    assert!(!built.log().contains("isolation:"), "{}", built.log());

    // Under another tag, everything is there: nothing is downloaded but the config of the base.
    one.forget();
    two.forget();
    let again = format!("{}/app:2", two.host());
    push(&bench, &one, &again, &text, &[], Some(64)).succeeded();
    assert_eq!(fetched(&one).len(), 1, "{:#?}", fetched(&one));
    // The one upload that is begun asks for the right to push.
    assert_eq!((two.count(Route::UploadPut), two.count(Route::UploadStart)), (0, 1));
    assert_eq!(two.count(Route::UploadCancel), 1);
    assert_eq!(two.manifest("app", "2"), one.manifest("app", "1"));
}

#[test]
fn one_slot_is_enough_for_a_layer_that_comes_from_where_it_goes() {
    // A registry that mounts nothing gets back what it gave, through one connection at a time.
    let bench = Bench::new();
    let one = Remote::with(|builder| builder.no_mounts());
    let first = format!("{}/app:1", one.host());
    push(&bench, &one, &first, THREE, &[], None).succeeded();
    let other = format!("{}/other:1", one.host());
    let built = push(&bench, &one, &other, THREE, &["--max-concurrency=1"], None);
    assert_eq!(reused(built.succeeded()), 3, "{}", built.log());
    assert_eq!(one.manifest("other", "1"), one.manifest("app", "1"));
}

#[test]
fn an_upload_that_breaks_goes_on_with_what_is_missing() {
    let (bench, one, two) = (Bench::new(), Remote::start(), Remote::start());
    push(&bench, &one, &format!("{}/app:1", one.host()), THREE, &[], None).succeeded();
    one.forget();
    two.on(Route::UploadPut, [Fault::CutAfter(200_000), Fault::Reset]);
    two.on(Route::UploadPatch, [Fault::CutAfter(100_000)]);
    let built = push(&bench, &one, &format!("{}/app:1", two.host()), THREE, &[], None);
    assert_eq!(reused(built.succeeded()), 3, "{}", built.log());
    assert_eq!(two.manifest("app", "1"), one.manifest("app", "1"));
    for (digest, size) in layers(&two, "app", "1") {
        assert_eq!(two.blob("app", &digest).unwrap().len() as u64, size);
    }
    assert_eq!(two.seen().last().unwrap().route, Route::ManifestPut);
}

#[test]
fn a_layer_that_does_not_come_is_made_again_and_no_wrong_one_is_pushed() {
    let (bench, one, two) = (Bench::new(), Remote::start(), Remote::start());
    push(&bench, &one, &format!("{}/app:1", one.host()), THREE, &[], None).succeeded();
    let first = one.manifest("app", "1");
    let faults = [
        Fault::WrongBytes,
        Fault::Truncate(7),
        Fault::CutAfter(9),
        Fault::Status(500),
        Fault::Status(404),
        Fault::WrongLength(5),
        Fault::Reset,
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        one.always(Route::Blob, fault.clone());
        two.forget();
        let name = format!("app{number}");
        let flags = ["--no-push-cache", "--image-download-retry=0"];
        let built = push(&bench, &one, &format!("{}/{name}:1", two.host()), THREE, &flags, None);
        built.succeeded();
        assert_eq!(two.manifest(&name, "1"), first, "{fault:?}: {}", built.log());
        assert!(!warnings(&built).is_empty(), "{fault:?}");
        // What is under a tag has all its blobs before.
        assert_eq!(two.seen().last().unwrap().route, Route::ManifestPut, "{fault:?}");
        assert_eq!(two.count(Route::ManifestPut), 1, "{fault:?}");
        for (digest, size) in layers(&two, &name, "1") {
            let blob = two.blob(&name, &digest).unwrap();
            assert_eq!((kiln_oci::Digest::of(&blob), blob.len() as u64), (digest, size), "{fault:?}");
        }
    }
}
