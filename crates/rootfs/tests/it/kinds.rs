//! Every kind of file: one in the place of another, with several names, from every dialect of tar, and device nodes where
//! none can be made.

use std::fs;
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kiln_rootfs::{
    Compression, Delta, DirectoryView, ExtractOptions, IgnorePaths, LayerOptions, Root, Whiteouts,
    decompress, extract, write_layer,
};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, makedev, mknodat,
    utimensat,
};

use crate::{extract_layer, layer_of, try_extract};

const KINDS: [&str; 6] = ["file", "directory", "link", "link to a directory", "fifo", "device"];

fn make(kind: &str, at: &Path) {
    let special = |kind, device| mknodat(CWD, at, kind, Mode::from_raw_mode(0o640), device).unwrap();
    match kind {
        "file" => fs::write(at, "content").unwrap(),
        "directory" => {
            fs::create_dir_all(at.join("inside")).unwrap();
            fs::write(at.join("inside/f"), "deep").unwrap();
        }
        "link" => symlink("nowhere", at).unwrap(),
        "link to a directory" => symlink("aside", at).unwrap(),
        "fifo" => special(FileType::Fifo, 0),
        _ => special(FileType::CharacterDevice, makedev(1, 3)),
    }
}

#[test]
fn every_kind_of_file_takes_the_place_of_every_other() {
    for old in KINDS {
        for new in KINDS {
            let (lower, upper, tree) =
                (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::create_dir(lower.path().join("aside")).unwrap();
            fs::write(lower.path().join("aside/untouched"), "").unwrap();
            make(old, &lower.path().join("x"));
            make(new, &upper.path().join("x"));
            for layer in [layer_of(lower.path()).0, layer_of(upper.path()).0] {
                extract_layer(layer, tree.path());
            }
            let wanted = fs::symlink_metadata(upper.path().join("x")).unwrap();
            let found = fs::symlink_metadata(tree.path().join("x")).unwrap();
            assert_eq!(found.file_type(), wanted.file_type(), "{old} -> {new}");
            assert_eq!(found.rdev(), wanted.rdev(), "{old} -> {new}");
            if found.is_symlink() {
                let target = |root: &Path| fs::read_link(root.join("x")).unwrap();
                assert_eq!(target(tree.path()), target(upper.path()), "{old} -> {new}");
            }
            assert_eq!(found.is_dir() && tree.path().join("x/inside/f").exists(), new == "directory");
            let aside: Vec<_> = fs::read_dir(tree.path().join("aside")).unwrap().collect();
            assert_eq!(aside.len(), 1, "{old} -> {new}: what a link led to is not written to");
        }
    }
}

#[test]
fn what_is_no_file_has_several_names_too() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    for kind in ["link", "fifo", "device"] {
        make(kind, &from.path().join("d").join(kind));
        fs::hard_link(from.path().join("d").join(kind), from.path().join(format!("a {kind}"))).unwrap();
    }
    let (layer, blob) = layer_of(from.path());
    extract_layer(layer, to.path());
    for kind in ["link", "fifo", "device"] {
        let inode = |name: String| fs::symlink_metadata(to.path().join(name)).unwrap().ino();
        assert_eq!(inode(format!("d/{kind}")), inode(format!("a {kind}")), "{kind}");
    }
    assert_eq!(layer_of(to.path()).1.diff_id, blob.diff_id);
}

#[test]
fn owners_and_early_times_of_all_kinds_come_back_to_the_nanosecond() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The last owner; the last nanosecond before 1970, and one of the time of the first telephones.
    let last = u32::MAX - 1;
    let times = [(-1, 999_999_999), (-2_900_000_000, 1), (0, 1), (4_294_967_296, 999_999_999)];
    for kind in KINDS {
        for (secs, nanos) in times {
            let path = from.path().join(format!("{kind} {secs}"));
            make(kind, &path);
            let (uid, gid) = (Uid::from_raw(last), Gid::from_raw(last - 1));
            chownat(CWD, &path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let time = Timespec { tv_sec: secs, tv_nsec: nanos };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }
    let (layer, blob) = layer_of(from.path());
    extract_layer(layer, to.path());
    for kind in KINDS {
        for (secs, _) in times {
            let name = format!("{kind} {secs}");
            let of = |root: &Path| {
                let meta = fs::symlink_metadata(root.join(&name)).unwrap();
                (meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec())
            };
            // What the file system itself can't keep is no loss of ours.
            assert_eq!(of(to.path()), of(from.path()), "{name}");
            assert_eq!(of(to.path()).0, last);
        }
    }
    assert_eq!(layer_of(to.path()).1.diff_id, blob.diff_id);
}

#[test]
fn device_nodes_that_can_t_be_made_are_left_out_and_named() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make("device", &from.path().join("null"));
    mknodat(CWD, from.path().join("disk"), FileType::BlockDevice, Mode::RUSR, makedev(8, 0)).unwrap();
    make("fifo", &from.path().join("fifo"));
    make("file", &from.path().join("file"));
    let (layer, _) = layer_of(from.path());
    // What a lower layer has of that name is not in the image either.
    fs::create_dir_all(to.path().join("disk/inside")).unwrap();
    fs::write(to.path().join("null"), "of a layer below").unwrap();
    let extract_into = |to: &Path, whiteouts| {
        let tar = decompress(Cursor::new(layer.clone()), Compression::Gzip);
        let ignore = IgnorePaths::default();
        let mut options =
            ExtractOptions { whiteouts, ignore, can_mknod: false, can_chown: true, record: None };
        extract(tar, &Root::open(to).unwrap(), &mut options).unwrap()
    };
    let done = extract_into(to.path(), Whiteouts::Apply);
    assert_eq!(done.skipped, ["disk".into(), "null".into()]);
    let upper = tempfile::tempdir().unwrap();
    extract_into(upper.path(), Whiteouts::ToOverlay);
    for name in ["disk", "null"] {
        let hidden = fs::symlink_metadata(upper.path().join(name)).unwrap();
        assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0, "{name}");
    }
    assert!(fs::symlink_metadata(to.path().join("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
}

#[test]
fn a_directory_that_hides_what_is_below_says_so_name_by_name() {
    for mark in ["user.overlay.opaque", "trusted.overlay.opaque"] {
        let (below, upper) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(below.path().join("d/old directory")).unwrap();
        fs::write(below.path().join("d/old directory/f"), "").unwrap();
        fs::write(below.path().join("d/old"), "").unwrap();
        fs::write(below.path().join("d/both"), "below").unwrap();
        fs::create_dir(upper.path().join("d")).unwrap();
        fs::write(upper.path().join("d/both"), "above").unwrap();
        rustix::fs::setxattr(upper.path().join("d"), mark, b"y", XattrFlags::empty()).unwrap();
        let view = Arc::new(DirectoryView::open(below.path()).unwrap());
        let mut changes = Delta::new(upper.path().to_owned()).changes(view).unwrap();
        let mut layer = Vec::new();
        write_layer(&mut *changes, &LayerOptions::default(), &mut layer).unwrap();
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(layer.as_slice()), &mut tar)
            .unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        names.sort();
        assert_eq!(names, ["d/", "d/.wh.old", "d/.wh.old directory", "d/both"], "{mark}");
        extract_layer(layer, below.path());
        let left: Vec<_> =
            fs::read_dir(below.path().join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["both"]);
        assert_eq!(fs::read_to_string(below.path().join("d/both")).unwrap(), "above");
    }
}

#[test]
fn every_dialect_of_tar_gives_the_same_tree() {
    let from = tempfile::tempdir().unwrap();
    let at = |name: &str| from.path().join(name);
    // Longer than a header's name, short enough for the prefix of ustar; and what v7 can't hold is left out of it.
    let long = format!("{}/{}", "p".repeat(90), "n".repeat(90));
    for (folder, names) in [("any", vec!["plain"]), ("long", vec!["plain", long.as_str()])] {
        fs::create_dir(at(folder)).unwrap();
        for name in names {
            let path = at(folder).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
        symlink("plain", at(folder).join("link")).unwrap();
        fs::hard_link(at(folder).join("plain"), at(folder).join("second")).unwrap();
        fs::write(at(folder).join(std::ffi::OsStr::from_bytes(b"not \xff utf-8")), "x").unwrap();
    }
    make("fifo", &at("long/fifo"));
    make("device", &at("long/device"));
    let whole = Timespec { tv_sec: 1_500_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: whole, last_modification: whole };
    let output = Command::new("find").arg(from.path()).arg("-print0").output().unwrap();
    for path in output.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let path = std::ffi::OsStr::from_bytes(path);
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    for (folder, formats) in [
        ("any", vec!["v7", "oldgnu", "ustar", "gnu", "pax"]),
        ("long", vec!["oldgnu", "ustar", "gnu", "pax"]),
    ] {
        let wanted = layer_of(&at(folder)).1.diff_id;
        for format in formats {
            let dir = tempfile::tempdir().unwrap();
            let archive = dir.path().join("a.tar");
            let mut tar = Command::new("tar");
            tar.arg(format!("--format={format}"))
                .args(["--sort=name", "--numeric-owner", "-cf"])
                .arg(&archive);
            assert!(tar.arg("-C").arg(at(folder)).arg(".").status().unwrap().success(), "{format}");
            let tree = tempfile::tempdir().unwrap();
            try_extract(fs::File::open(&archive).unwrap(), tree.path(), Whiteouts::Apply).unwrap();
            assert_eq!(layer_of(tree.path()).1.diff_id, wanted, "{format}");
        }
    }
}
