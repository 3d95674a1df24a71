//! Plain files from the web.

use kiln_testkit::{Fault, Route, StandIn, TestRegistry};

use super::{bytes, observed, options, registry};

#[tokio::test]
async fn a_file_that_breaks_off_or_stalls_is_fetched_again_from_its_beginning() {
    let server = TestRegistry::start().await;
    let content = bytes(100_000);
    let digest = server.put_blob("files", content.clone()).digest;
    let url = format!("{}/v2/files/blobs/{digest}", server.url());
    for fault in [Fault::CutAfter(5000), Fault::Stall(5000), Fault::Status(503), Fault::Reset] {
        server.on(Route::Blob, [fault.clone()]);
        let mut got = Vec::new();
        registry().fetch_url(&url, &mut got).await.unwrap_or_else(|why| panic!("{fault:?}: {why}"));
        assert!(got == content, "{fault:?}: {} bytes", got.len());
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_asked_for_once() {
    let server = TestRegistry::start().await;
    let url = format!("{}/v2/files/blobs/sha256:{}", server.url(), "0".repeat(64));
    let why = registry().fetch_url(&url, &mut Vec::new()).await.unwrap_err();
    assert!(why.contains("404"), "{why}");
    assert_eq!(server.count(Route::Blob), 1);
}

#[tokio::test]
async fn a_signature_in_an_address_is_in_no_message() {
    let server = TestRegistry::start().await;
    let digest = server.put_blob("files", bytes(1000)).digest;
    let url = format!("{}/v2/files/blobs/{digest}?signature=hunter2", server.url());
    let nowhere = "http://127.0.0.1:9/file?signature=hunter2".to_owned();
    for fault in [Fault::Reset, Fault::CutAfter(10), Fault::Status(500), Fault::RedirectTo(nowhere)] {
        server.on(Route::Blob, vec![fault.clone(); 4]);
        let (registry, events) = observed(options());
        let why = registry.fetch_url(&url, &mut Vec::new()).await.unwrap_err();
        let events = format!("{:?}", events.lock().unwrap());
        assert!(events.contains("Retrying"), "{fault:?}: {events}");
        assert!(!why.contains("hunter2") && !events.contains("hunter2"), "{fault:?}: {why} {events}");
    }
}

#[tokio::test]
async fn a_text_is_put_and_a_refusal_told_without_the_address() {
    let server = StandIn::start().await;
    server.answer("PUT", "/ok", 200, "");
    server.answer("PUT", "/no", 403, "");
    registry().put_url(&format!("{}/ok", server.url()), "digest".to_owned()).await.unwrap();
    assert_eq!(server.asked()[0].body, "digest");
    let url = format!("{}/no?signature=hunter2", server.url());
    let why = registry().put_url(&url, "digest".to_owned()).await.unwrap_err();
    assert!(why.contains("403") && !why.contains("hunter2"), "{why}");
}
