//! A tree with busybox in it, the rungs that work on this machine, and steps run there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kiln_sandbox::{Cancel, Enclosure, Exit, RunRequest, Rung, SandboxError, Stream, Tree, probe, run};

/// Where busybox-static puts its binary.
const BUSYBOX: &str = "/usr/bin/busybox";

/// A tree of its own for one rung.
pub(crate) struct Stage {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) enclosure: Enclosure,
}

/// What a step printed, and how it ended.
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Stage {
    /// A stage for each rung in `rungs` that works on this machine.
    pub(crate) fn each(rungs: &[Rung]) -> Vec<Self> {
        rungs.iter().filter_map(|&rung| Self::new(rung)).collect()
    }

    /// A stage for each rung that mounts; none where nothing can be mounted.
    pub(crate) fn each_mounting() -> Vec<Self> {
        Self::each(&[Rung::Overlay, Rung::Directory])
    }

    /// A stage for each rung but root, which would use this machine's own files.
    pub(crate) fn every() -> Vec<Self> {
        let stages = Self::each(&[Rung::Overlay, Rung::Directory, Rung::Chroot]);
        assert!(!stages.is_empty(), "not even chroot works here: run this as root");
        stages
    }

    pub(crate) fn new(rung: Rung) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let report = probe(folder.path());
        let enclosure = match report.enclosure(rung) {
            Ok(enclosure) => enclosure,
            Err(refusal) => {
                println!("not tested here: rung {rung}: {refusal}");
                return None;
            }
        };
        let stage = Self { folder, enclosure };
        for name in ["tree/bin", "tree/tmp", "upper", "work"] {
            fs::create_dir_all(stage.folder.path().join(name)).unwrap();
        }
        fs::copy(BUSYBOX, stage.tree("bin/busybox")).expect("install busybox-static");
        symlink("busybox", stage.tree("bin/sh")).unwrap();
        Some(stage)
    }

    pub(crate) fn rung(&self) -> Rung {
        self.enclosure.rung()
    }

    /// A path in the tree as it is before the step (the lower layer, on rung overlay).
    pub(crate) fn tree(&self, path: &str) -> PathBuf {
        self.folder.path().join("tree").join(path)
    }

    /// A path beside the tree.
    pub(crate) fn beside(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Where a step's new files turn up.
    pub(crate) fn result(&self, path: &str) -> PathBuf {
        match self.rung() {
            Rung::Overlay => self.folder.path().join("upper").join(path),
            _ => self.tree(path),
        }
    }

    pub(crate) fn request(&self, script: &str) -> RunRequest {
        let tree = match self.rung() {
            Rung::Overlay => Tree::Overlay {
                lowers: vec![self.folder.path().join("tree")],
                upper: self.folder.path().join("upper"),
                work: self.folder.path().join("work"),
            },
            _ => Tree::Directory { path: self.folder.path().join("tree") },
        };
        // busybox finds its own applets only through /proc/self/exe, so they get names in a function.
        let argv = ["/bin/busybox", "sh", "-c", script];
        RunRequest {
            env: vec![("PATH".into(), "/bin".into())],
            ..RunRequest::new(self.enclosure, tree, argv)
        }
    }

    pub(crate) fn run(&self, script: &str) -> Ran {
        ran(self.request(script)).unwrap()
    }

    /// Every path in the tree with its type, size and modification time.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list(&self.folder.path().join("tree"), &[], &mut lines);
        lines.sort();
        lines
    }

    /// Every path that a step left in the upper directory, or in the tree.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        names(&self.result(""), Path::new(""), &mut found);
        found.sort();
        found
    }
}

fn names(folder: &Path, relative: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let relative = relative.join(entry.file_name());
        found.push(relative.to_str().unwrap().to_owned());
        if entry.file_type().unwrap().is_dir() {
            names(&entry.path(), &relative, found);
        }
    }
}

/// Every path from `path` on but those in `but`, with its type, size and modification time.
pub(crate) fn list(path: &Path, but: &[&str], lines: &mut Vec<String>) {
    if but.iter().any(|but| path == Path::new(but)) {
        return;
    }
    let meta = fs::symlink_metadata(path).unwrap();
    let time = meta.modified().unwrap();
    lines.push(format!("{} {:?} {} {time:?}", path.display(), meta.file_type(), meta.len()));
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            list(&entry.unwrap().path(), but, lines);
        }
    }
}

/// Runs a request, never cancelled.
pub(crate) fn ran(request: RunRequest) -> Result<Ran, SandboxError> {
    ran_until(request, &Cancel::new().unwrap())
}

/// Runs a request with a switch.
pub(crate) fn ran_until(request: RunRequest, cancel: &Cancel) -> Result<Ran, SandboxError> {
    let lines = Mutex::new((String::new(), String::new()));
    let output = |stream, line: &[u8]| {
        let mut lines = lines.lock().unwrap();
        let text = match stream {
            Stream::Stdout => &mut lines.0,
            Stream::Stderr => &mut lines.1,
        };
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    };
    let exit = run(request, &output, cancel)?;
    let (stdout, stderr) = lines.into_inner().unwrap();
    Ok(Ran { exit, stdout, stderr })
}

/// Whether a process whose command line holds `marker` is alive.
pub(crate) fn is_running(marker: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(marker)
    })
}

/// Puts this very test program in the tree, with the libraries that it has loaded.
pub(crate) fn copy_this_program(stage: &Stage) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    for library in libraries.filter(|path| path.starts_with('/') && path.contains(".so")) {
        let to = stage.tree(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
    if let Ok(loader) = fs::canonicalize("/lib64/ld-linux-x86-64.so.2") {
        fs::create_dir_all(stage.tree("lib64")).unwrap();
        fs::copy(loader, stage.tree("lib64/ld-linux-x86-64.so.2")).unwrap();
    }
    fs::copy("/proc/self/exe", stage.tree("bin/talk")).unwrap();
}
