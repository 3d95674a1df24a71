//! Invariant: whoever finds a blob's name finds the whole blob, whenever its writer was killed.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_oci::{DiffId, Digest, Document, ImageConfig, Manifest};
use kiln_store::{ReadOnly, Resume, Store};

use crate::images::{TestImage, amd64, day, image, names, volume};

/// Tells the helper which volume to write; without it, the helper is a test like any other, and does nothing.
const VOLUME: &str = "KILN_STORE_KILL_TEST_VOLUME";

const IMAGES: u32 = 6;

fn numbered(number: u32) -> TestImage {
    let seed = number.wrapping_mul(2_654_435_761);
    let own: Vec<u8> = (0..700_000_u32).map(|i| i.wrapping_mul(seed | 1).to_le_bytes()[2]).collect();
    image(&amd64(), &[b"a layer of all", &own])
}

fn write_images(path: &Path) {
    let store = volume(path);
    for number in (0..IMAGES).cycle() {
        let image = numbered(number);
        {
            let _writing = store.writing().unwrap();
            for bytes in &image.layers {
                if let Resume::Partial(mut writer) = store.resume(&Digest::of(bytes)).unwrap() {
                    let from = usize::try_from(writer.position()).unwrap();
                    for piece in bytes[from..].chunks(10_000) {
                        writer.write_all(piece).unwrap();
                    }
                    writer.commit().unwrap();
                }
            }
            image.put(&store, &format!("r.example/i:{number}"), day(1));
        }
        if let Some(guard) = store.unpack(&DiffId([u8::try_from(number).unwrap(); 32])).unwrap() {
            for file in 0..20 {
                std::fs::write(guard.path().join(file.to_string()), "x").unwrap();
            }
            guard.commit().unwrap();
        }
        // And away with it, so that there is always something to do.
        if number % 3 == 0 {
            std::fs::remove_file(store.blob_path(&Digest::of(&image.layers[1]))).ok();
        }
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a helper process of this test is told what to do by its environment"
)]
fn helper() {
    if let Some(path) = std::env::var_os(VOLUME) {
        write_images(Path::new(&path));
    }
}

fn start(path: &Path) -> Child {
    let _alone = crate::STARTING.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::helper"])
        .env(VOLUME, path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a reader must find at any instant.
fn check(path: &Path) {
    let store = Store::<ReadOnly>::open(path).unwrap();
    let report = store.verify(&mut |_| ()).unwrap();
    assert!(report.bad.is_empty(), "{:?}", report.bad);
    for entry in store.index().unwrap().manifests {
        let manifest: Document<Manifest> = store.document(&entry.digest).unwrap().unwrap();
        store.document::<ImageConfig>(&manifest.value().config.digest).unwrap().unwrap();
    }
    for layer in names(path.join("kiln/unpacked/sha256")) {
        assert_eq!(names(path.join("kiln/unpacked/sha256").join(layer)).len(), 20);
    }
}

#[test]
fn writers_killed_at_any_instant_leave_the_old_state_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    volume(dir.path());
    let mut survivors = [start(dir.path()), start(dir.path())];
    let mut random = 12345_u64;
    for _ in 0..25 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut victim = start(dir.path());
        std::thread::sleep(Duration::from_millis(5 + (random >> 33) % 60));
        victim.kill().unwrap();
        victim.wait().unwrap();
        check(dir.path());
    }
    for survivor in &mut survivors {
        assert!(survivor.try_wait().unwrap().is_none(), "a killed neighbour stops nobody");
        survivor.kill().unwrap();
        survivor.wait().unwrap();
    }
    check(dir.path());

    // The next writer needs no repair: it finds its locks free, and completes.
    let started = Instant::now();
    let store = volume(dir.path());
    for number in 0..IMAGES {
        let image = numbered(number);
        image.put(&store, &format!("r.example/i:{number}"), day(2));
        assert!(image.is_whole_in(&store));
    }
    let left: Vec<String> =
        names(dir.path().join("kiln/tmp")).into_iter().filter(|name| !name.contains(".part")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
}
