//! A warmer killed at any instant, while others warm the same volume.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_oci::{Document, Manifest, Reference};
use kiln_store::{ReadOnly, Store};
use kiln_warmer::State;

use crate::remote::{Remote, TestImage, amd64, image, noise};
use crate::warming::{holds, request, run};

/// Tell the helper what to warm; without them, it is a test like any other, and does nothing.
const VOLUME: &str = "KILN_WARMER_KILL_TEST_VOLUME";
const IMAGES: &str = "KILN_WARMER_KILL_TEST_IMAGES";

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a helper process of this test is told what to do by its environment"
)]
fn helper() {
    if let (Some(volume), Ok(images)) = (std::env::var_os(VOLUME), std::env::var(IMAGES)) {
        let references: Vec<Reference> = images.split(' ').map(|text| text.parse().unwrap()).collect();
        let mut request = request(Path::new(&volume), &references);
        request.unpack = true;
        assert!(run(request).0.is_success());
    }
}

fn start(volume: &Path, references: &[Reference]) -> Child {
    let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
    let _alone = crate::STARTING.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::helper"])
        .env(VOLUME, volume)
        .env(IMAGES, texts.join(" "))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn images() -> Vec<TestImage> {
    (0..4_u8)
        .map(|number| {
            image(
                &amd64(),
                &[("shared", &noise(9, 900_000)), (&format!("own{number}"), &noise(number, 700_000))],
            )
        })
        .collect()
}

/// What a reader must find at any instant.
fn check(volume: &Path) {
    let Ok(store) = Store::<ReadOnly>::open(volume) else { return };
    let report = store.verify(&mut |_| ()).unwrap();
    assert!(report.bad.is_empty(), "{:?}", report.bad);
    for entry in store.index().unwrap().manifests {
        let manifest: Document<Manifest> = store.document(&entry.digest).unwrap().unwrap();
        let value = manifest.value();
        assert!(
            value.layers.iter().chain([&value.config]).all(|blob| store.has(blob)),
            "a name means a whole image"
        );
    }
}

#[test]
fn warmers_killed_at_random_leave_a_volume_that_needs_no_repair() {
    let (remote, images) = (Remote::start(), images());
    for (number, image) in images.iter().enumerate() {
        remote.put(&number.to_string(), image);
    }
    let references: Vec<Reference> =
        (0..images.len()).map(|n| remote.reference(&format!("debian:{n}"))).collect();
    let mut random = 99_u64;
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut others = [start(dir.path(), &references), start(dir.path(), &references)];
        for _ in 0..10 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut victim = start(dir.path(), &references);
            std::thread::sleep(Duration::from_millis(5 + (random >> 33) % 90));
            victim.kill().unwrap();
            victim.wait().unwrap();
            check(dir.path());
        }
        for other in &mut others {
            assert!(other.wait().unwrap().success(), "the others complete");
        }
        let (report, _) = run(request(dir.path(), &references));
        assert!(
            report.images.iter().all(|image| image.state == State::Fresh),
            "there was nothing left to do"
        );
        assert!(images.iter().all(|image| holds(dir.path(), image)));
        check(dir.path());
    }
}
