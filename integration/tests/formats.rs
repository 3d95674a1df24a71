//! Formats: what we write is read by other tools, and what they write is read by us.

use std::path::PathBuf;
use std::process::{Command, Output};

use kiln_integration::registry::Registry;
use kiln_integration::{Bench, kiln};
use kiln_testkit::{StandIn, TestRegistry};
use serde_json::{Value, json};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn ok(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Work {
    bench: Bench,
    registry: Registry,
}

impl Work {
    fn new() -> Self {
        let work = Self { bench: Bench::new(), registry: Registry::start() };
        work.bench.file("f", "1");
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.directory.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host)
    }

    fn build(&self, dockerfile: &str, flags: &[&str]) -> Output {
        let file = self.path("Dockerfile");
        std::fs::write(&file, dockerfile).unwrap();
        Command::new(kiln())
            .arg("executor")
            .arg("-c")
            .arg(self.bench.context())
            .arg("-f")
            .arg(&file)
            .arg("--scratch-dir")
            .arg(self.path("scratch"))
            .arg("--image-download-retry=0")
            .args(flags)
            .output()
            .unwrap()
    }

    fn builds(&self, dockerfile: &str, flags: &[&str]) -> String {
        let output = self.build(dockerfile, flags);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    fn raw(&self, name: &str) -> Value {
        let read = ok("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
        serde_json::from_str(&read).unwrap()
    }

    /// Copies an image out of the registry with skopeo, which verifies every digest and every diff ID.
    fn verified(&self, name: &str) {
        let to = tempfile::tempdir_in(self.bench.directory.path()).unwrap();
        let archive = format!("docker-archive:{}:x:1", to.path().join("a.tar").display());
        ok("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &archive]);
    }
}

impl Work {
    /// Pulls an image with podman into a storage of its own: layers are unpacked, and compared with their diff IDs.
    fn pulled(&self, name: &str) {
        let (root, run) =
            (self.path("storage").display().to_string(), self.path("run").display().to_string());
        let storage = ["--root", &root, "--runroot", &run, "--storage-driver=vfs"];
        let podman = |arguments: &[&str]| ok("podman", &[&storage[..], arguments].concat());
        podman(&["pull", "-q", "--tls-verify=false", name]);
        let layers = podman(&["image", "inspect", "--format", "{{len .RootFS.Layers}}", name]);
        assert_eq!(layers.trim(), self.raw(name)["layers"].as_array().unwrap().len().to_string());
    }
}

fn layer_types(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["mediaType"].as_str().unwrap().to_owned()).collect()
}

const BASE: &str = "FROM scratch\nADD base.tar /\nENV PATH=/bin\n";

#[test]
fn zstd_layers_stand_on_gzip_layers_that_are_left_alone() {
    let work = Work::new();
    let (base, image) = (work.name("base:1"), work.name("app:1"));
    work.builds(BASE, &["-d", &base, "--image-format=docker"]);
    let below = work.raw(&base)["layers"][0]["digest"].clone();
    let dockerfile = format!("FROM {base}\nRUN echo made > /made\nCOPY f /f\n");
    work.builds(&dockerfile, &["-d", &image, "--compression=zstd", "--compression-level=9"]);
    let manifest = work.raw(&image);
    assert_eq!(
        layer_types(&manifest),
        [
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.v1.tar+zstd"
        ]
    );
    assert_eq!(manifest["layers"][0]["digest"], below);
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    work.pulled(&image);
    // We read what we wrote.
    work.builds(&format!("FROM {image}\nRUN test \"$(cat /made)\" = made && test -f /f\n"), &["--no-push"]);
    for (flags, why) in [
        (["--compression=zstd", "--image-format=docker"], "--compression=zstd"),
        (["--image-format=docker", "--reproducible"], "zstd"),
    ] {
        let from = format!("FROM {image}\nCOPY f /g\n");
        let output = work.build(&from, &[flags.as_slice(), &["--no-push"]].concat());
        assert!(!output.status.success() && text(&output).contains(why), "{}", text(&output));
    }
}

#[test]
fn a_level_that_the_codec_has_not_is_refused() {
    let work = Work::new();
    for (flags, why) in [
        (vec!["--compression-level=10"], "gzip has levels from 1 to 9"),
        (vec!["--compression=zstd", "--compression-level=23"], "zstd has levels from 1 to 22"),
    ] {
        let output = work.build("FROM scratch\nCOPY f /\n", &[&flags[..], &["--no-push"]].concat());
        assert!(!output.status.success() && text(&output).contains(why), "{}", text(&output));
    }
    work.builds("FROM scratch\nCOPY f /\n", &["--no-push", "--compression-level=-1"]);
}

#[test]
fn both_formats_are_written_and_the_base_s_is_kept_unless_asked() {
    let work = Work::new();
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let (base, image) = (work.name("base:1"), work.name("app:1"));
    for (given, flag, expected) in [
        (Some("docker"), None, docker),
        (Some("oci"), None, oci),
        (Some("docker"), Some("--image-format=oci"), oci),
        (Some("oci"), Some("--image-format=docker"), docker),
        (None, None, oci),
    ] {
        let from = match given {
            Some(format) => {
                work.builds(BASE, &["-d", &base, "--image-format", format]);
                format!("FROM {base}\n")
            }
            None => "FROM scratch\n".to_owned(),
        };
        let mut flags = vec!["-d", image.as_str()];
        flags.extend(flag);
        work.builds(&format!("{from}COPY f /f\n"), &flags);
        let manifest = work.raw(&image);
        assert_eq!(manifest["mediaType"], expected, "{given:?} {flag:?}");
        let family = if expected == docker { "vnd.docker" } else { "vnd.oci" };
        assert!(layer_types(&manifest).iter().all(|kind| kind.contains(family)), "{manifest}");
        work.verified(&image);
    }
}

#[test]
fn images_of_other_tools_are_built_on() {
    let work = Work::new();
    let source = work.name("base:1");
    work.builds(BASE, &["-d", &source]);
    let from_registry = format!("docker://{source}");
    let layout = work.path("umoci").display().to_string();
    ok("skopeo", &["copy", "--src-tls-verify=false", &from_registry, &format!("oci:{layout}:1")]);
    let bundle = work.path("bundle").display().to_string();
    ok("umoci", &["unpack", "--image", &format!("{layout}:1"), &bundle]);
    std::fs::write(format!("{bundle}/rootfs/by-umoci"), "x").unwrap();
    ok("umoci", &["repack", "--image", &format!("{layout}:2"), &bundle]);
    ok("umoci", &["config", "--image", &format!("{layout}:2"), "--config.env", "BY=umoci"]);
    let context = format!("base=oci-layout://{layout}:2");
    let dockerfile = "FROM base\nRUN test -f /by-umoci && test \"$BY\" = umoci\n";
    work.builds(dockerfile, &["--no-push", "--build-context", &context]);
    for (kind, flags) in
        [("v2s2", "--format=v2s2"), ("oci", "--format=oci"), ("zstd", "--dest-compress-format=zstd")]
    {
        let name = work.name(&format!("skopeo-{kind}:1"));
        let mut arguments = vec!["copy", "--src-tls-verify=false", "--dest-tls-verify=false", flags];
        if kind == "zstd" {
            arguments.extend(["--format=oci", "--dest-compress"]);
        }
        let to = format!("docker://{name}");
        arguments.extend([from_registry.as_str(), &to]);
        ok("skopeo", &arguments);
        work.builds(&format!("FROM {name}\nRUN test -x /bin/busybox\n"), &["--no-push"]);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn schema_1_is_refused_with_a_sentence() {
    let (work, runtime) = (Work::new(), runtime());
    let registry = runtime.block_on(TestRegistry::start());
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.put_manifest("old", "1", kind, json!({"schemaVersion": 1, "fsLayers": []}).to_string());
    let output = work.build(&format!("FROM {}/old:1\n", registry.host()), &["--no-push"]);
    let said = text(&output);
    assert!(output.status.code() == Some(1) && said.contains("schema 1"), "{said}");
}

#[test]
fn foreign_layers_are_named_and_neither_fetched_nor_pushed() {
    let (work, runtime) = (Work::new(), runtime());
    let (registry, elsewhere) =
        runtime.block_on(async { (TestRegistry::start().await, StandIn::start().await) });
    let digest = kiln_oci::Digest::of(b"elsewhere");
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest.to_string()]},
        "history": [{"created_by": "elsewhere"}],
    })
    .to_string();
    let config = registry.put_blob("win", config);
    let foreign = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest.to_string(), "size": 9, "urls": [format!("{}/layer", elsewhere.url())],
    });
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                   "digest": config.digest.to_string(), "size": config.size},
        "layers": [foreign],
    });
    registry.put_manifest("win", "1", kind, manifest.to_string());
    let (from, image) = (format!("{}/win:1", registry.host()), format!("{}/app:1", registry.host()));
    work.builds(&format!("FROM {from}\nLABEL a=b\n"), &["-d", &image]);
    let (_, raw) = registry.manifest("app", "1").unwrap();
    let pushed: Value = serde_json::from_slice(&raw).unwrap();
    assert_eq!(pushed["layers"][0], foreign);
    assert!(registry.blob("app", &digest).is_none());
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
    let layout = work.path("layout").display().to_string();
    work.builds(&format!("FROM {from}\nLABEL a=c\n"), &["--no-push", "--oci-layout-path", &layout]);
}
