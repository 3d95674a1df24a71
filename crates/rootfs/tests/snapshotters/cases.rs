//! Rules that the random steps rarely meet, one test each, on every rung.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use kiln_rootfs::{SnapshotMode, SnapshotOptions, Whiteouts};

use crate::bench::{Bench, Layer, Rung, options, rungs, view_of};
use crate::model::{lines_of, set_mtime};

/// A base with a few files of everything, all of them old.
pub(crate) fn small_base() -> (tempfile::TempDir, Layer) {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("etc/conf.d")).unwrap();
    fs::create_dir_all(at("usr/lib/sub")).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    for (path, content) in [("etc/motd", "hello"), ("usr/lib/a.so", "aaaa"), ("usr/lib/sub/b.so", "bbbb")] {
        fs::write(at(path), content).unwrap();
        set_mtime(&at(path), 1000);
    }
    symlink("usr/lib", at("lib")).unwrap();
    for path in ["usr/lib/sub", "usr/lib", "usr", "etc/conf.d", "etc", "tmp", "lib", ""] {
        set_mtime(&at(path), 1000);
    }
    let layer = Layer::of(dir.path());
    (dir, layer)
}

fn on_every_rung(work: impl Fn(&Path), names: &[&str]) {
    let (_dir, base) = small_base();
    let mut digests = Vec::new();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        let layer = bench.run(0, &work);
        assert_eq!(layer.names(), names, "{rung:?}");
        digests.push(layer.blob.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "one change, one layer");
}

#[test]
fn a_temporary_file_leaves_no_trace() {
    let work = |root: &Path| {
        fs::write(root.join("tmp/x"), "x").unwrap();
        fs::remove_file(root.join("tmp/x")).unwrap();
        fs::create_dir(root.join("mount point")).unwrap();
        fs::remove_dir(root.join("mount point")).unwrap();
    };
    on_every_rung(work, &[]);
}

#[test]
fn a_time_set_by_hand_on_a_directory_is_a_change() {
    on_every_rung(|root| set_mtime(&root.join("etc"), 5), &["etc"]);
    on_every_rung(|root| set_mtime(&root.join("etc"), 1 << 40), &["etc"]);
}

#[test]
fn a_change_of_the_root_itself_is_in_the_layer() {
    let chmod = |root: &Path| fs::set_permissions(root, fs::Permissions::from_mode(0o700)).unwrap();
    on_every_rung(chmod, &["."]);
}

#[test]
fn directories_above_a_change_are_in_the_layer_and_others_are_not() {
    on_every_rung(
        |root| fs::write(root.join("usr/lib/sub/new"), "n").unwrap(),
        &["usr", "usr/lib", "usr/lib/sub", "usr/lib/sub/new"],
    );
}

#[test]
fn a_directory_that_became_a_link_needs_no_whiteouts_below() {
    let work = |root: &Path| {
        fs::remove_dir_all(root.join("usr/lib")).unwrap();
        symlink("/etc", root.join("usr/lib")).unwrap();
    };
    on_every_rung(work, &["usr", "usr/lib"]);
}

#[test]
fn a_link_that_became_a_directory_is_replaced() {
    let work = |root: &Path| {
        fs::remove_file(root.join("lib")).unwrap();
        fs::create_dir(root.join("lib")).unwrap();
        fs::write(root.join("lib/x"), "x").unwrap();
    };
    on_every_rung(work, &["lib", "lib/x"]);
}

#[test]
fn a_directory_made_anew_names_what_is_gone() {
    let work = |root: &Path| {
        fs::remove_dir_all(root.join("usr/lib")).unwrap();
        fs::create_dir(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/sub"), "a file now").unwrap();
    };
    on_every_rung(work, &["usr", "usr/lib", "usr/lib/.wh.a.so", "usr/lib/sub"]);
}

#[test]
fn new_names_of_an_old_file_are_a_file_of_their_own_in_the_layer() {
    let work = |root: &Path| {
        fs::hard_link(root.join("etc/motd"), root.join("usr/motd")).unwrap();
        fs::hard_link(root.join("etc/motd"), root.join("usr/motd2")).unwrap();
    };
    on_every_rung(work, &["usr", "usr/motd", "usr/motd2"]);
}

#[test]
fn names_of_an_old_file_that_are_all_changed_are_a_file_each_in_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a"), "linked").unwrap();
    fs::hard_link(at("a"), at("b")).unwrap();
    set_mtime(&at("a"), 1000);
    let base = Layer::of(dir.path());
    let mut digests = Vec::new();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        // What `chmod -R` does; and new links are links.
        let layer = bench.run(0, |root| {
            for name in ["a", "b"] {
                fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            }
            fs::write(root.join("c"), "new").unwrap();
            set_mtime(&root.join("c"), 1000);
            fs::hard_link(root.join("c"), root.join("d")).unwrap();
        });
        assert_eq!(layer.names(), ["a", "b", "c", "d"], "{rung:?}");
        let into = tempfile::tempdir().unwrap();
        layer.extract(into.path(), Whiteouts::Apply);
        let inode = |name: &str| fs::metadata(into.path().join(name)).unwrap().ino();
        assert_ne!(inode("a"), inode("b"), "{rung:?}");
        assert_eq!(inode("c"), inode("d"), "{rung:?}");
        digests.push(layer.blob.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "one change, one layer");
}

#[test]
fn nothing_done_is_an_empty_layer() {
    on_every_rung(|_| {}, &[]);
}

#[test]
fn every_mode_finds_what_it_promises() {
    let (_dir, base) = small_base();
    for (mode, expected) in [
        (
            SnapshotMode::Full,
            vec!["etc", "etc/motd", "usr", "usr/lib", "usr/lib/a.so", "usr/lib/sub", "usr/lib/sub/b.so"],
        ),
        (SnapshotMode::Redo, vec!["usr", "usr/lib", "usr/lib/a.so", "usr/lib/sub", "usr/lib/sub/b.so"]),
        (SnapshotMode::Time, vec!["usr", "usr/lib", "usr/lib/sub", "usr/lib/sub/b.so"]),
    ] {
        let mut bench = Bench::with_mode(Rung::Directory, mode);
        bench.base(0, std::slice::from_ref(&base));
        let layer = bench.run(0, |root| {
            fs::write(root.join("etc/motd"), "HELLO").unwrap();
            set_mtime(&root.join("etc/motd"), 1000);
            fs::set_permissions(root.join("usr/lib/a.so"), fs::Permissions::from_mode(0o755)).unwrap();
            set_mtime(&root.join("usr/lib/sub/b.so"), 2000);
        });
        assert_eq!(layer.names(), expected, "{mode:?}");
    }
}

#[test]
fn ignored_paths_are_neither_extracted_nor_recorded() {
    let (_dir, base) = small_base();
    for rung in rungs() {
        let mut wanted = SnapshotOptions { ..options() };
        wanted.ignore.add("usr/lib/s*".into());
        let mut bench = Bench::with(rung, wanted);
        bench.base(0, std::slice::from_ref(&base));
        let layer = bench.run(0, |root| {
            assert!(!root.join("usr/lib/sub").exists(), "{rung:?}");
            fs::create_dir(root.join("usr/lib/sub")).unwrap();
            fs::write(root.join("usr/lib/sub/x"), "x").unwrap();
        });
        assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}");
    }
}

#[test]
fn special_files_and_odd_names_survive() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let (_dir, base) = small_base();
    let work = |root: &Path| {
        let deep = root.join("d".repeat(255)).join("e".repeat(255));
        fs::create_dir_all(&deep).unwrap();
        for path in [root.join(OsStr::from_bytes(b"\xff\n\\")), deep.join("f".repeat(255))] {
            fs::write(&path, "x").unwrap();
            set_mtime(&path, 7);
        }
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        let file = root.join("sparse");
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let empty = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&file, "security.capability", capability, empty).unwrap();
        set_mtime(&file, 7);
        fs::set_permissions(root.join("etc/motd"), fs::Permissions::from_mode(0o6755)).unwrap();
    };
    let mut digests = Vec::new();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        let layer = bench.run(0, work);
        let stacked = bench.fresh("stacked");
        base.extract(&stacked, Whiteouts::Apply);
        layer.extract(&stacked, Whiteouts::Apply);
        let seen: Vec<String> = lines_of(&*bench.snapshotter.view(0).unwrap());
        let seen: Vec<String> = seen.into_iter().filter(|line| !line.starts_with("/proc")).collect();
        assert_eq!(lines_of(&view_of(&stacked)), seen, "{rung:?}");
        digests.push(layer.blob.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}
