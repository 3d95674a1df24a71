//! What a step costs beyond its command: `cargo run --release -p kiln-rootfs --example steps -- DIRECTORY FILES`.
//!
//! Makes a base of FILES small files (60000), then runs steps that change one file on each rung that needs no mount,
//! and on the overlay rung writes into the upper directory as overlayfs does. Prints milliseconds and peak memory.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement talks to whoever runs it"
)]

use std::io::{BufRead, Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kiln_rootfs::{
    BaseLayer, Compression, Delta, DeltaBuilder, DirectorySnapshotter, EmptyView, HostSnapshotter, Kind,
    LayerOptions, Meta, OverlaySnapshotter, SnapshotOptions, Snapshotter, Tree, TreePath, View, write_layer,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from(arguments.get(1).ok_or("name a directory to work in")?);
    let files: usize = arguments.get(2).map_or(Ok(60_000), |text| text.parse())?;
    let base = base(&dir, files)?;
    println!("base of {files} files, {} KB; peak memory {} MB", base.1.len() / 1024, peak_memory()?);
    for name in ["overlay", "directory", "root"] {
        let scratch = dir.join("scratch").join(name);
        std::fs::create_dir_all(&scratch)?;
        let root = dir.join("root");
        std::fs::create_dir_all(&root)?;
        let options = SnapshotOptions::default();
        let mut snapshotter: Box<dyn Snapshotter> = match name {
            "overlay" => Box::new(OverlaySnapshotter::new(scratch, options)),
            "directory" => Box::new(DirectorySnapshotter::new(scratch, options)),
            _ => Box::new(HostSnapshotter::new(root.clone(), scratch, options)),
        };
        let bytes = Arc::clone(&base.1);
        let layer = BaseLayer::Blob {
            diff_id: base.0,
            open: Arc::new(move || Ok(Box::new(Cursor::new(bytes.to_vec())) as Box<dyn BufRead + Send>)),
            compression: Compression::Gzip,
        };
        let began = Instant::now();
        snapshotter.base(0, &[layer])?;
        println!("{name}: base {:.0} ms", milliseconds(began));
        steps(name, &mut *snapshotter, &root)?;
        copy(name, &mut *snapshotter, &dir)?;
        println!("{name}: peak memory {} MB", peak_memory()?);
        snapshotter.cleanup()?;
    }
    Ok(())
}

fn steps(name: &str, snapshotter: &mut dyn Snapshotter, host: &Path) -> Outcome<()> {
    for step in 0..6 {
        let began = Instant::now();
        let tree = snapshotter.begin(0)?;
        let before = milliseconds(began);
        let root = match tree {
            Tree::Overlay { upper, .. } => upper,
            Tree::Directory { path } => path,
            Tree::Host => host.to_owned(),
        };
        std::fs::write(root.join(format!("step{step}")), "changed")?;
        let began = Instant::now();
        let mut changes = snapshotter.changes(0)?;
        let scan = milliseconds(began);
        let mut out = Vec::new();
        write_layer(&mut *changes, &LayerOptions::default(), &mut out)?;
        drop(changes);
        snapshotter.commit(0)?;
        let after = milliseconds(began);
        println!(
            "{name}: step {step}: begin {before:.1} ms, changes {scan:.1} ms, with layer and commit {after:.1} ms"
        );
    }
    Ok(())
}

/// A COPY of 20000 files of 4 KB into a directory that is there below.
fn copy(name: &str, snapshotter: &mut dyn Snapshotter, dir: &Path) -> Outcome<()> {
    let mut source = tempfile::tempfile()?;
    source.write_all(&[7; 4096])?;
    let mut meta = Meta::new(Kind::File, 0o644);
    meta.size = 4096;
    let began = Instant::now();
    let below = snapshotter.view(0)?;
    let mut builder = DeltaBuilder::new(&dir.join("delta"), &*below)?;
    for number in 0..20_000 {
        let path = TreePath::new(format!("usr/d0/e1/new{}/file{number}", number / 100));
        if number % 100 == 0 {
            builder.mkdir_all(&path.parent().unwrap_or_default(), None, 0o755)?;
        }
        if builder.stat(&path)?.is_none() {
            builder.put_file(&path, &source, &meta, &[])?;
        }
    }
    let delta = builder.finish()?;
    let built = milliseconds(began);
    let mut out = Vec::new();
    write_layer(&mut *delta.changes(below)?, &LayerOptions::default(), &mut out)?;
    let written = milliseconds(began) - built;
    snapshotter.apply(0, delta)?;
    let applied = milliseconds(began) - built - written;
    println!("{name}: copy: delta {built:.0} ms, layer {written:.0} ms, apply {applied:.0} ms");
    let began = Instant::now();
    snapshotter.begin(0)?;
    println!("{name}: begin after the copy {:.0} ms", milliseconds(began));
    Ok(())
}

fn base(dir: &Path, files: usize) -> Outcome<(kiln_oci::DiffId, Arc<Vec<u8>>)> {
    let tree = dir.join("base");
    for number in 0..files {
        let place = tree.join(format!("usr/d{}/e{}", number / 1000, number / 10 % 100));
        if number % 10 == 0 {
            std::fs::create_dir_all(&place)?;
        }
        std::fs::write(place.join(format!("file{number}")), format!("content {number}"))?;
    }
    let mut out = Vec::new();
    let mut changes = Delta::new(tree.clone()).changes(Arc::new(EmptyView))?;
    let blob =
        write_layer(&mut *changes, &LayerOptions { level: Some(1), ..LayerOptions::default() }, &mut out)?;
    std::fs::remove_dir_all(&tree)?;
    Ok((blob.diff_id, Arc::new(out)))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn peak_memory() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
