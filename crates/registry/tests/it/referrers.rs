//! What is said about a manifest is listed by the registry, or else by us.

use bytes::Bytes;
use kiln_oci::{Descriptor, Digest, Document, Manifest, Reference, media_type};
use kiln_registry::Event;
use kiln_testkit::{Fault, Route, TestRegistry};
use serde_json::Value;

use super::{observed, options, reference, registry, repository, small_image};

/// A manifest that says `word` about `subject`.
fn remark(subject: &Descriptor, word: &str) -> (Document<Manifest>, Bytes) {
    let content = Bytes::copy_from_slice(word.as_bytes());
    let layer = Descriptor::new("text/plain", Digest::of(&content), content.len() as u64);
    let mut config = Descriptor::new(media_type::OCI_EMPTY, Digest::of(b"{}"), 2);
    config.other.insert("data".to_owned(), "e30=".into());
    let mut manifest = Manifest::new(media_type::OCI_MANIFEST, config, vec![layer]);
    manifest.artifact_type = Some("application/vnd.example.remark".to_owned());
    manifest.subject = Some(subject.clone());
    manifest.annotations = Some([("by".to_owned(), word.to_owned())].into());
    (Document::author(manifest), content)
}

async fn say(registry: &kiln_registry::Registry, server: &TestRegistry, subject: &Descriptor, word: &str) {
    let (manifest, content) = remark(subject, word);
    server.put_blob("app", content);
    server.put_blob("app", "{}");
    let digest = Some(manifest.digest().clone());
    let name = Reference { repository: repository(server, "app"), tag: None, digest };
    registry.push_manifest(&name, media_type::OCI_MANIFEST, manifest.raw()).await.unwrap();
}

fn subject() -> (Descriptor, String) {
    let digest = small_image().manifest.digest().clone();
    let tag = format!("sha256-{}", digest.hex());
    (Descriptor::new(media_type::OCI_MANIFEST, digest, 1), tag)
}

fn listed(server: &TestRegistry, tag: &str) -> Vec<(String, String, String)> {
    let (kind, raw) = server.manifest("app", tag).unwrap();
    assert_eq!(kind, media_type::OCI_INDEX);
    let index: Value = serde_json::from_slice(&raw).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = index["manifests"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            (text(&entry["artifactType"]), text(&entry["annotations"]["by"]), text(&entry["mediaType"]))
        })
        .collect()
}

#[tokio::test]
async fn a_registry_that_lists_by_itself_gets_no_other_tag() {
    for says_so in [true, false] {
        let server = TestRegistry::builder().referrers(says_so).start().await;
        server.put_image("app", "1", &small_image());
        say(&registry(), &server, &subject().0, "one").await;
        assert_eq!(server.tags("app"), ["1"]);
        let asked = (server.count(Route::Referrers), server.count(Route::Manifest));
        assert_eq!(asked, (usize::from(!says_so), 0));
    }
}

#[tokio::test]
async fn what_is_said_is_listed_once_under_the_tag_of_the_digest() {
    let server = TestRegistry::start().await;
    server.put_image("app", "1", &small_image());
    let (subject, tag) = subject();
    let registry = registry();
    for word in ["one", "two", "one"] {
        say(&registry, &server, &subject, word).await;
    }
    let entry = |by: &str| {
        ("application/vnd.example.remark".to_owned(), by.to_owned(), media_type::OCI_MANIFEST.to_owned())
    };
    assert_eq!(listed(&server, &tag), [entry("one"), entry("two")]);
    // An image that says nothing about another is listed nowhere.
    let image = small_image();
    let name = reference(&server, "app:2");
    registry.push_manifest(&name, image.manifest.value().media_type(), image.manifest.raw()).await.unwrap();
    assert_eq!(server.tags("app"), ["1", "2", &tag]);
}

#[tokio::test]
async fn a_list_that_cannot_be_written_is_told_and_fails_nothing() {
    let server = TestRegistry::start().await;
    server.put_image("app", "1", &small_image());
    let (subject, tag) = subject();
    let (registry, events) = observed(options());
    server.on(Route::ManifestPut, [Fault::Serve, Fault::Status(403)]);
    say(&registry, &server, &subject, "one").await;
    assert!(server.manifest("app", &tag).is_none());
    // What stands there and is no index is somebody else's.
    server.put_manifest("app", &tag, media_type::OCI_MANIFEST, r#"{"schemaVersion":2,"config":{}}"#);
    say(&registry, &server, &subject, "two").await;
    assert_eq!(server.manifest("app", &tag).unwrap().0, media_type::OCI_MANIFEST);
    let events = events.lock().unwrap();
    let told: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            Event::NotListed { why, .. } => Some(why),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 2, "{events:?}");
    assert!(told[0].contains("denied") && told[1].contains("is no index"), "{told:?}");
}
