//! The examples for clouds' object stores, git servers and registries, run from the very files in pods. The clouds' hosts are
//! stand-ins on this machine, found under their own names; what the clouds put into a pod (an identity's token and
//! variables) is put in as they do it.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use kiln_integration::kubelet::{Cluster, Node, pull_and_run};
use kiln_integration::registry::Registry;
use kiln_integration::servers::{Azurite, FakeGcs, Front, GitServer, Moto, Repo, answer_site, registry_site};
use kiln_integration::site::{DOCKERFILE, push};
use kiln_integration::{Bench, manifest, repository_root};
use serde_json::{Value, json};

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A cluster, a registry that lets everybody in with a base image in it, and a folder for servers.
struct World {
    registry: Registry,
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start();
        push(&registry, &Bench::new(), "FROM scratch\nADD base.tar /\nENV PATH=/bin\n", "base:1");
        let cluster = Cluster::new(&registry.host);
        Self { registry, cluster, directory: tempfile::tempdir().unwrap() }
    }

    fn dockerfile(&self) -> String {
        DOCKERFILE.replace("registry.example.com", &self.registry.host)
    }

    /// The context as an archive.
    fn archive(&self) -> std::path::PathBuf {
        let context = self.directory.path().join("context");
        std::fs::create_dir(&context).unwrap();
        std::fs::write(context.join("Dockerfile"), self.dockerfile()).unwrap();
        std::fs::write(context.join("greeting"), "good morning\n").unwrap();
        let archive = self.directory.path().join("context.tar.gz");
        let tar = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&context).arg(".").status();
        assert!(tar.unwrap().success());
        archive
    }

    /// A git server with the repository `team/app`, whose folder `folder` is the context, and the commit.
    fn git(&self, folder: &str, login: Option<&str>) -> (GitServer, String) {
        let root = self.directory.path().join("git");
        std::fs::create_dir_all(root.join("team")).unwrap();
        let repo = Repo::new(&root.join("team"), "app");
        repo.file(&format!("{folder}Dockerfile"), &self.dockerfile());
        repo.file(&format!("{folder}greeting"), "good morning\n");
        let commit = repo.commit();
        (GitServer::start(&root, login), commit)
    }

    /// The clouds' hosts, and a pod that finds and trusts them.
    fn front(&self, pod: &mut Value, sites: &[(&str, String)]) -> Front {
        let folder = self.directory.path().join("front");
        std::fs::create_dir(&folder).unwrap();
        let front = Front::start(&folder, sites);
        // As the kubelet writes it for `hostAliases`, which podman leaves alone in a pod with the node's network.
        let hosts = format!("127.0.0.1 localhost\n{} {}\n", front.address, front.hosts.join(" "));
        self.mount(pod, "hosts", "/etc/hosts", &hosts);
        self.mount(pod, "clouds-authority", "/kaniko/ssl/certs/authority.pem", &front.ca);
        front
    }

    /// Mounts a file with this content.
    fn mount(&self, pod: &mut Value, name: &str, path: &str, content: &str) {
        let file = self.cluster.host_path(&format!("/{name}"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        let mount = json!({"name": name, "mountPath": path, "readOnly": true});
        pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(mount);
        let volume = json!({"name": name, "hostPath": {"path": format!("/{name}"), "type": "File"}});
        pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
    }

    fn answer(&self, name: &str) -> String {
        pull_and_run(&format!("{}/{name}", self.registry.host), None, &[])
    }

    /// Runs the pod, and checks that it pushed the image.
    fn builds(&self, pod: &Value, name: &str) {
        self.cluster.run(pod).succeeded();
        assert_eq!(self.answer(name), "good morning\n");
    }
}

/// An example's pod, with these texts changed in it.
fn example(path: &str, changes: &[(&str, &str)]) -> Value {
    let file = repository_root().join("examples").join(path);
    let mut text = manifest::documents(&file).remove(0).to_string();
    for (from, to) in changes {
        assert!(text.contains(from), "{path} holds {from}");
        text = text.replace(from, to);
    }
    serde_json::from_str(&text).unwrap()
}

fn set(pod: &mut Value, variables: &[(&str, &str)]) {
    let container = &mut pod["spec"]["containers"][0];
    if container["env"].is_null() {
        container["env"] = json!([]);
    }
    let list = container["env"].as_array_mut().unwrap();
    list.extend(variables.iter().map(|(name, value)| json!({"name": name, "value": value})));
}

/// A service account's key of Google's.
fn google_key(directory: &Path) -> String {
    let path = directory.join("google.pem");
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&path).arg("2048").output();
    assert!(made.expect("openssl is installed").status.success());
    let key = std::fs::read_to_string(path).unwrap();
    json!({"type": "service_account", "client_email": "ci@my-project.iam.gserviceaccount.com",
        "private_key": key, "token_uri": "https://oauth2.googleapis.com/token"})
    .to_string()
}

fn google_token() -> (&'static str, String) {
    ("oauth2.googleapis.com", answer_site("= /token", r#"{"access_token":"google-token","expires_in":3600}"#))
}

#[test]
fn a_context_comes_from_s3() {
    let mut world = World::new();
    let archive = world.archive();
    let moto = Moto::start(&[("context.tar.gz", &archive)]);
    let keys =
        format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", moto.key.0, moto.key.1);
    world.cluster.secret("aws", &[("credentials", &keys)]);
    let mut pod =
        example("contexts/s3.yaml", &[("s3://my-bucket/", "s3://contexts/"), ("eu-central-1", "eu-west-1")]);
    let endpoint = format!("http://127.0.0.1:{}", moto.port);
    set(&mut pod, &[("S3_ENDPOINT", &endpoint), ("S3_FORCE_PATH_STYLE", "true")]);
    world.builds(&pod, "app:1");
}

#[test]
fn a_context_comes_from_cloud_storage() {
    let mut world = World::new();
    let archive = world.archive();
    let store = FakeGcs::start();
    store.put("context.tar.gz", &archive);
    let key = google_key(world.directory.path());
    world.cluster.secret("google", &[("key.json", &key)]);
    let mut pod = example("contexts/gcs.yaml", &[("gs://my-bucket/", "gs://contexts/")]);
    let guarded = format!(
        "location / {{ if ($http_authorization != \"Bearer google-token\") {{ return 401; }} proxy_pass http://127.0.0.1:{}; }}",
        store.port
    );
    let _front = world.front(&mut pod, &[google_token(), ("storage.googleapis.com", guarded)]);
    world.builds(&pod, "app:1");
}

#[test]
fn a_context_comes_from_blob_storage() {
    let mut world = World::new();
    let archive = world.archive();
    let folder = world.directory.path().join("azurite");
    std::fs::create_dir(&folder).unwrap();
    let store = Azurite::start(&folder);
    store.put("context.tar.gz", &archive);
    world.cluster.secret("azure", &[("key", Azurite::KEY)]);
    let mut pod = example("contexts/azure.yaml", &[("//myaccount.", "//devstoreaccount1.")]);
    set(&mut pod, &[("AZURE_STORAGE_SERVICE_ENDPOINT", &store.endpoint())]);
    world.builds(&pod, "app:1");
}

#[test]
fn a_context_comes_from_a_git_server() {
    let mut world = World::new();
    let (git, _) = world.git("services/web/", Some("t0ken:"));
    world.cluster.secret("git", &[("token", "t0ken")]);
    let mut pod = example("contexts/git.yaml", &[]);
    let site = format!("location / {{ proxy_pass http://127.0.0.1:{}; }}", git.port());
    let _front = world.front(&mut pod, &[("git.example.com", site)]);
    world.builds(&pod, "app:1");
}

/// The repository that the registries' examples build.
fn git_site(git: &GitServer) -> (&'static str, String) {
    ("git.example.com", format!("location / {{ proxy_pass http://127.0.0.1:{}; }}", git.port()))
}

#[test]
fn an_image_goes_to_amazons_registry_with_a_role_for_the_service_account() {
    let mut world = World::new();
    let (git, _) = world.git("", None);
    let mut pod = example("registries/ecr.yaml", &[]);
    // What EKS puts into the pod of an account with a role. On rung root the token lies where images have a link.
    world.cluster.node = Node::SeccompDefault;
    let token = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token";
    world.mount(&mut pod, "token", token, "a token of the cluster's");
    set(
        &mut pod,
        &[("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ci"), ("AWS_WEB_IDENTITY_TOKEN_FILE", token)],
    );
    let basic = format!("Basic {}", base64("AWS:ecr-password"));
    let data =
        format!(r#"{{"authorizationData":[{{"authorizationToken":"{}"}}]}}"#, base64("AWS:ecr-password"));
    let assumed = "<r><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken></r>";
    let api = format!(
        "location / {{ if ($http_authorization !~ \"Credential=ASIAROLE/[0-9]+/eu-central-1/ecr/\") {{ return 403; }}\n\
           if ($http_x_amz_target !~ \"GetAuthorizationToken$\") {{ return 400; }} return 200 '{data}'; }}"
    );
    let host = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
    let sites = [
        git_site(&git),
        ("sts.eu-central-1.amazonaws.com", answer_site("/", assumed)),
        ("api.ecr.eu-central-1.amazonaws.com", api),
        (host, registry_site(&world.registry.host, &basic, "Basic realm=\"ecr\"")),
    ];
    let _front = world.front(&mut pod, &sites);
    world.builds(&pod, "app:1");
}

#[test]
fn an_image_goes_to_azures_registry_with_a_workload_identity() {
    let world = World::new();
    let (git, _) = world.git("", None);
    let mut pod = example("registries/acr.yaml", &[]);
    assert_eq!(pod["metadata"]["labels"]["azure.workload.identity/use"], "true");
    // What the webhook puts into a pod with that label.
    let token = "/var/run/secrets/azure/tokens/azure-identity-token";
    world.mount(&mut pod, "token", token, "a token of the cluster's");
    let variables = [
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_FEDERATED_TOKEN_FILE", token),
        ("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/"),
    ];
    set(&mut pod, &variables);
    let challenge =
        r#"Bearer realm="https://myregistry.azurecr.io/oauth2/token",service="myregistry.azurecr.io""#;
    let registry = [
        answer_site("= /oauth2/exchange", r#"{"refresh_token":"refresh"}"#),
        answer_site("= /oauth2/token", r#"{"access_token":"acr-access"}"#),
        registry_site(&world.registry.host, "Bearer acr-access", challenge),
    ];
    let login = answer_site("= /tenant/oauth2/v2.0/token", r#"{"access_token":"entra","expires_in":3600}"#);
    let sites = [
        git_site(&git),
        ("login.microsoftonline.com", login),
        ("myregistry.azurecr.io", registry.join("\n")),
    ];
    let _front = world.front(&mut pod, &sites);
    world.builds(&pod, "app:1");
}

#[test]
fn an_image_goes_to_googles_registry_with_a_key() {
    let mut world = World::new();
    let (git, _) = world.git("", None);
    let key = google_key(world.directory.path());
    world.cluster.secret("google", &[("key.json", &key)]);
    let mut pod = example("registries/google.yaml", &[]);
    let basic = format!("Basic {}", base64("oauth2accesstoken:google-token"));
    let site = registry_site(&world.registry.host, &basic, "Basic realm=\"google\"");
    let _front = world.front(&mut pod, &[git_site(&git), google_token(), ("europe-docker.pkg.dev", site)]);
    world.builds(&pod, "my-project/images/app:1");
}

#[test]
fn an_image_goes_to_docker_hub() {
    let mut world = World::new();
    let (git, _) = world.git("", None);
    let login = json!({"auths": {"https://index.docker.io/v1/": {"auth": base64("me:token")}}});
    world.cluster.secret("registry", &[(".dockerconfigjson", &login.to_string())]);
    let mut pod = example("registries/docker-hub.yaml", &[]);
    let basic = format!("Basic {}", base64("me:token"));
    let site = registry_site(&world.registry.host, &basic, "Basic realm=\"hub\"");
    let _front = world.front(&mut pod, &[git_site(&git), ("registry-1.docker.io", site)]);
    world.builds(&pod, "me/app:1");
}

#[test]
fn an_image_goes_to_harbor_whose_proxy_project_gives_the_base_image() {
    let mut world = World::new();
    let git_root = world.directory.path().join("git");
    std::fs::create_dir_all(git_root.join("team")).unwrap();
    let repo = Repo::new(&git_root.join("team"), "app");
    repo.file("Dockerfile", &DOCKERFILE.replace("registry.example.com/base:1", "docker.io/library/base:1"));
    repo.file("greeting", "good morning\n").commit();
    let git = GitServer::start(&git_root, None);
    let base = "FROM scratch\nADD base.tar /\nENV PATH=/bin\n";
    push(&world.registry, &Bench::new(), base, "hub/library/base:1");
    let login = json!({"auths": {"harbor.example.com": {"auth": base64("robot$ci:token")}}});
    world.cluster.secret("registry", &[(".dockerconfigjson", &login.to_string())]);
    let mut pod = example("registries/harbor.yaml", &[]);
    let basic = format!("Basic {}", base64("robot$ci:token"));
    let site = registry_site(&world.registry.host, &basic, "Basic realm=\"harbor\"");
    let front = world.front(&mut pod, &[git_site(&git), ("harbor.example.com", site)]);
    world.cluster.config_map("harbor-authority", &[("ca.crt", &front.ca)]);
    world.builds(&pod, "team/app:1");
}

#[test]
fn an_image_goes_to_a_registry_with_the_pull_secrets_of_the_pod_s_account() {
    let mut world = World::new();
    // Where namespaces are refused the build writes to the container's root, above the token.
    world.cluster.node = Node::SeccompDefault;
    let (git, _) = world.git("", None);
    let host = "registry.private.example";
    let mut pod =
        example("registries/ecr.yaml", &[("123456789012.dkr.ecr.eu-central-1.amazonaws.com", host)]);
    let claims = base64(r#"{"sub":"system:serviceaccount:ci:kiln-executor"}"#);
    let token = format!("e30.{}.signature", claims.trim_end_matches('='));
    let basic = format!("Basic {}", base64("puller:s3cret"));
    let auths = json!({"auths": {host: {"auth": base64("puller:s3cret")}}}).to_string();
    let answers = [
        ("serviceaccounts/kiln-executor", json!({"imagePullSecrets": [{"name": "pull"}]})),
        ("secrets/pull", json!({"data": {".dockerconfigjson": base64(&auths)}})),
    ];
    let api: String = answers
        .iter()
        .map(|(path, answer)| {
            format!(
                "location = /api/v1/namespaces/ci/{path} {{\n\
                   if ($http_authorization != \"Bearer {token}\") {{ return 403; }} return 200 '{answer}'; }}\n"
            )
        })
        .collect();
    let sites = [
        git_site(&git),
        ("kubernetes.default.svc", api),
        (host, registry_site(&world.registry.host, &basic, "Basic realm=\"private\"")),
    ];
    let front = world.front(&mut pod, &sites);
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    for (name, text) in [("token", token.as_str()), ("namespace", "ci"), ("ca.crt", &front.ca)] {
        world.mount(&mut pod, &format!("account-{name}"), &format!("{folder}/{name}"), text);
    }
    set(
        &mut pod,
        &[("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc"), ("KUBERNETES_SERVICE_PORT", "443")],
    );
    world.builds(&pod, "app:1");
}

#[test]
fn a_job_of_githubs_runner_controller_builds_its_commit() {
    let world = World::new();
    let (git, commit) = world.git("", Some("x-access-token:gh-token"));
    let job = &manifest::documents(&repository_root().join("examples/ci/github-arc.yml"))[0]["jobs"]["build"];
    let step = &job["steps"][0];
    let filled = |text: &str| {
        let values = [
            ("github.repository", "team/app"),
            ("github.ref", "refs/heads/main"),
            ("github.sha", &commit),
            ("github.actor", "me"),
            ("secrets.GITHUB_TOKEN", "gh-token"),
        ];
        values
            .iter()
            .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${{{{ {name} }}}}"), value))
    };
    // The runner starts the job's container idle, and runs each step in it.
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "arc"},
        "spec": {"restartPolicy": "Never", "volumes": [],
            "containers": [{"name": "job", "image": job["container"]["image"], "volumeMounts": [],
                "command": ["/busybox/sh", "-c", "sleep 300"]}]}});
    for (name, value) in step["env"].as_object().unwrap() {
        set(&mut pod, &[(name, &filled(value.as_str().unwrap()))]);
    }
    let basic = format!("Basic {}", base64("me:gh-token"));
    let site = registry_site(&world.registry.host, &basic, "Basic realm=\"ghcr\"");
    let github = format!("location / {{ proxy_pass http://127.0.0.1:{}; }}", git.port());
    let _front = world.front(&mut pod, &[("github.com", github), ("ghcr.io", site)]);
    let script = filled(step["run"].as_str().unwrap());
    assert!(!script.contains("${{"), "{script}");
    let shell = job["defaults"]["run"]["shell"].as_str().unwrap();
    let running = world.cluster.start(&pod, None);
    running.exec(&[shell, "-e", "-c", &script]);
    assert_eq!(world.answer(&format!("team/app:{commit}")), "good morning\n");
}
