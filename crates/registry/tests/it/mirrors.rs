use kiln_registry::{Event, Mirrors, RegistryOptions};
use kiln_testkit::{Fault, Route, TestRegistry};

use super::{bytes, observed, options, reference, repository, small_image};

fn mapped(origin: &TestRegistry, mirrors: &[String], no_fallback: bool) -> RegistryOptions {
    let maps = mirrors.iter().map(|mirror| (origin.host(), mirror.clone())).collect();
    RegistryOptions { mirrors: Mirrors { maps, no_fallback, ..Mirrors::default() }, ..options() }
}

#[tokio::test]
async fn a_mirror_is_asked_first_under_its_prefix() {
    let (origin, mirror) = (TestRegistry::start().await, TestRegistry::start().await);
    let image = small_image();
    mirror.put_image("hub/team/app", "1", &image);
    let (registry, _) = observed(mapped(&origin, &[format!("{}/hub", mirror.host())], false));
    let resolved = registry.head(&reference(&origin, "team/app:1")).await.unwrap();
    assert_eq!(resolved.source, mirror.host());
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn any_error_of_a_mirror_goes_on_to_the_next_and_then_to_the_registry() {
    let origin = TestRegistry::start().await;
    let mirrors = [TestRegistry::start().await, TestRegistry::start().await];
    origin.put_image("app", "1", &small_image());
    mirrors[0].on(Route::Manifest, vec![Fault::Status(500); 9]);
    let hosts: Vec<String> = mirrors.iter().map(TestRegistry::host).collect();
    let (registry, events) = observed(mapped(&origin, &hosts, false));
    let manifest = registry.manifest(&reference(&origin, "app:1")).await.unwrap();
    assert_eq!(manifest.source, origin.host());
    let events = events.lock().unwrap();
    let falls: Vec<(&str, &str)> = events
        .iter()
        .filter_map(|event| match event {
            Event::FallingBack { from, to, .. } => Some((from.as_str(), to.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(falls, [(hosts[0].as_str(), hosts[1].as_str()), (hosts[1].as_str(), &origin.host())]);
}

#[tokio::test]
async fn a_mirror_that_is_down_is_not_asked_for_every_blob() {
    let origin = TestRegistry::start().await;
    let mirror = TestRegistry::start().await;
    mirror.on(Route::Blob, vec![Fault::Reset; 9]);
    let blobs: Vec<_> = (1..5).map(|size| origin.put_blob("app", bytes(size))).collect();
    let (registry, _) = observed(mapped(&origin, &[mirror.host()], false));
    for blob in &blobs {
        registry.pull_bytes(&repository(&origin, "app"), blob, 100).await.unwrap();
    }
    assert_eq!(mirror.count(Route::Blob), 2);
}

#[tokio::test]
async fn without_fallback_the_registry_is_left_alone() {
    let (origin, mirror) = (TestRegistry::start().await, TestRegistry::start().await);
    origin.put_image("app", "1", &small_image());
    let (registry, _) = observed(mapped(&origin, &[mirror.host()], true));
    let error = registry.manifest(&reference(&origin, "app:1")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("--skip-default-registry-fallback"), "{error}");
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn a_blob_goes_on_at_the_next_place_where_the_mirror_broke_it_off() {
    let (origin, mirror) = (TestRegistry::start().await, TestRegistry::start().await);
    let blob = bytes(100_000);
    let descriptor = origin.put_blob("app", blob.clone());
    mirror.put_blob("app", blob.clone());
    mirror.on(Route::Blob, [Fault::CutAfter(40_000), Fault::Status(404)]);
    let (registry, _) = observed(mapped(&origin, &[mirror.host()], false));
    let found = registry.pull_bytes(&repository(&origin, "app"), &descriptor, 1 << 20).await.unwrap();
    assert_eq!(found, blob);
    assert!(origin.seen().last().unwrap().header("range").starts_with("bytes="));
}

#[tokio::test]
async fn a_mirror_s_damaged_blob_is_replaced_by_the_registry_s() {
    let (origin, mirror) = (TestRegistry::start().await, TestRegistry::start().await);
    let blob = bytes(10_000);
    let descriptor = origin.put_blob("app", blob.clone());
    mirror.put_blob("app", blob.clone());
    mirror.on(Route::Blob, [Fault::WrongBytes]);
    let (registry, _) = observed(mapped(&origin, &[mirror.host()], false));
    let found = registry.pull_bytes(&repository(&origin, "app"), &descriptor, 1 << 20).await.unwrap();
    assert_eq!(found, blob);
}

#[tokio::test]
async fn pushes_and_the_cache_go_to_no_mirror() {
    let (origin, mirror) = (TestRegistry::start().await, TestRegistry::start().await);
    let descriptor = origin.put_blob("cache", bytes(10));
    let (registry, _) = observed(mapped(&origin, &[mirror.host()], false));
    registry.check_push(&repository(&origin, "app")).await.unwrap();
    registry.for_cache().pull_bytes(&repository(&origin, "cache"), &descriptor, 100).await.unwrap();
    assert!(mirror.seen().is_empty());
}
