//! SBOM and provenance: what stands beside an image in a registry and in a layout.

use std::path::Path;

use kiln_integration::registry::Registry;
use kiln_integration::servers::{Azurite, FakeGcs, GitServer, Nginx, Repo, S3rver};
use kiln_integration::work::{Work, ok, text};
use serde_json::Value;

fn json(layout: &Path, digest: &Value) -> Value {
    let hex = digest.as_str().unwrap().trim_start_matches("sha256:");
    serde_json::from_slice(&std::fs::read(layout.join("blobs/sha256").join(hex)).unwrap()).unwrap()
}

/// The index that a layout lists.
fn index(layout: &Path) -> Value {
    let listed: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    json(layout, &listed["manifests"][0]["digest"])
}

/// The predicate of this kind about the image with this number.
fn predicate(layout: &Path, number: usize, kind: &str) -> Value {
    let index = index(layout);
    let image = &index["manifests"][number];
    let about = |entry: &&Value| entry["annotations"]["vnd.docker.reference.digest"] == image["digest"];
    let entry =
        index["manifests"].as_array().unwrap().iter().find(about).expect("something is said about it");
    assert_eq!(entry["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(entry["platform"]["os"], "unknown");
    let manifest = json(layout, &entry["digest"]);
    assert_eq!(manifest["subject"]["digest"], image["digest"]);
    let layers = manifest["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["annotations"]["in-toto.io/predicate-type"] == kind);
    let statement = json(layout, &layer.unwrap_or_else(|| panic!("{manifest} says no {kind}"))["digest"]);
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], kind);
    let digest = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
    assert_eq!(statement["subject"][0]["digest"]["sha256"], digest);
    statement["predicate"].clone()
}

fn purls(document: &Value) -> Vec<String> {
    let packages = document["packages"].as_array().unwrap().iter().skip(1);
    let mut found: Vec<String> = packages
        .map(|package| package["externalRefs"][0]["referenceLocator"].as_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

const SPDX: &str = "https://spdx.dev/Document";
const SLSA: &str = "https://slsa.dev/provenance/v1";

#[test]
fn an_sbom_lists_the_packages_of_the_final_image() {
    let work = Work::new(&[]);
    let status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n\
                  Package: gone\nStatus: install ok installed\nVersion: 1\n";
    work.bench
        .file("os-release", "ID=debian\nVERSION_ID=\"12\"\n")
        .file("status", status)
        .file("status2", &status[..status.find("\n\n").unwrap()])
        .file("package-lock.json", r#"{"packages":{"node_modules/ms":{"version":"2.1.3","license":"MIT"}}}"#)
        .file("broken/package-lock.json", "{");
    let layout = work.path("layout");
    let dockerfile = "FROM scratch\nCOPY os-release /etc/os-release\nCOPY status /var/lib/dpkg/status\n\
                      COPY package-lock.json broken /app/\nCOPY package-lock.json /app/\nCOPY broken /broken\n\
                      COPY status2 /var/lib/dpkg/status\n";
    let place = layout.display().to_string();
    let log =
        work.builds(dockerfile, &["--no-push", "--sbom", "--reproducible", "--oci-layout-path", &place]);
    assert!(log.contains("not in the SBOM: /broken/package-lock.json"), "{log}");
    let document = predicate(&layout, 0, SPDX);
    assert_eq!(document["spdxVersion"], "SPDX-2.3");
    assert_eq!(
        purls(&document),
        ["pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12", "pkg:npm/ms@2.1.3"]
    );
    assert!(document["comment"].as_str().unwrap().contains("/broken/package-lock.json"), "{document}");
}

#[test]
fn attestations_are_pushed_and_others_still_find_the_image() {
    let (work, registry) = (Work::new(&[]), Registry::start());
    work.bench.file("f", "1");
    let name = format!("{}/app:1", registry.host);
    let flags = ["-d", &name, "--sbom", "--provenance", "--platform", "linux/amd64,linux/arm64"];
    work.builds("FROM scratch\nCOPY f /\n", &flags);
    let all = format!("oci:{}:x", work.text_path("all"));
    ok("skopeo", &["copy", "--all", "--src-tls-verify=false", &format!("docker://{name}"), &all]);
    let found = index(&work.path("all"));
    let kinds: Vec<_> = found["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["platform"]["architecture"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["amd64", "arm64", "unknown", "unknown"]);
    for number in [0, 1] {
        predicate(&work.path("all"), number, SPDX);
        predicate(&work.path("all"), number, SLSA);
    }
    // A build on top takes the image, not what is said about it.
    work.builds(&format!("FROM {name}\nCOPY f /g\n"), &["--no-push"]);
    ok("skopeo", &["inspect", "--tls-verify=false", &format!("docker://{name}")]);
}

#[test]
fn a_registry_without_lists_of_referrers_is_given_them_under_the_digest_s_tag() {
    let (work, registry) = (Work::new(&["--reproducible"]), Registry::start());
    work.bench.file("f", "1");
    let name = format!("{}/app:1", registry.host);
    let flags = ["-d", &name, "--sbom", "--provenance", "--platform", "linux/amd64,linux/arm64"];
    // The second time nothing is new.
    for _ in 0..2 {
        work.builds("FROM scratch\nCOPY f /\n", &flags);
        let pushed = registry.index("app", "1");
        let entries = pushed["manifests"].as_array().unwrap();
        for (image, said) in [(&entries[0], &entries[2]), (&entries[1], &entries[3])] {
            let tag = image["digest"].as_str().unwrap().replace(':', "-");
            let list = registry.index("app", &tag);
            assert_eq!(list["mediaType"], "application/vnd.oci.image.index.v1+json");
            let listed = list["manifests"].as_array().unwrap();
            assert_eq!((listed.len(), &listed[0]["digest"]), (1, &said["digest"]), "{list}");
            assert_eq!(listed[0]["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
        }
    }
    // They go along where images are joined elsewhere.
    let joined = format!("{}/joined:1", registry.host);
    let program = kiln_integration::kiln().display().to_string();
    ok(&program, &["executor", "push", "--index", &name, "--destination", &joined]);
    let image = registry.index("joined", "1")["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let list = registry.index("joined", &image.replace(':', "-"));
    assert_eq!(list["manifests"].as_array().unwrap().len(), 1, "{list}");
    // Nothing is listed of an image of which nothing is said.
    work.builds("FROM scratch\nCOPY f /\n", &["-d", &format!("{}/plain:1", registry.host)]);
    let tags = ok("curl", &["-sf", &format!("http://{}/v2/plain/tags/list", registry.host)]);
    assert_eq!(tags.trim(), r#"{"name":"plain","tags":["1"]}"#);
}

#[test]
fn provenance_names_what_was_used_by_digest_and_no_secret() {
    let (work, registry) = (Work::new(&[]), Registry::start());
    let base = format!("{}/base:1", registry.host);
    work.builds("FROM scratch\nADD base.tar /\nENV PATH=/bin\n", &["-d", &base, "--reproducible"]);
    let secret = work.path("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    let (layout, place) = (work.path("layout"), work.path("layout").display().to_string());
    let secret = format!("id=npm,src={}", secret.display());
    let flags = [
        "--no-push",
        "--oci-layout-path",
        &place,
        "--build-arg",
        "TOKEN=hunter3",
        "--secret",
        &secret,
        "--provenance=mode=min,builder-id=https://ci.example/7",
    ];
    let dockerfile =
        format!("FROM {base}\nARG TOKEN\nRUN --mount=type=secret,id=npm cat /run/secrets/npm > /dev/null\n");
    work.builds(&dockerfile, &flags);
    let said = predicate(&layout, 0, SLSA);
    let words = said.to_string();
    assert!(!words.contains("hunter"), "{words}");
    let used = &said["buildDefinition"]["resolvedDependencies"][0];
    assert!(used["uri"].as_str().unwrap().starts_with("pkg:docker/127.0.0.1:"), "{used}");
    assert_eq!(used["digest"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(said["runDetails"]["builder"]["id"], "https://ci.example/7");
    assert_eq!(said["runDetails"]["metadata"]["buildkit_hermetic"], false);
    assert_eq!(said["runDetails"]["metadata"]["buildkit_completeness"]["resolvedDependencies"], false);
    std::fs::remove_dir_all(&layout).unwrap();
    let flags = [&flags[..7], &["--provenance=mode=max"]].concat();
    work.builds(&dockerfile, &flags);
    let request = predicate(&layout, 0, SLSA)["buildDefinition"]["externalParameters"]["request"].clone();
    assert_eq!(request["args"]["build-arg:TOKEN"], "hunter3");
    assert_eq!(request["secrets"][0]["id"], "npm");
    assert!(!request.to_string().contains("hunter2"), "{request}");
}

#[test]
fn a_file_from_the_web_is_a_material_and_fetched_once() {
    let (work, runtime) = (Work::new(&[]), tokio::runtime::Runtime::new().unwrap());
    let web = runtime.block_on(kiln_testkit::StandIn::start());
    web.answer("GET", "/tool", 200, "content");
    let place = work.path("layout").display().to_string();
    let url = web.url().replace("http://", "http://me:hunter2@");
    let flags = ["--no-push", "--cache", "--provenance", "--oci-layout-path", &place];
    work.builds(&format!("FROM scratch\nADD {url}/tool?key=hunter3 /tool\n"), &flags);
    let said = predicate(&work.path("layout"), 0, SLSA);
    let used = &said["buildDefinition"]["resolvedDependencies"];
    assert_eq!(used[0]["uri"], format!("{}/tool", web.url()));
    assert_eq!(used[0]["digest"]["sha256"], kiln_oci::Digest::of(b"content").hex());
    assert_eq!(said["runDetails"]["metadata"]["buildkit_completeness"]["resolvedDependencies"], true);
    assert!(!said.to_string().contains("hunter"), "{said}");
    assert_eq!(web.asked().len(), 1, "the key needs its digest, and the step its bytes");
}

#[test]
fn contexts_and_repositories_from_elsewhere_are_materials() {
    let work = Work::new(&["--no-push", "--provenance"]);
    let root = work.bench.directory.path().to_owned();
    let repo = Repo::new(&root, "r");
    let commit = repo.file("f", "1").file("Dockerfile", "FROM scratch\nCOPY f /f\n").commit();
    repo.git(&["tag", "-a", "v1", "-m", "a tag"]);
    repo.send();
    let server = GitServer::start(&root, Some("hunter2:"));
    let url = server.url("r");
    let secret = work.file("token", "Basic aHVudGVyMjo=");
    let build = |context: &str, dockerfile: &str, flags: &[&str]| {
        let layout = tempfile::tempdir_in(&root).unwrap().keep();
        let mut command = work.command(dockerfile, flags);
        command.args(["-c", context, "--oci-layout-path"]).arg(&layout).env("GIT_TOKEN", "hunter2");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let said = predicate(&layout, 0, SLSA);
        assert!(!said.to_string().contains("hunter2"), "{said}");
        said
    };
    let complete = |said: &Value| {
        said["runDetails"]["metadata"]["buildkit_completeness"]["resolvedDependencies"].clone()
    };
    let used = |said: &Value| said["buildDefinition"]["resolvedDependencies"].clone();
    // A context: its commit is a material, and where the configuration is from.
    let copy = "FROM scratch\nCOPY f /f\n";
    let said = build(&format!("{url}#main").replace("http://", "http://hunter2@"), copy, &[]);
    let material = serde_json::json!({"uri": format!("{url}#main"), "digest": {"sha1": &commit}});
    assert_eq!(used(&said), Value::Array(vec![material.clone()]));
    let source = &said["buildDefinition"]["externalParameters"]["configSource"];
    assert_eq!((&source["uri"], &source["digest"]), (&material["uri"], &material["digest"]), "{said}");
    assert_eq!(complete(&said), true);
    // ADD, and a named context. An annotated tag is its own object, as BuildKit has it.
    let tag = repo.git(&["rev-parse", "v1"]);
    let context = work.bench.context().display().to_string();
    let secret = format!("id=GIT_AUTH_HEADER,src={secret}");
    let said = build(&context, &format!("FROM scratch\nADD {url}#v1 /x\n"), &["--secret", &secret]);
    let tagged = serde_json::json!({"uri": format!("{url}#v1"), "digest": {"sha1": tag}});
    assert_eq!(used(&said), Value::Array(vec![tagged]));
    assert_eq!(complete(&said), true);
    let named = format!("src={url}");
    let said = build(&context, "FROM scratch\nCOPY base.tar /\n", &["--build-context", &named]);
    assert_eq!(used(&said), serde_json::json!([]), "what nobody read is no material");
    let said = build(&context, "FROM scratch\nCOPY --from=src f /f\n", &["--build-context", &named]);
    assert_eq!(used(&said)[0]["uri"], url);
    assert_eq!(used(&said)[0]["digest"]["sha1"], commit);
    // An archive, by its digest.
    let archive = work.path("c.tar.gz");
    let packed = archive.display().to_string();
    ok("tar", &["-czf", &packed, "-C", repo.work().to_str().unwrap(), "f"]);
    let nginx = work.path("nginx");
    std::fs::create_dir(&nginx).unwrap();
    let nginx = Nginx::start(&nginx, &root);
    let at = format!("https://127.0.0.1:{}/c.tar.gz", nginx.port);
    let trust = format!("--registry-certificate=127.0.0.1:{}={}", nginx.port, nginx.ca.display());
    let said = build(&format!("{at}?signature=hunter2"), copy, &[&trust]);
    let digest = kiln_oci::Digest::of(&std::fs::read(&archive).unwrap()).hex();
    assert_eq!(used(&said), serde_json::json!([{"uri": at, "digest": {"sha256": digest}}]));
    assert_eq!(complete(&said), true);
    // What is on this machine has no address that means anything elsewhere.
    let said = build(&format!("tar://{packed}"), copy, &[]);
    assert_eq!((used(&said), complete(&said)), (serde_json::json!([]), Value::Bool(false)));
}

#[test]
fn objects_of_every_store_are_materials_without_their_signatures() {
    let work = Work::new(&["--no-push", "--provenance"]);
    let folder = |name: &str| {
        let path = work.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    std::fs::write(folder("source").join("f"), "1").unwrap();
    let archive = work.path("c.tar.gz");
    ok("tar", &["-czf", archive.to_str().unwrap(), "-C", work.path("source").to_str().unwrap(), "f"]);
    let digest = kiln_oci::Digest::of(&std::fs::read(&archive).unwrap()).hex();
    let s3 = S3rver::start(&folder("s3"));
    s3.put("a/c.tar.gz", &archive);
    let google = FakeGcs::start();
    google.put("c.tar.gz", &archive);
    let azurite = Azurite::start(&folder("azurite"));
    azurite.put("c.tar.gz", &archive);
    let blob = format!("https://{}.blob.core.windows.net/contexts/c.tar.gz", Azurite::ACCOUNT);
    let signed = format!("{blob}?{}", Azurite::signature());
    let key = ("AZURE_STORAGE_ACCESS_KEY", Azurite::KEY.to_owned());
    let place = ("AZURE_STORAGE_SERVICE_ENDPOINT", azurite.endpoint());
    let s3_variables = vec![
        ("S3_ENDPOINT", format!("http://127.0.0.1:{}", s3.port)),
        ("AWS_ACCESS_KEY_ID", S3rver::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", S3rver::KEY.to_owned()),
    ];
    let emulator = vec![("STORAGE_EMULATOR_HOST", format!("127.0.0.1:{}", google.port))];
    for (context, variables, uri) in [
        ("s3://contexts/a/c.tar.gz", s3_variables, "s3://contexts/a/c.tar.gz"),
        ("gs://contexts/c.tar.gz", emulator, "gs://contexts/c.tar.gz"),
        (&*blob, vec![place.clone(), key], &*blob),
        (&*signed, vec![place], &*blob),
    ] {
        // As the context, and as a named one that a step reads.
        let named = format!("src={context}");
        for (flags, dockerfile) in [
            (["-c", context], "FROM scratch\nCOPY f /f\n"),
            (["--build-context", &named], "FROM scratch\nCOPY --from=src f /f\n"),
        ] {
            let layout = tempfile::tempdir_in(work.bench.directory.path()).unwrap().keep();
            let mut command = work.command(dockerfile, &flags);
            command.arg("--oci-layout-path").arg(&layout).env("HOME", work.path("home"));
            let output = command.envs(variables.clone()).output().unwrap();
            assert!(output.status.success(), "{context}: {}", text(&output));
            let said = predicate(&layout, 0, SLSA);
            let used = &said["buildDefinition"]["resolvedDependencies"];
            let material = serde_json::json!([{"uri": uri, "digest": {"sha256": &digest}}]);
            assert_eq!(*used, material, "{context}");
            assert!(!format!("{said}{}", text(&output)).contains("sig="), "{context}");
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_attestations() {
    let work = Work::new(&[]);
    let digest = |place: &str| {
        let path = work.path(place).display().to_string();
        let flags = ["--no-push", "--reproducible", "--sbom", "--provenance", "--digest-file", &path];
        work.builds("FROM scratch\nCOPY base.tar /\n", &flags);
        std::fs::read_to_string(path).unwrap()
    };
    assert_eq!(digest("one"), digest("two"));
}

#[test]
fn attestations_in_docker_s_format_are_refused_with_the_reason() {
    let work = Work::new(&[]);
    let archive = work.path("a.tar").display().to_string();
    for flags in [["--image-format=docker", "--no-push"], ["--tar-path", &archive]] {
        let output =
            work.build("FROM scratch\n", &[flags.as_slice(), &["--sbom", "-d", "x.example/a"]].concat());
        assert!(!output.status.success() && text(&output).contains("OCI index"), "{}", text(&output));
    }
    let output = work.build("FROM scratch\n", &["--no-push", "--provenance=mode=all"]);
    assert!(text(&output).contains("mode=max"), "{}", text(&output));
}
