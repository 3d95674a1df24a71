//! The rules of the house that no compiler checks: who may use whom, how long a file may be, which calls stand where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What each crate may name of ours.
fn allowed(name: &str) -> &'static [&'static str] {
    match name {
        "kiln-oci" | "kiln-dockerfile" | "kiln-inflate" => &[],
        "kiln-plan" => &["oci", "dockerfile"],
        "kiln-store" | "kiln-attest" | "kiln-cloud" | "kiln-testkit" => &["oci"],
        "kiln-rootfs" => &["oci", "inflate"],
        "kiln-registry" => &["oci", "cloud"],
        "kiln-integration" => &["oci", "testkit"],
        "kiln-sandbox" => &["oci", "rootfs"],
        "kiln-context" => &["oci", "dockerfile", "plan", "rootfs", "cloud"],
        "kiln-cache" => &["oci", "dockerfile", "plan", "store", "registry"],
        "kiln-warmer" => &["oci", "dockerfile", "plan", "store", "registry", "cache", "rootfs"],
        "kiln-executor" => &[
            "oci",
            "attest",
            "dockerfile",
            "plan",
            "store",
            "registry",
            "cache",
            "rootfs",
            "sandbox",
            "context",
        ],
        _ => &[
            "oci",
            "cloud",
            "dockerfile",
            "plan",
            "store",
            "registry",
            "cache",
            "rootfs",
            "sandbox",
            "context",
            "warmer",
            "executor",
        ],
    }
}

/// Libraries that one crate has to itself.
const WRAPPED: [(&str, &str); 5] = [
    ("oci-client", "kiln-registry"),
    ("memmap2", "kiln-store"),
    ("fs2", "kiln-store"),
    ("clap", "kiln"),
    ("indicatif", "kiln"),
];

#[test]
fn dependencies_point_one_way() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 10, "cargo metadata lists the workspace");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let used = dependency["name"].as_str().unwrap();
            if let Some(ours) = used.strip_prefix("kiln-") {
                assert!(allowed(name).contains(&ours), "{name} must not depend on {used}");
            }
            if let Some((_, owner)) = WRAPPED.iter().find(|(library, _)| *library == used) {
                assert_eq!(name, *owner, "only {owner} may use {used}");
            }
        }
    }
}

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') && name != "out" {
                    walk(&path, found);
                }
            } else if name.ends_with(".rs") {
                found.insert(path.clone(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&root(), &mut found);
    found.into_iter().map(|(path, text)| (path.strip_prefix(root()).unwrap().to_owned(), text)).collect()
}

fn is_test(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/tests/")
        || text.contains("/examples/")
        || text.ends_with("tests.rs")
        || text.starts_with("integration")
        || text.contains("testkit")
}

/// The code before the tests in the same file.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn no_file_is_longer_than_800_lines() {
    for (path, text) in sources() {
        assert!(text.lines().count() <= 800, "{} has {} lines", path.display(), text.lines().count());
    }
}

#[test]
fn libraries_are_mute_and_read_no_environment() {
    let banned = [
        "println!(",
        "eprintln!(",
        "print!(",
        "eprint!(",
        "std::env::var",
        "std::env::args",
        "process::exit",
    ];
    for (path, text) in sources() {
        if path.starts_with("src") || is_test(&path) {
            continue;
        }
        for call in banned {
            let found =
                code(&text).lines().find(|line| line.contains(call) && !line.trim_start().starts_with("//"));
            assert!(
                found.is_none(),
                "{}: {call} belongs into src/: {}",
                path.display(),
                found.unwrap_or_default()
            );
        }
    }
}

#[test]
fn unsafe_code_has_an_address() {
    for (path, text) in sources() {
        let text = code(&text);
        let here = path.starts_with("crates/sandbox/src/sys") || path == Path::new("crates/store/src/map.rs");
        let found = text.lines().any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
        assert!(!found || here || is_test(&path), "{} holds unsafe code", path.display());
    }
}

#[test]
fn nothing_is_left_undone() {
    // Put together here, so that this file does not hold what it looks for.
    let marks = [["to", "do!("], ["unimpl", "emented!("], ["#[ig", "nore"]].map(|parts| parts.concat());
    for (path, text) in sources() {
        for mark in &marks {
            assert!(!text.contains(mark), "{} holds {mark}", path.display());
        }
    }
}
