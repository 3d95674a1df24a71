//! Images of several platforms, and images that were made before: what stands in a registry afterwards, read by others.

use kiln_integration::kiln;
use kiln_integration::registry::Registry;
use kiln_integration::work::{Work, ok, raw, run, text};

fn kiln_ok(arguments: &[&str]) -> String {
    ok(&kiln().display().to_string(), arguments)
}

fn platforms(index: &serde_json::Value) -> Vec<String> {
    let entries = index["manifests"].as_array().unwrap_or_else(|| panic!("{index} is no index"));
    let word =
        |entry: &serde_json::Value, name: &str| entry["platform"][name].as_str().unwrap_or("").to_owned();
    entries
        .iter()
        .map(|entry| {
            format!("{}/{}{}", word(entry, "os"), word(entry, "architecture"), word(entry, "variant"))
        })
        .collect()
}

fn work() -> Work {
    Work::with_registry(&["--reproducible"])
}

const FOREIGN: &str = if cfg!(target_arch = "s390x") { "linux/ppc64le" } else { "linux/s390x" };

#[test]
fn several_platforms_become_images_in_one_index() {
    let work = work();
    work.bench.file("f", "1");
    let (name, digest) = (work.name("app:1"), work.text_path("digest"));
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY f /f-$TARGETARCH\n";
    let flags = ["-d", &name, "--platform", "linux/amd64,linux/arm64,linux/arm/v6", "--digest-file", &digest];
    let log = work.builds(dockerfile, &flags);
    let index = raw(&name);
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(platforms(&index), ["linux/amd64", "linux/arm64", "linux/armv6"]);
    let digest = std::fs::read_to_string(digest).unwrap();
    assert!(log.contains(&format!("app@{digest}")), "{log}");
    let copied = work.text_path("copy");
    let source = format!("docker://{}@{digest}", work.name("app"));
    ok("skopeo", &["copy", "--all", "--src-tls-verify=false", &source, &format!("oci:{copied}:x")]);
    let arm = work.text_path("arm");
    let (source, target) = (format!("docker://{name}"), format!("dir:{arm}"));
    ok("skopeo", &["copy", "--src-tls-verify=false", "--override-arch=arm64", &source, &target]);
    let inspected = run("skopeo", &["inspect", "--config", &target]);
    let config: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(config["architecture"], "arm64");
}

#[test]
fn a_stage_for_the_building_machine_runs_once_for_all_platforms() {
    let work = work();
    let base = work.name("base:1");
    work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &base]);
    let dockerfile = format!(
        "FROM --platform=$BUILDPLATFORM {base} AS tools\nRUN echo compiled >&2 && echo x > /out\n\
         FROM scratch\nARG TARGETARCH\nCOPY --from=tools /out /out-$TARGETARCH\n"
    );
    let platforms = format!("linux/{},{FOREIGN}", std::env::consts::ARCH);
    let log = work.builds(&dockerfile, &["-d", &work.name("app:1"), "--platform", &platforms]);
    assert_eq!(log.lines().filter(|line| line.trim() == "compiled").count(), 1, "{log}");
    assert_eq!(raw(&work.name("app:1"))["manifests"].as_array().unwrap().len(), 2);
}

#[test]
fn run_for_a_foreign_machine_without_an_emulator_is_refused_at_its_line() {
    let work = work();
    let base = work.name("foreign:1");
    work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &base, "--platform", FOREIGN]);
    let dockerfile = format!("FROM {base}\nRUN echo x\n");
    let output = work.build(&dockerfile, &["--no-push", "--platform", FOREIGN]);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("Dockerfile:2") && log.contains("binfmt_misc") && log.contains(FOREIGN), "{log}");
}

#[test]
fn what_is_put_into_an_empty_stage_runs_whatever_platform_the_image_is_for() {
    let work = work();
    let dockerfile = "FROM scratch\nADD base.tar /\nENV PATH=/bin\nRUN echo it runs >&2\n";
    let log = work.builds(dockerfile, &["--no-push", "--platform", FOREIGN]);
    assert!(log.lines().any(|line| line.trim() == "it runs"), "{log}");
}

#[test]
fn a_layout_with_an_index_is_passed_on_byte_for_byte() {
    let work = work();
    work.bench.file("f", "1");
    let layout = work.text_path("layout");
    let flags = [
        "--no-push",
        "-d",
        "x.example/app:1",
        "--oci-layout-path",
        &layout,
        "--platform",
        "linux/amd64,linux/arm64",
    ];
    work.builds("FROM scratch\nCOPY f /\n", &flags);
    let listed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(work.path("layout/index.json")).unwrap()).unwrap();
    let entries = listed["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 1, "{listed}");
    let (name, digest) = (work.name("moved:1"), work.text_path("digest"));
    kiln_ok(&["executor", "push", &layout, "--destination", &name, "--digest-file", &digest]);
    assert_eq!(std::fs::read_to_string(digest).unwrap(), entries[0]["digest"].as_str().unwrap());
    assert_eq!(platforms(&raw(&name)), ["linux/amd64", "linux/arm64"]);
}

#[test]
fn an_archive_of_several_platforms_is_refused_with_the_reason() {
    let work = work();
    let archive = work.text_path("a.tar");
    let flags = ["--no-push", "--tar-path", &archive, "--platform", "linux/amd64,linux/arm64"];
    let output = work.build("FROM scratch\nCOPY base.tar /\n", &flags);
    assert!(!output.status.success() && text(&output).contains("--oci-layout-path"), "{}", text(&output));
}

#[test]
fn images_of_one_platform_each_are_joined_in_an_index() {
    let work = work();
    work.bench.file("f", "1");
    let (amd, arm, joined) = (work.name("app:amd64"), work.name("other/app:arm64"), work.name("app:joined"));
    work.builds("FROM scratch\nCOPY f /\n", &["-d", &amd, "--platform", "linux/amd64"]);
    work.builds("FROM scratch\nCOPY f /\n", &["-d", &arm, "--platform", "linux/arm64"]);
    kiln_ok(&["executor", "push", "--index", &amd, &arm, "--destination", &joined]);
    assert_eq!(platforms(&raw(&joined)), ["linux/amd64", "linux/arm64"]);
    let all = format!("oci:{}:x", work.text_path("all"));
    ok("skopeo", &["copy", "--all", "--src-tls-verify=false", &format!("docker://{joined}"), &all]);
    let output = run(
        &kiln().display().to_string(),
        &["executor", "push", "--index", &amd, &joined, "--destination", &joined],
    );
    assert!(!output.status.success() && text(&output).contains("linux/amd64"), "{}", text(&output));
}

#[test]
fn joined_images_of_another_registry_are_copied() {
    let (work, far) = (work(), Registry::start());
    work.bench.file("f", "1");
    let arm = format!("{}/app:arm64", far.host);
    work.builds("FROM scratch\nCOPY f /\n", &["-d", &arm, "--platform", "linux/arm64"]);
    let joined = work.name("joined:1");
    kiln_ok(&["executor", "push", "--index", &arm, "-d", &joined]);
    drop(far);
    let all = format!("oci:{}:x", work.text_path("all"));
    ok("skopeo", &["copy", "--all", "--src-tls-verify=false", &format!("docker://{joined}"), &all]);
}

#[test]
fn archives_of_all_tools_are_pushed() {
    let work = work();
    let (archive, name) = (work.text_path("kiln.tar"), work.name("from-kiln:1"));
    work.builds("FROM scratch\nADD base.tar /\n", &["--no-push", "-d", &name, "--tar-path", &archive]);
    kiln_ok(&["executor", "push", &archive, "--destination", &name]);
    assert!(raw(&name)["layers"].as_array().unwrap().len() == 1);
    for (number, format) in ["docker-archive", "oci-archive", "oci"].iter().enumerate() {
        let path = work.text_path(&format!("skopeo-{number}"));
        let to = if *format == "docker-archive" {
            format!("{format}:{path}:x:1")
        } else {
            format!("{format}:{path}:x")
        };
        ok("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &to]);
        let again = work.name(&format!("again-{number}:1"));
        kiln_ok(&["executor", "push", &path, "--destination", &again]);
        let copy = format!("dir:{}", work.text_path(&format!("check-{number}")));
        ok("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{again}"), &copy]);
    }
}

#[test]
fn a_reproducible_build_leaves_the_layers_of_its_base_alone() {
    let work = Work::with_registry(&[]);
    let base = work.name("base:1");
    // The base's times are of now, to the nanosecond, and its history says when.
    work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\nRUN echo now > /now\n", &["-d", &base]);
    let below = raw(&base);
    let layers = |image: &serde_json::Value| image["layers"].as_array().unwrap().clone();
    let dockerfile = format!("FROM {base}\nRUN echo later > /later && touch /now\nCOPY base.tar /srv/\n");
    let images = ["one", "two"].map(|name| {
        let name = work.name(name);
        work.builds(&dockerfile, &["-d", &name, "--reproducible"]);
        raw(&name)
    });
    assert_eq!(images[0], images[1]);
    assert_eq!(layers(&images[0])[..2], layers(&below)[..]);
    let place = work.text_path("one");
    ok(
        "skopeo",
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            &format!("docker://{}", work.name("one")),
            &format!("dir:{place}"),
        ],
    );
    for layer in &layers(&images[0])[2..] {
        let digest = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let file = std::fs::File::open(work.path("one").join(digest)).unwrap();
        let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(file));
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0, "{}", entry.path().unwrap().display());
        }
    }
}
