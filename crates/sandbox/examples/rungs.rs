//! Says which rungs work here, which one a build would take, and how long a step takes on it.
//!
//! Usage: `rungs SCRATCH [BUSYBOX]`; with a static busybox, each rung but root runs a step of it.
#![expect(clippy::print_stdout, reason = "a program for people, not a library")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_sandbox::{Cancel, Enclosure, RunRequest, Rung, Situation, Tree, choose, probe, run};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let scratch = PathBuf::from(arguments.next().ok_or("usage: rungs SCRATCH [BUSYBOX]")?);
    let start = Instant::now();
    let report = probe(&scratch);
    println!("probed in {:?}", start.elapsed());
    for rung in Rung::ALL {
        match report.enclosure(rung) {
            Ok(enclosure) => println!("{rung:9} works: {enclosure}"),
            Err(refusal) => println!("{rung:9} refused: {refusal}"),
        }
    }
    for kiln_image in [true, false] {
        match choose(&report, None, Situation { kiln_image, container: true, force: false }) {
            Ok((enclosure, reason)) => println!("auto, Kiln's image {kiln_image}: {enclosure}; {reason}"),
            Err(error) => println!("auto, Kiln's image {kiln_image}: {error}"),
        }
    }
    let Some(busybox) = arguments.next() else { return Ok(()) };
    for rung in [Rung::Overlay, Rung::Directory, Rung::Chroot] {
        if let Ok(enclosure) = report.enclosure(rung) {
            step(&scratch.join(rung.name()), enclosure, Path::new(&busybox))?;
        }
    }
    Ok(())
}

fn step(folder: &Path, enclosure: Enclosure, busybox: &Path) -> Result<(), Box<dyn Error>> {
    for name in ["tree/bin", "upper", "work"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    std::fs::copy(busybox, folder.join("tree/bin/busybox"))?;
    let tree = match enclosure.rung() {
        Rung::Overlay => Tree::Overlay {
            lowers: vec![folder.join("tree")],
            upper: folder.join("upper"),
            work: folder.join("work"),
        },
        _ => Tree::Directory { path: folder.join("tree") },
    };
    let script = "busybox id; busybox ls -la / /dev; busybox ps; busybox cat /proc/1/environ; busybox mount";
    let argv = ["/bin/busybox", "sh", "-c", script];
    let print = |_, line: &[u8]| println!("  {}", String::from_utf8_lossy(line));
    let cancel = Cancel::new()?;
    let request = || RunRequest {
        env: vec![("PATH".into(), "/bin".into())],
        ..RunRequest::new(enclosure, tree.clone(), argv)
    };
    println!("{enclosure}: {:?}", run(request(), &print, &cancel)?);
    let start = Instant::now();
    for _ in 0..20 {
        let argv = ["/bin/busybox", "true"].map(Into::into).to_vec();
        run(RunRequest { argv, ..request() }, &print, &cancel)?;
    }
    println!("{enclosure}: {:?} a step", start.elapsed() / 20);
    Ok(())
}
