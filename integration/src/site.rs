//! Where pods build: a registry that asks who is there, with a base image in it, and a cluster that knows the answer.

use crate::kubelet::{Cluster, pull_and_run};
use crate::registry::{LOGIN, Registry};
use crate::{Bench, kiln};

/// Two stages on `base:1`; the image says what the file `greeting` of the context says.
pub const DOCKERFILE: &str = "FROM registry.example.com/base:1 AS build\nCOPY greeting /src/\nRUN mkdir /made && cat /src/greeting > /made/greeting\nFROM registry.example.com/base:1\nCOPY --from=build /made /made\nRUN touch /made/here\nCMD [\"cat\", \"/made/greeting\"]\n";

/// Builds `dockerfile` on this machine with the bench's context, and pushes it as `name`.
pub fn push(registry: &Registry, bench: &Bench, dockerfile: &str, name: &str) {
    let file = bench.directory.path().join("Dockerfile");
    std::fs::write(&file, dockerfile).unwrap();
    let login = bench.directory.path().join("docker");
    std::fs::create_dir_all(&login).unwrap();
    std::fs::write(login.join("config.json"), registry.config_json()).unwrap();
    let output = std::process::Command::new(kiln())
        .args(["executor", "--reproducible", "--destination", &format!("{}/{name}", registry.host)])
        .arg("--context")
        .arg(bench.context())
        .arg("--dockerfile")
        .arg(&file)
        .arg("--scratch-dir")
        .arg(bench.directory.path().join("scratch"))
        .env("DOCKER_CONFIG", &login)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A registry that asks who is there, with a base image in it, and a cluster that knows the answer.
pub fn cluster() -> (Registry, Cluster) {
    let registry = Registry::with_login();
    push(&registry, &Bench::new(), "FROM scratch\nADD base.tar /\nENV PATH=/bin\n", "base:1");
    let mut cluster = Cluster::new(&registry.host);
    let config = registry.config_json();
    cluster.secret("registry", &[(".dockerconfigjson", &config)]);
    cluster.config_map("build-context", &[("Dockerfile", DOCKERFILE), ("greeting", "good morning\n")]);
    (registry, cluster)
}

/// What the image that a build pushed says, when podman runs it.
pub fn answer(registry: &Registry, name: &str) -> String {
    pull_and_run(&format!("{}/{name}", registry.host), Some(LOGIN), &[])
}
