//! Kiln's own images, made by Kiln from the repository's Dockerfiles and loaded into podman once for each binary.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::process::Command;

use crate::kubelet::{podman, success};
use crate::{repository_root, static_kiln};

/// Builds the images into `directory` with the script that `make images` runs.
pub fn build(directory: &Path, tag: &str) {
    script(directory, &[("TAG", tag)]);
}

/// The same with variables of its own.
pub fn script(directory: &Path, variables: &[(&str, &str)]) {
    let mut command = Command::new(repository_root().join("integration/scripts/images"));
    command.arg(static_kiln()).arg(directory).env_remove("REGISTRY").envs(variables.iter().copied());
    success(command.output().unwrap());
}

/// Podman's storage, for one test at a time: a pull fails when another process removes an image with the same layers.
pub fn storage() -> std::fs::File {
    let lock = std::fs::File::create(std::env::temp_dir().join("kiln-test-podman.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// The names of the executor's image and of the debug image in podman's storage.
pub fn loaded() -> (String, String) {
    let binary = static_kiln();
    let meta = std::fs::metadata(&binary).unwrap();
    let mut hasher = DefaultHasher::new();
    (&binary, meta.len(), meta.modified().unwrap()).hash(&mut hasher);
    let tag = format!("test-{:016x}", hasher.finish());
    let names = |tag: &str| {
        (format!("docker.io/kiln/executor:{tag}"), format!("docker.io/kiln/executor:{tag}-debug"))
    };
    let folder = binary.parent().unwrap();
    // Tests are processes of their own: the first one loads, the others wait.
    let _lock = storage();
    if podman(&["image", "exists", &names(&tag).1]).status.success() {
        return names(&tag);
    }
    let record = folder.join("kiln-test-images");
    if let Ok(old) = std::fs::read_to_string(&record) {
        let (executor, debug) = names(&old);
        podman(&["image", "rm", "--force", &executor, &debug]);
    }
    let directory = tempfile::tempdir().unwrap();
    build(directory.path(), &tag);
    for name in ["executor", "debug"] {
        let machine = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        let archive = machine.join(format!("{name}.tar")).display().to_string();
        success(podman(&["load", "--quiet", "--input", &archive]));
    }
    std::fs::write(&record, &tag).unwrap();
    names(&tag)
}
