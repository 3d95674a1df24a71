//! What users copy from examples/, run as the systems that it is for would run it.

#![expect(clippy::disallowed_methods, reason = "a test program reads its own environment")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kiln_integration::kubelet::{Cluster, Node};
use kiln_integration::registry::{LOGIN, Registry};
use kiln_integration::site::{DOCKERFILE, answer, cluster};
use kiln_integration::{images, kiln, manifest, repository_root, sandboxed};
use serde_json::{Value, json};

fn file(path: &str) -> PathBuf {
    repository_root().join("examples").join(path)
}

fn document(path: &str) -> Value {
    manifest::documents(&file(path)).remove(0)
}

/// Changes texts anywhere in a value.
fn filled(value: &Value, changes: &[(&str, &str)]) -> Value {
    let mut text = value.to_string();
    for (from, to) in changes {
        assert!(text.contains(from), "the example holds {from}");
        text = text.replace(from, to);
    }
    serde_json::from_str(&text).unwrap()
}

/// The context of the config map `build-context`, in a claim.
fn fill_claim(cluster: &Cluster, claim: &str, folder: &str, registry: &str) {
    let folder = cluster.claim(claim).join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("Dockerfile"), DOCKERFILE.replace("registry.example.com", registry)).unwrap();
    std::fs::write(folder.join("greeting"), "good morning\n").unwrap();
}

const CONTEXT_MOUNT: &str = r#"{"name": "context", "mountPath": "/workspace", "readOnly": true}"#;
const CONTEXT_VOLUME: &str = r#"{"name": "context", "configMap": {"name": "build-context"}}"#;

/// A pod of one container, with the context mounted at /workspace.
fn pod(container: &Value, volumes: &Value) -> Value {
    let mut container = container.clone();
    container["name"] = "step".into();
    if container["volumeMounts"].is_null() {
        container["volumeMounts"] = json!([]);
    }
    container["volumeMounts"].as_array_mut().unwrap().push(serde_json::from_str(CONTEXT_MOUNT).unwrap());
    let mut volumes = if volumes.is_null() { json!([]) } else { volumes.clone() };
    volumes.as_array_mut().unwrap().push(serde_json::from_str(CONTEXT_VOLUME).unwrap());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "step"},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes}})
}

#[test]
fn contexts_come_from_a_volume_and_from_a_config_map() {
    let (registry, cluster) = cluster();
    fill_claim(&cluster, "source", "", &registry.host);
    for path in ["contexts/local.yaml", "contexts/config-map.yaml"] {
        let finished = cluster.run(&document(path)).succeeded();
        assert!(!finished.log.contains(".."), "the kubelet's links are no part of it: {}", finished.log);
        assert_eq!(answer(&registry, "app:1"), "good morning\n");
    }
}

#[test]
fn a_tekton_task_builds_its_workspace_and_gives_the_digest() {
    let (registry, mut cluster) = cluster();
    let config = registry.config_json();
    cluster.secret("dockerconfig", &[("config.json", &config)]);
    let task = document("ci/tekton-task.yaml");
    let changes = [
        ("$(params.BUILDER_IMAGE)", "kiln/executor:latest"),
        ("$(workspaces.source.path)", "/workspace"),
        ("\"$(params.EXTRA_ARGS[*])\",", ""),
        ("$(params.DOCKERFILE)", "./Dockerfile"),
        ("$(params.CONTEXT)", "./"),
        ("$(params.IMAGE)", "registry.example.com/app:1"),
        ("$(results.IMAGE_DIGEST.path)", "/dev/termination-log"),
        ("$(results.IMAGE_URL.path)", "/kaniko/scratch/url"),
    ];
    let task = filled(&task, &changes);
    let mut step = task["spec"]["steps"][0].clone();
    let workspace = &task["spec"]["workspaces"][1];
    step["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "dockerconfig", "mountPath": workspace["mountPath"]}));
    let mut volumes = task["spec"]["volumes"].clone();
    volumes
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "dockerconfig", "secret": {"secretName": "dockerconfig"}}));
    let finished = cluster.run(&pod(&step, &volumes)).succeeded();
    assert_eq!(answer(&registry, &format!("app@{}", finished.message)), "good morning\n");
}

#[test]
fn an_argo_workflow_builds_its_context() {
    let (registry, cluster) = cluster();
    let workflow = filled(
        &document("ci/argo-workflow.yaml"),
        &[
            ("{{inputs.parameters.context}}", "dir:///workspace"),
            ("{{inputs.parameters.image}}", "registry.example.com/app:1"),
        ],
    );
    let container = &workflow["spec"]["templates"][0]["container"];
    cluster.run(&pod(container, &workflow["spec"]["volumes"])).succeeded();
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
}

#[test]
fn a_step_of_cloud_build_tells_what_it_pushed() {
    let (registry, mut cluster) = cluster();
    let config = registry.config_json();
    cluster.secret("login", &[("config.json", &config)]);
    let step = filled(
        &document("ci/cloudbuild.yaml")["steps"][0],
        &[("europe-docker.pkg.dev/$PROJECT_ID/images/app:$SHORT_SHA", "registry.example.com/app:1")],
    );
    let container = json!({"image": step["name"], "args": step["args"],
        "env": [{"name": "BUILDER_OUTPUT", "value": "/output"}],
        "volumeMounts": [{"name": "login", "mountPath": "/kaniko/.docker"}, {"name": "output", "mountPath": "/output"}]});
    let volumes = json!([{"name": "login", "secret": {"secretName": "login"}},
        {"name": "output", "persistentVolumeClaim": {"claimName": "output"}}]);
    cluster.run(&pod(&container, &volumes)).succeeded();
    let told = std::fs::read_to_string(cluster.claim("output").join("images")).unwrap();
    let told: Value = serde_json::from_str(told.lines().next().unwrap()).unwrap();
    assert!(told["name"].as_str().unwrap().ends_with("/app:1"), "{told}");
    assert_eq!(answer(&registry, &format!("app@{}", told["digest"].as_str().unwrap())), "good morning\n");
}

#[test]
fn a_job_of_gitlab_runs_its_script_in_the_debug_image() {
    let (registry, mut cluster) = cluster();
    fill_claim(&cluster, "builds", "team/app", &registry.host);
    let job = &document("ci/gitlab-ci.yml")["build"];
    let script: Vec<&str> =
        job["script"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let variables = [
        ("CI_PROJECT_DIR", "/builds/team/app"),
        ("CI_REGISTRY", "registry.example.com"),
        ("CI_REGISTRY_IMAGE", "registry.example.com/team/app"),
        ("CI_REGISTRY_USER", LOGIN.0),
        ("CI_REGISTRY_PASSWORD", LOGIN.1),
        ("CI_COMMIT_SHORT_SHA", "abcdef01"),
    ];
    let variables: Vec<Value> =
        variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let container = json!({"image": job["image"]["name"], "env": variables, "workingDir": "/builds/team/app",
        "command": ["/busybox/sh", "-c"], "args": [format!("set -e\n{}", script.join("\n"))],
        "volumeMounts": [{"name": "builds", "mountPath": "/builds"}]});
    let volumes = json!([{"name": "builds", "persistentVolumeClaim": {"claimName": "builds"}}]);
    for node in [Node::Bare, Node::SeccompDefault] {
        cluster.node = node;
        let finished = cluster.run(&pod(&container, &volumes)).succeeded();
        // The shell lives on after the build, on every rung.
        assert!(finished.log.contains("team/app@sha256:"), "{}", finished.log);
        assert_eq!(answer(&registry, "team/app:abcdef01"), "good morning\n");
    }
}

#[test]
fn a_pod_of_jenkins_builds_when_it_is_told_to() {
    let (registry, cluster) = cluster();
    let template = document("ci/jenkins-pod.yaml");
    let pod = pod(&template["spec"]["containers"][0], &template["spec"]["volumes"]);
    let running = cluster.start(&pod, None);
    let text = std::fs::read_to_string(file("ci/Jenkinsfile")).unwrap();
    let (_, script) = text.split_once("sh '''#!/busybox/sh").unwrap();
    let (script, _) = script.split_once("'''").unwrap();
    let script = script.replace("registry.example.com", &registry.host).replace("$PWD", "/workspace");
    running.exec(&["/busybox/sh", "-c", &format!("BUILD_NUMBER=7\n{script}")]);
    assert_eq!(answer(&registry, "app:7"), "good morning\n");
}

/// A folder with the context, and a home with a login.
fn machine(registry: &Registry) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for folder in ["context", "home/.docker"] {
        std::fs::create_dir_all(directory.path().join(folder)).unwrap();
    }
    std::fs::write(directory.path().join("home/.docker/config.json"), registry.config_json()).unwrap();
    let dockerfile = DOCKERFILE.replace("registry.example.com", &registry.host);
    std::fs::write(directory.path().join("context/Dockerfile"), dockerfile).unwrap();
    std::fs::write(directory.path().join("context/greeting"), "good morning\n").unwrap();
    directory
}

#[test]
fn a_pod_of_the_class_gvisor_builds_in_gvisor() {
    let (registry, cluster) = cluster();
    let (pod, class) = (document("gvisor/pod.yaml"), document("gvisor/runtime-class.yaml"));
    assert_eq!(pod["spec"]["runtimeClassName"], class["metadata"]["name"]);
    let finished = sandboxed::run(&cluster, &pod, class["handler"].as_str().unwrap()).succeeded();
    assert_eq!(finished.rung(), Some("root"), "{}", finished.log);
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
}

#[test]
fn the_script_for_docker_builds_with_the_users_login_and_caches() {
    let (registry, _cluster) = cluster();
    let machine = machine(&registry);
    let settings = repository_root().join("integration/pod/containers.conf");
    let run = || {
        let output = Command::new(file("run_in_docker.sh"))
            .arg("Dockerfile")
            .arg(machine.path().join("context"))
            .arg(format!("{}/app:1", registry.host))
            .arg("true")
            .env("HOME", machine.path().join("home"))
            .env("DOCKER", "podman")
            .env("KILN_IMAGE", images::loaded().0)
            .env("CONTAINERS_CONF", &settings)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        log
    };
    run();
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
    assert!(run().contains("Using caching version of cmd"), "the fourth argument turns the cache on");
}

#[test]
fn a_context_comes_through_standard_input() {
    let (registry, _cluster) = cluster();
    let machine = machine(&registry);
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(machine.path().join("context"))
        .args(["-czf", "-", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = std::fs::read_to_string(file("contexts/stdin.sh")).unwrap();
    assert!(text.contains("\"--context=tar://stdin\""), "the script's own argument");
    let login = machine.path().join("home/.docker");
    let output = Command::new("podman")
        .args(["run", "--rm", "--interactive", "-v"])
        .arg(format!("{}:/kaniko/.docker:ro", login.display()))
        .arg(images::loaded().0)
        .args(["--context=tar://stdin", &format!("--destination={}/app:1", registry.host)])
        .env("CONTAINERS_CONF", repository_root().join("integration/pod/containers.conf"))
        .stdin(tar.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(tar.wait().unwrap().success());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(answer(&registry, "app:1"), "good morning\n");
}

#[test]
fn the_pod_that_standard_input_goes_to_is_what_the_api_says() {
    let text = std::fs::read_to_string(file("contexts/stdin.sh")).unwrap();
    let (_, overrides) = text.split_once("--overrides='").unwrap();
    let (overrides, _) = overrides.rsplit_once('\'').unwrap();
    let overrides =
        overrides.replace("'$$'", "1").replace("'\"$destination\"'", "registry.example.com/app:1");
    let mut pod: Value = serde_json::from_str(&overrides).unwrap();
    pod["kind"] = "Pod".into();
    pod["metadata"] = json!({"name": "kiln-1"});
    assert_eq!(manifest::faults(&pod), Vec::<String>::new());
    assert_eq!(pod["spec"]["containers"][0]["args"][1], "--destination=registry.example.com/app:1");
}

#[test]
fn what_is_packed_and_uploaded_is_a_context() {
    let (registry, _cluster) = cluster();
    let machine = machine(&registry);
    // In place of the cloud's program, one that keeps what it is given.
    let programs = machine.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    let kept = machine.path().join("kept.tar.gz");
    let program = format!(
        "#!/bin/sh\ntest \"$1 $2 $4\" = 's3 cp s3://my-bucket/context.tar.gz' && cp \"$3\" {}\n",
        kept.display()
    );
    std::fs::write(programs.join("aws"), program).unwrap();
    std::fs::set_permissions(programs.join("aws"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let address = "s3://my-bucket/context.tar.gz";
    let pod = document("contexts/s3.yaml");
    assert_eq!(pod["spec"]["containers"][0]["args"][0], format!("--context={address}"));
    let status = Command::new(file("contexts/tar-and-upload.sh"))
        .arg(machine.path().join("context"))
        .arg(address)
        .env("PATH", path)
        .status()
        .unwrap();
    assert!(status.success());
    let output = Command::new(kiln())
        .args(["executor", "--no-push", "--scratch-dir"])
        .arg(machine.path().join("scratch"))
        .arg(format!("--context=tar://{}", kept.display()))
        .env("DOCKER_CONFIG", machine.path().join("home/.docker"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
