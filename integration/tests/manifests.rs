//! Every manifest that a user may apply or copy is held strictly against the Kubernetes API.

use std::path::{Path, PathBuf};

use kiln_integration::{manifest, repository_root};

/// The YAML files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

#[test]
fn every_manifest_is_what_the_api_says() {
    let mut found = Vec::new();
    files(&repository_root().join("k8s"), &mut found);
    files(&repository_root().join("examples"), &mut found);
    assert!(found.len() > 20, "the manifests are found");
    let mut faults = Vec::new();
    for file in &found {
        for document in manifest::documents(file) {
            // Kustomize's own files are held to their form by rendering them.
            if document["apiVersion"].as_str().is_some_and(|version| version.starts_with("kustomize.")) {
                continue;
            }
            faults.extend(
                manifest::faults(&document).into_iter().map(|fault| format!("{}: {fault}", file.display())),
            );
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
