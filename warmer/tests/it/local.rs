//! Images that lie on disk.

use std::io::BufRead;

use kiln_cache::ImageName;
use kiln_oci::{Descriptor, Digest};
use kiln_store::{ArchiveWriter, Blobs, OciLayoutWriter, ReadOnly, Store};
use kiln_warmer::{Platforms, State};

use crate::remote::{Remote, TestImage, amd64, arm64, image};
use crate::warming::{base, holds, request, run};

struct Bytes<'a>(&'a TestImage);

impl Blobs for Bytes<'_> {
    fn open(&self, descriptor: &Descriptor) -> std::io::Result<Box<dyn BufRead + Send>> {
        let layer = self.0.layers.iter().find(|layer| Digest::of(layer) == descriptor.digest);
        Ok(Box::new(std::io::Cursor::new(layer.unwrap().clone())))
    }
}

#[test]
fn a_layout_is_copied_under_its_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, volume) = (dir.path().join("layout"), dir.path().join("volume"));
    let (amd, arm) = (base(), image(&arm64(), &[("x", b"y")]));
    for image in [&amd, &arm] {
        let names = ["kiln.example/base:1".to_owned()];
        OciLayoutWriter::create(&layout)
            .unwrap()
            .add(&image.manifest, &image.config, &names, &Bytes(image))
            .unwrap();
    }
    let remote = Remote::start();
    let mut request = request(&volume, &[]);
    request.images = vec![format!("oci-layout://{}", layout.display()).parse().unwrap()];
    request.platforms = Platforms::All;
    let (report, _) = run(request.clone());
    assert!(report.is_success());
    assert_eq!(report.images.len(), 2);
    assert!(holds(&volume, &amd) && holds(&volume, &arm));
    let store = Store::<ReadOnly>::open(&volume).unwrap();
    let entry = store.resolve(&"kiln.example/base:1".parse().unwrap(), &amd64()).unwrap().unwrap();
    assert_eq!(entry.descriptor.digest, *amd.manifest.digest());
    assert_eq!(run(request).0.images[0].state, State::Fresh);
    assert!(remote.requests().is_empty());
}

#[test]
fn an_archive_without_a_name_is_found_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, volume) = (dir.path().join("image.tar"), dir.path().join("volume"));
    let image = base();
    ArchiveWriter::write_file(&archive, &image.manifest, &image.config, &[], &Bytes(&image)).unwrap();
    let mut request = request(&volume, &[]);
    request.images = vec![ImageName::Archive { path: archive, name: None }];
    assert!(run(request).0.is_success());
    assert!(holds(&volume, &image));
    let store = Store::<ReadOnly>::open(&volume).unwrap();
    let name = format!("any.example/name@{}", image.manifest.digest());
    assert!(store.resolve(&name.parse().unwrap(), &amd64()).unwrap().is_some());
}

#[test]
fn a_layout_that_is_none_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (remote, image) = (Remote::start(), base());
    remote.put("12", &image);
    let mut request = request(&dir.path().join("volume"), &[remote.reference("debian:12")]);
    request.images.insert(0, format!("oci-layout://{}", dir.path().display()).parse().unwrap());
    let (report, _) = run(request);
    assert_eq!((report.images.len(), report.failed.len()), (1, 1));
    assert!(report.failed[0].error.to_string().contains("no index.json"), "{}", report.failed[0].error);
}
