//! `--verify`.

use kiln_store::{ReadOnly, Store};
use kiln_testkit::Fault;
use kiln_warmer::WarmEvent;

use crate::remote::{Remote, amd64, image};
use crate::warming::{base, holds, request, run};

#[test]
fn damage_is_found_and_repaired_from_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    remote.put_index("12", &[&base]);
    let reference = remote.reference("debian:12");
    run(request(dir.path(), &[reference]));
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    for digest in base.digests() {
        std::fs::write(store.blob_path(&digest), b"rotten").unwrap();
    }
    let mut verify = request(dir.path(), &[]);
    verify.verify = true;
    let (report, events) = run(verify.clone());
    let summary = report.verify.as_ref().unwrap();
    assert_eq!((summary.blobs, summary.bad.len()), (5, 4));
    assert!(summary.bad.iter().all(|(_, _, repaired)| *repaired), "{summary:?}");
    assert!(!report.is_success(), "something was wrong");
    assert_eq!(events.iter().filter(|event| matches!(event, WarmEvent::Repaired { .. })).count(), 4);
    assert!(holds(dir.path(), &base));
    assert!(run(verify).0.is_success());
}

#[test]
fn damage_that_nobody_can_repair_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, base) = (Remote::start(), base());
    let other = image(&amd64(), &[("other", b"image")]);
    remote.put("12", &base);
    remote.put("13", &other);
    run(request(dir.path(), &["debian:12", "debian:13"].map(|name| remote.reference(name))));
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    let lost = base.layer(1).digest;
    std::fs::write(store.blob_path(&lost), b"rotten").unwrap();
    remote.on_blobs([Fault::Status(404)]);
    let mut verify = request(dir.path(), &[]);
    verify.verify = true;
    let (report, events) = run(verify);
    let bad = &report.verify.unwrap().bad;
    assert_eq!(bad.len(), 1);
    assert!(!bad[0].2);
    assert!(
        events.iter().any(|event| matches!(event, WarmEvent::Discarded { digest, .. } if *digest == lost))
    );
    assert!(store.blob(&lost).unwrap().is_none());
    assert!(holds(dir.path(), &other));
}
