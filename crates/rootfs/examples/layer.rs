//! What writing a layer costs beyond compressing: `cargo run --release -p kiln-rootfs --example layer -- DIRECTORY ARCHIVE
//! gzip|zstd [MTIME]`.
//!
//! Writes the files of DIRECTORY as a layer, and ARCHIVE, which should hold the same bytes, as a layer of one file: that is
//! compressing and hashing and nothing else. In turn, three times; prints the seconds, and last the ratio of
//! the medians. With MTIME, later times become that time, as with `--reproducible`.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement talks to whoever runs it"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kiln_rootfs::{Compression, Delta, EmptyView, LayerOptions, write_layer};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, archive, compression, rest @ ..] = arguments.as_slice() else {
        return Err("name a directory, an archive of it, and a compression".into());
    };
    let compression = if compression == "zstd" { Compression::Zstd } else { Compression::Gzip };
    let mtime_limit = rest.first().map(|text| text.parse()).transpose()?;
    let options = LayerOptions { compression, mtime_limit, ..LayerOptions::default() };
    // A directory with nothing but the archive; a link, so that it is on the same disk without a copy.
    let archive = PathBuf::from(archive);
    let alone = archive.with_extension("alone");
    std::fs::create_dir_all(&alone)?;
    let name = alone.join("archive");
    if !name.exists() {
        std::fs::hard_link(&archive, &name)?;
    }
    let (mut files, mut one) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        files.push(write(Path::new(directory), &options)?);
        one.push(write(&alone, &options)?);
    }
    println!("files {files:.2?} s, archive {one:.2?} s, {} threads", options.threads);
    files.sort_by(f64::total_cmp);
    one.sort_by(f64::total_cmp);
    println!("{:.3}", files[1] / one[1]);
    Ok(())
}

/// Writes `directory` as a layer to nowhere; gives the seconds.
fn write(directory: &Path, options: &LayerOptions) -> Outcome<f64> {
    let began = Instant::now();
    let mut changes = Delta::new(directory.to_owned()).changes(Arc::new(EmptyView))?;
    let blob = write_layer(&mut *changes, options, std::io::sink())?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{}: {} bytes of {} in {seconds:.2} s", directory.display(), blob.size, blob.uncompressed);
    Ok(seconds)
}
