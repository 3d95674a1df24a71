use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_cache::ImageName;
use kiln_oci::{Digest, Reference};
use kiln_store::{ReadOnly, Store};
use kiln_testkit::Fault;
use kiln_warmer::{Platforms, PruneRequest, State, WarmEvent, WarmReport, WarmRequest, warm};

use crate::remote::{Remote, TestImage, amd64, arm64, client, image, noise};
use crate::undisturbed;

pub(crate) fn base() -> TestImage {
    image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 300_000))])
}

pub(crate) fn request(volume: &Path, references: &[Reference]) -> WarmRequest {
    let images = references.iter().cloned().map(ImageName::Registry).collect();
    let mut request = WarmRequest::new(volume.to_owned(), images, client(), SystemTime::now());
    request.platforms = Platforms::These(vec![amd64()]);
    request
}

/// Blobs come in the manifest's order, the config first.
fn one_by_one(volume: &Path, reference: &Reference) -> WarmRequest {
    WarmRequest { parallel: 1, ..request(volume, std::slice::from_ref(reference)) }
}

pub(crate) fn run(request: WarmRequest) -> (WarmReport, Vec<WarmEvent>) {
    let events = RefCell::new(Vec::new());
    let report = warm(request, &|event| events.borrow_mut().push(event)).unwrap();
    (report, events.into_inner())
}

/// Whether everything of `image` is under its names, and sound.
pub(crate) fn holds(volume: &Path, image: &TestImage) -> bool {
    let store = Store::<ReadOnly>::open(volume).unwrap();
    image.digests().iter().all(|digest| store.blob(digest).unwrap().is_some_and(|blob| blob.verify().is_ok()))
}

#[test]
fn an_image_is_warmed_once_and_then_costs_one_head() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    let reference = remote.reference("debian:12");
    let (report, events) = run(request(dir.path(), std::slice::from_ref(&reference)));
    assert!(report.is_success());
    let size: usize = base.layers.iter().map(Vec::len).sum();
    let all = size as u64 + base.config.size() + base.manifest.size();
    assert_eq!(report.images[0].state, State::Fetched { received: all });
    assert!(holds(dir.path(), &base));
    let digest = base.layer(1).digest;
    assert!(
        events
            .iter()
            .any(|event| matches!(event, WarmEvent::Downloading { digest: d, from: 0, .. } if *d == digest))
    );
    assert!(
        events.iter().any(|event| matches!(event, WarmEvent::Received { digest: d, .. } if *d == digest))
    );

    remote.requests();
    let (report, events) = run(request(dir.path(), &[reference]));
    assert_eq!(report.images[0].state, State::Fresh);
    assert_eq!(remote.requests(), ["HEAD /v2/debian/manifests/12"]);
    assert!(events.iter().any(|event| matches!(event, WarmEvent::Fresh { .. })));
}

#[test]
fn a_warmed_digest_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    let reference = remote.reference(&format!("debian@{}", base.manifest.digest()));
    run(request(dir.path(), std::slice::from_ref(&reference)));
    assert!(holds(dir.path(), &base));
    remote.requests();
    let (report, _) = run(request(dir.path(), &[reference]));
    assert_eq!(report.images[0].state, State::Fresh);
    assert!(remote.requests().is_empty());
}

#[test]
fn force_fetches_again_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    let reference = remote.reference("debian:12");
    run(request(dir.path(), std::slice::from_ref(&reference)));
    remote.requests();
    let mut again = request(dir.path(), &[reference]);
    again.force = true;
    let (report, _) = run(again);
    assert!(matches!(report.images[0].state, State::Fetched { .. }));
    assert_eq!(remote.downloads(&base.layer(1).digest), 1);
}

#[test]
fn a_tag_that_moved_is_warmed_again_with_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, old) = (Remote::start(), base());
    let new = image(&amd64(), &[("etc/hostname", b"base"), ("new", b"news")]);
    remote.put("12", &old);
    let reference = remote.reference("debian:12");
    run(request(dir.path(), std::slice::from_ref(&reference)));
    remote.put("12", &new);
    remote.requests();
    run(request(dir.path(), std::slice::from_ref(&reference)));
    assert_eq!(remote.downloads(&new.layer(0).digest), 0);
    assert_eq!(remote.downloads(&new.layer(1).digest), 1);
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    let entry = store.resolve(&reference, &amd64()).unwrap().unwrap();
    assert_eq!(entry.descriptor.digest, *new.manifest.digest());
}

#[test]
fn platforms_are_chosen_or_all_of_them_taken() {
    let remote = Remote::start();
    let (amd, arm) = (base(), image(&arm64(), &[("etc/hostname", b"base"), ("arm", b"64")]));
    let index = remote.put_index("12", &[&amd, &arm]);
    let reference = remote.reference("debian:12");
    for (platforms, wanted) in [
        (Platforms::These(vec![amd64()]), [true, false]),
        (Platforms::These(vec![arm64(), amd64()]), [true, true]),
        (Platforms::All, [true, true]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut request = request(dir.path(), std::slice::from_ref(&reference));
        request.platforms = platforms;
        let (report, _) = run(request);
        assert!(report.is_success());
        assert_eq!([&amd, &arm].map(|image| holds(dir.path(), image)), wanted);
        let store = Store::<ReadOnly>::open(dir.path()).unwrap();
        assert!(store.blob(&index).unwrap().is_some(), "the tag means the index");
        let entry = store.resolve(&reference, &amd64()).unwrap().unwrap();
        assert_eq!(entry.root(), &index);
    }
}

#[test]
fn every_image_is_tried_and_the_failures_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    remote.put_index("arm", &[&image(&arm64(), &[("x", b"y")])]);
    let references = ["none:1", "debian:12", "debian:arm"].map(|name| remote.reference(name));
    let (report, events) = run(request(dir.path(), &references));
    assert!(!report.is_success());
    assert_eq!(report.images.len(), 1);
    let texts: Vec<String> = report.failed.iter().map(|failure| failure.error.to_string()).collect();
    assert_eq!(texts.len(), 2);
    assert!(texts[0].contains("none:1") && texts[0].contains("not found"), "{}", texts[0]);
    assert!(texts[1].contains("linux/arm64"), "{}", texts[1]);
    assert_eq!(events.iter().filter(|event| matches!(event, WarmEvent::Failed { .. })).count(), 2);
    assert!(holds(dir.path(), &base));
}

#[test]
fn a_broken_connection_is_resumed_in_the_run_and_in_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::start();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 4_000_000))]);
    remote.put("12", &base);
    let layer = base.layer(1);
    // Three tries each run: all of the first run's break, and one of the second's. The registry sends what it can before
    // it breaks off, which may be a little less than it is told.
    remote.on_blobs([Fault::Serve, Fault::Serve]);
    remote.on_blobs(std::iter::repeat_n(Fault::CutAfter(900_000), 4));
    let reference = remote.reference("debian:12");
    let (report, events) = run(one_by_one(dir.path(), &reference));
    assert_eq!(report.failed.len(), 1);
    assert!(events.iter().any(|event| matches!(event, WarmEvent::DownloadFailed { .. })));
    let (report, events) = run(one_by_one(dir.path(), &reference));
    assert!(report.is_success());
    let begun = events.iter().find_map(|event| match event {
        WarmEvent::Downloading { digest, from, .. } if *digest == layer.digest => Some(*from),
        _ => None,
    });
    let begun = begun.unwrap();
    assert!(begun > 900_000, "what three tries brought: {begun}");
    let received = events.iter().find_map(|event| match event {
        WarmEvent::Downloaded { digest, received, .. } if *digest == layer.digest => Some(*received),
        _ => None,
    });
    assert_eq!(received, Some(layer.size - begun));
    assert!(holds(dir.path(), &base));
}

#[test]
fn bytes_of_another_digest_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    remote.on_blobs([Fault::Serve, Fault::Serve, Fault::WrongBytes]);
    let reference = remote.reference("debian:12");
    let (report, _) = run(one_by_one(dir.path(), &reference));
    assert!(report.failed[0].error.to_string().contains("changed on the way"), "{}", report.failed[0].error);
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    assert!(store.blob(&base.layer(1).digest).unwrap().is_none());
    assert!(store.resolve(&reference, &amd64()).unwrap().is_none(), "an image in part has no name");
    assert!(run(one_by_one(dir.path(), &reference)).0.is_success());
    assert!(holds(dir.path(), &base));
}

#[test]
fn two_warmers_of_one_image_download_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    let reference = remote.reference("debian:12");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope
                .spawn(|| assert!(run(request(dir.path(), std::slice::from_ref(&reference))).0.is_success()));
        }
    });
    for layer in &base.layers {
        assert_eq!(remote.downloads(&Digest::of(layer)), 1);
    }
    assert!(holds(dir.path(), &base));
}

#[test]
fn a_registry_out_of_reach_is_a_warning_while_the_tag_is_young() {
    let dir = tempfile::tempdir().unwrap();
    let (mut remote, base) = (Remote::start(), base());
    remote.put("12", &base);
    let reference = remote.reference("debian:12");
    run(request(dir.path(), std::slice::from_ref(&reference)));
    remote.stop();
    let (report, events) = run(request(dir.path(), std::slice::from_ref(&reference)));
    assert_eq!(report.images[0].state, State::Fresh);
    assert!(events.iter().any(|event| matches!(event, WarmEvent::Unreachable { .. })));
    let mut late = request(dir.path(), &[reference]);
    late.now += Duration::from_secs(337 * 3600);
    let (report, _) = run(late);
    assert_eq!(report.failed.len(), 1);
}

#[test]
fn unpacked_layers_lie_beside_their_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    let whiteout = image(&amd64(), &[("etc/hostname", b"base"), ("bin/.wh.tool", b"")]);
    remote.put("12", &base);
    remote.put("13", &whiteout);
    let references = ["debian:12", "debian:13"].map(|name| remote.reference(name));
    let mut request = request(dir.path(), &references);
    request.unpack = true;
    let (report, events) = run(request.clone());
    assert!(report.is_success());
    let unpacked = events.iter().filter(|event| matches!(event, WarmEvent::Unpacked { .. })).count();
    assert_eq!(unpacked, 3, "the layer that both share once: {events:?}");
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    let path = store.unpacked(&base.config.value().rootfs.diff_ids[0]).unwrap().unwrap();
    assert_eq!(std::fs::read(path.join("etc/hostname")).unwrap(), b"base");
    let path = store.unpacked(&whiteout.config.value().rootfs.diff_ids[1]).unwrap().unwrap();
    assert!(std::fs::symlink_metadata(path.join("bin/tool")).is_ok(), "the whiteout, as overlayfs has them");
    let (_, events) = run(request);
    assert!(!events.iter().any(|event| matches!(event, WarmEvent::Unpacked { .. })));
}

#[test]
fn what_is_asked_for_no_more_is_pruned() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let (remote, old) = (Remote::start(), base());
    let new = image(&amd64(), &[("etc/hostname", b"base"), ("new", b"news")]);
    remote.put("12", &old);
    remote.put("13", &new);
    let (one, two) = (remote.reference("debian:12"), remote.reference("debian:13"));
    let mut first = request(dir.path(), std::slice::from_ref(&one));
    first.now -= Duration::from_secs(10 * 86_400);
    run(first);
    for digest in old.digests() {
        // As if nobody had looked at them since.
        let path = Store::<ReadOnly>::open(dir.path()).unwrap().blob_path(&digest);
        let then = SystemTime::now() - Duration::from_secs(10 * 86_400);
        let times = std::fs::FileTimes::new().set_accessed(then).set_modified(then);
        std::fs::File::open(path).unwrap().set_times(times).unwrap();
    }
    let mut second = request(dir.path(), &[two]);
    second.prune = Some(PruneRequest { unused_for: Some(Duration::from_secs(86_400)), max_size: None });
    let (report, _) = run(second);
    assert_eq!(report.pruned.unwrap().images, [one.to_string()]);
    assert!(holds(dir.path(), &new) && !holds(dir.path(), &old));
}
