//! Every manifest that a user may apply or copy is held strictly against the Kubernetes API, and every flag in it against
//! Kiln's own.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Volume};
use kiln_integration::{manifest, repository_root};
use serde_json::Value;

/// The YAML files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            found.push(path);
        }
    }
}

fn documents() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    files(&repository_root().join("k8s"), &mut found);
    files(&repository_root().join("examples"), &mut found);
    assert!(found.len() > 30, "the manifests are found");
    let all =
        found.iter().flat_map(|file| manifest::documents(file).into_iter().map(|it| (file.clone(), it)));
    all.collect()
}

/// What is wrong with the Kubernetes parts of an object of another system; `None` for an object of Kubernetes.
fn foreign(document: &Value) -> Option<Vec<String>> {
    let spec = &document["spec"];
    let (containers, volumes): (Vec<&Value>, &Value) = match document["apiVersion"].as_str() {
        // Kustomize's own files are held to their form by rendering them; what has no version is a file of a CI system.
        None => return Some(Vec::new()),
        Some(version) if version.starts_with("kustomize.") => return Some(Vec::new()),
        Some("tekton.dev/v1") => (spec["steps"].as_array().unwrap().iter().collect(), &spec["volumes"]),
        Some("argoproj.io/v1alpha1") => {
            let templates = spec["templates"].as_array().unwrap().iter();
            (templates.map(|template| &template["container"]).collect(), &spec["volumes"])
        }
        Some(_) => return None,
    };
    assert!(!containers.is_empty(), "it holds containers");
    let mut faults = Vec::new();
    for container in containers {
        // Argo's have no name.
        let mut container = container.clone();
        container["name"] = "named".into();
        faults.extend(manifest::strictly::<Container>(&container));
    }
    for volume in volumes.as_array().into_iter().flatten() {
        faults.extend(manifest::strictly::<Volume>(volume));
    }
    Some(faults)
}

#[test]
fn every_manifest_is_what_the_api_says() {
    let mut faults = Vec::new();
    for (file, document) in documents() {
        let found = foreign(&document).unwrap_or_else(|| manifest::faults(&document));
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", file.display())));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_object_has_the_recommended_label() {
    for (file, document) in documents() {
        let is_object = !document["kind"].is_null() && !document["metadata"].is_null();
        if !is_object {
            continue;
        }
        let labels = &document["metadata"]["labels"];
        let exempt = document["kind"] == "RuntimeClass";
        assert!(exempt || labels["app.kubernetes.io/name"] == "kiln", "{}: {labels}", file.display());
    }
}

#[test]
fn no_manifest_uses_what_kubernetes_has_left_behind() {
    let old = [
        "\"serviceAccount\":",
        "seccomp.security.alpha.kubernetes.io",
        "container.apparmor.security.beta",
        "\"gitRepo\":",
    ];
    for (file, document) in documents() {
        let text = document.to_string();
        for old in old {
            assert!(!text.contains(old), "{}: {old}", file.display());
        }
    }
}

/// All texts in a value.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
        Value::Object(map) => map.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

#[test]
fn every_flag_in_a_manifest_is_one_of_kilns() {
    let reference = std::fs::read_to_string(repository_root().join("docs/flags.md")).unwrap();
    let mut seen = 0;
    for (file, document) in documents() {
        let mut found = Vec::new();
        texts(&document, &mut found);
        let words = found.iter().flat_map(|text| text.split_whitespace());
        for flag in words.filter_map(|word| word.strip_prefix("--")) {
            let name = flag.split('=').next().unwrap();
            seen += 1;
            assert!(
                name.is_empty()
                    || reference.contains(&format!("`--{name}`"))
                    || reference.contains(&format!("`--{name} ")),
                "{}: --{name}",
                file.display()
            );
        }
    }
    assert!(seen > 100, "the flags are found");
}

#[test]
fn the_examples_of_the_three_ways_are_the_manifests_of_k8s() {
    for (copy, original) in [
        ("init-container.yaml", "init-container/pod.yaml"),
        ("one-shot-job.yaml", "executor-job/job.yaml"),
        ("warmer-cronjob.yaml", "warmer-cronjob/cronjob.yaml"),
        ("cache-claim.yaml", "warmer-cronjob/claim.yaml"),
    ] {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let copied = read(repository_root().join("examples/kubernetes").join(copy));
        assert_eq!(copied, read(repository_root().join("k8s").join(original)), "{copy}");
    }
}
