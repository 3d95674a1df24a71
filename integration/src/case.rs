//! Builds as data: one file a case, with its Dockerfile, its context and what must come out.
//!
//! A case file has sections, each under a line `-- NAME --`: `setup` (shell commands that make the context, run in it),
//! `flags` (one a line; `$CASE` is the case's own directory), `ignore` (the context's `.dockerignore`), `Dockerfile`
//! (`$WEB` is a web server that serves the directory `www` beside the context), and
//! what is expected: `tree`, `layers` and `config`, or `fails` with the first line of the error. The base image of
//! [`base_layout`] is there under the name `base`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::flat::Image;

/// The time of every build: what is later is set back to it.
pub const EPOCH: u64 = 1_700_000_000;

/// The mtime of the files of a context that don't say otherwise.
const CONTEXT_TIME: i64 = 1_000_000_000;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file's name without its ending.
    pub name: String,
    path: PathBuf,
    sections: Vec<(String, String)>,
}

/// The sections that a build makes.
const EXPECTED: [&str; 4] = ["tree", "layers", "config", "fails"];

impl Case {
    /// All cases of a folder, by name.
    pub fn all(folder: &Path) -> Vec<Self> {
        let mut cases: Vec<Self> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "case"))
            .map(Self::read)
            .collect();
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        cases
    }

    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut sections: Vec<(String, String)> = Vec::new();
        for line in text.split_inclusive('\n') {
            let name = line.trim_end().strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --"));
            match (name, sections.last_mut()) {
                (Some(name), _) => sections.push((name.to_owned(), String::new())),
                (None, Some((_, body))) => body.push_str(line),
                (None, None) => panic!("{}: begins without a section", path.display()),
            }
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self { name, path, sections }
    }

    fn section(&self, name: &str) -> Option<&str> {
        self.sections.iter().find(|(other, _)| other == name).map(|(_, body)| body.as_str())
    }

    /// What the file says must come out.
    pub fn expected(&self) -> BTreeMap<String, String> {
        self.sections.iter().filter(|(name, _)| EXPECTED.contains(&name.as_str())).cloned().collect()
    }

    /// Writes down what came out as what must come out.
    pub fn bless(&self, found: &BTreeMap<String, String>) {
        let given = self.sections.iter().filter(|(name, _)| !EXPECTED.contains(&name.as_str()));
        let mut text = String::new();
        for (name, body) in given.map(|(name, body)| (name, body)).chain(found) {
            writeln!(text, "-- {name} --").unwrap();
            text.push_str(body);
        }
        std::fs::write(&self.path, text).unwrap();
    }

    /// Builds the case with `kiln` and gives what came out, section by section.
    pub fn run(&self, kiln: &Path, base: &Path) -> Result<BTreeMap<String, String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let context = directory.path().join("context");
        std::fs::create_dir(&context).unwrap();
        let web = crate::servers::FileServer::start(&directory.path().join("www")).address;
        self.prepare(directory.path(), &context, &web)?;
        let layout = directory.path().join("layout");
        let mut command = Command::new(kiln);
        command.arg("executor").arg("--context").arg(&context);
        command.arg("--dockerfile").arg(context.join("Dockerfile"));
        command.arg("--scratch-dir").arg(directory.path().join("scratch"));
        command.arg("--cache-mount-dir").arg(directory.path().join("caches"));
        command.arg("--oci-layout-path").arg(&layout).args(["--no-push", "--reproducible"]);
        command.arg("--build-context").arg(format!("base=oci-layout://{}", base.display()));
        let own = directory.path().display().to_string();
        for flag in self.section("flags").unwrap_or_default().lines() {
            let flag = flag.replace("$CASE", &own);
            command.args(flag.splitn(2, ' '));
        }
        command.env("SOURCE_DATE_EPOCH", EPOCH.to_string());
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut found = BTreeMap::new();
        if !output.status.success() {
            let line = log.lines().find(|line| line.starts_with("error: ")).ok_or(log.clone())?;
            let line = line.replace(&own, "$CASE").replace(&web, "$WEB");
            found.insert("fails".to_owned(), format!("{line}\n"));
            return Ok(found);
        }
        let image = Image::read(&layout);
        found.insert("tree".to_owned(), image.tree_beside(&Image::read(base)));
        found.insert("layers".to_owned(), image.layers_text(1));
        found.insert("config".to_owned(), image.config_text().replace(&web, "$WEB"));
        Ok(found)
    }

    fn prepare(&self, directory: &Path, context: &Path, web: &str) -> Result<(), String> {
        let dockerfile = self.section("Dockerfile").unwrap_or_default().replace("$WEB", web);
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        if let Some(ignore) = self.section("ignore") {
            std::fs::write(context.join(".dockerignore"), ignore).unwrap();
        }
        if let Some(setup) = self.section("setup") {
            let script = format!("umask 022\n{setup}");
            let output = Command::new("bash")
                .args(["-euc", &script])
                .current_dir(context)
                .env("CASE", directory)
                .output()
                .unwrap();
            if !output.status.success() {
                return Err(format!("setup: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
        settle(directory);
        Ok(())
    }
}

/// Gives everything whose time was not set by hand one and the same time.
fn settle(path: &Path) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            settle(&entry.unwrap().path());
        }
    }
    if meta.mtime() > EPOCH.cast_signed() {
        let time = rustix::fs::Timespec { tv_sec: CONTEXT_TIME, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    }
}
