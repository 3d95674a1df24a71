//! Kiln's own images, as integration/scripts/images makes them.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use kiln_integration::kubelet::podman;
use kiln_integration::registry::Registry;
use kiln_integration::{Bench, images, kiln};
use serde_json::Value;

fn machine() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
    layout.join("blobs/sha256").join(descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:"))
}

/// The entries of all layers: path, mode, kind or link.
fn entries(layout: &Path, manifest: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for layer in manifest["layers"].as_array().unwrap() {
        let bytes = std::fs::read(blob(layout, layer)).unwrap();
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).unwrap();
        for entry in tar::Archive::new(plain.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            let link = entry.link_name().unwrap().map(|link| format!(" -> {}", link.display()));
            lines.push(format!(
                "{} {:04o} {}:{}{}",
                entry.path().unwrap().display(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                link.unwrap_or_default()
            ));
        }
    }
    lines
}

#[test]
fn two_builds_of_the_images_give_one_digest_and_what_a_kaniko_user_relies_on() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for directory in [&first, &second] {
        images::build(directory.path(), "1.2.3");
    }
    let root = first.path().join(machine());
    for name in ["executor", "debug", "warmer", "warmer-debug"] {
        let digest = |directory: &tempfile::TempDir| {
            std::fs::read_to_string(directory.path().join(machine()).join(format!("{name}.digest"))).unwrap()
        };
        assert_eq!(digest(&first), digest(&second), "{name}");
    }
    let layout = root.join("executor");
    let manifest = json(&blob(&layout, &json(&layout.join("index.json"))["manifests"][0]));
    let config = json(&blob(&layout, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/kaniko/executor"]));
    assert_eq!(config["config"]["WorkingDir"], "/workspace");
    assert_eq!(
        config["config"]["Env"],
        serde_json::json!([
            "PATH=/usr/local/bin:/kaniko",
            "HOME=/root",
            "USER=root",
            "SSL_CERT_DIR=/kaniko/ssl/certs",
            "DOCKER_CONFIG=/kaniko/.docker/"
        ])
    );
    let found = entries(&layout, &manifest);
    for line in [
        "kaniko/ 0777 0:0",
        "kaniko/.docker/ 0777 0:0",
        "kaniko/executor 0755 0:0",
        "kaniko/warmer 0755 0:0 -> kaniko/executor",
        "kaniko/ssl/certs/ca-certificates.crt 0644 0:0",
        "etc/kiln-image 0644 0:0",
        "etc/nsswitch.conf 0644 0:0",
        "workspace/ 0755 0:0",
    ] {
        assert!(found.iter().any(|entry| entry == line), "{line} is missing in {found:?}");
    }
    let size: u64 =
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert!(size < 40_000_000, "{size} bytes");
    let layout = root.join("debug");
    let manifest = json(&blob(&layout, &json(&layout.join("index.json"))["manifests"][0]));
    let found = entries(&layout, &manifest);
    assert!(found.iter().any(|entry| entry.ends_with("bin/sh 0777 0:0 -> /busybox/sh")), "{found:?}");
    for (name, entry) in
        [("warmer", "/kaniko/warmer"), ("warmer-debug", "/kaniko/warmer"), ("debug", "/kaniko/executor")]
    {
        let layout = root.join(name);
        let manifest = json(&blob(&layout, &json(&layout.join("index.json"))["manifests"][0]));
        let config = json(&blob(&layout, &manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!([entry]), "{name}");
    }
}

#[test]
fn the_kaniko_folder_can_be_copied_into_an_image_of_ones_own() {
    let directory = tempfile::tempdir().unwrap();
    images::build(directory.path(), "1.2.3");
    let bench = Bench::new();
    let archive = directory.path().join("own.tar").display().to_string();
    let executor = directory.path().join(machine()).join("executor");
    let name = format!("docker.io/kiln-test/own:{}", std::process::id());
    let built = bench.build(
        "FROM base\nCOPY --from=executor /kaniko /kaniko\n",
        &[
            "--build-context",
            &format!("executor=oci-layout://{}", executor.display()),
            "--tar-path",
            &archive,
            "--destination",
            &name,
        ],
    );
    built.succeeded();
    let lock = images::storage();
    let loaded = podman(&["load", "--quiet", "--input", &archive]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let said = |command: &str| {
        let output = podman(&["run", "--rm", "--pull=never", &name, "sh", "-c", command]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let version = said("/kaniko/executor version");
    let warmer = said("/kaniko/warmer --help");
    podman(&["image", "rm", "--force", &name]);
    drop(lock);
    let expected = Command::new(kiln()).args(["executor", "version"]).output().unwrap();
    let number = String::from_utf8_lossy(&expected.stdout).trim().trim_start_matches("kiln ").to_owned();
    assert!(version.contains(&format!("Kaniko version :  v{number}")), "{version}");
    assert!(warmer.contains("--cache-dir"), "{warmer}");
}

#[test]
fn the_images_are_pushed_for_two_architectures_under_one_name() {
    let (registry, directory) = (Registry::start(), tempfile::tempdir().unwrap());
    let (here, there) = if machine() == "amd64" { ("amd64", "arm64") } else { ("arm64", "amd64") };
    let binary = kiln().display().to_string();
    // Nothing is run: any file stands for the other architecture's programs.
    images::script(
        directory.path(),
        &[
            ("ARCHES", &format!("{here} {there}")),
            (&format!("KILN_{there}"), &binary),
            (&format!("BUSYBOX_{there}"), &binary),
            ("REGISTRY", &format!("{}/kiln", registry.host)),
            ("TAG", "1.2.3"),
        ],
    );
    for (name, tag) in
        [("executor", "1.2.3"), ("executor", "1.2.3-debug"), ("warmer", "1.2.3"), ("warmer", "1.2.3-debug")]
    {
        let index = registry.index(&format!("kiln/{name}"), tag);
        let found: Vec<&str> = index["manifests"]
            .as_array()
            .unwrap_or_else(|| panic!("{name}:{tag} is an index: {index}"))
            .iter()
            .map(|part| part["platform"]["architecture"].as_str().unwrap())
            .collect();
        assert_eq!(found, [here, there], "{name}:{tag}");
    }
}
