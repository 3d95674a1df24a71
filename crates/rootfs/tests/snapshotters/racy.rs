//! Files that are changed in the very tick of the clock in which they were recorded.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::bench::{Bench, Layer, RUNGS, Rung};
use crate::model::set_mtime;

/// Rewrites a file in place so that size and mtime stay what they were.
fn rewrite(path: &Path, content: &[u8]) {
    let before = fs::metadata(path).unwrap();
    fs::write(path, content).unwrap();
    set_mtime(path, before.mtime());
}

/// Each round makes layers, and a mount takes one page of their names.
fn rounds(rung: Rung) -> u32 {
    if rung == Rung::Overlay { 20 } else { 80 }
}

#[test]
fn a_change_right_after_a_commit_is_never_missed() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..20 {
        fs::write(dir.path().join(format!("f{number:02}")), "0000").unwrap();
        set_mtime(&dir.path().join(format!("f{number:02}")), 1000);
    }
    let base = Layer::of(dir.path());
    for rung in RUNGS {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        for round in 1..rounds(rung) {
            let name = format!("f{:02}", round % 20);
            // Written, committed, and written again as fast as can be.
            let layer = bench.run(0, |root| rewrite(&root.join(&name), format!("{round:04}").as_bytes()));
            assert_eq!(layer.names(), [name.as_str()], "{rung:?}, round {round}");
            let layer =
                bench.run(0, |root| rewrite(&root.join(&name), format!("{:04}", round + 5000).as_bytes()));
            assert_eq!(layer.names(), [name.as_str()], "{rung:?}, round {round}, at once");
        }
    }
}

#[test]
fn a_new_file_written_again_at_once_is_never_missed() {
    for rung in RUNGS {
        let mut bench = Bench::new(rung);
        bench.base(0, &[]);
        for round in 0..rounds(rung) {
            let name = format!("n{round}");
            bench.run(0, |root| {
                fs::write(root.join(&name), "one").unwrap();
                set_mtime(&root.join(&name), 3);
            });
            let layer = bench.run(0, |root| rewrite(&root.join(&name), b"two"));
            assert_eq!(layer.names(), [name.as_str()], "{rung:?}, round {round}");
        }
    }
}
