//! What the workloads need: an image of about 1 GB, contexts, a registry, a container image for rung root.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::far::Far;
use crate::measure::shell;

/// A directory with everything, and a registry that runs.
pub(crate) struct Setup {
    pub(crate) kiln: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) host: String,
    /// The same registry from far away.
    far: Far,
    /// The root of this repository.
    pub(crate) repository: PathBuf,
    registry: Child,
}

impl Drop for Setup {
    fn drop(&mut self) {
        _ = self.registry.kill();
        _ = self.registry.wait();
    }
}

/// What the base image holds.
const PACKAGES: &str =
    "gcc,g++,make,cmake,clang,python3,perl,git,curl,ca-certificates,pkg-config,libssl-dev,golang-go";

/// Bytes that don't compress, the same every time: of a linear congruential generator.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.0 >> 56) as u8;
        }
    }
}

impl Setup {
    /// Makes what is missing in `work`, and starts the registry.
    pub(crate) fn make(kiln: &Path, work: &Path) -> Result<Self, String> {
        let fail = |error: io::Error| format!("{}: {error}", work.display());
        fs::create_dir_all(work).map_err(fail)?;
        let (kiln, work) = (kiln.canonicalize().map_err(fail)?, work.canonicalize().map_err(fail)?);
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned();
        let (registry, host) = registry(&work, "registry.yml", "")?;
        let far = Far::start(&work)?;
        let setup = Self { kiln, work, host, far, repository, registry };
        setup.base()?;
        setup.contexts().map_err(fail)?;
        setup.container()?;
        Ok(setup)
    }

    /// The host of the registry from far away.
    pub(crate) fn far(&self) -> &str {
        &self.far.host
    }

    /// What shell lines can use.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        let store = self.work.join("store");
        vec![
            ("KILN", text(&self.kiln)),
            ("WORK", text(&self.work)),
            ("HOST", self.host.clone()),
            ("FAR", self.far().to_owned()),
            ("REPOSITORY", text(&self.repository)),
            ("CONTAINERS_CONF", text(&self.repository.join("integration/pod/containers.conf"))),
            (
                "BUILDAH",
                format!("buildah --root {0}/root --runroot {0}/run --storage-driver overlay", text(&store)),
            ),
        ]
    }

    /// The base image: Debian with compilers, in three layers as registries have them, one gzip stream each.
    fn base(&self) -> Result<(), String> {
        let layout = self.work.join("base");
        if !layout.exists() {
            eprintln!("making the base image; this takes minutes, and is done once");
            let line = format!(
                "test -e base.tar || {{ mmdebstrap --variant=minbase --include={PACKAGES} bookworm - \
                 'deb http://deb.debian.org/debian bookworm main' > base.tar.new; mv base.tar.new base.tar; }}"
            );
            shell(self, &line)?;
            let split = "rm -rf split base.new; mkdir split; cd split; \
                 mkdir 0 1 2; tar -C 0 -xf ../base.tar; rm -rf 0/dev/*; \
                 for path in usr/lib/gcc usr/lib/x86_64-linux-gnu usr/include; do \
                   mkdir -p 1/$(dirname $path); mv 0/$path 1/$path; done; \
                 for path in usr/lib/go-1.19 usr/share/go-1.19 usr/lib/llvm-14; do \
                   mkdir -p 2/$(dirname $path); mv 0/$path 2/$path; done; \
                 rm -rf 2/usr/lib/go-1.19/pkg/linux_amd64_race 2/usr/share/go-1.19/test; \
                 for n in 0 1 2; do tar -C $n --sort=name --numeric-owner --xattrs -cf $n.tar .; rm -rf $n; done";
            shell(self, split)?;
            let new = self.work.join("base.new");
            layout_of(&self.work.join("split"), 3, &new)
                .map_err(|error| format!("the base image: {error}"))?;
            fs::rename(&new, &layout).map_err(|error| error.to_string())?;
            shell(self, "rm -f base.tar")?;
        }
        let small = self.work.join("small-base");
        if !small.exists() {
            let line = "rm -rf split-small; mkdir -p split-small/0/bin; cp $(command -v busybox) split-small/0/bin/busybox; \
                 for name in sh cat; do ln -s busybox split-small/0/bin/$name; done; \
                 tar -C split-small/0 -cf split-small/0.tar .";
            shell(self, line)?;
            layout_of(&self.work.join("split-small"), 1, &small).map_err(|error| error.to_string())?;
        }
        let files = self.work.join("files-base");
        if !files.exists() {
            let line = "rm -rf split-files; mkdir -p split-files/0; cp -a split-small/0/bin split-files/0/; cd split-files/0; \
                 for d in $(seq 600); do mkdir -p usr/$d; for f in $(seq 100); do echo $d $f > usr/$d/file-$f; done; done; \
                 cd ../..; tar -C split-files/0 --sort=name -cf split-files/0.tar .; rm -rf split-files/0";
            shell(self, line)?;
            layout_of(&self.work.join("split-files"), 1, &files).map_err(|error| error.to_string())?;
        }
        shell(
            self,
            "skopeo copy -q --dest-tls-verify=false oci:base:latest docker://$HOST/base:1; \
             skopeo copy -q --dest-tls-verify=false oci:files-base:latest docker://$HOST/files:1; \
             skopeo copy -q --dest-tls-verify=false oci:small-base:latest docker://$HOST/small:1",
        )
    }

    /// The contexts that are copied.
    fn contexts(&self) -> io::Result<()> {
        let small = self.work.join("small");
        fs::create_dir_all(&small)?;
        fs::write(small.join("hello"), "hello\n")?;
        let noise = self.work.join("noise");
        if !noise.exists() {
            fs::create_dir_all(&noise)?;
            let mut bytes = vec![0; 60_000_000];
            Noise(3).fill(&mut bytes);
            fs::write(noise.join("noise"), bytes)?;
        }
        let many = self.work.join("many");
        if many.exists() {
            return Ok(());
        }
        let new = self.work.join("many.new");
        _ = fs::remove_dir_all(&new);
        let mut noise = Noise(7);
        // 20,000 files of 20 KB, half of it text that repeats: like a folder of JavaScript packages.
        for directory in 0..200 {
            let at = new.join(format!("package-{directory}/lib"));
            fs::create_dir_all(&at)?;
            for file in 0..100 {
                let mut bytes = vec![0; 20_000];
                noise.fill(&mut bytes[..5_000]);
                for (at, byte) in bytes[5_000..].iter_mut().enumerate() {
                    *byte = b"export function value() { return 42; }\n"[at % 39];
                }
                fs::write(at.join(format!("file-{file}.js")), &bytes)?;
            }
        }
        fs::rename(new, many)
    }

    /// The image in which rung root is measured: Kiln and a static `time`.
    fn container(&self) -> Result<(), String> {
        shell(
            self,
            "rm -rf image; mkdir -p image/kaniko image/etc image/tmp image/workspace; cp $KILN image/kaniko/executor; \
             cp $(command -v busybox) image/kaniko/busybox; touch image/etc/kiln-image; \
             tar -C image -c . | podman import -q - kiln-bench >/dev/null; rm -rf image",
        )
    }
}

/// Starts a registry with its configuration in the file `config`, to which `http` is added, and gives its host.
pub(crate) fn registry(work: &Path, config: &str, http: &str) -> Result<(Child, String), String> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.map_err(|error| format!("no free port: {error}"))?.port();
    let (config, storage) = (work.join(config), work.join("registry"));
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: \
         {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: 127.0.0.1:{port}{http}}}\n",
        storage.display()
    );
    fs::write(&config, text).map_err(|error| error.to_string())?;
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("could not start docker-registry: {error}"))?;
    let began = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if began.elapsed() > Duration::from_secs(20) {
            return Err("docker-registry does not listen".to_owned());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((child, format!("127.0.0.1:{port}")))
}

/// Hashes what goes through to a file.
struct Hashed {
    file: File,
    hasher: kiln_oci::Hasher,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An OCI layout of the archives `0.tar`, `1.tar` … in `from`, which stay there for the limits.
fn layout_of(from: &Path, count: usize, to: &Path) -> io::Result<()> {
    let blobs = to.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..count {
        let temporary = to.join("layer");
        let out = Hashed { file: File::create(&temporary)?, hasher: kiln_oci::Hasher::sha256(), size: 0 };
        let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
        let mut tar = File::open(from.join(format!("{number}.tar")))?;
        let (mut diff_id, mut buffer) = (kiln_oci::Hasher::sha256(), vec![0; 1 << 20]);
        loop {
            let length = tar.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            diff_id.update(&buffer[..length]);
            gzip.write_all(&buffer[..length])?;
        }
        let out = gzip.finish()?;
        let (digest, size) = (out.hasher.finish(), out.size);
        fs::rename(&temporary, blobs.join(digest.hex()))?;
        diff_ids.push(diff_id.finish().to_string());
        layers.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest.to_string(), "size": size,
        }));
    }
    let put = |value: &serde_json::Value| -> io::Result<(String, usize)> {
        let bytes = serde_json::to_vec(value)?;
        let digest = kiln_oci::Digest::of(&bytes);
        fs::write(blobs.join(digest.hex()), &bytes)?;
        Ok((digest.to_string(), bytes.len()))
    };
    let (config, size) = put(&serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": vec![serde_json::json!({"created_by": "mmdebstrap"}); count],
    }))?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let (manifest, length) = put(&serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": layers,
    }))?;
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": manifest_type, "digest": manifest, "size": length,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }]});
    fs::write(to.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)
}
