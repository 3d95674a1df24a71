use kiln_oci::{Descriptor, Digest, media_type};
use kiln_registry::{BlobSink, RegistryError};
use kiln_testkit::{Fault, Route, TestRegistry};

use super::{bytes, observed, options, quick, reference, registry, repository, small_image};

#[tokio::test]
async fn a_tag_is_resolved_by_one_head() {
    let server = TestRegistry::start().await;
    let image = small_image();
    let digest = server.put_image("team/app", "1", &image);
    let resolved = registry().head(&reference(&server, "team/app:1")).await.unwrap();
    assert_eq!(resolved.descriptor.digest, digest);
    assert_eq!(resolved.descriptor.media_type, media_type::OCI_MANIFEST);
    assert_eq!(resolved.descriptor.size, image.manifest.size());
    assert_eq!(resolved.source, server.host());
    assert_eq!((server.count(Route::ManifestHead), server.count(Route::Manifest)), (1, 0));
}

#[tokio::test]
async fn a_registry_that_knows_no_head_is_asked_for_the_manifest() {
    let server = TestRegistry::start().await;
    let digest = server.put_image("app", "1", &small_image());
    server.on(Route::ManifestHead, [Fault::Status(405)]);
    assert_eq!(registry().head(&reference(&server, "app:1")).await.unwrap().descriptor.digest, digest);
}

#[tokio::test]
async fn a_manifest_comes_byte_for_byte() {
    let server = TestRegistry::start().await;
    let raw = br#"{ "schemaVersion": 2, "x": 1, "config": {"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}, "layers": [] }"#;
    let digest = server.put_manifest("app", "1", "text/plain", raw.to_vec());
    let found = registry().manifest(&reference(&server, &format!("app@{digest}"))).await.unwrap();
    assert_eq!(&*found.raw, raw);
    assert_eq!(found.media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(found.digest, digest);
}

#[tokio::test]
async fn schema_1_is_refused_with_a_clear_sentence() {
    let server = TestRegistry::start().await;
    server.put_manifest("app", "1", media_type::DOCKER_SCHEMA1, r#"{"schemaVersion":1}"#);
    for result in [
        registry().manifest(&reference(&server, "app:1")).await.map(|_| ()),
        registry().head(&reference(&server, "app:1")).await.map(|_| ()),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, RegistryError::Schema1 { .. }), "{error}");
        assert!(error.to_string().contains("schema 1"), "{error}");
    }
}

#[tokio::test]
async fn what_isn_t_there_is_not_found_and_not_asked_for_again() {
    let server = TestRegistry::start().await;
    let error = registry().manifest(&reference(&server, "app:1")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("MANIFEST_UNKNOWN: manifest unknown"), "{error}");
    assert_eq!(server.count(Route::Manifest), 1);
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_stopped() {
    let server = TestRegistry::start().await;
    let blob = bytes(200_000);
    let descriptor = server.put_blob("app", blob.clone());
    server.on(Route::Blob, [Fault::CutAfter(70_000), Fault::Status(503), Fault::CutAfter(60_000)]);
    let (registry, events) = observed(options());
    let mut sink = Vec::new();
    registry.pull_blob(&repository(&server, "app"), &descriptor, 0, &mut sink).await.unwrap();
    assert_eq!(sink, blob);
    let ranges: Vec<String> = server
        .seen()
        .iter()
        .filter(|s| s.route == Route::Blob)
        .map(|s| s.header("range").to_owned())
        .collect();
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[0], "");
    assert!(ranges[3].starts_with("bytes=") && ranges[3] != ranges[1], "{ranges:?}");
    let events = events.lock().unwrap();
    let retries =
        events.iter().filter(|event| matches!(event, kiln_registry::Event::Retrying { .. })).count();
    assert_eq!(retries, 3);
    assert!(matches!(
        events.last().unwrap(),
        kiln_registry::Event::Received { bytes: 200_000, of: 200_000, .. }
    ));
}

#[tokio::test]
async fn a_registry_without_ranges_sends_again_what_we_have() {
    let server = TestRegistry::start().await;
    let blob = bytes(100_000);
    let descriptor = server.put_blob("app", blob.clone());
    server.on(Route::Blob, [Fault::CutAfter(50_000), Fault::IgnoreRange]);
    let mut sink = Vec::new();
    registry().pull_blob(&repository(&server, "app"), &descriptor, 0, &mut sink).await.unwrap();
    assert_eq!(sink, blob);
}

#[tokio::test]
async fn a_download_begun_before_is_completed() {
    let server = TestRegistry::start().await;
    let blob = bytes(1000);
    let descriptor = server.put_blob("app", blob.clone());
    let mut sink = blob[..400].to_vec();
    registry().pull_blob(&repository(&server, "app"), &descriptor, 400, &mut sink).await.unwrap();
    assert_eq!(sink, blob);
    assert_eq!(server.seen().last().unwrap().header("range"), "bytes=400-");
}

#[tokio::test]
async fn progress_pays_for_more_tries() {
    let server = TestRegistry::start().await;
    let blob = bytes(8 << 20);
    let descriptor = server.put_blob("app", blob.clone());
    // Each time one and a half MiB come: five breaks with two tries allowed.
    server.on(Route::Blob, vec![Fault::CutAfter(3 << 19); 5]);
    let mut options = options();
    options.retries.pull = 2;
    let (registry, _) = observed(options);
    let mut sink = Vec::new();
    registry.pull_blob(&repository(&server, "app"), &descriptor, 0, &mut sink).await.unwrap();
    assert_eq!(sink.len(), blob.len());
}

#[tokio::test]
async fn a_stalled_connection_counts_as_broken() {
    let server = TestRegistry::start().await;
    let blob = bytes(100_000);
    let descriptor = server.put_blob("app", blob.clone());
    server.on(Route::Blob, [Fault::Stall(30_000)]);
    let mut sink = Vec::new();
    registry().pull_blob(&repository(&server, "app"), &descriptor, 0, &mut sink).await.unwrap();
    assert_eq!(sink, blob);
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let server = TestRegistry::start().await;
    let descriptor = server.put_blob("app", bytes(10));
    server.on(Route::Blob, [Fault::RetryAfter(429, 1)]);
    let begun = std::time::Instant::now();
    registry().pull_bytes(&repository(&server, "app"), &descriptor, 1000).await.unwrap();
    assert!(begun.elapsed().as_secs_f64() >= 1.0);
}

#[tokio::test]
async fn tries_come_to_an_end() {
    let server = TestRegistry::start().await;
    let descriptor = server.put_blob("app", bytes(10));
    server.on(Route::Blob, vec![Fault::Status(500); 20]);
    let error = registry().pull_bytes(&repository(&server, "app"), &descriptor, 1000).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { status: 500, .. }), "{error}");
    assert!(error.is_unreachable());
    assert_eq!(server.count(Route::Blob), quick().pull as usize + 1);
}

#[tokio::test]
async fn wrong_bytes_are_never_a_success() {
    let server = TestRegistry::start().await;
    let descriptor = server.put_blob("app", bytes(1000));
    server.on(Route::Blob, [Fault::WrongBytes]);
    let mut sink = Vec::new();
    let error =
        registry().pull_blob(&repository(&server, "app"), &descriptor, 0, &mut sink).await.unwrap_err();
    assert!(matches!(error, RegistryError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let server = TestRegistry::start().await;
    let descriptor = server.put_blob("app", bytes(1000));
    server.on(Route::Blob, [Fault::Endless]);
    let mut sink = Vec::new();
    let error =
        registry().pull_blob(&repository(&server, "app"), &descriptor, 0, &mut sink).await.unwrap_err();
    assert!(matches!(error, RegistryError::Length { expected: 1000, .. }), "{error}");
    assert!(sink.len() <= 1000);
}

#[tokio::test]
async fn a_full_disk_is_no_reason_to_ask_again() {
    struct Full;
    impl BlobSink for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }
    let server = TestRegistry::start().await;
    let descriptor = server.put_blob("app", bytes(1000));
    let error =
        registry().pull_blob(&repository(&server, "app"), &descriptor, 0, &mut Full).await.unwrap_err();
    assert!(matches!(error, RegistryError::Write { .. }), "{error}");
    assert_eq!(server.count(Route::Blob), 1);
}

#[tokio::test]
async fn the_empty_blob_needs_no_request() {
    let descriptor = Descriptor::new("x", Digest::of(b""), 0);
    let server = TestRegistry::start().await;
    assert_eq!(registry().pull_bytes(&repository(&server, "app"), &descriptor, 1).await.unwrap(), b"");
    assert_eq!(server.count(Route::Blob), 0);
}

#[tokio::test]
async fn one_registry_sees_no_more_requests_at_a_time_than_allowed() {
    let server = TestRegistry::start().await;
    let descriptor = server.put_blob("app", bytes(1000));
    server.on(Route::Blob, vec![Fault::Stall(10); 4]);
    let mut options = options();
    options.max_concurrency = 2;
    options.retries.pull = 0;
    let (registry, _) = observed(options);
    let begun = std::time::Instant::now();
    let repository = repository(&server, "app");
    let pull = || registry.pull_bytes(&repository, &descriptor, 1000);
    let results = tokio::join!(pull(), pull(), pull(), pull());
    assert!(results.0.is_err() && results.3.is_err());
    // Four stalls of half a second, two at a time.
    assert!(begun.elapsed().as_secs_f64() >= 1.0, "{:?}", begun.elapsed());
}
