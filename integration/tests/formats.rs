//! Formats: what we write is read by other tools, and what they write is read by us.

use kiln_integration::work::{Work, ok, raw, text};
use kiln_testkit::{StandIn, TestRegistry};
use serde_json::{Value, json};

/// Builds on what stands in a registry of their own.
struct Formats(Work);

impl std::ops::Deref for Formats {
    type Target = Work;

    fn deref(&self) -> &Work {
        &self.0
    }
}

impl Formats {
    fn new() -> Self {
        let work = Work::with_registry(&["--image-download-retry=0"]);
        work.bench.file("f", "1");
        Self(work)
    }

    /// Copies an image out of the registry with skopeo, which verifies every digest and every diff ID.
    fn verified(&self, name: &str) {
        let to = tempfile::tempdir_in(self.bench.directory.path()).unwrap();
        let archive = format!("docker-archive:{}:x:1", to.path().join("a.tar").display());
        ok("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &archive]);
    }

    /// Pulls an image with podman into a storage of its own: layers are unpacked, and compared with their diff IDs.
    fn pulled(&self, name: &str) {
        let (root, run) = (self.text_path("storage"), self.text_path("run"));
        let storage = ["--root", &root, "--runroot", &run, "--storage-driver=vfs"];
        let podman = |arguments: &[&str]| ok("podman", &[&storage[..], arguments].concat());
        podman(&["pull", "-q", "--tls-verify=false", name]);
        let layers = podman(&["image", "inspect", "--format", "{{len .RootFS.Layers}}", name]);
        assert_eq!(layers.trim(), raw(name)["layers"].as_array().unwrap().len().to_string());
    }
}

fn layer_types(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["mediaType"].as_str().unwrap().to_owned()).collect()
}

const BASE: &str = "FROM scratch\nADD base.tar /\nENV PATH=/bin\n";

#[test]
fn zstd_layers_stand_on_gzip_layers_that_are_left_alone() {
    let work = Formats::new();
    let (base, image) = (work.name("base:1"), work.name("app:1"));
    work.builds(BASE, &["-d", &base, "--image-format=docker"]);
    let below = raw(&base)["layers"][0]["digest"].clone();
    let dockerfile = format!("FROM {base}\nRUN echo made > /made\nCOPY f /f\n");
    work.builds(&dockerfile, &["-d", &image, "--compression=zstd", "--compression-level=9"]);
    let manifest = raw(&image);
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
    let work = Formats::new();
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
    let work = Formats::new();
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
        let manifest = raw(&image);
        assert_eq!(manifest["mediaType"], expected, "{given:?} {flag:?}");
        let family = if expected == docker { "vnd.docker" } else { "vnd.oci" };
        assert!(layer_types(&manifest).iter().all(|kind| kind.contains(family)), "{manifest}");
        work.verified(&image);
    }
}

#[test]
fn images_of_other_tools_are_built_on() {
    let work = Formats::new();
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

#[test]
fn images_that_podman_buildah_and_umoci_pushed_are_built_on() {
    let work = Formats::new();
    let (root, run) = (work.text_path("storage"), work.text_path("run"));
    let storage = ["--root", &root, "--runroot", &run, "--storage-driver=vfs"];
    let base = work.bench.context().join("base.tar").display().to_string();
    work.bench.file("g", "by a tool");
    let file = work.bench.context().join("g").display().to_string();
    let dockerfile = |name: &str| {
        format!("FROM {name}\nRUN test \"$BY\" = tool && test \"$(cat /g)\" = 'by a tool'\nCOPY f /f\n")
    };
    let check = |name: &str| {
        let again = format!("{name}-again");
        work.builds(&dockerfile(name), &["-d", &again]);
        assert_eq!(raw(&again)["mediaType"], raw(name)["mediaType"], "{name}");
        work.verified(&again);
    };
    // buildah: two layers, in both formats.
    let buildah = |arguments: &[&str]| ok("buildah", &[&storage[..], arguments].concat()).trim().to_owned();
    let container = buildah(&["from", "scratch"]);
    buildah(&["add", "--quiet", &container, &base, "/"]);
    buildah(&["config", "--env", "PATH=/bin", "--env", "BY=tool", &container]);
    for format in ["oci", "docker"] {
        let (first, second) = (format!("first-{format}"), format!("second-{format}"));
        buildah(&["commit", "--quiet", "--format", format, &container, &first]);
        let above = buildah(&["from", "--pull-never", &first]);
        buildah(&["copy", "--quiet", &above, &file, "/g"]);
        buildah(&["commit", "--quiet", "--format", format, &above, &second]);
        let name = work.name(&format!("buildah-{format}"));
        buildah(&["push", "--quiet", "--tls-verify=false", &second, &format!("docker://{name}:1")]);
        check(&format!("{name}:1"));
    }
    // podman: what it imported, and what it pulled and pushed in each compression that it knows.
    let podman = |arguments: &[&str]| ok("podman", &[&storage[..], arguments].concat()).trim().to_owned();
    let changes = ["--change", "ENV PATH=/bin", "--change", "ENV BY=tool"];
    podman(&[&["import", "--quiet"][..], &changes, &[&base, "localhost/imported"]].concat());
    let above = buildah(&["from", "--pull-never", "localhost/imported"]);
    buildah(&["copy", "--quiet", &above, &file, "/g"]);
    buildah(&["commit", "--quiet", &above, "localhost/for-podman"]);
    for (kind, flags) in [
        ("oci", &["--format=oci"][..]),
        ("docker", &["--format=v2s2"]),
        ("zstd", &["--format=oci", "--compression-format=zstd"]),
    ] {
        let name = work.name(&format!("podman-{kind}:1"));
        let to = format!("docker://{name}");
        podman(
            &[&["push", "--quiet", "--tls-verify=false"][..], flags, &["localhost/for-podman", &to]].concat(),
        );
        check(&name);
    }
    // umoci writes layouts; skopeo brings them to a registry as they are.
    let layout = work.text_path("layout");
    let source = format!("docker://{}:1", work.name("buildah-oci"));
    ok("skopeo", &["copy", "--src-tls-verify=false", &source, &format!("oci:{layout}:1")]);
    ok("umoci", &["insert", "--rootless", "--image", &format!("{layout}:1"), &file, "/by-umoci"]);
    let name = work.name("umoci:1");
    let to = format!("docker://{name}");
    ok("skopeo", &["copy", "--dest-tls-verify=false", "--preserve-digests", &format!("oci:{layout}:1"), &to]);
    check(&name);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn schema_1_is_refused_with_a_sentence() {
    let (work, runtime) = (Formats::new(), runtime());
    let registry = runtime.block_on(TestRegistry::start());
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    registry.put_manifest("old", "1", kind, json!({"schemaVersion": 1, "fsLayers": []}).to_string());
    let output = work.build(&format!("FROM {}/old:1\n", registry.host()), &["--no-push"]);
    let said = text(&output);
    assert!(output.status.code() == Some(1) && said.contains("schema 1"), "{said}");
}

#[test]
fn foreign_layers_are_named_and_neither_fetched_nor_pushed() {
    let (work, runtime) = (Formats::new(), runtime());
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

/// An image whose only layer lies at an address outside of its registry. Gives its name.
fn foreign_image(home: &TestRegistry, kind: &str, tar: &[u8], urls: &[String]) -> (String, kiln_oci::Digest) {
    let digest = kiln_oci::Digest::of(tar);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest.to_string()]},
        "history": [{"created_by": "elsewhere"}],
    });
    let config = home.put_blob("foreign", config.to_string());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": config.digest.to_string(), "size": config.size},
        "layers": [{"mediaType": kind, "digest": digest.to_string(), "size": tar.len(), "urls": urls}],
    });
    home.put_manifest("foreign", "1", "application/vnd.oci.image.manifest.v1+json", manifest.to_string());
    (format!("{}/foreign:1", home.host()), digest)
}

#[test]
fn what_a_foreign_layer_holds_is_fetched_from_its_address_and_verified() {
    let (work, runtime) = (Formats::new(), runtime());
    let (home, elsewhere) =
        runtime.block_on(async { (TestRegistry::start().await, TestRegistry::start().await) });
    let tar = std::fs::read(work.bench.context().join("base.tar")).unwrap();
    let wrong = elsewhere.put_blob("x", "something else");
    let layer = elsewhere.put_blob("x", tar.clone());
    let at = |digest: &kiln_oci::Digest| format!("{}/v2/x/blobs/{digest}?signature=hunter2", elsewhere.url());
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    // The first address has something else, the second one nothing.
    let nothing = format!("{}/nothing", elsewhere.url());
    let urls = [at(&wrong.digest), nothing, at(&layer.digest)];
    let (from, digest) = foreign_image(&home, kind, &tar, &urls);
    let image = format!("{}/app:1", home.host());
    work.builds(&format!("FROM {from}\nRUN echo made > /made\n"), &["-d", &image]);
    let (_, pushed) = home.manifest("app", "1").unwrap();
    let pushed: Value = serde_json::from_slice(&pushed).unwrap();
    assert_eq!(pushed["layers"][0]["urls"], json!(urls), "the layer stays a foreign one");
    assert_eq!(pushed["layers"].as_array().unwrap().len(), 2);
    assert!(home.blob("app", &digest).is_none(), "and is not pushed");
    work.builds(&format!("FROM scratch\nCOPY --from={from} /etc/group /g\n"), &["--no-push"]);
    work.builds(&format!("FROM {from}\nCOPY f /etc/\nWORKDIR /home/ana\n"), &["--no-push"]);
    // Nowhere to be had: every address is named, and no signature.
    let (from, _) = foreign_image(&home, kind, &tar, &urls[..2]);
    let log = work.fails(&format!("FROM {from}\nRUN true\n"), &["--no-push"], "lies outside of registries");
    assert!(
        log.contains("/nothing: the server answers 404") && log.contains(&wrong.digest.to_string()),
        "{log}"
    );
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn an_sbom_lists_what_a_foreign_layer_holds_and_says_which_could_not_be_had() {
    let (work, runtime) = (Formats::new(), runtime());
    let (home, elsewhere) =
        runtime.block_on(async { (TestRegistry::start().await, TestRegistry::start().await) });
    work.bench.file("os-release", "ID=debian\n").file(
        "status",
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n",
    );
    let tar = work.path("foreign.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&tar).unwrap());
    let context = work.bench.context();
    archive.append_path_with_name(context.join("os-release"), "etc/os-release").unwrap();
    archive.append_path_with_name(context.join("status"), "var/lib/dpkg/status").unwrap();
    archive.finish().unwrap();
    let tar = std::fs::read(&tar).unwrap();
    let layer = elsewhere.put_blob("x", tar.clone());
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let url = format!("{}/v2/x/blobs/{}?signature=hunter2", elsewhere.url(), layer.digest);
    let (from, _) = foreign_image(&home, kind, &tar, &[url]);
    let dockerfile = format!("FROM {from}\nLABEL a=b\n");
    let sbom = |name: &str| {
        let place = work.text_path(name);
        let log = work.builds(&dockerfile, &["--no-push", "--sbom", "--oci-layout-path", &place]);
        let blobs = std::fs::read_dir(work.path(name).join("blobs/sha256")).unwrap().flatten();
        let documents = blobs.filter_map(|blob| std::fs::read_to_string(blob.path()).ok());
        let found = documents.filter(|text| text.contains("SPDX-2.3")).last().expect("there is an SBOM");
        (found, log)
    };
    let (found, log) = sbom("all");
    assert!(found.contains("pkg:deb/debian/libc6@2.36-9"), "{found}");
    assert!(!log.contains("not in the SBOM"), "{log}");
    assert!(elsewhere.remove_blob("x", &layer.digest));
    let (found, log) = sbom("less");
    assert!(!found.contains("libc6"), "{found}");
    let missing = format!("the layer {}: ", layer.digest);
    assert!(log.contains(&format!("not in the SBOM: {missing}")), "{log}");
    assert!(found.contains(&format!("Not read: {missing}")), "{found}");
    assert!(!log.contains("hunter2") && !found.contains("hunter2"), "{log}{found}");
}

#[test]
fn an_uncompressed_layer_is_read_and_passed_on_as_it_is() {
    let (work, runtime) = (Formats::new(), runtime());
    let home = runtime.block_on(TestRegistry::start());
    let tar = std::fs::read(work.bench.context().join("base.tar")).unwrap();
    let kind = "application/vnd.oci.image.layer.v1.tar";
    home.put_blob("foreign", tar.clone());
    let (from, digest) = foreign_image(&home, kind, &tar, &[]);
    let image = work.name("app:1");
    work.builds(&format!("FROM {from}\nRUN echo made > /made\n"), &["-d", &image]);
    let manifest = raw(&image);
    assert_eq!(layer_types(&manifest), [kind, "application/vnd.oci.image.layer.v1.tar+gzip"]);
    assert_eq!(manifest["layers"][0]["digest"], digest.to_string());
    work.pulled(&image);
}

#[test]
fn the_platform_is_chosen_with_its_variant_and_attestations_are_passed_over() {
    let work = Formats::new();
    let base = work.name("base:1");
    let dockerfile = "FROM scratch\nARG TARGETARCH\nARG TARGETVARIANT\nCOPY f /$TARGETARCH$TARGETVARIANT\n";
    let platforms = "--platform=linux/arm/v5,linux/arm/v6,linux/arm64,linux/amd64";
    work.builds(dockerfile, &["-d", &base, platforms, "--provenance", "--sbom"]);
    for (wanted, file) in [
        ("arm/v7", "armv6"),
        ("arm/v6", "armv6"),
        ("arm/v5", "armv5"),
        ("arm64", "arm64"),
        ("amd64", "amd64"),
    ] {
        let copy = format!("FROM {base} AS b\nFROM scratch\nCOPY --from=b /{file} /found\n");
        work.builds(&copy, &["--no-push", &format!("--platform=linux/{wanted}")]);
    }
    let from = format!("FROM {base}\n");
    let log = work.fails(&from, &["--no-push", "--platform=linux/riscv64"], "linux/riscv64");
    assert!(log.contains("linux/arm64") && !log.contains("unknown/unknown"), "{log}");
}
