//! Builds through the binary, as a pipeline runs them: a context, a Dockerfile, flags; and a registry that belongs to them
//! where a test wants one.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::registry::{LOGIN, Registry};
use crate::{Bench, kiln};

/// What a program said, on both of its outputs.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a program.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program that must succeed. Gives its standard output.
pub fn ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The manifest or index that a name means in a registry, as skopeo reads it.
pub fn raw(reference: &str) -> serde_json::Value {
    let read = ok("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    serde_json::from_str(&read).unwrap()
}

/// A place to build in.
pub struct Work {
    /// The context, and what else a test writes.
    pub bench: Bench,
    /// What every build gets.
    flags: Vec<String>,
    registry: Option<Registry>,
}

impl Work {
    /// One whose builds all get `flags`.
    pub fn new(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self { bench: Bench::new(), flags, registry: None }
    }

    /// The same with a registry that lets everybody in.
    pub fn with_registry(flags: &[&str]) -> Self {
        Self { registry: Some(Registry::start()), ..Self::new(flags) }
    }

    /// Its registry.
    pub fn registry(&self) -> &Registry {
        self.registry.as_ref().expect("the test began with a registry")
    }

    /// A name in its registry.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry().host)
    }

    /// A path below its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bench.directory.path().join(name)
    }

    /// The same as text.
    pub fn text_path(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file that is no part of the context, and gives its path as text.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Logs in at `host` as everybody does who has [`LOGIN`].
    pub fn log_in(&self, host: &str) {
        let mut child = Command::new(kiln())
            .env("DOCKER_CONFIG", self.path("docker"))
            .args(["executor", "login", host, "-u", LOGIN.0, "--password-stdin"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), LOGIN.1.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A build of `dockerfile`, not started yet. Its logins are those of `docker/config.json` below the directory.
    pub fn command(&self, dockerfile: &str, flags: &[&str]) -> Command {
        let file = self.file("Dockerfile", dockerfile);
        let mut command = Command::new(kiln());
        command.env("DOCKER_CONFIG", self.path("docker")).args(["executor", "-f", &file, "-c"]);
        command.arg(self.bench.context()).arg("--scratch-dir").arg(self.path("scratch"));
        command.args(&self.flags).args(flags);
        command
    }

    /// Builds `dockerfile`.
    pub fn build(&self, dockerfile: &str, flags: &[&str]) -> Output {
        self.command(dockerfile, flags).output().unwrap()
    }

    /// Builds `dockerfile`, which must succeed. Gives the log.
    pub fn builds(&self, dockerfile: &str, flags: &[&str]) -> String {
        let output = self.build(dockerfile, flags);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// Builds `dockerfile`, which must fail with 1 and say `why`. Gives the log.
    pub fn fails(&self, dockerfile: &str, flags: &[&str], why: &str) -> String {
        let output = self.build(dockerfile, flags);
        let log = text(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(why), "{why} is not in: {log}");
        log
    }
}
