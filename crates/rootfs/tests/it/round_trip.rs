use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use kiln_rootfs::{Root, Whiteouts};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};

use crate::{extract_layer, layer_of, try_extract};

fn set_time(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with one of everything.
fn everything(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("a/b/c")).unwrap();
    fs::write(path("a/plain"), "text\n").unwrap();
    fs::write(path("a/empty"), "").unwrap();
    fs::hard_link(path("a/plain"), path("a/b/linked")).unwrap();
    symlink("../plain", path("a/b/up")).unwrap();
    symlink("/nowhere/at/all".repeat(20), path("long link")).unwrap();
    fs::write(path("setuid"), "x").unwrap();
    rustix::fs::chown(
        path("setuid"),
        Some(rustix::fs::Uid::from_raw(4_000_000_000)),
        Some(rustix::fs::Gid::from_raw(7)),
    )
    .unwrap();
    fs::set_permissions(path("setuid"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::set_permissions(path("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::setxattr(path("a/empty"), "security.capability", capability, XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(path("a/plain"), "user.note", b"a\nb\0c", XattrFlags::empty()).unwrap();
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, path("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8")), "n").unwrap();
    let deep = path(&"d".repeat(200)).join("e".repeat(200)).join("f".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("x".repeat(255)), "deep").unwrap();
    fs::write(path("big"), vec![7; 3_000_000]).unwrap();
    set_time(&path("big"), -86_400, 250_000_000);
    set_time(&path("a/plain"), 1_700_000_000, 123_456_789);
    set_time(&path("long link"), 5, 0);
    set_time(&path("a/b"), 1_600_000_000, 1);
    for directory in ["a", "a/b/c"] {
        set_time(&path(directory), 1_500_000_000, 0);
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
    set_time(root, 1_400_000_000, 0);
}

#[test]
fn everything_comes_back_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    everything(from.path());
    let (layer, blob) = layer_of(from.path());
    assert_eq!(extract_layer(layer, to.path()), blob.diff_id);
    let big = fs::metadata(to.path().join("big")).unwrap();
    assert_eq!((big.mtime(), big.mtime_nsec()), (-86_400, 250_000_000));
    let linked = fs::metadata(to.path().join("a/b/linked")).unwrap();
    assert_eq!(linked.ino(), fs::metadata(to.path().join("a/plain")).unwrap().ino());
    assert_eq!(fs::metadata(to.path().join("setuid")).unwrap().mode() & 0o7777, 0o6711);
    let (_, again) = layer_of(to.path());
    assert_eq!(again.diff_id, blob.diff_id);
}

#[test]
fn gnu_tar_reads_what_we_write_and_we_read_what_it_writes() {
    let (from, to, back) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    everything(from.path());
    let (layer, blob) = layer_of(from.path());
    let file = back.path().join("layer.tar.gz");
    fs::write(&file, layer).unwrap();
    let tar = |arguments: &[&str]| {
        let status = Command::new("tar").args(arguments).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let (to_text, file_text) = (to.path().to_str().unwrap(), file.to_str().unwrap());
    tar(&["-xpzf", file_text, "-C", to_text, "--xattrs", "--xattrs-include=*", "--numeric-owner"]);
    assert_eq!(layer_of(to.path()).1.diff_id, blob.diff_id);
    for format in ["pax", "gnu"] {
        let written = back.path().join(format);
        let target = tempfile::tempdir().unwrap();
        let options = ["--sort=name", "--xattrs", "--xattrs-include=*", "--numeric-owner"];
        let mut arguments = vec!["-cf", written.to_str().unwrap(), "-C", from.path().to_str().unwrap()];
        let form = format!("--format={format}");
        if format == "pax" {
            arguments.extend(options);
        } else {
            arguments.extend(["--sort=name", "--numeric-owner"]);
        }
        arguments.extend([form.as_str(), "."]);
        tar(&arguments);
        try_extract(fs::File::open(written).unwrap(), target.path(), Whiteouts::Apply).unwrap();
        if format == "pax" {
            assert_eq!(layer_of(target.path()).1.diff_id, blob.diff_id);
        }
        assert_eq!(fs::read(target.path().join("big")).unwrap(), vec![7; 3_000_000]);
        let deep = target.path().join("d".repeat(200)).join("e".repeat(200)).join("f".repeat(200));
        assert_eq!(fs::read_to_string(deep.join("x".repeat(255))).unwrap(), "deep");
    }
}

#[test]
fn sparse_files_of_every_kind_are_read() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = fs::File::create(from.path().join("holes")).unwrap();
    for piece in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", piece * (1 << 20)).unwrap();
    }
    file.set_len(50 << 20).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let archive = to.path().join("a.tar");
        let status = Command::new("tar")
            .args(["-S", "-cf"])
            .arg(&archive)
            .args(format)
            .arg("-C")
            .arg(from.path())
            .arg(".")
            .status();
        assert!(status.unwrap().success());
        assert!(fs::metadata(&archive).unwrap().len() < 2 << 20);
        let target = tempfile::tempdir().unwrap();
        try_extract(fs::File::open(&archive).unwrap(), target.path(), Whiteouts::Apply).unwrap();
        let wanted = fs::read(from.path().join("holes")).unwrap();
        assert!(fs::read(target.path().join("holes")).unwrap() == wanted, "{format:?}");
        assert!(fs::metadata(target.path().join("holes")).unwrap().blocks() < 4096, "{format:?}");
    }
}

#[test]
fn whiteouts_remove_or_are_kept_for_overlayfs() {
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir_all(upper.path().join("dir")).unwrap();
    fs::write(upper.path().join("dir/.wh.gone"), "").unwrap();
    fs::create_dir_all(upper.path().join("opaque")).unwrap();
    fs::write(upper.path().join("opaque/.wh..wh..opq"), "").unwrap();
    fs::write(upper.path().join("opaque/new"), "").unwrap();
    let (layer, _) = layer_of(upper.path());
    let tree = tempfile::tempdir().unwrap();
    for name in ["dir/gone", "dir/stays", "opaque/old/deep"] {
        fs::create_dir_all(tree.path().join(name).parent().unwrap()).unwrap();
        fs::write(tree.path().join(name), "").unwrap();
    }
    extract_layer(layer.clone(), tree.path());
    assert!(!tree.path().join("dir/gone").exists() && tree.path().join("dir/stays").exists());
    assert!(!tree.path().join("opaque/old").exists() && tree.path().join("opaque/new").exists());

    let stacked = tempfile::tempdir().unwrap();
    let reader = kiln_rootfs::decompress(std::io::Cursor::new(layer), kiln_rootfs::Compression::Gzip);
    try_extract(reader, stacked.path(), Whiteouts::ToOverlay).unwrap();
    let root = Root::open(stacked.path()).unwrap();
    assert!(root.stat(&"dir/gone".into()).unwrap().unwrap().is_whiteout());
    let marks = root.xattrs(&"opaque".into()).unwrap();
    assert_eq!(marks, [(b"user.overlay.opaque".to_vec(), b"y".to_vec())]);
}

#[test]
fn a_layer_replaces_files_by_directories_and_links_and_back() {
    let (old, new, tree) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(old.path().join("file to dir"), "").unwrap();
    fs::create_dir_all(old.path().join("dir to link/x")).unwrap();
    symlink("dir to link", old.path().join("link to dir")).unwrap();
    fs::create_dir_all(new.path().join("file to dir")).unwrap();
    fs::write(new.path().join("file to dir/f"), "").unwrap();
    symlink("file to dir", new.path().join("dir to link")).unwrap();
    fs::create_dir_all(new.path().join("link to dir")).unwrap();
    fs::write(new.path().join("link to dir/g"), "").unwrap();
    for layer in [layer_of(old.path()).0, layer_of(new.path()).0] {
        extract_layer(layer, tree.path());
    }
    assert!(tree.path().join("file to dir/f").exists());
    assert!(fs::symlink_metadata(tree.path().join("dir to link")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(tree.path().join("link to dir")).unwrap().is_dir());
    assert!(!tree.path().join("file to dir/g").exists());
}
