//! Every fault at every kind of request: either it is overcome, or there is one clear error, and nothing stands under
//! the tag that isn't whole.

use std::time::Duration;

use bytes::Bytes;
use kiln_oci::media_type;
use kiln_registry::{Registry, RegistryError};
use kiln_testkit::{Fault, Route, TestImage, TestRegistry, image};

use super::{observed, options, reference, repository, small_image};

fn faults() -> Vec<Fault> {
    vec![
        Fault::Status(500),
        Fault::Status(429),
        Fault::Status(502),
        Fault::Answer(503, "<html>busy</html>".into()),
        Fault::RetryAfter(429, 0),
        Fault::RetryAfter(503, 0),
        Fault::CutAfter(0),
        Fault::CutAfter(20),
        Fault::Reset,
        Fault::LoseAnswer,
        Fault::Stall(0),
        Fault::Stall(10),
        Fault::WrongLength(100),
        Fault::WrongBytes,
        Fault::Truncate(10),
        Fault::Endless,
        Fault::Slow(2000),
        Fault::RedirectTo("http://127.0.0.1:9/nowhere".into()),
        Fault::RedirectTo("gopher://x".into()),
        Fault::Status(404),
        Fault::Status(403),
    ]
}

fn patient() -> (Registry, std::sync::Arc<std::sync::Mutex<Vec<kiln_registry::Event>>>) {
    let mut options = options();
    options.retries.stall = Duration::from_millis(100);
    observed(options)
}

async fn push(registry: &Registry, server: &TestRegistry, image: &TestImage) -> Result<(), RegistryError> {
    let to = reference(server, "app:1");
    for (descriptor, blob) in image.blobs() {
        let source = Bytes::from(blob);
        registry.push_blob(&to.repository, &descriptor, &source).await?;
    }
    registry.push_manifest(&to, media_type::OCI_MANIFEST, image.manifest.raw()).await.map(|_| ())
}

#[tokio::test]
async fn no_fault_of_a_pull_gives_wrong_bytes() {
    let image = small_image();
    let layer = image.manifest.value().layers[0].clone();
    for fault in faults() {
        for route in [Route::ManifestHead, Route::Manifest, Route::Blob] {
            let server = TestRegistry::start().await;
            server.put_image("app", "1", &image);
            server.on(route, [fault.clone()]);
            let (registry, _) = patient();
            let result = async {
                let resolved = registry.head(&reference(&server, "app:1")).await?;
                assert_eq!(resolved.descriptor.digest, *image.manifest.digest(), "{route:?} {fault:?}");
                let manifest = registry.manifest(&reference(&server, "app:1")).await?;
                assert_eq!(&*manifest.raw, image.manifest.raw(), "{route:?} {fault:?}");
                registry.pull_bytes(&repository(&server, "app"), &layer, 1 << 20).await
            };
            match result.await {
                Ok(found) => assert_eq!(found, image.layers[0].gzip, "{route:?} {fault:?}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        text.contains(&server.host()) && text.contains("app"),
                        "{route:?} {fault:?}: {text}"
                    );
                    let hopeless = matches!(
                        fault,
                        Fault::Status(404 | 403) | Fault::RedirectTo(_) | Fault::WrongBytes | Fault::Endless
                    );
                    assert!(hopeless, "{route:?} {fault:?} should have been overcome: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn no_fault_of_a_push_leaves_half_an_image_under_the_tag() {
    let routes = [Route::BlobHead, Route::UploadStart, Route::UploadPut, Route::ManifestPut];
    let image = small_image();
    for fault in faults() {
        for route in routes {
            let server = TestRegistry::start().await;
            server.on(route, [fault.clone()]);
            let (registry, _) = patient();
            match push(&registry, &server, &image).await {
                Ok(()) => {
                    assert!(server.manifest("app", "1").is_some(), "{route:?} {fault:?}");
                    for (descriptor, blob) in image.blobs() {
                        assert_eq!(
                            server.blob("app", &descriptor.digest).unwrap(),
                            blob,
                            "{route:?} {fault:?}"
                        );
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(&server.host()), "{route:?} {fault:?}: {text}");
                    assert!(server.manifest("app", "1").is_none(), "{route:?} {fault:?}: {text}");
                    let hopeless = matches!(fault, Fault::Status(404 | 403) | Fault::RedirectTo(_));
                    assert!(hopeless, "{route:?} {fault:?} should have been overcome: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_isn_t_there_is_waited_for_and_then_named() {
    let server = TestRegistry::start().await;
    let host = server.host();
    drop(server);
    let (registry, events) = patient();
    let error = registry.head(&format!("{host}/app:1").parse().unwrap()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(error.to_string().contains(&host), "{error}");
    let retries =
        events.lock().unwrap().iter().filter(|e| matches!(e, kiln_registry::Event::Retrying { .. })).count();
    assert_eq!(retries, 3);
}

#[tokio::test]
async fn many_blobs_at_once_survive_a_registry_in_trouble() {
    let server = TestRegistry::start().await;
    let layers = (0..8)
        .map(|n| {
            let text = format!("/f{n} file 0644 0:0 pattern:{}", 50_000 + n);
            kiln_testkit::LayerBuilder::from_text(&text).build()
        })
        .collect();
    let image = image(layers, &serde_json::json!({}));
    server.on(Route::UploadPut, [Fault::CutAfter(1000), Fault::Status(500), Fault::Serve, Fault::Reset]);
    server.on(Route::UploadStart, [Fault::Serve, Fault::RetryAfter(429, 0), Fault::Reset]);
    let (registry, _) = patient();
    let repository = repository(&server, "app");
    let mut tasks = tokio::task::JoinSet::new();
    for (descriptor, blob) in image.blobs() {
        let (registry, repository) = (registry.clone(), repository.clone());
        tasks.spawn(async move { registry.push_blob(&repository, &descriptor, &Bytes::from(blob)).await });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap().unwrap();
    }
    for (descriptor, blob) in image.blobs() {
        assert_eq!(server.blob("app", &descriptor.digest).unwrap(), blob);
    }
}
