//! Redirects of uploads: they keep the method, and take no login to another host.

use bytes::Bytes;
use kiln_oci::{Descriptor, Digest, media_type};
use kiln_registry::{Credentials, Registry, RegistryOptions};
use kiln_testkit::{Auth, Fault, Route, TestRegistry};

use super::{bytes, observed, options, reference, registry, repository, small_image};

fn described(size: usize) -> (Descriptor, Bytes) {
    let blob = bytes(size);
    let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&blob), size as u64);
    (descriptor, blob.into())
}

/// The same server under another name, which is another host to us.
fn alias(server: &TestRegistry) -> String {
    server.url().replace("127.0.0.1", "localhost")
}

#[tokio::test]
async fn every_step_of_an_upload_follows_a_redirect_that_keeps_its_method() {
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(300_000);
    let (other, digest) = (alias(&server), descriptor.digest.to_string().replace(':', "%3A"));
    server.on(Route::UploadStart, [Fault::RedirectTo(format!("{other}/v2/app/blobs/uploads/"))]);
    let upload = format!("{other}/v2/app/blobs/uploads/1?state=x");
    server.on(Route::UploadPut, [Fault::RedirectTo(format!("{upload}&digest={digest}"))]);
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    let methods = |route| -> Vec<String> {
        server.seen().iter().filter(|seen| seen.route == route).map(|seen| seen.method.clone()).collect()
    };
    assert_eq!(methods(Route::UploadStart), ["POST", "POST"]);
    assert_eq!(methods(Route::UploadPut), ["PUT", "PUT"]);
    // In chunks: the second is wanted elsewhere.
    let (descriptor, source) = described(250_000);
    server.on(
        Route::UploadPatch,
        [Fault::Serve, Fault::RedirectTo(format!("{other}/v2/app/blobs/uploads/2?state=x"))],
    );
    let (registry, _) = observed(RegistryOptions { chunk_size: Some(100_000), ..options() });
    registry.push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), source);
    // And a manifest.
    let image = small_image();
    for (descriptor, blob) in image.blobs() {
        registry.push_blob(&repository(&server, "app"), &descriptor, &Bytes::from(blob)).await.unwrap();
    }
    server.on(Route::ManifestPut, [Fault::RedirectTo(format!("{other}/v2/app/manifests/1"))]);
    let kind = image.manifest.value().media_type();
    registry.push_manifest(&reference(&server, "app:1"), kind, image.manifest.raw()).await.unwrap();
    assert!(server.manifest("app", "1").is_some());
}

#[tokio::test]
async fn an_upload_takes_no_login_to_another_host() {
    let home = TestRegistry::builder().auth(Auth::basic("me", "hunter2")).start().await;
    let away = TestRegistry::start().await;
    let (descriptor, source) = described(1000);
    home.on(Route::UploadStart, [Fault::RedirectTo(format!("{}/v2/app/blobs/uploads/", away.url()))]);
    let credentials = Credentials::fixed(&home.host(), "me", "hunter2");
    let registry = Registry::new(RegistryOptions { credentials, ..options() }).unwrap();
    registry.push_blob(&repository(&home, "app"), &descriptor, &source).await.unwrap();
    assert_eq!(away.blob("app", &descriptor.digest).unwrap(), source);
    let seen = away.seen();
    assert_eq!(seen.len(), 2, "the upload began there and ended there");
    assert!(seen.iter().all(|seen| seen.header("authorization").is_empty()), "{seen:?}");
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_is_overcome_or_ends() {
    let nowhere = || Fault::RedirectTo("http://127.0.0.1:9/nowhere".to_owned());
    let server = TestRegistry::start().await;
    let (descriptor, source) = described(1000);
    server.on(Route::UploadPut, [nowhere()]);
    registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap();
    let (descriptor, source) = described(2000);
    // One that leads to itself.
    server.always(Route::UploadPut, Fault::RedirectTo(format!("{}/v2/app/blobs/uploads/2", server.url())));
    let error = registry().push_blob(&repository(&server, "app"), &descriptor, &source).await.unwrap_err();
    assert!(error.to_string().contains("307"), "{error}");
}
