//! Files that are lent to a delta instead of copied.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use kiln_rootfs::{
    Delta, DeltaBuilder, DirectoryView, EmptyView, Kind, LayerOptions, Meta, TreePath, View, write_layer,
};

const LONG: usize = 1 << 20;

/// A tree with two long files of the same length and a short one.
fn source() -> (tempfile::TempDir, Arc<dyn View>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), vec![b'a'; LONG]).unwrap();
    fs::write(dir.path().join("b"), vec![b'b'; LONG]).unwrap();
    fs::write(dir.path().join("short"), "short").unwrap();
    let view = Arc::new(DirectoryView::open(dir.path()).unwrap());
    (dir, view)
}

fn put(builder: &mut DeltaBuilder<'_>, to: &str, view: &Arc<dyn View>, from: &str, lend: bool) {
    let (to, from) = (TreePath::new(to), TreePath::new(from));
    let mut meta = view.stat(&from).unwrap().unwrap();
    meta.mtime.nanos = 0;
    if lend {
        builder.lend_file(&to, view, &from, &meta, &[]).unwrap();
    } else {
        builder.put_file(&to, &view.open(&from).unwrap(), &meta, &[]).unwrap();
    }
}

/// The delta's root has the time of its making, which is no matter here.
fn layer(delta: &Delta, below: Arc<dyn View>) -> (Vec<u8>, Vec<String>) {
    let mut changes = delta.changes(below).unwrap();
    let mut out = Vec::new();
    write_layer(&mut *changes, &LayerOptions::default(), &mut out).unwrap();
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(out.as_slice()));
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    let names = names.collect();
    (out, names)
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks()
}

#[test]
fn a_lent_file_makes_the_layer_of_a_copied_one_and_takes_no_room() {
    let (_from, view) = source();
    let layers = [true, false].map(|lend| {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = DeltaBuilder::new(&dir.path().join("delta"), &EmptyView).unwrap();
        for (to, from) in [("a", "a"), ("short", "short"), ("again", "a")] {
            put(&mut builder, to, &view, from, lend);
        }
        builder.hardlink(&TreePath::new("other name"), &TreePath::new("a")).unwrap();
        let delta = builder.finish().unwrap();
        assert_eq!(blocks(&delta.path().join("a")) == 0, lend);
        assert!(blocks(&delta.path().join("short")) > 0);
        layer(&delta, Arc::new(EmptyView))
    });
    assert_eq!(layers[0].1, ["a", "again", "other name", "short"]);
    assert_eq!(layers[0], layers[1]);
}

#[test]
fn what_replaces_a_lent_file_is_itself() {
    let (_from, view) = source();
    let dir = tempfile::tempdir().unwrap();
    let mut builder = DeltaBuilder::new(&dir.path().join("delta"), &EmptyView).unwrap();
    let hole = dir.path().join("hole");
    fs::File::create(&hole).unwrap().set_len(LONG as u64).unwrap();
    // File systems give a freed inode to the next file: each of these may well get that of the one before.
    for round in 0..20 {
        put(&mut builder, "x", &view, "a", true);
        builder.remove(&TreePath::new("x")).unwrap();
        let to = TreePath::new(format!("hole {round}"));
        let mut meta = Meta::new(Kind::File, 0o644);
        meta.size = LONG as u64;
        builder.put_file(&to, &fs::File::open(&hole).unwrap(), &meta, &[]).unwrap();
    }
    put(&mut builder, "y", &view, "a", true);
    put(&mut builder, "y", &view, "b", true);
    let read = |path: &str| {
        let mut out = Vec::new();
        std::io::Read::read_to_end(&mut builder.open(&TreePath::new(path)).unwrap(), &mut out).unwrap();
        out
    };
    for round in 0..20 {
        assert!(read(&format!("hole {round}")) == vec![0; LONG], "{round}");
    }
    assert!(read("y") == vec![b'b'; LONG]);
}

#[test]
fn a_later_step_that_copies_the_same_changes_nothing() {
    let (_from, view) = source();
    let dir = tempfile::tempdir().unwrap();
    let mut builder = DeltaBuilder::new(&dir.path().join("1"), &EmptyView).unwrap();
    put(&mut builder, "a", &view, "a", true);
    put(&mut builder, "b", &view, "b", true);
    let first = builder.finish().unwrap();
    let below = Delta::stacked(&[first], Arc::new(EmptyView)).unwrap();
    let mut builder = DeltaBuilder::new(&dir.path().join("2"), &*below).unwrap();
    put(&mut builder, "a", &view, "a", true);
    let mut meta = below.stat(&TreePath::new("b")).unwrap().unwrap();
    meta.mtime.nanos = 0;
    // As long and as old as what is there, but other bytes.
    builder.lend_file(&TreePath::new("b"), &view, &TreePath::new("a"), &meta, &[]).unwrap();
    let second = builder.finish().unwrap();
    assert_eq!(layer(&second, below).1, ["b"]);
}
