use std::time::Duration;

use kiln_oci::DiffId;
use kiln_store::{PruneReport, PruneRules, ReadOnly, ReadWrite, Resume, Store};

use crate::images::{TestImage, amd64, day, image, names, reference, volume};
use crate::undisturbed;

const DAY: Duration = Duration::from_secs(86_400);

fn unused_for(days: u32) -> PruneRules {
    PruneRules { unused_for: Some(DAY * days), max_size: None, now: day(100) }
}

/// Three images, used on days 10, 50 and 90; all share a layer of 1000 bytes and have one of their own of 2000.
fn three(store: &Store<ReadWrite>) -> [TestImage; 3] {
    [(10, 1_u8), (50, 2), (90, 3)].map(|(used, byte)| {
        let image = image(&amd64(), &[&[0; 1000], &[byte; 2000]]);
        image.put(store, &format!("r.example/i:{byte}"), day(used));
        age_all(store, &image, used);
        image
    })
}

/// Sets the times of all blobs of `image`, as if nobody had touched them since.
fn age_all(store: &Store<ReadWrite>, image: &TestImage, used: u64) {
    store.mark_used(image.manifest.digest(), day(used));
    store.mark_used(image.config.digest(), day(used));
    for layer in &image.layers {
        store.mark_used(&kiln_oci::Digest::of(layer), day(used));
    }
}

fn present(store: &Store<ReadWrite>, images: &[TestImage; 3]) -> [bool; 3] {
    let listed = [1, 2, 3].map(|number| {
        store.resolve(&reference(&format!("r.example/i:{number}")), &amd64()).unwrap().is_some()
    });
    assert_eq!(listed, [0, 1, 2].map(|number| images[number].is_whole_in(store)));
    listed
}

#[test]
fn what_was_not_used_for_long_goes_and_shared_layers_stay() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let images = three(&store);
    let report = store.prune(&unused_for(30)).unwrap();
    assert_eq!(report.images, ["r.example/i:1", "r.example/i:2"]);
    assert_eq!(report.removed, 6, "two manifests, configs and layers of their own");
    assert_eq!(present(&store, &images), [false, false, true]);
    assert_eq!(store.blobs().unwrap().len(), 4);
    let again = store.prune(&unused_for(30)).unwrap();
    assert_eq!(again, PruneReport { left: report.left, ..PruneReport::default() });
}

#[test]
fn the_least_recently_used_go_until_the_rest_fits() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let images = three(&store);
    let rules = PruneRules { unused_for: None, max_size: Some(8000), now: day(100) };
    let report = store.prune(&rules).unwrap();
    assert_eq!(report.images, ["r.example/i:1"]);
    assert!(report.left <= 8000, "{}", report.left);
    assert_eq!(present(&store, &images), [false, true, true]);
    let nothing = PruneRules { unused_for: None, max_size: Some(0), now: day(100) };
    assert_eq!(store.prune(&nothing).unwrap().left, 0);
    assert!(store.blobs().unwrap().is_empty());
}

#[test]
fn an_image_that_is_being_read_stays_whole() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let images = three(&store);
    let reader = Store::<ReadOnly>::open(dir.path()).unwrap();
    let manifest = reader.blob(images[0].manifest.digest()).unwrap().unwrap();
    let report = store.prune(&unused_for(30)).unwrap();
    assert_eq!(report.in_use, ["r.example/i:1"]);
    assert_eq!(present(&store, &images), [true, false, true]);
    drop(manifest);
    age_all(&store, &images[0], 10);
    store.prune(&unused_for(30)).unwrap();
    assert_eq!(present(&store, &images), [false, false, true]);
}

#[test]
fn an_unpacked_layer_that_is_being_read_stays() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let images = three(&store);
    let diff_id = images[0].config.value().rootfs.diff_ids[1];
    let guard = store.unpack(&diff_id).unwrap().unwrap();
    std::fs::write(guard.path().join("file"), [0; 500]).unwrap();
    guard.commit().unwrap();
    let orphan = store.unpack(&DiffId([9; 32])).unwrap().unwrap().commit().unwrap();

    let reader = Store::<ReadOnly>::open(dir.path()).unwrap();
    let path = reader.unpacked(&diff_id).unwrap().unwrap();
    store.prune(&unused_for(30)).unwrap();
    assert!(path.join("file").exists());
    assert!(!orphan.exists(), "no image has that layer");
    drop(reader);
    store.prune(&unused_for(30)).unwrap();
    assert!(!path.exists());
    assert!(names(dir.path().join("kiln/tmp")).is_empty());
}

#[test]
fn nothing_is_pruned_while_somebody_writes() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    three(&store);
    let other = volume(dir.path());
    let writing = other.writing().unwrap();
    let report = store.prune(&unused_for(0)).unwrap();
    assert!(report.busy);
    assert_eq!(store.blobs().unwrap().len(), 10);
    drop(writing);
    assert!(!store.prune(&unused_for(0)).unwrap().busy);
}

#[test]
fn an_image_that_lost_its_name_ages_as_one() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let old = image(&amd64(), &[b"old layer"]);
    old.put(&store, "r.example/i:1", day(10));
    image(&amd64(), &[b"new layer"]).put(&store, "r.example/i:1", day(95));
    age_all(&store, &old, 80);
    store.prune(&unused_for(30)).unwrap();
    assert!(old.is_whole_in(&store), "a build that resolved the tag before may be at it");
    age_all(&store, &old, 60);
    let report = store.prune(&unused_for(30)).unwrap();
    assert_eq!((report.images.len(), report.removed), (0, 3));
    assert_eq!(store.blobs().unwrap().len(), 3);
}

#[test]
fn steps_age_like_images() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let images = three(&store);
    store.put_step_record("aa", &images[2].descriptor()).unwrap();
    let step = image(&amd64(), &[b"step"]);
    step.put(&store, "r.example/step:1", day(10));
    store.put_step_record("bb", &step.descriptor()).unwrap();
    let report = store.prune(&unused_for(30)).unwrap();
    assert!(report.images.contains(&"r.example/step:1".to_owned()));
    assert_eq!(store.step_keys().unwrap(), ["aa"]);
}

#[test]
fn forgotten_partial_downloads_go() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = kiln_oci::Digest::of(b"never finished");
    let Resume::Partial(mut writer) = store.resume(&digest).unwrap() else { panic!("nothing is there") };
    std::io::Write::write_all(&mut writer, b"never").unwrap();
    let rules =
        PruneRules { unused_for: Some(DAY), max_size: None, now: std::time::SystemTime::now() + 3 * DAY };
    store.prune(&rules).unwrap();
    assert_eq!(names(dir.path().join("kiln/tmp")).len(), 1, "somebody writes it");
    drop(writer);
    store.prune(&rules).unwrap();
    assert!(names(dir.path().join("kiln/tmp")).is_empty());
}

#[test]
fn what_kaniko_put_there_is_never_touched() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let theirs = dir.path().join(kiln_oci::Digest::of(b"theirs").to_string());
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("index.json"), "{}").unwrap();
    store.prune(&PruneRules { unused_for: Some(Duration::ZERO), max_size: Some(0), now: day(9999) }).unwrap();
    assert!(theirs.join("index.json").exists());
}
