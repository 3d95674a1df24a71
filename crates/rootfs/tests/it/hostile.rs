//! Archives made to break out.

use std::fs;

use kiln_rootfs::{RootfsError, Whiteouts};

use crate::try_extract;

fn archive(entries: &[(&str, tar::EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, kind, link, data) in entries {
        let mut header = tar::Header::new_gnu();
        let place = header.as_old_mut();
        place.name[..name.len()].copy_from_slice(name.as_bytes());
        place.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        out.append(&header, *data).unwrap();
    }
    out.into_inner().unwrap()
}

fn attempt(entries: &[(&str, tar::EntryType, &str, &[u8])]) -> (tempfile::TempDir, Result<(), RootfsError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::write(dir.path().join("secret"), "untouched").unwrap();
    let result = try_extract(archive(entries).as_slice(), &dir.path().join("root"), Whiteouts::Apply);
    assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was written outside");
    (dir, result.map(|_| ()))
}

use tar::EntryType::{Directory, Link, Regular, Symlink};

#[test]
fn no_name_leads_out() {
    for name in ["../secret", "a/../../secret", ".."] {
        let (_dir, result) = attempt(&[(name, Regular, "", b"x")]);
        assert!(matches!(result, Err(RootfsError::Escape { .. })), "{name}: {result:?}");
    }
    let (dir, result) = attempt(&[("/secret", Regular, "", b"x")]);
    result.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("root/secret")).unwrap(), "x");
}

#[test]
fn no_link_on_the_way_leads_out() {
    for target in ["..", "../..", "/", "../../../../.."] {
        let (dir, _) = attempt(&[
            ("a", Symlink, target, b""),
            ("a/secret", Regular, "", b"x"),
            ("a/b/c", Regular, "", b"x"),
        ]);
        assert!(!dir.path().join("b").exists());
    }
}

#[test]
fn no_hard_link_leads_out() {
    let (_dir, result) = attempt(&[("x", Link, "../secret", b"")]);
    assert!(matches!(result, Err(RootfsError::Escape { .. })), "{result:?}");
    let (dir, _) = attempt(&[
        ("up", Symlink, "..", b""),
        ("x", Link, "up/secret", b""),
        ("x", Regular, "", b"overwritten"),
    ]);
    assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "untouched");
}

#[test]
fn writing_over_a_link_replaces_the_link() {
    let (dir, result) = attempt(&[("f", Symlink, "../secret", b""), ("f", Regular, "", b"mine")]);
    result.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("root/f")).unwrap(), "mine");
    assert!(fs::symlink_metadata(dir.path().join("root/f")).unwrap().is_file());
}

#[test]
fn a_whiteout_removes_nothing_outside() {
    let (_dir, _) = attempt(&[("up", Symlink, "..", b""), ("up/.wh.secret", Regular, "", b"")]);
    let (_dir, result) = attempt(&[("d", Directory, "", b""), ("d/.wh...", Regular, "", b"")]);
    assert!(matches!(result, Err(RootfsError::Escape { .. })), "{result:?}");
}

#[test]
fn a_cut_archive_is_an_error() {
    let whole = archive(&[("a", Regular, "", &[1; 5000])]);
    for length in [100, 600, 3000] {
        let dir = tempfile::tempdir().unwrap();
        assert!(try_extract(&whole[..length], dir.path(), Whiteouts::Apply).is_err(), "{length}");
    }
}
