//! Several writers of one volume, and what they publish there.

use std::io::Write;
use std::time::Duration;

use kiln_oci::{Digest, Platform};
use kiln_store::{Entry, ReadOnly, Resume, Store, annotation};

use crate::images::{amd64, arm, day, image, names, reference, volume};
use crate::undisturbed;

#[test]
fn a_second_writer_of_one_digest_waits_and_finds_it_done() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = Digest::of(b"downloaded once");
    let Resume::Partial(mut writer) = store.resume(&digest).unwrap() else { panic!("nothing is there") };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let store = volume(dir.path());
            matches!(store.resume(&digest).unwrap(), Resume::Present(_))
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        writer.write_all(b"downloaded once").unwrap();
        writer.commit().unwrap();
        assert!(second.join().unwrap());
    });
}

#[test]
fn many_that_publish_at_once_lose_nothing() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    volume(dir.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = dir.path();
            scope.spawn(move || {
                let store = volume(path);
                for number in 0..10 {
                    let layer = format!("{thread} {number}");
                    image(&amd64(), &[layer.as_bytes()]).put(
                        &store,
                        &format!("r.example/i{thread}:{number}"),
                        day(1),
                    );
                }
            });
        }
    });
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    assert_eq!(store.index().unwrap().manifests.len(), 40);
    assert!(names(dir.path().join("kiln/tmp")).is_empty());
    for thread in 0..4 {
        assert!(store.resolve(&reference(&format!("r.example/i{thread}:7")), &amd64()).unwrap().is_some());
    }
}

#[test]
fn a_name_means_what_was_published_last_for_the_platform() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let (old, new, other) =
        (image(&amd64(), &[b"old"]), image(&amd64(), &[b"new"]), image(&arm("v6"), &[b"arm"]));
    old.put(&store, "debian", day(1));
    other.put(&store, "debian", day(1));
    new.put(&store, "docker.io/library/debian:latest", day(2));
    let entry = store.resolve(&reference("debian"), &amd64()).unwrap().unwrap();
    assert_eq!((&entry.descriptor.digest, entry.resolved_at), (new.manifest.digest(), day(2)));
    let entry = store.resolve(&reference("debian"), &arm("v7")).unwrap().unwrap();
    assert_eq!(&entry.descriptor.digest, other.manifest.digest(), "v7 runs what was built for v6");
    assert!(store.resolve(&reference("debian"), &Platform::new("linux", "s390x", None)).unwrap().is_none());
    assert!(store.resolve(&reference("debian:12"), &amd64()).unwrap().is_none());
    assert_eq!(store.index().unwrap().manifests.len(), 2);
}

#[test]
fn a_digest_is_found_under_any_name_also_by_its_index() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let one = image(&amd64(), &[b"one"]);
    one.put(&store, "debian:12", day(1));
    let index = Digest::of(b"the index");
    let entry = Entry { descriptor: one.descriptor(), index: Some(index.clone()), resolved_at: day(3) };
    store.publish_entry(&reference("debian:12"), &amd64(), entry).unwrap();
    for digest in [one.manifest.digest(), &index] {
        let wanted = reference(&format!("mirror.example/debian@{digest}"));
        let entry = store.resolve(&wanted, &amd64()).unwrap().unwrap();
        assert_eq!(&entry.descriptor.digest, one.manifest.digest());
        assert_eq!(entry.root(), &index);
    }
}

#[test]
fn other_tools_find_the_names_in_the_index() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    image(&amd64(), &[b"one"]).put(&store, "debian:12", day(1));
    let text = std::fs::read_to_string(dir.path().join("index.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let entry = &json["manifests"][0];
    assert_eq!(entry["annotations"][annotation::REF_NAME], "docker.io/library/debian:12");
    assert_eq!(entry["annotations"][annotation::IMAGE_NAME], "docker.io/library/debian:12");
    assert_eq!(entry["platform"]["architecture"], "amd64");
    assert_eq!(std::fs::read(dir.path().join("oci-layout")).unwrap(), br#"{"imageLayoutVersion":"1.0.0"}"#);
}

#[test]
fn entries_of_others_are_kept_as_they_are() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let foreign = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/x","digest":"{}","size":3,"x":[1]}}],"y":2}}"#,
        Digest::of(b"foreign")
    );
    std::fs::write(dir.path().join("index.json"), foreign).unwrap();
    image(&amd64(), &[b"one"]).put(&store, "debian:12", day(1));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("index.json")).unwrap()).unwrap();
    assert_eq!(json["manifests"][0]["x"][0], 1);
    assert_eq!(json["y"], 2);
    assert_eq!(json["manifests"].as_array().unwrap().len(), 2);
}

#[test]
fn an_unpacked_layer_appears_whole_or_not_at_all() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let diff_id = kiln_oci::DiffId([7; 32]);
    let guard = store.unpack(&diff_id).unwrap().unwrap();
    std::fs::write(guard.path().join("file"), "content").unwrap();
    assert!(store.unpacked(&diff_id).unwrap().is_none());
    drop(guard);
    assert!(store.unpacked(&diff_id).unwrap().is_none());
    assert!(names(dir.path().join("kiln/tmp")).is_empty());

    let guard = store.unpack(&diff_id).unwrap().unwrap();
    std::fs::write(guard.path().join("file"), "content").unwrap();
    let path = guard.commit().unwrap();
    assert_eq!(store.unpacked(&diff_id).unwrap(), Some(path.clone()));
    assert_eq!(names(path), ["file"]);
    assert!(store.unpack(&diff_id).unwrap().is_none(), "it is there");
    assert!(names(dir.path().join("kiln/tmp")).is_empty());
}

#[test]
fn step_records_are_kept_by_key() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let descriptor = image(&amd64(), &[b"step"]).descriptor();
    assert_eq!(store.step_record("00ff").unwrap(), None);
    store.put_step_record("00ff", &descriptor).unwrap();
    assert_eq!(store.step_record("00ff").unwrap(), Some(descriptor));
    assert_eq!(store.step_keys().unwrap(), ["00ff"]);
    for bad in ["", "../index", "00/11", "."] {
        store.step_record(bad).unwrap_err();
    }
    store.remove_step_record("00ff").unwrap();
    assert_eq!(store.step_record("00ff").unwrap(), None);
}
