//! A pod of a runtime class, run by that class's runtime. `podman kube play` starts a pause container first, which runsc of Debian's
//! does not survive under podman; so the pod's one container is started by itself, with all that the pod gives it.

use std::process::Command;

use serde_json::Value;

use crate::kubelet::{Cluster, Finished};
use crate::repository_root;

/// Runs the one container of `pod` under `runtime` until it has ended.
pub fn run(cluster: &Cluster, pod: &Value, runtime: &str) -> Finished {
    let pod = cluster.admit(pod, None, 0);
    let name = pod["metadata"]["name"].as_str().unwrap();
    let message = cluster.message_file(name);
    std::fs::write(&message, "").unwrap();
    let containers = pod["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "a pod of one container");
    let container = &containers[0];
    let room = tempfile::tempdir().unwrap();
    let mut command = Command::new("podman");
    // The sandbox has the node's network, as the other pods here have; the limits are those of this process, which may
    // be lower than the ones in the settings.
    command.args(["--runtime", runtime, "--runtime-flag", "network=host", "run", "--rm", "--ulimit", "host"]);
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let source = match volume["hostPath"]["path"].as_str() {
            Some(path) => path.to_owned(),
            None => {
                assert!(volume["emptyDir"].is_object(), "{volume}");
                tempfile::tempdir_in(room.path()).unwrap().keep().display().to_string()
            }
        };
        let mode = if mount["readOnly"] == true { ":ro" } else { "" };
        command.arg("-v").arg(format!("{source}:{}{mode}", mount["mountPath"].as_str().unwrap()));
    }
    for variable in container["env"].as_array().into_iter().flatten() {
        let text = |key: &str| variable[key].as_str().unwrap().to_owned();
        command.arg("-e").arg(format!("{}={}", text("name"), text("value")));
    }
    command.arg(container["image"].as_str().unwrap());
    command.args(container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()));
    command.env("CONTAINERS_CONF", repository_root().join("integration/pod/containers.conf"));
    let output = command.output().expect("podman is installed: integration/scripts/install-test-tools");
    let said = [output.stdout, output.stderr].concat();
    Finished {
        exit: output.status.code().unwrap_or(-1),
        log: String::from_utf8_lossy(&said).into_owned(),
        message: std::fs::read_to_string(message).unwrap(),
    }
}
