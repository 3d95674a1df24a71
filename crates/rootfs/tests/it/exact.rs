//! The corners of what a file can be: the longest names, the last owners, ACLs, holes; and what reading leaves alone.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use kiln_rootfs::{Whiteouts, resolve};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags, mkdirat, openat, utimensat};

use crate::{extract_layer, layer_of, try_extract};

fn open(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn a_path_of_4095_bytes_comes_back() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // 15 names of 255 bytes and one of 254, with slashes between them: what a system call takes at most.
    let mut at = open(from.path());
    for _ in 0..15 {
        let name = "n".repeat(255);
        mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
        at = openat(&at, name.as_str(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(&at, "f".repeat(254).as_str(), flags, Mode::from_raw_mode(0o644)).unwrap();
    fs::File::from(file).write_all(b"at the end").unwrap();
    let (layer, blob) = layer_of(from.path());
    extract_layer(layer, to.path());
    assert_eq!(layer_of(to.path()).1.diff_id, blob.diff_id);
}

#[test]
fn the_last_owner_comes_back() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let last = u32::MAX - 1;
    fs::write(from.path().join("f"), "").unwrap();
    std::os::unix::fs::chown(from.path().join("f"), Some(last), Some(last)).unwrap();
    extract_layer(layer_of(from.path()).0, to.path());
    let meta = fs::metadata(to.path().join("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (last, last));
}

#[test]
fn a_file_has_its_own_mode_and_group_whatever_its_directory_hands_down() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let directory = from.path().join("d");
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(0), Some(12)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2775)).unwrap();
    // What the umask would take away, what writing would, and what an owner would; and a group that the directory gives.
    let files = [
        ("plain", 0, 0o666),
        ("none", 0, 0),
        ("root", 0, 0o4755),
        ("other", 1000, 0o6751),
        ("same", 12, 0o644),
    ];
    for (name, owner, mode) in files {
        fs::write(directory.join(name), name).unwrap();
        std::os::unix::fs::chown(directory.join(name), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    extract_layer(layer_of(from.path()).0, to.path());
    for (name, owner, mode) in files {
        let meta = fs::metadata(to.path().join("d").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (owner, owner, mode), "{name}");
    }
}

/// An ACL as the kernel keeps it: version 2, then tag, permissions and id of each entry.
fn acl(user: u32) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, user), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn acls_come_back() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "").unwrap();
    for (path, name) in [("d/f", "system.posix_acl_access"), ("d", "system.posix_acl_default")] {
        rustix::fs::setxattr(from.path().join(path), name, &acl(1000), XattrFlags::empty()).unwrap();
    }
    let (layer, blob) = layer_of(from.path());
    extract_layer(layer, to.path());
    for (path, name) in [("d/f", "system.posix_acl_access"), ("d", "system.posix_acl_default")] {
        let mut value = vec![0; 256];
        let length = rustix::fs::getxattr(to.path().join(path), name, &mut value).unwrap();
        assert_eq!(value[..length], acl(1000), "{name}");
    }
    assert_eq!(layer_of(to.path()).1.diff_id, blob.diff_id);
}

#[test]
fn a_sparse_file_is_sparse_again_although_the_layer_says_nothing_of_it() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut file = fs::File::create(from.path().join("holes")).unwrap();
    file.write_all(b"start").unwrap();
    file.seek(SeekFrom::Start(20 << 20)).unwrap();
    file.write_all(b"middle").unwrap();
    file.set_len((64 << 20) + 7).unwrap();
    extract_layer(layer_of(from.path()).0, to.path());
    let meta = fs::metadata(to.path().join("holes")).unwrap();
    assert_eq!(meta.len(), (64 << 20) + 7);
    assert!(meta.blocks() * 512 < 2 << 20, "{} blocks", meta.blocks());
    let same = fs::read(from.path().join("holes")).unwrap() == fs::read(to.path().join("holes")).unwrap();
    assert!(same);
}

#[test]
fn old_v7_archives_are_read() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "old").unwrap();
    fs::hard_link(from.path().join("d/f"), from.path().join("d/g")).unwrap();
    std::os::unix::fs::symlink("f", from.path().join("d/l")).unwrap();
    let archive = to.path().join("v7.tar");
    let mut tar = Command::new("tar");
    tar.arg("--format=v7").arg("-cf").arg(&archive).arg("-C").arg(from.path()).arg("d");
    assert!(tar.status().unwrap().success());
    let tree = tempfile::tempdir().unwrap();
    try_extract(fs::File::open(&archive).unwrap(), tree.path(), Whiteouts::Apply).unwrap();
    assert_eq!(fs::read_to_string(tree.path().join("d/l")).unwrap(), "old");
    let meta = |name: &str| fs::metadata(tree.path().join(name)).unwrap();
    assert_eq!(meta("d/f").ino(), meta("d/g").ino());
}

#[test]
fn reading_a_file_for_a_layer_leaves_its_access_time() {
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("f");
    fs::write(&path, "content").unwrap();
    // Older than the mtime: with relatime, any read would move it.
    let old = Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
    let new = Timespec { tv_sec: 2_000_000, tv_nsec: 0 };
    utimensat(CWD, &path, &Timestamps { last_access: old, last_modification: new }, AtFlags::empty())
        .unwrap();
    layer_of(from.path());
    assert_eq!(fs::metadata(&path).unwrap().atime(), 1_000_000);
}

#[test]
fn extended_headers_are_written_only_where_ustar_lacks_words() {
    let from = tempfile::tempdir().unwrap();
    let time = Timespec { tv_sec: 1_500_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/plain"), "x").unwrap();
    fs::hard_link(from.path().join("d/plain"), from.path().join("linked")).unwrap();
    fs::write(from.path().join("exact"), "x").unwrap();
    for name in ["d/plain", "exact", "d", "."] {
        utimensat(CWD, from.path().join(name), &times, AtFlags::empty()).unwrap();
    }
    let fraction = Timespec { tv_sec: 1_500_000_000, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: fraction };
    utimensat(CWD, from.path().join("exact"), &times, AtFlags::empty()).unwrap();
    let (layer, _) = layer_of(from.path());
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(layer.as_slice()).read_to_end(&mut tar).unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    let (mut extended, mut links) = (Vec::new(), Vec::new());
    let mut after = false;
    for entry in archive.entries().unwrap().raw(true) {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        if std::mem::replace(&mut after, entry.header().entry_type().is_pax_local_extensions()) {
            extended.push(name);
        }
        if entry.header().entry_type().is_hard_link() {
            links.push(entry.link_name_bytes().unwrap().into_owned());
        }
    }
    assert_eq!(extended, ["exact"]);
    // Newer Docker refuses a target that begins with a slash.
    assert_eq!(links, [b"d/plain".to_vec()]);
}

#[test]
fn a_link_that_a_layer_puts_over_a_directory_leads_on_inside_the_tree() {
    let (old, new, tree) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(old.path().join("lib/deep")).unwrap();
    fs::create_dir_all(new.path().join("usr/lib")).unwrap();
    fs::write(new.path().join("usr/lib/so"), "so").unwrap();
    std::os::unix::fs::symlink("/usr/lib", new.path().join("lib")).unwrap();
    for layer in [layer_of(old.path()).0, layer_of(new.path()).0] {
        extract_layer(layer, tree.path());
    }
    let view = kiln_rootfs::DirectoryView::open(tree.path()).unwrap();
    assert_eq!(resolve(&view, &"lib/so".into()).unwrap(), "usr/lib/so".into());
    assert!(!tree.path().join("usr/lib/deep").exists());
}
