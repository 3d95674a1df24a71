use std::time::Duration;

use bytes::Bytes;
use kiln_oci::{Descriptor, Digest, media_type};
use kiln_registry::{BlobSource, Event, FileSource, Pushed, RegistryError};
use kiln_testkit::{Fault, Route, TestRegistry};

use super::{bytes, observed, options, reference, registry, repository, small_image};

fn described(blob: &[u8]) -> (Descriptor, Bytes) {
    let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(blob), blob.len() as u64);
    (descriptor, Bytes::copy_from_slice(blob))
}

#[tokio::test]
async fn a_blob_goes_up_in_one_request() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(&bytes(300_000));
    let repository = repository(&server, "team/app");
    let pushed = registry().push_blob(&repository, &descriptor, &source).await.unwrap();
    assert_eq!(pushed, Pushed::Sent);
    assert_eq!(server.blob("team/app", &descriptor.digest).unwrap(), source);
    let put = server.seen().into_iter().find(|seen| seen.route == Route::UploadPut).unwrap();
    assert_eq!(put.header("content-length"), "300000");
    assert_eq!(server.count(Route::UploadPatch), 0);
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_sent() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(b"abc");
    server.put_blob("app", source.clone());
    let (registry, events) = observed(options());
    let pushed = registry.push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(pushed, Pushed::Present);
    assert_eq!(server.count(Route::UploadStart), 0);
    assert!(matches!(events.lock().unwrap()[0], Event::Present { .. }));
}

#[tokio::test]
async fn the_upload_of_a_new_blob_begins_while_the_registry_is_asked_for_it() {
    let server = TestRegistry::start().await;
    server.on(Route::BlobHead, [Fault::AwaitOthers(Route::UploadStart, 1)]);
    let (descriptor, source) = described(b"abc");
    let to = repository(&server, "app");
    let pushed = registry().push_new_blob(&to, &descriptor, &source).await.unwrap();
    assert_eq!(pushed, Pushed::Sent);
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    assert_eq!((server.count(Route::UploadStart), server.open_uploads()), (1, 0));
}

#[tokio::test]
async fn a_new_blob_that_is_there_all_the_same_is_not_sent_and_leaves_no_upload() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(b"abc");
    server.put_blob("app", source.clone());
    let to = repository(&server, "app");
    let pushed = registry().push_new_blob(&to, &descriptor, &source).await.unwrap();
    assert_eq!((pushed, server.count(Route::UploadPut)), (Pushed::Present, 0));
    while server.open_uploads() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(server.count(Route::UploadCancel), 1);
}

#[tokio::test]
async fn a_new_blob_goes_up_whatever_becomes_of_the_first_request_for_it() {
    for fault in [Fault::Status(503), Fault::Reset, Fault::LoseAnswer] {
        let server = TestRegistry::start().await;
        server.on(Route::UploadStart, [fault.clone()]);
        let (descriptor, source) = described(b"abc");
        let to = repository(&server, "app");
        let pushed = registry().push_new_blob(&to, &descriptor, &source).await.unwrap();
        assert_eq!(pushed, Pushed::Sent, "{fault:?}");
        assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    }
    let server = TestRegistry::start().await;
    server.always(Route::UploadStart, Fault::Status(403));
    let (descriptor, source) = described(b"abc");
    let error =
        registry().push_new_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_file_goes_up_as_it_is() {
    let server = TestRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    let blob = bytes(1 << 20);
    let (descriptor, _) = described(&blob);
    std::fs::write(folder.path().join("blob"), &blob).unwrap();
    let source = FileSource(folder.path().join("blob"));
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), blob);
}

#[tokio::test]
async fn the_empty_blob_can_be_pushed() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(b"");
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert!(server.blob("app", &descriptor.digest).is_some());
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_stopped() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(&bytes(2 << 20));
    server.on(Route::UploadPut, [Fault::CutAfter(600_000)]);
    server.on(Route::UploadPatch, [Fault::CutAfter(500_000)]);
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    assert_eq!(server.count(Route::UploadStart), 1);
    let ranges: Vec<String> = server
        .seen()
        .iter()
        .filter(|seen| seen.route == Route::UploadPatch)
        .map(|seen| seen.header("content-range").to_owned())
        .collect();
    assert!(ranges[0].starts_with("600000-"), "{ranges:?}");
    assert!(ranges[1].starts_with("1100000-"), "{ranges:?}");
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_begins_again() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(&bytes(500_000));
    server.on(Route::UploadPut, [Fault::Reset]);
    server.on(Route::UploadStatus, [Fault::Status(404)]);
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    assert_eq!(server.count(Route::UploadStart), 2);
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_not_repeated() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(&bytes(500_000));
    server.on(Route::UploadPut, [Fault::LoseAnswer]);
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!((server.count(Route::UploadPut), server.count(Route::UploadPatch)), (1, 0));
}

#[tokio::test]
async fn an_upload_that_nobody_takes_in_counts_as_broken_in_time() {
    let server = TestRegistry::start().await;
    let mut options = options();
    options.retries.push = 0;
    options.retries.stall = std::time::Duration::from_secs(1);
    let (registry, _) = observed(options);
    // What is small is in the network's buffers at once, what is large never.
    for size in [1000, 20 << 20] {
        let (descriptor, source) = described(&bytes(size));
        server.on(Route::UploadPut, [Fault::Stall(0)]);
        let began = std::time::Instant::now();
        let error = registry.push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap_err();
        assert!(error.to_string().contains("no byte came or went for 1 s"), "{error}");
        let took = began.elapsed().as_secs_f64();
        assert!((1.0..2.0).contains(&took), "{size}: {took}");
    }
}

#[tokio::test]
async fn chunks_have_the_size_that_was_asked_for() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(&bytes(1_000_000));
    let mut options = options();
    options.chunk_size = Some(400_000);
    let (registry, _) = observed(options);
    registry.push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    let ranges: Vec<String> = server
        .seen()
        .iter()
        .filter(|seen| seen.route == Route::UploadPatch)
        .map(|seen| seen.header("content-range").to_owned())
        .collect();
    assert_eq!(ranges, ["0-399999", "400000-799999", "800000-999999"]);
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
}

#[tokio::test]
async fn a_registry_that_limits_requests_gets_smaller_ones() {
    let server = TestRegistry::builder().largest_request(1_000_000).start().await;
    let (descriptor, source) = described(&bytes(3_000_000));
    let mut options = options();
    options.retries.push = 8;
    let (registry, _) = observed(options);
    registry.push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    assert!(server.count(Route::UploadPatch) >= 3);
}

#[tokio::test]
async fn a_source_that_is_too_short_is_told_as_such() {
    let server = TestRegistry::start().await;
    let (mut descriptor, source) = described(&bytes(1000));
    descriptor.size = 2000;
    let error = registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap_err();
    assert!(matches!(error, RegistryError::Read { .. }), "{error}");
    assert!(server.count(Route::UploadPut) <= 1);
}

#[tokio::test]
async fn a_file_that_changed_is_refused_once() {
    let server = TestRegistry::start().await;
    let (mut descriptor, source) = described(b"abc");
    descriptor.digest = Digest::of(b"abd");
    let error = registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    assert_eq!(server.count(Route::UploadPut), 1);
}

#[tokio::test]
async fn a_blob_is_mounted_where_the_registry_has_it() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(b"abc");
    server.put_blob("base", source);
    let (to, from) = (repository(&server, "app"), repository(&server, "base"));
    assert!(registry().mount_blob(&to, &descriptor.digest, &from).await.unwrap());
    assert!(server.blob("app", &descriptor.digest).is_some());
    let other = Digest::of(b"other");
    assert!(!registry().mount_blob(&to, &other, &from).await.unwrap());
    assert_eq!(server.open_uploads(), 0, "the upload that began instead is cancelled");
    let elsewhere = kiln_oci::Repository::new("other.example", "a").unwrap();
    assert!(!registry().mount_blob(&to, &descriptor.digest, &elsewhere).await.unwrap());
}

#[tokio::test]
async fn a_limit_of_one_request_is_enough_for_everything() {
    let server = TestRegistry::builder().no_mounts().start().await;
    let mut options = options();
    options.max_concurrency = 1;
    let (registry, _) = observed(options);
    let (to, from) = (repository(&server, "app"), repository(&server, "base"));
    let digest = Digest::of(b"abc");
    let results = tokio::join!(
        registry.mount_blob(&to, &digest, &from),
        registry.mount_blob(&to, &digest, &from),
        registry.check_push(&to)
    );
    assert_eq!((results.0.unwrap(), results.1.unwrap()), (false, false));
    results.2.unwrap();
    assert_eq!(server.open_uploads(), 0);
}

#[tokio::test]
async fn a_manifest_is_pushed_byte_for_byte_and_only_after_its_blobs() {
    let server = TestRegistry::start().await;
    let image = small_image();
    let to = reference(&server, "app:1");
    let registry = registry();
    let push = || registry.push_manifest(&to, media_type::OCI_MANIFEST, image.manifest.raw());
    let error = push().await.unwrap_err();
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    for (descriptor, blob) in image.blobs() {
        let source: Bytes = blob.into();
        registry.push_blob(&to.repository, &descriptor, &source as &dyn BlobSource).await.unwrap();
    }
    assert_eq!(push().await.unwrap(), *image.manifest.digest());
    let (kind, raw) = server.manifest("app", "1").unwrap();
    assert_eq!((kind.as_str(), &*raw), (media_type::OCI_MANIFEST, image.manifest.raw()));
}

#[tokio::test]
async fn an_immutable_tag_is_recognised() {
    let server = TestRegistry::builder().immutable_tags().start().await;
    let image = small_image();
    server.put_image("app", "1", &image);
    let to = reference(&server, "app:1");
    let error =
        registry().push_manifest(&to, media_type::OCI_MANIFEST, image.manifest.raw()).await.unwrap_err();
    assert!(error.is_immutable_tag(), "{error}");
}

#[tokio::test]
async fn the_right_to_push_is_checked_without_a_trace() {
    let server = TestRegistry::start().await;
    registry().check_push(&repository(&server, "app")).await.unwrap();
    assert_eq!(server.open_uploads(), 0);
    server.on(Route::UploadStart, [Fault::Status(403)]);
    let error = registry().check_push(&repository(&server, "app")).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
}

#[tokio::test]
async fn an_index_is_put_under_its_tag() {
    let server = TestRegistry::start().await;
    let image = small_image();
    server.put_image("app", "amd64", &image);
    let index = kiln_oci::Index::new(media_type::OCI_INDEX, vec![image.descriptor()]);
    let index = kiln_oci::Document::author(index);
    registry()
        .push_manifest(&reference(&server, "app:all"), media_type::OCI_INDEX, index.raw())
        .await
        .unwrap();
    assert_eq!(server.tags("app"), ["all", "amd64"]);
}
