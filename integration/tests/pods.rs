//! The manifests of k8s/, run as they stand by `podman kube play`, which names Kiln's image and a registry of the test's own.

#![expect(clippy::disallowed_methods, reason = "a test program reads its own environment")]

use std::path::PathBuf;

use kiln_integration::kubelet::{Node, pull_and_run};
use kiln_integration::registry::LOGIN;
use kiln_integration::site::{answer, cluster, push};
use kiln_integration::{Bench, manifest, repository_root};
use serde_json::json;

fn file(path: &str) -> PathBuf {
    repository_root().join("k8s").join(path)
}

fn pod(path: &str) -> serde_json::Value {
    let mut pods = manifest::pods(&file(path));
    assert_eq!(pods.len(), 1, "{path} has one pod");
    pods.remove(0)
}

#[test]
fn an_init_container_warms_what_the_executor_of_its_pod_reads() {
    let (registry, cluster) = cluster();
    let finished = cluster.run(&pod("init-container/pod.yaml")).succeeded();
    assert!(finished.log.contains("Found sha256:"), "{}", finished.log);
    assert!(finished.message.starts_with("sha256:"), "{}", finished.message);
    assert_eq!(answer(&registry, &format!("app@{}", finished.message)), "good morning\n");
}

#[test]
fn a_claim_that_the_cron_job_filled_feeds_an_executor_that_reads_it_only() {
    let (registry, cluster) = cluster();
    cluster.run(&pod("warmer-cronjob/cronjob.yaml")).succeeded();
    let warmed = listing(&cluster.claim("kiln-cache"));
    assert!(warmed.iter().any(|line| line.contains("unpacked")), "{warmed:?}");
    let finished = cluster.run(&pod("executor-job/job.yaml")).succeeded();
    assert!(finished.log.contains("Found sha256:"), "{}", finished.log);
    assert_eq!(listing(&cluster.claim("kiln-cache")), warmed, "the executor wrote nothing there");
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
}

#[test]
fn a_warmer_job_fills_the_claim_and_the_next_finds_everything_there() {
    let (_registry, cluster) = cluster();
    cluster.run(&pod("warmer-job/job.yaml")).succeeded();
    let again = cluster.run(&pod("warmer-job/job.yaml")).succeeded();
    assert!(again.log.contains("Image already in cache"), "{}", again.log);
}

#[test]
fn a_one_shot_job_builds_from_the_registry_alone() {
    let (registry, cluster) = cluster();
    let finished = cluster.run(&pod("executor-job/job.yaml")).succeeded();
    assert_eq!(answer(&registry, &format!("app@{}", finished.message)), "good morning\n");
}

#[test]
fn a_failed_build_ends_the_pod_with_the_exit_code_of_its_step() {
    let (_registry, mut cluster) = cluster();
    cluster.config_map("build-context", &[("Dockerfile", "FROM registry.example.com/base:1\nRUN exit 7\n")]);
    let finished = cluster.run(&pod("executor-job/job.yaml"));
    assert_eq!(finished.exit, 7, "{}", finished.log);
    assert_eq!(finished.message, "", "nothing was built");
}

#[test]
fn a_daemon_set_fills_its_nodes_own_disk() {
    let (_registry, cluster) = cluster();
    let warmer = cluster.start(&pod("warmer-daemonset/daemonset.yaml"), None);
    let index = cluster.host_path("/var/lib/kiln/cache").join("index.json");
    for _ in 0..600 {
        if index.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{}", warmer.log());
}

#[test]
fn each_pod_of_an_indexed_job_builds_its_own_folder() {
    let (registry, cluster) = cluster();
    let contexts = cluster.claim("build-contexts");
    for index in 0..2 {
        let folder = contexts.join(index.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let text =
            format!("FROM {}/base:1\nRUN echo {index} > /made\nCMD [\"cat\", \"/made\"]\n", registry.host);
        std::fs::write(folder.join("Dockerfile"), text).unwrap();
    }
    let job = pod("indexed-job/job.yaml");
    for index in 0..2 {
        cluster.run_index(&job, index).succeeded();
        assert_eq!(answer(&registry, &format!("app-{index}:1")), format!("{index}\n"));
    }
    let again = cluster.run_index(&job, 1).succeeded();
    assert!(again.log.contains("Using caching version of cmd"), "{}", again.log);
}

/// The rung that the manifest's comment promises.
fn promised(path: &str) -> String {
    let text = std::fs::read_to_string(file(path)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("# rung: "));
    line.unwrap_or_else(|| panic!("{path} promises a rung")).to_owned()
}

fn profile(name: &str, node: Node) {
    let (registry, mut cluster) = cluster();
    cluster.node = node;
    let path = format!("profiles/{name}/job.yaml");
    let finished = cluster.run(&pod(&path)).succeeded();
    assert_eq!(finished.rung(), Some(promised(&path).as_str()), "{}", finished.log);
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
}

#[test]
fn profile_plain_gives_the_rung_that_it_promises() {
    profile("plain", Node::Bare);
}

#[test]
fn profile_runtime_default_gives_the_rung_that_it_promises() {
    profile("runtime-default", Node::Bare);
}

#[test]
fn profile_runtime_default_gives_the_same_rung_where_apparmor_is() {
    profile("runtime-default", Node::AppArmor);
}

#[test]
fn profile_unconfined_gives_the_rung_that_it_promises_where_all_is_filtered() {
    profile("unconfined", Node::SeccompDefault);
}

#[test]
fn profile_unconfined_gives_the_rung_that_it_promises_where_apparmor_is() {
    profile("unconfined", Node::AppArmor);
}

#[test]
fn profile_user_namespace_gives_the_rung_that_it_promises() {
    profile("user-namespace", Node::Bare);
}

#[test]
fn profile_plain_falls_to_rung_root_where_apparmor_refuses_mounts() {
    let (registry, mut cluster) = cluster();
    cluster.node = Node::AppArmor;
    let finished = cluster.run(&pod("profiles/plain/job.yaml")).succeeded();
    assert_eq!(finished.rung(), Some("root"), "{}", finished.log);
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
}

#[test]
fn builds_of_two_architectures_are_joined_in_one_image() {
    let (registry, mut cluster) = cluster();
    // No RUN: this node has one architecture only. The programs are this machine's in both images.
    let text = "FROM --platform=$BUILDPLATFORM registry.example.com/base:1 AS tools\nFROM scratch\nARG TARGETARCH\nCOPY --from=tools / /\nCOPY $TARGETARCH /architecture\nENV PATH=/bin\nCMD [\"cat\", \"/architecture\"]\n";
    let files = [("Dockerfile", text), ("amd64", "amd64\n"), ("arm64", "arm64\n")];
    cluster.config_map("build-context", &files);
    let digests = ["amd64", "arm64"].map(|architecture| {
        let job = pod(&format!("multi-arch/{architecture}.yaml"));
        assert_eq!(job["spec"]["nodeSelector"]["kubernetes.io/arch"], architecture);
        cluster.run(&job).succeeded().message
    });
    let joined = cluster.run(&pod("multi-arch/join.yaml")).succeeded();
    let index = registry.index("app", "1");
    let parts: Vec<_> = index["manifests"].as_array().unwrap().iter().collect();
    assert_eq!(parts.len(), 2, "{index}");
    for (part, (architecture, digest)) in parts.iter().zip(["amd64", "arm64"].iter().zip(&digests)) {
        assert_eq!(part["platform"]["architecture"], *architecture, "{index}");
        assert_eq!(part["digest"], digest.as_str());
    }
    assert_eq!(index, registry.index("app", &joined.message), "the digest is the joined image's");
    let own = if cfg!(target_arch = "aarch64") { "arm64\n" } else { "amd64\n" };
    assert_eq!(answer(&registry, "app:1"), own, "podman takes the part for its machine");
}

#[test]
fn joining_fails_until_both_builds_are_there() {
    let (_registry, cluster) = cluster();
    let finished = cluster.run(&pod("multi-arch/join.yaml"));
    assert_eq!(finished.exit, 1, "{}", finished.log);
}

/// A base image that has files of its own wherever the pod has mounts.
#[test]
fn a_base_image_that_meets_the_pods_mounts_is_built_on_and_leaves_them_alone() {
    let (registry, mut cluster) = cluster();
    let bench = Bench::new();
    for (file, content) in [
        ("tree/etc/app.conf", "of the image\n"),
        ("tree/etc/hosts", "127.0.0.9 of-the-image\n"),
        ("tree/etc/resolv.conf", "# of the image\n"),
        ("tree/run/of-the-image", "here\n"),
        ("tree/sys/of-the-image", "here\n"),
    ] {
        bench.file(file, content);
    }
    std::fs::create_dir(bench.context().join("tree/var")).unwrap();
    std::os::unix::fs::symlink("/run", bench.context().join("tree/var/run")).unwrap();
    let dockerfile = "FROM scratch\nADD base.tar /\nCOPY tree/ /\nENV PATH=/bin\n";
    push(&registry, &bench, dockerfile, "base:1");
    let seen = "cat /etc/app.conf /token/token > /seen; test -f /run/of-the-image; echo x > /etc/made";
    let text = format!("FROM registry.example.com/base:1\nRUN {seen}\n");
    cluster.config_map("build-context", &[("Dockerfile", &text)]);
    cluster.config_map("app", &[("app.conf", "of the pod\n")]);
    cluster.secret("token", &[("token", "a service account\n")]);
    cluster.node = Node::SeccompDefault;
    let mut job = pod("executor-job/job.yaml");
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let file = cluster.host_path("/app.conf");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "of the pod\n").unwrap();
    for mount in [
        json!({"name": "token", "mountPath": account, "readOnly": true}),
        json!({"name": "token", "mountPath": "/token", "readOnly": true}),
        json!({"name": "conf", "mountPath": "/etc/app.conf", "readOnly": true}),
    ] {
        job["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(mount);
    }
    for volume in [
        json!({"name": "token", "secret": {"secretName": "token"}}),
        json!({"name": "conf", "hostPath": {"path": "/app.conf", "type": "File"}}),
    ] {
        job["spec"]["volumes"].as_array_mut().unwrap().push(volume);
    }
    let finished = cluster.run(&job).succeeded();
    assert_eq!(finished.rung(), Some("root"), "{}", finished.log);
    let inside = |command: &str| {
        pull_and_run(&format!("{}/app:1", registry.host), Some(LOGIN), &["sh", "-c", command])
    };
    // The step saw the pod's files; the image has its own.
    assert_eq!(inside("cat /seen"), "of the pod\na service account\n");
    assert_eq!(inside("cat /etc/app.conf /etc/made"), "of the image\nx\n");
    assert_eq!(
        inside(
            "cat /run/of-the-image; ls -l /var | grep -c -- '-> /run'; ls /token /run/secrets 2>&1 | grep -c serviceaccount; true"
        ),
        "here\n1\n0\n"
    );
}

/// Eight of them, or as many as KILN_PODS says (`make test-all`: thirty), four at a time.
#[test]
fn many_one_shot_pods_share_a_warmed_volume_and_write_nothing_to_it() {
    let count = std::env::var("KILN_PODS").map_or(8, |text| text.parse().unwrap());
    let (registry, cluster) = cluster();
    cluster.run(&pod("warmer-cronjob/cronjob.yaml")).succeeded();
    let warmed = listing(&cluster.claim("kiln-cache"));
    let mut job = pod("executor-job/job.yaml");
    let next = std::sync::atomic::AtomicUsize::new(0);
    job["spec"]["containers"][0]["args"]
        .as_array_mut()
        .unwrap()
        .retain(|arg| !arg.as_str().unwrap().starts_with("--destination"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let mut job = job.clone();
                    let destination = format!("--destination=registry.example.com/app:{number}");
                    job["spec"]["containers"][0]["args"].as_array_mut().unwrap().push(destination.into());
                    let finished = cluster.run(&job).succeeded();
                    assert!(finished.log.contains("Found sha256:"), "{}", finished.log);
                }
            });
        }
    });
    assert_eq!(listing(&cluster.claim("kiln-cache")), warmed);
    for number in [0, count / 2, count - 1] {
        assert_eq!(answer(&registry, &format!("app:{number}")), "good morning\n");
    }
}

/// Every path below a folder with its size and time of change.
fn listing(folder: &std::path::Path) -> Vec<String> {
    let output =
        std::process::Command::new("find").arg(folder).args(["-printf", "%P %s %T@ %C@\n"]).output().unwrap();
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
