use std::io::Read;

use kiln_oci::{Descriptor, Digest, Document, Index, Platform, media_type};
use kiln_store::{
    Blobs, Choice, Layout, OciLayoutWriter, StoreError, find_kaniko_image, read_base_layout, read_layout,
};

use crate::images::{TestImage, amd64, arm, day, image, names, volume};

fn write(directory: &std::path::Path, image: &TestImage, names: &[&str]) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    OciLayoutWriter::create(directory).unwrap().add(&image.manifest, &image.config, &names, image).unwrap();
}

#[test]
fn an_image_written_to_a_layout_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let written = image(&amd64(), &[b"base", b"top"]);
    write(dir.path(), &written, &[]);
    let read = read_layout(dir.path(), &Choice::of(amd64())).unwrap();
    assert_eq!(read.manifest.raw(), written.manifest.raw());
    assert_eq!(read.config.raw(), written.config.raw());
    let mut bytes = Vec::new();
    read.layers[1].open().unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"top");
    assert_eq!(names(dir.path()), ["blobs", "index.json", "oci-layout"], "nothing of ours is left beside it");
}

#[test]
fn the_images_of_others_stay_in_a_layout() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, three) =
        (image(&amd64(), &[b"one"]), image(&amd64(), &[b"two"]), image(&arm("v7"), &[b"three"]));
    write(dir.path(), &one, &["first"]);
    write(dir.path(), &two, &["second", "also"]);
    write(dir.path(), &three, &["first"]);
    let layout = Layout::open(dir.path()).unwrap();
    assert_eq!(layout.index().manifests.len(), 4);
    let find = |name: &str, platform: Platform| {
        layout.find(&Choice { name: Some(name.to_owned()), digest: None, platform }).unwrap()
    };
    assert_eq!(find("first", amd64()).manifest.digest(), one.manifest.digest());
    assert_eq!(find("first", arm("v7")).manifest.digest(), three.manifest.digest());
    assert_eq!(find("also", amd64()).manifest.digest(), two.manifest.digest());
    assert_eq!(layout.platforms(Some("first"), None).unwrap(), [amd64(), arm("v7")]);
    // The same name again means the new image.
    write(dir.path(), &two, &["first"]);
    let again =
        read_layout(dir.path(), &Choice { name: Some("first".to_owned()), ..Choice::of(amd64()) }).unwrap();
    assert_eq!(again.manifest.digest(), two.manifest.digest());
}

#[test]
fn a_platform_is_found_through_nested_indexes_that_hold_some_only() {
    let dir = tempfile::tempdir().unwrap();
    let (amd, arm7) = (image(&amd64(), &[b"amd"]), image(&arm("v7"), &[b"arm"]));
    write(dir.path(), &amd, &[]);
    write(dir.path(), &arm7, &[]);
    let mut manifests = Layout::open(dir.path()).unwrap().index().manifests.clone();
    let mut absent = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"absent"), 10);
    absent.platform.clone_from(&manifests[0].platform);
    manifests.insert(0, absent);
    let nested = Document::author(Index::new(media_type::OCI_INDEX, manifests));
    std::fs::write(dir.path().join("blobs/sha256").join(nested.digest().hex()), nested.raw()).unwrap();
    let outer = Index::new(
        media_type::OCI_INDEX,
        vec![Descriptor::new(media_type::OCI_INDEX, nested.digest().clone(), nested.size())],
    );
    std::fs::write(dir.path().join("index.json"), serde_json::to_vec(&outer).unwrap()).unwrap();
    for (platform, wanted) in [(amd64(), &amd), (arm("v7"), &arm7)] {
        let by_index = Choice { name: None, digest: Some(nested.digest().clone()), platform };
        let found = read_layout(dir.path(), &by_index).unwrap();
        assert_eq!(found.manifest.digest(), wanted.manifest.digest());
    }
}

#[test]
fn an_absent_image_names_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &image(&amd64(), &[b"one"]), &["debian:12"]);
    let error = read_layout(dir.path(), &Choice::of(arm("v7"))).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("linux/arm/v7") && text.contains("debian:12 (linux/amd64)"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let error = read_layout(empty.path(), &Choice::of(amd64())).unwrap_err();
    assert!(error.to_string().contains("no index.json"), "{error}");
}

#[test]
fn the_only_image_of_a_base_is_meant_for_every_platform() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (image(&amd64(), &[b"one"]), image(&amd64(), &[b"two"]));
    write(dir.path(), &one, &["first"]);
    assert!(read_base_layout(dir.path(), &Choice::of(arm("v7"))).is_ok());
    write(dir.path(), &other, &["second"]);
    let error = read_base_layout(dir.path(), &Choice::of(arm("v7"))).unwrap_err();
    assert!(matches!(error, StoreError::NoImage { .. }), "{error}");
}

#[test]
fn a_layer_that_was_changed_fails_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let written = image(&amd64(), &[b"base"]);
    write(dir.path(), &written, &[]);
    let path = dir.path().join("blobs/sha256").join(Digest::of(b"base").hex());
    std::fs::write(&path, b"bose").unwrap();
    let read = read_layout(dir.path(), &Choice::of(amd64())).unwrap();
    let error = read.layers[0].open().unwrap().read_to_end(&mut Vec::new()).unwrap_err();
    assert!(matches!(StoreError::in_io(&error), Some(StoreError::Corrupt { .. })), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(read.layers[0].open(), Err(StoreError::NoBlob { .. })));
}

#[test]
fn what_a_source_gives_wrongly_is_in_no_layout() {
    struct Wrong;
    impl Blobs for Wrong {
        fn open(&self, _: &Descriptor) -> std::io::Result<Box<dyn std::io::BufRead + Send>> {
            Ok(Box::new(&b"evil"[..]))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let written = image(&amd64(), &[b"base"]);
    let writer = OciLayoutWriter::create(dir.path()).unwrap();
    let error = writer.add(&written.manifest, &written.config, &[], &Wrong).unwrap_err();
    assert!(matches!(error, StoreError::Unexpected { .. }), "{error}");
    assert!(names(dir.path().join("blobs/sha256")).is_empty());
    assert!(!dir.path().join("index.json").exists());
}

#[test]
fn a_volume_is_a_layout_that_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let written = image(&amd64(), &[b"base"]);
    written.put(&volume(dir.path()), "debian:12", day(1));
    let choice = Choice { name: Some("debian:12".to_owned()), ..Choice::of(amd64()) };
    assert_eq!(read_layout(dir.path(), &choice).unwrap().manifest.digest(), written.manifest.digest());
}

#[test]
fn an_image_that_kaniko_warmed_as_a_layout_is_found_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let written = image(&amd64(), &[b"base"]);
    let digest = written.manifest.digest();
    write(&dir.path().join(digest.to_string()), &written, &[]);
    let found = find_kaniko_image(dir.path(), digest, &amd64()).unwrap().unwrap();
    assert_eq!(found.manifest.raw(), written.manifest.raw());
    assert!(find_kaniko_image(dir.path(), &Digest::of(b"x"), &amd64()).unwrap().is_none());
}
