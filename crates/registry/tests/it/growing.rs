use bytes::Bytes;
use kiln_oci::{Descriptor, Digest, media_type};
use kiln_registry::{Event, GrowingBlob};
use kiln_testkit::{Fault, Route, TestRegistry};
use tokio::sync::{mpsc, oneshot};

use super::{bytes, observed, options, registry, repository};

fn descriptor(blob: &[u8]) -> Descriptor {
    Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(blob), blob.len() as u64)
}

/// Gives `blob` piece by piece, and says in the end that it is `becomes`.
fn growing(blob: &[u8], becomes: Option<Descriptor>) -> GrowingBlob {
    let (give, pieces) = mpsc::channel(1);
    let (told, became) = oneshot::channel();
    let parts: Vec<Bytes> = blob.chunks(10_000).map(Bytes::copy_from_slice).collect();
    tokio::spawn(async move {
        for part in parts {
            if give.send(part).await.is_err() {
                break;
            }
        }
        drop(give);
        if let Some(becomes) = becomes {
            let _ = told.send(becomes);
        }
    });
    GrowingBlob { pieces, becomes: became }
}

#[tokio::test]
async fn a_blob_is_sent_while_it_grows() {
    let server = TestRegistry::start().await;
    let blob = bytes(300_000);
    let descriptor = descriptor(&blob);
    let to = repository(&server, "app");
    assert!(registry().push_growing(&to, growing(&blob, Some(descriptor.clone()))).await.unwrap());
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), blob);
    assert_eq!(server.count(Route::UploadPatch), 1);
    let patch = server.seen().into_iter().find(|seen| seen.route == Route::UploadPatch).unwrap();
    assert_eq!(patch.header("content-length"), "");
}

#[tokio::test]
async fn what_becomes_nothing_is_forgotten() {
    let server = TestRegistry::start().await;
    let to = repository(&server, "app");
    let blob = bytes(50_000);
    assert!(!registry().push_growing(&to, growing(&blob, None)).await.unwrap());
    assert_eq!(server.count(Route::UploadPut), 0);
    assert_eq!(server.count(Route::UploadCancel), 1);
}

#[tokio::test]
async fn a_blob_of_which_a_part_is_missing_is_forgotten() {
    let server = TestRegistry::start().await;
    let to = repository(&server, "app");
    let blob = bytes(50_000);
    assert!(!registry().push_growing(&to, growing(&blob[..40_000], Some(descriptor(&blob)))).await.unwrap());
    assert_eq!(server.count(Route::UploadPut), 0);
    assert!(server.blob("app", &descriptor(&blob).digest).is_none());
}

#[tokio::test]
async fn a_connection_that_is_cut_is_an_error_and_nothing_is_there() {
    let server = TestRegistry::start().await;
    let to = repository(&server, "app");
    let blob = bytes(500_000);
    server.on(Route::UploadPatch, [Fault::CutAfter(100_000)]);
    let sent = registry().push_growing(&to, growing(&blob, Some(descriptor(&blob)))).await;
    assert!(sent.is_err(), "{sent:?}");
    assert!(server.blob("app", &descriptor(&blob).digest).is_none());
}

#[tokio::test]
async fn news_comes_once_it_is_known_of_what() {
    let server = TestRegistry::start().await;
    let (registry, events) = observed(options());
    let blob = bytes(50_000);
    let (give, pieces) = mpsc::channel(1);
    let (told, became) = oneshot::channel();
    let becomes = descriptor(&blob);
    told.send(becomes.clone()).unwrap();
    let parts: Vec<Bytes> = blob.chunks(10_000).map(Bytes::copy_from_slice).collect();
    tokio::spawn(async move {
        for part in parts {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            give.send(part).await.unwrap();
        }
    });
    let blob = GrowingBlob { pieces, becomes: became };
    assert!(registry.push_growing(&repository(&server, "app"), blob).await.unwrap());
    let last = events.lock().unwrap().last().cloned();
    assert_eq!(last, Some(Event::Sent { digest: becomes.digest, bytes: 50_000, of: 50_000 }));
}
