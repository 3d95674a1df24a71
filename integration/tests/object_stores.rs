//! Archives as contexts, from servers: nginx with TLS, and the stand-ins of S3, Cloud Storage and Blob Storage. From each,
//! an image is the one that the same files in a directory give.

#![expect(clippy::disallowed_methods, reason = "a test program reads its own environment")]

use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_integration::servers::{Azurite, Cut, FakeGcs, Moto, Nginx, S3rver};
use kiln_integration::work::text;
use kiln_integration::{Bench, Built, kiln};

/// Three parts, for the stores that are asked for parts.
const LARGE: usize = 9 << 20;
const DOCKERFILE: &str = "FROM scratch\nCOPY . /x/\n";

fn build(bench: &Bench, context: &str, variables: &[(&str, String)]) -> Built {
    let layout = tempfile::tempdir_in(bench.directory.path()).unwrap().keep();
    let file = bench.directory.path().join("Dockerfile");
    std::fs::write(&file, DOCKERFILE).unwrap();
    let mut command = Command::new(kiln());
    command.arg("executor").arg("--context").arg(context).arg("--dockerfile").arg(&file);
    command.arg("--scratch-dir").arg(bench.directory.path().join("scratch"));
    command.arg("--oci-layout-path").arg(&layout).args(["--no-push", "--reproducible"]);
    command.env("HOME", bench.directory.path()).env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Built { output: command.output().unwrap(), layout }
}

/// Files, the same in archives, and what a build of the directory gives.
struct Samples {
    bench: Bench,
    files: PathBuf,
    digest: String,
}

impl Samples {
    /// Large ones have several parts for the stores that are asked for parts.
    fn new(bytes: usize, archives: &[&str]) -> Self {
        let bench = Bench::new();
        let source = bench.directory.path().join("source");
        let files = bench.directory.path().join("files");
        std::fs::create_dir_all(source.join("d")).unwrap();
        std::fs::create_dir(&files).unwrap();
        std::fs::write(source.join("d/small"), "small\n").unwrap();
        // What can't be compressed.
        let mut noise = vec![0; bytes];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
        std::fs::write(source.join("large"), noise).unwrap();
        for name in archives {
            // GNU tar knows the compression by the name.
            let mut tar = Command::new("tar");
            tar.arg("-caf").arg(files.join(name)).arg("-C").arg(&source).arg(".");
            assert!(tar.status().unwrap().success(), "{name}");
        }
        std::fs::write(files.join("page.html"), "<html>no archive</html>").unwrap();
        let built = build(&bench, source.to_str().unwrap(), &[]);
        let digest = built.succeeded().digest();
        Self { bench, files, digest }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn same(&self, context: &str, variables: &[(&str, String)]) -> Built {
        let built = build(&self.bench, context, variables);
        assert_eq!(built.succeeded().digest(), self.digest, "{context}: {}", built.log());
        built
    }

    fn fails(&self, context: &str, variables: &[(&str, String)], words: &[&str]) -> String {
        let built = build(&self.bench, context, variables);
        assert_eq!(built.output.status.code(), Some(1), "{context}: {}", built.log());
        for word in words {
            assert!(built.log().contains(word), "{context}: {word:?} is not in: {}", built.log());
        }
        built.log()
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.bench.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

#[test]
fn an_archive_by_https() {
    let samples = Samples::new(LARGE, &["c.tar.gz"]);
    std::fs::create_dir(samples.path("private")).unwrap();
    std::fs::copy(samples.path("c.tar.gz"), samples.path("private/c.tar.gz")).unwrap();
    let nginx = Nginx::start(&samples.directory("nginx"), &samples.files);
    let trust = [("SSL_CERT_FILE", nginx.ca.display().to_string())];
    let at = |port: u16, name: &str| format!("https://127.0.0.1:{port}/{name}");
    samples.same(&at(nginx.port, "c.tar.gz"), &trust);
    let cut = Cut::start(nginx.port, 3, 2 << 20);
    let log = samples.same(&at(cut.port(), "c.tar.gz?sig=s3cret"), &trust).log();
    assert_eq!(cut.cut(), 3);
    assert!(log.contains("going on at"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
    samples.fails(&at(nginx.port, "nope.tar"), &trust, &["404", "there is no such file"]);
    samples.fails(&at(nginx.port, "page.html"), &trust, &["no tar archive", "<html>no archive"]);
    samples.fails(&at(nginx.port, "private/c.tar.gz"), &trust, &["401"]);
    let (user, password) = Nginx::LOGIN;
    let login = |password: &str| {
        at(nginx.port, "private/c.tar.gz").replace("https://", &format!("https://{user}:{password}@"))
    };
    let log = samples.same(&login(password), &trust).log();
    assert!(!log.contains(password), "{log}");
    let wrong = samples.fails(&login("wr0ng"), &trust, &["401", "a login or a signature"]);
    assert!(!wrong.contains("wr0ng"), "{wrong}");
    samples.fails(&at(nginx.port, "c.tar.gz"), &[], &["certificate"]);
}

#[test]
fn an_archive_may_be_compressed_in_any_way() {
    // More than one block of bzip2's.
    let names = ["c.tar", "c.tar.gz", "c.tar.xz", "c.tar.zst", "c.tar.bz2"];
    let samples = Samples::new(1_500_000, &names);
    let nginx = Nginx::start(&samples.directory("nginx"), &samples.files);
    let trust = [("SSL_CERT_FILE", nginx.ca.display().to_string())];
    for name in names {
        samples.same(&format!("https://127.0.0.1:{}/{name}", nginx.port), &trust);
        samples.same(&format!("tar://{}", samples.path(name).display()), &[]);
    }
}

#[test]
fn a_dockerfile_can_be_a_url() {
    let samples = Samples::new(1000, &["c.tar"]);
    std::fs::write(samples.path("Dockerfile"), "FROM scratch\nCOPY d/small /from-a-url\n").unwrap();
    let nginx = Nginx::start(&samples.directory("nginx"), &samples.files);
    let url = format!("https://127.0.0.1:{}/Dockerfile?signature=hunter2", nginx.port);
    let context = format!("https://127.0.0.1:{}/c.tar", nginx.port);
    let layout = samples.directory("out");
    let output = Command::new(kiln())
        .args(["executor", "--no-push", "--provenance", "-f", &url, "-c", &context, "--oci-layout-path"])
        .arg(&layout)
        .arg("--scratch-dir")
        .arg(samples.directory("scratch"))
        .env("SSL_CERT_FILE", &nginx.ca)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    // The file is a material, without its signature; the layer is what it says.
    let shown = url.split('?').next().unwrap();
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().flatten();
    let texts: Vec<Vec<u8>> = blobs.map(|blob| std::fs::read(blob.path()).unwrap()).collect();
    let said = texts.iter().filter_map(|bytes| std::str::from_utf8(bytes).ok());
    let said: Vec<&str> = said.filter(|text| text.contains("slsa.dev/provenance/v1")).collect();
    assert!(said.iter().any(|text| text.contains(&format!("{shown}\""))), "{said:?}");
    assert!(
        !said.iter().any(|text| text.contains("hunter2")) && !text(&output).contains("hunter2"),
        "{said:?}"
    );
    // The warmer takes one by a URL, too.
    let registry = kiln_integration::registry::Registry::start();
    let base = Command::new(kiln())
        .args(["executor", "-f", "d/small", "-d", &format!("{}/base:1", registry.host), "-c", &context])
        .arg("--scratch-dir")
        .arg(samples.directory("scratch"))
        .args(["-f", &url])
        .env("SSL_CERT_FILE", &nginx.ca)
        .output()
        .unwrap();
    assert!(base.status.success(), "{}", text(&base));
    std::fs::write(samples.path("ForWarmer"), format!("FROM {}/base:1\nRUN true\n", registry.host)).unwrap();
    let url = format!("https://127.0.0.1:{}/ForWarmer?signature=hunter2", nginx.port);
    let volume = samples.directory("volume");
    let warm = |url: &str| {
        let mut command = Command::new(kiln());
        command.args(["warmer", "--dockerfile", url, "--cache-dir"]).arg(&volume);
        command.env("SSL_CERT_FILE", &nginx.ca).output().unwrap()
    };
    let warmed = warm(&url);
    assert!(warmed.status.success() && text(&warmed).contains("/base:1"), "{}", text(&warmed));
    assert!(!text(&warmed).contains("hunter2"), "{}", text(&warmed));
    let missing = warm(&url.replace("ForWarmer", "Nope"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing).contains("404") && !text(&missing).contains("hunter2"), "{}", text(&missing));
}

#[test]
fn an_object_of_s3() {
    let samples = Samples::new(LARGE, &["c.tar.gz"]);
    let (whole, page) = (samples.path("c.tar.gz"), samples.path("page.html"));
    let moto = Moto::start(&[("a b+c/c.tar.gz", &whole), ("context.tar.gz", &whole), ("page", &page)]);
    let with = |port: u16, secret: &str| {
        [
            ("S3_ENDPOINT", format!("http://127.0.0.1:{port}")),
            ("S3_FORCE_PATH_STYLE", "true".to_owned()),
            ("AWS_REGION", "eu-west-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", moto.key.0.clone()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
        ]
    };
    let good = with(moto.port, &moto.key.1);
    samples.same("s3://contexts/a b+c/c.tar.gz", &good);
    samples.same("s3://contexts", &good);
    let cut = Cut::start(moto.port, 3, 1 << 20);
    let log = samples.same("s3://contexts/context.tar.gz", &with(cut.port(), &moto.key.1)).log();
    assert_eq!(cut.cut(), 3);
    assert!(log.contains("going on at"), "{log}");
    samples.fails("s3://contexts/page", &good, &["no tar archive"]);
    samples.fails("s3://contexts/nope", &good, &["404", "no such object"]);
    samples.fails("s3://contexts/page", &with(moto.port, "wr0ng"), &["403", "AWS_ACCESS_KEY_ID"]);
    samples.fails("s3://contexts/page", &good[..3], &["403", "asked without credentials"]);
    // A profile's keys, as ~/.aws has them.
    let home = samples.directory("aws-home");
    std::fs::create_dir(home.join(".aws")).unwrap();
    let text = format!(
        "[ci]\nregion = eu-west-1\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        moto.key.0, moto.key.1
    );
    std::fs::write(home.join(".aws/credentials"), text).unwrap();
    let profile = [
        ("S3_ENDPOINT", format!("http://127.0.0.1:{}", moto.port)),
        ("AWS_PROFILE", "ci".to_owned()),
        ("HOME", home.display().to_string()),
    ];
    samples.same("s3://contexts", &profile);
}

#[test]
fn an_object_of_cloud_storage() {
    let samples = Samples::new(LARGE, &["c.tar.gz"]);
    let server = FakeGcs::start();
    server.put("context.tar.gz", &samples.path("c.tar.gz"));
    server.put("page", &samples.path("page.html"));
    let with = |port: u16| [("STORAGE_EMULATOR_HOST", format!("127.0.0.1:{port}"))];
    samples.same("gs://contexts/context.tar.gz", &with(server.port));
    samples.same("gs://contexts", &with(server.port));
    let cut = Cut::start(server.port, 3, 1 << 20);
    samples.same("gs://contexts", &with(cut.port()));
    assert_eq!(cut.cut(), 3);
    samples.fails("gs://contexts/page", &with(server.port), &["no tar archive"]);
    samples.fails("gs://contexts/nope", &with(server.port), &["404", "no such object"]);
    let key = samples.path("key.json");
    std::fs::write(&key, r#"{"type":"service_account","client_email":"a@b","private_key":"s3cret"}"#)
        .unwrap();
    let broken = [("GOOGLE_APPLICATION_CREDENTIALS", key.display().to_string())];
    samples.fails("gs://contexts/page", &broken, &["key.json", "no PEM key"]);
    // `--bucket` is kaniko's old way to say it.
    let output = Command::new(kiln())
        .args(["executor", "--no-push", "--bucket", "contexts", "-f", "d/small", "--scratch-dir"])
        .arg(samples.directory("scratch"))
        .env("STORAGE_EMULATOR_HOST", format!("127.0.0.1:{}", server.port))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("gs://contexts/context.tar.gz") && log.contains("d/small"), "{log}");
}

#[test]
fn a_blob_of_azure() {
    let samples = Samples::new(LARGE, &["c.tar.gz"]);
    let azurite = Azurite::start(&samples.directory("azurite"));
    azurite.put("c.tar.gz", &samples.path("c.tar.gz"));
    azurite.put("page", &samples.path("page.html"));
    let url = |name: &str| format!("https://{}.blob.core.windows.net/contexts/{name}", Azurite::ACCOUNT);
    let with = |port: u16, key: &str| {
        [
            ("AZURE_STORAGE_SERVICE_ENDPOINT", format!("http://127.0.0.1:{port}/{}", Azurite::ACCOUNT)),
            ("AZURE_STORAGE_ACCESS_KEY", key.to_owned()),
        ]
    };
    let good = with(azurite.port, Azurite::KEY);
    samples.same(&url("c.tar.gz"), &good);
    let cut = Cut::start(azurite.port, 3, 1 << 20);
    samples.same(&url("c.tar.gz"), &with(cut.port(), Azurite::KEY));
    assert_eq!(cut.cut(), 3);
    samples.fails(&url("page"), &good, &["no tar archive"]);
    samples.fails(&url("nope"), &good, &["404", "no such object"]);
    samples.fails(&url("page"), &with(azurite.port, "d3Iwbmc="), &["403", "AZURE_STORAGE_ACCESS_KEY"]);
    samples.fails(
        &url("page"),
        &with(azurite.port, "not base64!"),
        &["AZURE_STORAGE_ACCESS_KEY is no base64"],
    );
    // A shared access signature, in the URL and in a variable.
    let place = [good[0].clone()];
    let signature = Azurite::signature();
    let log = samples.same(&format!("{}?{signature}", url("c.tar.gz")), &place).log();
    assert!(!log.contains("sig="), "{log}");
    let named = |signature: &str| [good[0].clone(), ("AZURE_STORAGE_SAS_TOKEN", signature.to_owned())];
    samples.same(&url("c.tar.gz"), &named(&signature));
    let wrong = signature.replace("sig=", "sig=AAAA");
    let log = samples.fails(&url("c.tar.gz"), &named(&wrong), &["403", "the shared access signature"]);
    assert!(!log.contains("sig="), "{log}");
}

#[test]
fn named_contexts_are_of_every_kind() {
    let samples = Samples::new(1000, &["c.tar.gz"]);
    let archive = samples.path("c.tar.gz");
    let nginx = Nginx::start(&samples.directory("nginx"), &samples.files);
    let s3 = S3rver::start(&samples.directory("s3"));
    s3.put("c.tar.gz", &archive);
    let google = FakeGcs::start();
    google.put("c.tar.gz", &archive);
    let azurite = Azurite::start(&samples.directory("azurite"));
    azurite.put("c.tar.gz", &archive);
    let source = samples.bench.directory.path().join("source").display().to_string();
    let dockerfile = samples.bench.directory.path().join("Named");
    std::fs::write(&dockerfile, "FROM scratch\nCOPY --from=src . /x/\n").unwrap();
    let digest = |place: &str| {
        let layout = samples.directory(&format!("named-{}", place.replace(['/', ':'], "-")));
        let output = Command::new(kiln())
            .args([
                "executor",
                "--no-push",
                "--reproducible",
                "--build-context",
                &format!("src={place}"),
                "-f",
            ])
            .arg(&dockerfile)
            .arg("-c")
            .arg(samples.directory("empty"))
            .arg("--oci-layout-path")
            .arg(&layout)
            .arg("--scratch-dir")
            .arg(samples.directory("scratch"))
            .env("SSL_CERT_FILE", &nginx.ca)
            .env("S3_ENDPOINT", format!("http://127.0.0.1:{}", s3.port))
            .envs([("AWS_ACCESS_KEY_ID", S3rver::KEY), ("AWS_SECRET_ACCESS_KEY", S3rver::KEY)])
            .env("STORAGE_EMULATOR_HOST", format!("127.0.0.1:{}", google.port))
            .env("AZURE_STORAGE_SERVICE_ENDPOINT", azurite.endpoint())
            .env("AZURE_STORAGE_ACCESS_KEY", Azurite::KEY)
            .output()
            .unwrap();
        Built { output, layout }.succeeded().digest()
    };
    let expected = digest(&source);
    for place in [
        format!("dir://{source}"),
        format!("tar://{}", archive.display()),
        format!("https://127.0.0.1:{}/c.tar.gz", nginx.port),
        "s3://contexts/c.tar.gz".to_owned(),
        "gs://contexts/c.tar.gz".to_owned(),
        format!("https://{}.blob.core.windows.net/contexts/c.tar.gz", Azurite::ACCOUNT),
    ] {
        assert_eq!(digest(&place), expected, "{place}");
    }
}

/// How many bytes; `make test-all` moves 2 GB.
fn large() -> u64 {
    std::env::var("KILN_CONTEXT_BYTES")
        .map_or(100 << 20, |text| text.parse().expect("it is a number of bytes"))
}

/// A bench with a large archive in the folder `files`.
fn with_large_archive() -> (Bench, PathBuf) {
    let bench = Bench::new();
    let root = bench.directory.path().join("files");
    std::fs::create_dir(&root).unwrap();
    let script =
        format!("head -c {} /dev/zero | tr '\\0' x > large && tar -cf large.tar large && rm large", large());
    assert!(Command::new("sh").args(["-c", &script]).current_dir(&root).status().unwrap().success());
    std::fs::write(bench.directory.path().join("Dockerfile"), "FROM scratch\nLABEL a=b\n").unwrap();
    std::fs::create_dir(bench.directory.path().join("server")).unwrap();
    (bench, root.join("large.tar"))
}

/// From a source that is read from end to end, and from one whose parts are kept until it is their turn.
#[test]
fn a_large_archive_takes_less_than_64_megabytes_of_memory() {
    let (bench, archive) = with_large_archive();
    let server = bench.directory.path().join("server");
    let nginx = Nginx::start(&server, archive.parent().unwrap());
    let url = format!("https://127.0.0.1:{}/large.tar", nginx.port);
    measured(&bench, &url, &[("SSL_CERT_FILE", nginx.ca.display().to_string())]);
    let s3 = S3rver::start(&server);
    s3.put("large.tar", &archive);
    std::fs::remove_file(&archive).unwrap();
    let variables = [
        ("S3_ENDPOINT", format!("http://127.0.0.1:{}", s3.port)),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", S3rver::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", S3rver::KEY.to_owned()),
    ];
    measured(&bench, "s3://contexts/large.tar", &variables);
}

#[test]
fn a_large_object_of_cloud_storage_takes_less_than_64_megabytes_of_memory() {
    let (bench, archive) = with_large_archive();
    let server = FakeGcs::start_in(&bench.directory.path().join("server"));
    server.put("large.tar", &archive);
    std::fs::remove_file(&archive).unwrap();
    let variables = [("STORAGE_EMULATOR_HOST", format!("127.0.0.1:{}", server.port))];
    measured(&bench, "gs://contexts/large.tar", &variables);
}

#[test]
fn a_large_blob_of_azure_takes_less_than_64_megabytes_of_memory() {
    let (bench, archive) = with_large_archive();
    let azurite = Azurite::start(&bench.directory.path().join("server"));
    azurite.put("large.tar", &archive);
    std::fs::remove_file(&archive).unwrap();
    let variables = [
        ("AZURE_STORAGE_SERVICE_ENDPOINT", azurite.endpoint()),
        ("AZURE_STORAGE_ACCESS_KEY", Azurite::KEY.to_owned()),
    ];
    let url = format!("https://{}.blob.core.windows.net/contexts/large.tar", Azurite::ACCOUNT);
    measured(&bench, &url, &variables);
}

fn measured(bench: &Bench, context: &str, variables: &[(&str, String)]) {
    let output = Command::new("/usr/bin/time")
        .args(["-f", "peak %M"])
        .arg(kiln())
        .args(["executor", "--no-push", "--context", context, "--dockerfile"])
        .arg(bench.directory.path().join("Dockerfile"))
        .arg("--scratch-dir")
        .arg(bench.directory.path().join("scratch"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .expect("time is installed: integration/scripts/install-test-tools");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let peak = log.lines().find_map(|line| line.strip_prefix("peak ")).unwrap();
    let peak: u64 = peak.parse().unwrap();
    println!("{context}: {peak} kB");
    assert!(peak < 64 << 10, "{context} took {peak} kB");
}

#[test]
fn an_archive_in_a_file_and_on_standard_input() {
    let samples = Samples::new(1000, &["c.tar.gz"]);
    let archive = samples.path("c.tar.gz");
    samples.same(&format!("tar://{}", archive.display()), &[]);
    let stdin = |path: &Path| std::process::Stdio::from(std::fs::File::open(path).unwrap());
    let layout = samples.directory("stdin");
    let output = Command::new(kiln())
        .args(["executor", "--no-push", "--reproducible", "-c", "tar://stdin", "-f"])
        .arg(samples.bench.directory.path().join("Dockerfile"))
        .arg("--oci-layout-path")
        .arg(&layout)
        .arg("--scratch-dir")
        .arg(samples.directory("scratch"))
        .stdin(stdin(&archive))
        .output()
        .unwrap();
    let built = Built { output, layout };
    assert_eq!(built.succeeded().digest(), samples.digest);
}
