//! What the crate does, seen from outside. Cases that are data are in `tests/cases`.

#![expect(clippy::unwrap_used, reason = "a test ends where its cases can't be read")]

mod corners;
mod expansion;
mod files;
mod ignore;
mod lint;
mod properties;

use std::path::{Path, PathBuf};

/// The case files of a folder, with their text.
fn case_files(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(folder);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Compares a case file with what it would be if each case had just been written, and says where the new one lies.
fn assert_unchanged(path: &Path, expected: &str, actual: &str) {
    if expected == actual {
        return;
    }
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path.file_name().unwrap());
    std::fs::write(&new, actual).unwrap();
    let differs = expected.lines().zip(actual.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| expected.lines().count().min(actual.lines().count()));
    panic!(
        "{} line {}:\n  expected {}\n  found    {}\nall of it as it is now: {}",
        path.display(),
        line + 1,
        expected.lines().nth(line).unwrap_or("(nothing)"),
        actual.lines().nth(line).unwrap_or("(nothing)"),
        new.display()
    );
}
