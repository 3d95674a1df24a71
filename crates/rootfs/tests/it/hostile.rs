//! Archives made to break out.

use std::fs;

use kiln_rootfs::{IgnorePaths, Root, RootfsError, TarReader, Whiteouts, entries, extract};

use crate::try_extract;

/// An entry: its name, its kind, what it links to, and its bytes.
type Made<'a> = (&'a str, tar::EntryType, &'a str, &'a [u8]);

fn archive(entries: &[Made<'_>]) -> Vec<u8> {
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

fn attempt(entries: &[Made<'_>]) -> (tempfile::TempDir, Result<(), RootfsError>) {
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
fn a_whiteout_of_no_file_is_an_error_to_who_looks_through_as_well() {
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        let looked =
            entries(archive(&[(name, Regular, "", b"")]).as_slice(), &mut |entry, _| panic!("{entry:?}"));
        assert!(matches!(looked, Err(RootfsError::Escape { .. })), "{name}: {looked:?}");
        let (_dir, result) = attempt(&[(name, Regular, "", b"")]);
        assert!(matches!(result, Err(RootfsError::Escape { .. })), "{name}: {result:?}");
    }
}

#[test]
fn a_cut_archive_is_an_error() {
    let whole = archive(&[("a", Regular, "", &[1; 5000])]);
    for length in [100, 600, 3000] {
        let dir = tempfile::tempdir().unwrap();
        assert!(try_extract(&whole[..length], dir.path(), Whiteouts::Apply).is_err(), "{length}");
    }
}

/// The entries that are read, and the error that reading ends with.
fn read(archive: &[u8]) -> (Vec<kiln_rootfs::Entry>, Option<String>) {
    let mut tar = TarReader::new(archive);
    let mut entries = Vec::new();
    loop {
        match tar.next() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, None),
            Err(error) => return (entries, Some(error.to_string())),
        }
    }
}

/// A record of a PAX header. Its length has nine digits: zeros in front are read over.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let length = 9 + 1 + key.len() + 1 + value.len() + 1;
    [format!("{length:09} {key}=").as_bytes(), value, b"\n"].concat()
}

use tar::EntryType::{XGlobalHeader, XHeader};

#[test]
fn a_size_that_no_file_has_is_an_error() {
    for size in [u64::MAX, u64::MAX - 511, 1 << 63] {
        let header = record("size", size.to_string().as_bytes());
        let (entries, error) = read(&archive(&[("x", XHeader, "", &header), ("a", Regular, "", b"x")]));
        assert!(entries.is_empty() && error.unwrap().contains("more than any can have"), "{size}");
        let mut whole = archive(&[("a", Regular, "", b"")]);
        whole[124..128].copy_from_slice(&[0x80, 0, 0, 0]);
        whole[128..136].copy_from_slice(&size.to_be_bytes());
        let mut header = tar::Header::from_byte_slice(&whole[..512]).clone();
        header.set_cksum();
        whole[..512].copy_from_slice(header.as_bytes());
        assert!(read(&whole).1.unwrap().contains("more than any can have"), "{size}");
    }
}

#[test]
fn extended_headers_are_bounded_in_all() {
    let header = record("comment", &vec![b'x'; 1 << 20]);
    for kind in [XHeader, XGlobalHeader] {
        let some = [("x", kind, "", header.as_slice()), ("a", Regular, "", b"")];
        assert_eq!(read(&archive(&some.repeat(3))).1, None);
        let many = [vec![some[0]; 5], some[1..].to_vec()].concat();
        assert!(read(&archive(&many)).1.unwrap().contains("extended headers have"), "{kind:?}");
    }
    let every = [("x", XGlobalHeader, "", header.as_slice()), ("a", Regular, "", b"")].repeat(5);
    let (entries, error) = read(&archive(&every));
    assert!(entries.len() == 3 && error.unwrap().contains("extended headers have"));
}

#[test]
fn of_many_attributes_the_last_of_each_name_counts() {
    let began = std::time::Instant::now();
    let mut header = record("SCHILY.xattr.user.first", b"old");
    for number in 0..90_000 {
        header.extend(record(&format!("SCHILY.xattr.user.{number:05}"), b""));
    }
    header.extend(record("SCHILY.xattr.user.first", b"new"));
    let (entries, error) = read(&archive(&[("x", XHeader, "", &header), ("a", Regular, "", b"")]));
    assert_eq!(error, None);
    assert_eq!(entries[0].xattrs.len(), 90_001);
    assert_eq!(entries[0].xattrs.last(), Some(&(b"user.first".to_vec(), b"new".to_vec())));
    assert!(entries[0].xattrs.is_sorted());
    assert!(began.elapsed().as_secs() < 20, "looking each one up among the others takes minutes");
}

#[test]
fn no_link_leads_to_what_is_ignored() {
    let ways: [&[Made<'_>]; 11] = [
        &[("l", Symlink, "/own", b""), ("l/f", Regular, "", b"x"), ("l/new/f", Regular, "", b"x")],
        &[("l", Symlink, "own/d", b""), ("l/f", Regular, "", b"x"), ("l/new", Directory, "", b"")],
        &[("l", Symlink, "/", b""), ("l/own", Regular, "", b"x"), ("l/own/f", Regular, "", b"x")],
        // Replaces a directory in which something ignored lies.
        &[("l", Symlink, "/", b""), ("l/deep", Regular, "", b"x"), ("l/deep/own/f", Regular, "", b"x")],
        &[("l", Symlink, "/", b""), ("l/.wh.own", Regular, "", b""), ("l/.wh.deep", Regular, "", b"")],
        &[("l", Symlink, "deep/own", b""), ("l/.wh.f", Regular, "", b"")],
        &[("l", Symlink, "own", b""), ("l/.wh..wh..opq", Regular, "", b"")],
        &[("l", Symlink, "/", b""), ("l/.wh..wh..opq", Regular, "", b"")],
        &[("l", Symlink, "deep", b""), ("l/.wh..wh..opq", Regular, "", b"")],
        &[("h", Link, "own/f", b""), ("h", Regular, "", b"x")],
        &[("l", Symlink, "own", b""), ("h", Link, "l/f", b""), ("l/h", Link, "l/f", b"")],
    ];
    for entries in ways {
        let dir = tempfile::tempdir().unwrap();
        for own in ["own/d", "deep/own"] {
            fs::create_dir_all(dir.path().join(own)).unwrap();
        }
        let files = ["own/f", "own/d/f", "deep/own/f"].map(|file| dir.path().join(file));
        for file in &files {
            fs::write(file, "untouched").unwrap();
        }
        let mut options = crate::options(Whiteouts::Apply, IgnorePaths::new(["/own", "/deep/own"]));
        extract(archive(entries).as_slice(), &Root::open(dir.path()).unwrap(), &mut options).unwrap();
        for file in &files {
            assert_eq!(fs::read_to_string(file).unwrap(), "untouched", "{entries:?}");
            assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(file).unwrap()), 1, "{entries:?}");
        }
        for (own, count) in [("own", 2), ("own/d", 1), ("deep/own", 1)] {
            assert_eq!(fs::read_dir(dir.path().join(own)).unwrap().count(), count, "{own} after {entries:?}");
        }
    }
}

#[test]
fn a_layer_may_empty_a_directory_over_and_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("d/lower")).unwrap();
    let names: Vec<String> = (0..10_000).map(|number| format!("d/{number}")).collect();
    let mark = ("d/.wh..wh..opq", Regular, "", b"".as_slice());
    let entries = names.iter().flat_map(|name| [(name.as_str(), Regular, "", b"".as_slice()), mark]);
    let began = std::time::Instant::now();
    let layer = archive(&entries.collect::<Vec<_>>());
    try_extract(layer.as_slice(), dir.path(), Whiteouts::Apply).unwrap();
    // Takes a second; looked through each time, it would take minutes.
    assert!(began.elapsed().as_secs() < 20);
    assert_eq!(fs::read_dir(dir.path().join("d")).unwrap().count(), names.len());
}
