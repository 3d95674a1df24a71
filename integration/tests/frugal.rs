//! What a build does not do: wait for the disk, read a file twice, leave a trace on what it reads.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use kiln_integration::Bench;

const DOCKERFILE: &str = "FROM base\nCOPY big many /srv/\nRUN cat /srv/* > /all\n";

/// A context with a file of a mebibyte and some small ones.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.file("big", &"0123456789abcdef".repeat(1 << 16));
    for number in 0..20 {
        bench.file(&format!("many/{number}"), "small");
    }
    bench
}

/// The calls of these kinds that a build makes, one a line, with the paths behind the handles.
fn calls(bench: &Bench, kinds: &str, flags: &[&str]) -> Vec<String> {
    calls_of(bench, DOCKERFILE, kinds, flags)
}

fn calls_of(bench: &Bench, dockerfile: &str, kinds: &str, flags: &[&str]) -> Vec<String> {
    let trace = bench.directory.path().join("trace");
    let (build, _) = bench.command(dockerfile, flags);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-y", "-s", "300", "-e", &format!("trace={kinds}"), "-o"]).arg(&trace);
    let output = strace.arg(build.get_program()).args(build.get_args()).output();
    let output = output.expect("strace is installed: integration/scripts/install-test-tools");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(&trace).unwrap().lines().map(str::to_owned).collect()
}

/// What a call gave. Where another thread's call came in between, that stands in a later line.
fn outcome(call: &String, trace: &[String]) -> Option<u64> {
    let mut whole = call;
    if call.ends_with("<unfinished ...>") {
        let thread = call.split(' ').next()?;
        let after = trace.iter().skip_while(|line| !std::ptr::eq(*line, call)).skip(1);
        whole = after.into_iter().find(|line| line.split(' ').next() == Some(thread))?;
    }
    whole.rsplit("= ").next()?.parse().ok()
}

#[test]
fn nothing_of_a_build_s_scratch_data_is_synced() {
    for rung in ["auto", "chroot"] {
        let flag = format!("--isolation={rung}");
        let syncs = "fsync,fdatasync,sync,syncfs,sync_file_range,msync";
        let calls = calls(&bench(), syncs, &[&flag]);
        let scratch: Vec<&String> = calls.iter().filter(|call| call.contains("sync")).collect();
        assert!(scratch.is_empty(), "{rung}: {scratch:#?}");
    }
}

#[test]
fn a_file_of_the_context_is_opened_once_and_copied_by_the_kernel() {
    let calls = calls(&bench(), "openat,openat2,open,copy_file_range", &[]);
    let opened: Vec<&String> = calls
        .iter()
        .filter(|call| call.contains("open") && call.contains("context") && call.contains("\"big\""))
        .collect();
    assert_eq!(opened.len(), 1, "{opened:#?}");
    assert!(opened[0].contains("O_NOATIME"), "{}", opened[0]);
    let copied = |call: &String| call.contains("context/big") && call.contains("copy_file_range(");
    assert!(calls.iter().any(copied), "no call copies it");
}

#[test]
fn what_only_becomes_a_layer_is_read_into_it_and_copied_nowhere() {
    let bench = bench();
    let trace = calls_of(
        &bench,
        "FROM base\nCOPY big /srv/\nCOPY --link big /other/\n",
        "read,pread64,copy_file_range,ioctl",
        &[],
    );
    let of_big = |call: &&String| call.contains("context/big>");
    let copied = trace.iter().filter(of_big).filter(|call| !call.contains("read"));
    assert_eq!(copied.collect::<Vec<_>>(), Vec::<&String>::new());
    let bytes: u64 = trace.iter().filter(of_big).filter_map(|call| outcome(call, &trace)).sum();
    assert_eq!(bytes, 2 << 20, "once for each of two layers");
}

#[test]
fn reading_a_context_leaves_its_access_times() {
    let bench = bench();
    // Older than the mtime: with relatime, any read would move it.
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let times = fs::FileTimes::new().set_accessed(old).set_modified(old + Duration::from_secs(1_000_000));
    let names = ["big", "many/0", "many/19"];
    let of = |name: &str| bench.context().join(name);
    for name in names {
        File::open(of(name)).unwrap().set_times(times).unwrap();
    }
    let cache = format!("oci:{}", bench.directory.path().join("cache").display());
    bench.build(DOCKERFILE, &["--cache", "--cache-copy-layers", "--cache-repo", &cache]).succeeded();
    for name in names {
        assert_eq!(fs::metadata(of(name)).unwrap().atime(), 1_000_000, "{name}");
    }
}
