//! What the integration tests share: the binary, a base image made of busybox, and an image's files as lines of text.

#![expect(clippy::disallowed_methods, reason = "a test program reads its own environment")]

pub mod base;
pub mod case;
pub mod flat;
pub mod images;
pub mod kubelet;
pub mod manifest;
pub mod registry;
pub mod sandboxed;
pub mod site;
pub mod token_server;
pub mod work;

pub mod servers;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The `kiln` binary: what `KILN` names, or built once. What is built here is static, so that it runs in an image of its own.
pub fn kiln() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT.get_or_init(build_kiln).clone()
}

/// The root of the repository.
pub fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The same for an image without any library in it.
///
/// # Panics
/// If `KILN` names a binary that wants a dynamic linker.
pub fn static_kiln() -> PathBuf {
    let path = kiln();
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        !wants_linker(&bytes),
        "{} is not static, and an image of its own has no libraries for it: leave KILN out, or build it with \
         -C target-feature=+crt-static",
        path.display()
    );
    path
}

/// Whether an ELF file of 64 bits names a program that is to load it (elf(5): PT_INTERP).
fn wants_linker(elf: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length).unwrap_or_default();
        bytes.iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|header| number(start + header * size, 4) == 3)
}

fn build_kiln() -> PathBuf {
    if let Some(path) = std::env::var_os("KILN") {
        return path.into();
    }
    let root = repository_root();
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--locked", "--bin", "kiln", "--", "-C", "target-feature=+crt-static"])
        .current_dir(&root)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "kiln builds");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("debug/kiln")
}

/// A folder with a context, a scratch directory and an output.
pub struct Bench {
    /// Everything is below it.
    pub directory: tempfile::TempDir,
}

/// What a build came to.
pub struct Built {
    /// Exit code and output.
    pub output: Output,
    /// The layout that was written.
    pub layout: PathBuf,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// A bench whose context holds the files of a small base image, `base.tar`.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bench = Self { directory };
        std::fs::create_dir_all(bench.context()).unwrap();
        base_tar(&bench.context().join("base.tar"));
        bench
    }

    /// The context's directory.
    pub fn context(&self) -> PathBuf {
        self.directory.path().join("context")
    }

    /// Writes a file of the context.
    pub fn file(&self, name: &str, content: &str) -> &Self {
        let path = self.context().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Builds `dockerfile`, whose stages can begin with `FROM base`.
    pub fn build(&self, dockerfile: &str, flags: &[&str]) -> Built {
        let (mut command, layout) = self.command(dockerfile, flags);
        Built { output: command.output().unwrap(), layout }
    }

    /// The command of such a build, and the layout that it writes.
    pub fn command(&self, dockerfile: &str, flags: &[&str]) -> (Command, PathBuf) {
        let layout = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        let file = self.directory.path().join("Dockerfile");
        let text = format!("FROM scratch AS base\nADD base.tar /\nENV PATH=/bin\n{dockerfile}");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(kiln());
        command
            .arg("executor")
            .arg("--context")
            .arg(self.context())
            .arg("--dockerfile")
            .arg(&file)
            .arg("--scratch-dir")
            .arg(self.directory.path().join("scratch"))
            .arg("--oci-layout-path")
            .arg(&layout)
            .args(["--no-push", "--reproducible"])
            .args(flags);
        (command, layout)
    }
}

/// An archive with busybox, passwd and group.
pub(crate) fn base_tar(path: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, name, data).unwrap();
    };
    for name in ["bin/", "dev/", "etc/", "root/", "home/", "home/ana/", "proc/", "sys/"] {
        add(name, tar::EntryType::Directory, 0o755, "", b"");
    }
    add("tmp/", tar::EntryType::Directory, 0o1777, "", b"");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("busybox is installed: integration/scripts/install-test-tools");
    add("bin/busybox", tar::EntryType::Regular, 0o755, "", &busybox);
    for applet in [
        "sh", "awk", "base64", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env",
        "false", "find", "grep", "head", "id", "ip", "kill", "ln", "ls", "mkdir", "mkfifo", "mknod", "mv",
        "nohup", "printf", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "sleep", "sort", "stat",
        "tail", "tar", "test", "touch", "tr", "true", "wc",
    ] {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, "busybox", b"");
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nana:x:1000:1001:Ana:/home/ana:/bin/sh\n";
    add("etc/passwd", tar::EntryType::Regular, 0o644, "", passwd);
    add("etc/group", tar::EntryType::Regular, 0o644, "", b"root:x:0:\nana:x:1001:\nweb:x:33:ana\n");
    tar.finish().unwrap();
}

impl Built {
    /// The build's own words.
    pub fn log(&self) -> String {
        format!(
            "{}{}",
            String::from_utf8_lossy(&self.output.stdout),
            String::from_utf8_lossy(&self.output.stderr)
        )
    }

    /// Fails the test unless the build succeeded.
    pub fn succeeded(&self) -> &Self {
        assert!(self.output.status.success(), "{}", self.log());
        self
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        std::fs::read(self.layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap()
    }

    fn json(&self, digest: &str) -> serde_json::Value {
        serde_json::from_slice(&self.blob(digest)).unwrap()
    }

    /// The manifest's digest.
    pub fn digest(&self) -> String {
        let index = std::fs::read(self.layout.join("index.json"));
        let index: serde_json::Value =
            serde_json::from_slice(&index.unwrap_or_else(|_| panic!("{}", self.log()))).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// The manifest.
    pub fn manifest(&self) -> serde_json::Value {
        self.json(&self.digest())
    }

    /// The image config.
    pub fn config(&self) -> serde_json::Value {
        self.json(self.manifest()["config"]["digest"].as_str().unwrap())
    }

    /// The names in the last layer.
    pub fn last_layer(&self) -> Vec<String> {
        let manifest = self.manifest();
        let layer =
            manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned();
        let bytes = self.blob(&layer);
        let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(bytes.as_slice()));
        tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    /// The files of the image without the base's, one a line: path, kind, mode, owner, content or link.
    pub fn files(&self) -> Vec<String> {
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for (number, layer) in self.manifest()["layers"].as_array().unwrap().iter().enumerate() {
            let bytes = self.blob(layer["digest"].as_str().unwrap());
            let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(bytes.as_slice()));
            for entry in tar.entries().unwrap() {
                let mut entry = entry.unwrap();
                let path = format!("/{}", entry.path().unwrap().display());
                let path = path.trim_end_matches('/').to_owned();
                if let Some((parent, name)) = path.rsplit_once('/')
                    && let Some(gone) = name.strip_prefix(".wh.")
                {
                    let gone = format!("{parent}/{gone}");
                    files.retain(|path, _| *path != gone && !path.starts_with(&format!("{gone}/")));
                    continue;
                }
                let header = entry.header();
                let kind = header.entry_type();
                let mut line = format!(
                    "{:04o} {}:{}",
                    header.mode().unwrap(),
                    header.uid().unwrap(),
                    header.gid().unwrap()
                );
                let link = entry.link_name().unwrap().map(|link| link.display().to_string());
                if kind.is_dir() {
                    line.push_str(" dir");
                } else if let Some(link) = link {
                    line = format!("-> {link}");
                } else {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    line.push_str(&format!(" {:?}", String::from_utf8_lossy(&content)));
                }
                if number == 0 {
                    line = format!("base {line}");
                }
                files.insert(path, line);
            }
        }
        files
            .into_iter()
            .filter(|(_, line)| !line.starts_with("base "))
            .filter(|(path, line)| !(line.starts_with("->") && path.starts_with("/bin/")))
            .map(|(path, line)| format!("{path} {line}"))
            .collect()
    }
}
