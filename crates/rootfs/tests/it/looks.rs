//! Skeletons: what a COPY may look at, read out of layers that are never unpacked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use kiln_rootfs::{BaseLayer, Compression, DirectoryView, Interest, View, skeleton};

use crate::layer_of;

fn base(directory: &Path) -> BaseLayer {
    let (bytes, blob) = layer_of(directory);
    let bytes: Arc<[u8]> = bytes.into();
    BaseLayer::Blob {
        diff_id: blob.diff_id,
        open: Arc::new(move || Ok(Box::new(std::io::Cursor::new(Arc::clone(&bytes))))),
        compression: Compression::Gzip,
    }
}

/// An archive as it is. Nobody compares its name.
fn plain(archive: Vec<u8>) -> BaseLayer {
    let bytes: Arc<[u8]> = archive.into();
    BaseLayer::Blob {
        diff_id: kiln_oci::DiffId([0; 32]),
        open: Arc::new(move || Ok(Box::new(std::io::Cursor::new(Arc::clone(&bytes))))),
        compression: Compression::None,
    }
}

fn unpacked(directory: &Path) -> BaseLayer {
    BaseLayer::Unpacked { diff_id: layer_of(directory).1.diff_id, path: directory.to_owned() }
}

fn write(root: &Path, path: &str, content: &str) {
    fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
    fs::write(root.join(path), content).unwrap();
}

/// What of `paths` is there, for layers as blobs and unpacked.
fn seen(layers: &[&Path], interest: &Interest, paths: &[&str]) -> Vec<bool> {
    let mut all = Vec::new();
    for make in [base, unpacked] {
        let layers: Vec<BaseLayer> = layers.iter().map(|layer| make(layer)).collect();
        let into = tempfile::tempdir().unwrap();
        let view = skeleton(&layers, interest, into.path()).unwrap();
        all.push(paths.iter().map(|path| view.stat(&(*path).into()).unwrap().is_some()).collect::<Vec<_>>());
    }
    assert_eq!(all[0], all[1], "a blob and the same unpacked differ");
    all.remove(0)
}

#[test]
fn only_what_the_source_has_too_is_looked_at() {
    let (tree, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for path in ["srv/a/both", "srv/a/old", "srv/b/old", "etc/passwd"] {
        write(tree.path(), path, "x");
    }
    write(source.path(), "app/a/both", "y");
    write(source.path(), "app/new", "y");
    let view: Arc<dyn View> = Arc::new(DirectoryView::open(source.path()).unwrap());
    let mut interest = Interest::default();
    interest.copy(&"srv".into(), &view, &"app".into());
    let paths = ["srv", "srv/a", "srv/a/both", "srv/a/old", "srv/b", "etc/passwd"];
    assert_eq!(seen(&[tree.path()], &interest, &paths), [true, true, true, false, false, false]);
}

#[test]
fn links_on_the_way_are_followed_to_what_they_lead_to() {
    let (tree, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(tree.path(), "real/place/inner/f", "x");
    symlink("/real/place", tree.path().join("link")).unwrap();
    write(tree.path(), "other/g", "x");
    symlink("/other", tree.path().join("real/place/sub")).unwrap();
    write(source.path(), "inner/f", "y");
    write(source.path(), "sub/g", "y");
    let view: Arc<dyn View> = Arc::new(DirectoryView::open(source.path()).unwrap());
    let mut interest = Interest::default();
    interest.copy(&"link".into(), &view, &kiln_rootfs::TreePath::root());
    let paths = ["link", "real/place", "real/place/inner/f", "real/place/sub", "other/g"];
    assert_eq!(seen(&[tree.path()], &interest, &paths), [true; 5]);
}

#[test]
fn upper_layers_remove_and_replace_whoever_is_read_first() {
    let lower = tempfile::tempdir().unwrap();
    for number in 0..2000 {
        write(lower.path(), &format!("big/{number:04}"), &"x".repeat(4000));
    }
    for path in ["gone/f", "dir/f", "stays/f"] {
        write(lower.path(), path, "x");
    }
    let upper = tempfile::tempdir().unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.path().join("gone"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    write(upper.path(), "dir", "now a file");
    let mut interest = Interest::default();
    interest.all(&"".into());
    let paths = ["gone", "gone/f", "dir", "dir/f", "stays/f", "big/1999"];
    assert_eq!(seen(&[lower.path()], &interest, &paths), [true; 6]);
    let layers = [lower.path(), upper.path()];
    // The upper layer is made of a whiteout, so it exists only as a delta on the lower one.
    let below: Arc<dyn View> = Arc::new(DirectoryView::open(lower.path()).unwrap());
    let mut bytes = Vec::new();
    let mut changes = kiln_rootfs::Delta::new(upper.path().to_owned()).changes(below).unwrap();
    let blob =
        kiln_rootfs::write_layer(&mut *changes, &kiln_rootfs::LayerOptions::default(), &mut bytes).unwrap();
    let bytes: Arc<[u8]> = bytes.into();
    let on_top = BaseLayer::Blob {
        diff_id: blob.diff_id,
        open: Arc::new(move || Ok(Box::new(std::io::Cursor::new(Arc::clone(&bytes))))),
        compression: Compression::Gzip,
    };
    for lowest in [base(layers[0]), unpacked(layers[0])] {
        let into = tempfile::tempdir().unwrap();
        let view = skeleton(&[lowest, on_top.clone()], &interest, into.path()).unwrap();
        let there: Vec<bool> =
            paths.iter().map(|path| view.stat(&(*path).into()).unwrap().is_some()).collect();
        assert_eq!(there, [false, false, true, false, true, true]);
    }
}

#[test]
fn a_damaged_layer_is_an_error_and_nobody_waits_for_it() {
    let tree = tempfile::tempdir().unwrap();
    write(tree.path(), "f", "x");
    let mut layers = vec![base(tree.path()); 6];
    let good = base(tree.path());
    layers[2] = BaseLayer::Blob {
        diff_id: *good.diff_id(),
        open: Arc::new(|| Ok(Box::new(std::io::Cursor::new(vec![0x1f, 0x8b, 8, 0, 1, 2])))),
        compression: Compression::Gzip,
    };
    let mut interest = Interest::default();
    interest.path(&"f".into());
    let into = tempfile::tempdir().unwrap();
    assert!(skeleton(&layers, &interest, into.path()).is_err());
}

#[test]
fn a_path_that_no_system_can_open_is_an_error() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    // Deep enough that a call for each of its directories needs more stack than a thread has.
    let path = "d/".repeat(20_000) + "f";
    tar.append_pax_extensions([("path", path.as_bytes())]).unwrap();
    tar.append_data(&mut header, "short", b"x".as_slice()).unwrap();
    let layer = plain(tar.into_inner().unwrap());
    let mut interest = Interest::default();
    interest.all(&"d".into());
    let into = tempfile::tempdir().unwrap();
    let error = skeleton(&[layer], &interest, into.path()).err().unwrap().to_string();
    assert!(error.contains("File name too long"), "{}", &error[error.len() - 200..]);
}

#[test]
fn a_sparse_file_has_its_holes() {
    let tree = tempfile::tempdir().unwrap();
    let passwd = fs::File::create(tree.path().join("passwd")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&passwd, b"app:x:7:7::/:\n", 1 << 20).unwrap();
    let mut tar = std::process::Command::new("tar");
    let tar = tar.args(["--format=gnu", "-cSf", "-", "-C"]).arg(tree.path()).arg("passwd").output().unwrap();
    let mut interest = Interest::default();
    interest.path(&"passwd".into());
    let into = tempfile::tempdir().unwrap();
    let view = skeleton(&[plain(tar.stdout)], &interest, into.path()).unwrap();
    let mut seen = Vec::new();
    std::io::Read::read_to_end(&mut view.open(&"passwd".into()).unwrap(), &mut seen).unwrap();
    assert_eq!(seen, fs::read(tree.path().join("passwd")).unwrap());
}
