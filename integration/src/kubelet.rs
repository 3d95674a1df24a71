//! A cluster of one node, made of podman. It does to a pod's manifest what the API server, the Job controller and the kubelet
//! do (names, indexes, the termination message, seccomp profiles, user namespaces), and `podman kube play` runs it. Kiln's
//! image is made by Kiln, and is patched into the manifest beside the registry's name; the rest is as it stands in the file.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::repository_root;

/// What the node puts around a pod that doesn't say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// No seccomp profile, no AppArmor: Kubernetes' defaults.
    Bare,
    /// The kubelet's `seccompDefault`.
    SeccompDefault,
    /// AppArmor, as on Ubuntu, Debian and Google's COS.
    AppArmor,
}

/// A cluster; dropped, its claims go.
pub struct Cluster {
    name: String,
    registry: String,
    /// What the node is like.
    pub node: Node,
    directory: tempfile::TempDir,
    objects: BTreeMap<(&'static str, String), BTreeMap<String, String>>,
    pods: AtomicUsize,
}

/// A pod that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code of its container.
    pub exit: i32,
    /// What the container printed.
    pub log: String,
    /// The termination message.
    pub message: String,
}

impl Finished {
    /// Fails the test unless the container succeeded.
    pub fn succeeded(self) -> Self {
        assert_eq!(self.exit, 0, "{}", self.log);
        self
    }

    /// The rung that the log names; none for a pod that ran no step.
    pub fn rung(&self) -> Option<&str> {
        let (_, after) = self.log.split_once("isolation: ")?;
        after.split([' ', ',', ':', '\n']).next()
    }
}

impl Cluster {
    /// A bare node, and the registry that `registry.example.com` stands for.
    pub fn new(registry: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("kiln-pods-").tempdir().unwrap();
        let unique = directory.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let mut cluster = Self {
            name: unique,
            registry: registry.to_owned(),
            node: Node::Bare,
            directory,
            objects: BTreeMap::new(),
            pods: AtomicUsize::new(0),
        };
        cluster.config_map("kiln-config", &[]);
        cluster.secret("registry", &[(".dockerconfigjson", r#"{"auths": {}}"#)]);
        cluster
    }

    /// Makes or replaces a config map; `registry.example.com` is the registry in it too.
    pub fn config_map(&mut self, name: &str, entries: &[(&str, &str)]) {
        self.object("ConfigMap", name, entries);
    }

    /// Makes or replaces a secret.
    pub fn secret(&mut self, name: &str, entries: &[(&str, &str)]) {
        self.object("Secret", name, entries);
    }

    fn object(&mut self, kind: &'static str, name: &str, entries: &[(&str, &str)]) {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.objects.insert((kind, name.to_owned()), entries);
    }

    /// The registry's host as the pod sees it. One with a user namespace of its own has a network of its own, in which
    /// 10.0.2.2 is this machine.
    fn registry_of(&self, pod: &Value) -> String {
        if has_own_users(pod) {
            self.registry.replace("127.0.0.1", "10.0.2.2")
        } else {
            self.registry.clone()
        }
    }

    fn here(&self, text: &str, registry: &str) -> String {
        text.replace("registry.example.com", registry).replace(&self.registry, registry)
    }

    /// Where the files of a claim lie. The claim is made if it isn't there.
    pub fn claim(&self, name: &str) -> PathBuf {
        let volume = format!("{}-{name}", self.name);
        if !podman(&["volume", "exists", &volume]).status.success() {
            success(podman(&["volume", "create", &volume]));
        }
        success(podman(&["volume", "inspect", "--format", "{{.Mountpoint}}", &volume])).trim().into()
    }

    /// Where a `hostPath` of a manifest lies.
    pub fn host_path(&self, path: &str) -> PathBuf {
        self.directory.path().join("node").join(path.trim_start_matches('/'))
    }

    /// Runs a pod until its container has ended, and removes it.
    pub fn run(&self, pod: &Value) -> Finished {
        let running = self.start(pod, None);
        running.wait()
    }

    /// Runs a pod of an Indexed Job.
    pub fn run_index(&self, pod: &Value, index: u32) -> Finished {
        self.start(pod, Some(index)).wait()
    }

    /// Starts a pod; its init containers have ended when this returns.
    pub fn start(&self, pod: &Value, index: Option<u32>) -> Running<'_> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let pod = self.admit(pod, index, number);
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let message = self.message_file(&name);
        std::fs::write(&message, "").unwrap();
        // As the kubelet makes it, for containers that run as anybody.
        std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666)).unwrap();
        let file = self.directory.path().join(format!("{name}.yaml"));
        // JSON is YAML.
        std::fs::write(&file, pod.to_string()).unwrap();
        let file = file.display().to_string();
        let profiles = repository_root().join("integration/pod").display().to_string();
        let mut arguments = vec!["kube", "play", "--seccomp-profile-root", &profiles];
        arguments.extend(if has_own_users(&pod) {
            ["--userns=auto:size=65536", "--network=slirp4netns:allow_host_loopback=true"].as_slice()
        } else {
            ["--network=host"].as_slice()
        });
        arguments.push(&file);
        let output = podman(&arguments);
        let container =
            format!("{name}-{}", pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default());
        let running = Running { name, container, message, cluster: self };
        assert!(output.status.success(), "podman kube play: {}", said(&output));
        running
    }

    pub(crate) fn message_file(&self, pod: &str) -> PathBuf {
        self.directory.path().join(format!("{pod}.message"))
    }

    /// The pod as the node gets it.
    pub(crate) fn admit(&self, pod: &Value, index: Option<u32>, number: usize) -> Value {
        let (executor, debug) = crate::images::loaded();
        let mut pod = pod.clone();
        let registry = self.registry_of(&pod);
        each_text(&mut pod, &|text| {
            let mut text = self.here(text, &registry);
            if let Some(index) = index {
                text = text.replace("$(JOB_COMPLETION_INDEX)", &index.to_string());
            }
            match text.as_str() {
                "kiln/executor:latest" => executor.clone(),
                "kiln/executor:debug" => debug.clone(),
                _ => text,
            }
        });
        let given = pod["metadata"]["name"].as_str().unwrap_or("pod");
        let name = format!("{}-{given}-{number}", self.name);
        pod["metadata"]["name"] = name.clone().into();
        self.volumes(&mut pod, &name);
        for container in containers(&mut pod) {
            self.environment(container);
            // It was loaded; no registry has it.
            container["imagePullPolicy"] = "Never".into();
        }
        if let Some(profile) = self.seccomp(&pod) {
            let key = "seccomp.security.alpha.kubernetes.io/pod";
            pod["metadata"]["annotations"][key] = format!("localhost/{profile}").into();
        }
        let message = json!({"name": format!("{name}-message"), "mountPath": "/dev/termination-log"});
        pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(message);
        let message = json!({"name": format!("{name}-message"),
            "hostPath": {"path": self.message_file(&name), "type": "File"}});
        pod["spec"]["volumes"].as_array_mut().unwrap().push(message);
        pod
    }

    /// Gives volumes names that no other pod has: podman keeps one list of them for the whole node.
    fn volumes(&self, pod: &mut Value, name: &str) {
        let registry = self.registry_of(pod);
        for container in containers(pod) {
            for mount in array(&mut container["volumeMounts"]) {
                mount["name"] = format!("{name}-{}", mount["name"].as_str().unwrap()).into();
            }
        }
        for list in ["/spec/volumes", "/spec/containers/0/volumeMounts"] {
            let (owner, field) = list.rsplit_once('/').unwrap();
            let owner = pod.pointer_mut(owner).unwrap();
            if owner[field].is_null() {
                owner[field] = json!([]);
            }
        }
        for volume in array(&mut pod["spec"]["volumes"]) {
            volume["name"] = format!("{name}-{}", volume["name"].as_str().unwrap()).into();
            if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                self.claim(claim);
                volume["persistentVolumeClaim"]["claimName"] = format!("{}-{claim}", self.name).into();
            }
            if let Some(path) = volume["hostPath"]["path"].as_str() {
                let path = self.host_path(path);
                if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                    std::fs::create_dir_all(&path).unwrap();
                }
                volume["hostPath"]["path"] = path.display().to_string().into();
            }
            for (kind, field, key) in [("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")]
            {
                if let Some(wanted) = volume[field][key].as_str() {
                    let path = self.project(kind, wanted, &volume[field]["items"], &registry);
                    *volume =
                        json!({"name": volume["name"], "hostPath": {"path": path, "type": "Directory"}});
                }
            }
        }
    }

    /// Writes an object's entries as the kubelet does: files are links through `..data` to a folder with a date for a name.
    /// (Podman 4.3 leaves `items` and the encoding of secrets alone.)
    fn project(&self, kind: &'static str, wanted: &str, items: &Value, registry: &str) -> PathBuf {
        let folder = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let dated = "..2026_01_01_00_00_00.1";
        std::fs::create_dir(folder.join(dated)).unwrap();
        symlink(dated, folder.join("..data")).unwrap();
        for (key, value) in self.entries(kind, wanted) {
            let item =
                items.as_array().and_then(|items| items.iter().find(|item| item["key"] == key.as_str()));
            if items.is_array() && item.is_none() {
                continue;
            }
            let name = item.map_or(key.as_str(), |item| item["path"].as_str().unwrap());
            std::fs::write(folder.join(dated).join(name), self.here(value, registry)).unwrap();
            symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
        }
        folder
    }

    fn entries(&self, kind: &'static str, wanted: &str) -> &BTreeMap<String, String> {
        let entries = self.objects.get(&(kind, wanted.to_owned()));
        entries.unwrap_or_else(|| panic!("the cluster has no {kind} {wanted}"))
    }

    /// What config maps and secrets give to the environment.
    fn environment(&self, container: &mut Value) {
        for variable in array(&mut container["env"]) {
            let Some(from) = variable.pointer("/valueFrom/secretKeyRef") else { continue };
            let entries = self.entries("Secret", from["name"].as_str().unwrap());
            *variable = json!({"name": variable["name"], "value": entries[from["key"].as_str().unwrap()]});
        }
        let sources = container.as_object_mut().unwrap().remove("envFrom");
        for source in sources.iter().filter_map(Value::as_array).flatten() {
            let wanted = source["configMapRef"]["name"].as_str().unwrap();
            if container["env"].is_null() {
                container["env"] = json!([]);
            }
            for (name, value) in self.entries("ConfigMap", wanted) {
                let variable = json!({"name": name, "value": value});
                container["env"].as_array_mut().unwrap().push(variable);
            }
        }
    }

    /// The seccomp profile of the pod's container, a file in integration/pod. It stands in for AppArmor's too, which this
    /// machine may not have.
    fn seccomp(&self, pod: &Value) -> Option<&'static str> {
        let container = &pod["spec"]["containers"][0]["securityContext"];
        let asked = |field: &str| {
            let own = container[field]["type"].as_str();
            own.or_else(|| pod["spec"]["securityContext"][field]["type"].as_str()).map(str::to_owned)
        };
        let filtered = match asked("seccompProfile").as_deref() {
            Some("Unconfined") => false,
            Some(_) => true,
            None => self.node == Node::SeccompDefault,
        };
        let armoured =
            self.node == Node::AppArmor && asked("appArmorProfile").as_deref() != Some("Unconfined");
        match (filtered, armoured) {
            (true, _) => Some("runtime-default-like.json"),
            (false, true) => Some("no-mount-eacces.json"),
            (false, false) => None,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let filter = format!("name={}-", self.name);
        let output = podman(&["volume", "ls", "--quiet", "--filter", &filter]);
        for volume in String::from_utf8_lossy(&output.stdout).lines() {
            podman(&["volume", "rm", "--force", volume]);
        }
    }
}

/// A started pod; dropped, it and what was made for it go.
pub struct Running<'a> {
    name: String,
    container: String,
    message: PathBuf,
    cluster: &'a Cluster,
}

impl Running<'_> {
    /// Waits until the container has ended.
    pub fn wait(self) -> Finished {
        let output =
            Command::new("timeout").args(["300", "podman", "wait", &self.container]).output().unwrap();
        let exit = String::from_utf8_lossy(&output.stdout).trim().parse();
        let log = self.log();
        let exit = exit.unwrap_or_else(|_| panic!("the pod does not end: {}\n{log}", said(&output)));
        let message = std::fs::read_to_string(&self.message).unwrap();
        Finished { exit, log, message }
    }

    /// What the container has printed so far.
    pub fn log(&self) -> String {
        said(&podman(&["logs", &self.container]))
    }

    /// Runs a command in the container, which must succeed, and gives what it printed.
    pub fn exec(&self, command: &[&str]) -> String {
        let mut arguments = vec!["exec", &self.container];
        arguments.extend(command);
        let output = podman(&arguments);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        podman(&["pod", "rm", "--force", "--time", "5", &self.name]);
        drop(std::fs::remove_file(self.cluster.message_file(&self.name)));
    }
}

/// Runs podman with the settings of a pod.
pub fn podman(arguments: &[&str]) -> Output {
    let settings = repository_root().join("integration/pod/containers.conf");
    Command::new("podman")
        .args(arguments)
        .env("CONTAINERS_CONF", settings)
        .output()
        .expect("podman is installed: integration/scripts/install-test-tools")
}

/// What a command printed, if it succeeded; else the test fails.
pub fn success(output: Output) -> String {
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Pulls an image from a registry over plain HTTP, runs `command` in it, and gives what it printed.
pub fn pull_and_run(image: &str, login: Option<(&str, &str)>, command: &[&str]) -> String {
    let login = login.map(|(user, password)| format!("--creds={user}:{password}"));
    let mut arguments = vec!["pull", "--quiet", "--tls-verify=false"];
    arguments.extend(login.as_deref());
    arguments.push(image);
    let _lock = crate::images::storage();
    success(podman(&arguments));
    let mut arguments = vec!["run", "--rm", "--pull=never", image];
    arguments.extend(command);
    let printed = podman(&arguments);
    podman(&["image", "rm", "--force", image]);
    success(printed)
}

/// Whether the pod has a user namespace of its own.
fn has_own_users(pod: &Value) -> bool {
    pod["spec"]["hostUsers"] == json!(false)
}

fn containers(pod: &mut Value) -> Vec<&mut Value> {
    let spec = pod["spec"].as_object_mut().unwrap();
    let lists = spec.iter_mut().filter(|(key, _)| *key == "containers" || *key == "initContainers");
    lists.flat_map(|(_, list)| array(list)).collect()
}

fn array(value: &mut Value) -> std::slice::IterMut<'_, Value> {
    value.as_array_mut().map_or([].iter_mut(), |list| list.iter_mut())
}

fn each_text(value: &mut Value, change: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(list) => list.iter_mut().for_each(|value| each_text(value, change)),
        Value::Object(map) => map.values_mut().for_each(|value| each_text(value, change)),
        _ => {}
    }
}
