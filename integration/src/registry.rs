//! Debian's docker-registry, started for real on a free port: plain, with a login, with TLS, with client certificates,
//! or as a mirror of another one.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

/// Who may use a registry that asks: user and password.
pub const LOGIN: (&str, &str) = ("kiln", "a secret word");

/// The line of htpasswd for [`LOGIN`]: the registry takes bcrypt and nothing else.
const HTPASSWD: &str = "kiln:$2b$04$zMqnDy/ipsoQMrQQ62dHNeSDG3.GH9YwZCzk5ZLHi/XAGf/BZSl82\n";

/// How a registry is set up.
#[derive(Default)]
pub struct Setup<'a> {
    /// Certificate, key: TLS.
    pub tls: Option<(&'a str, &'a str)>,
    /// PEM of the authority whose clients get in.
    pub clients: Option<&'a str>,
    /// Whether it asks for [`LOGIN`], by basic authentication.
    pub login: bool,
    /// A token server's address and the certificate of its signatures, PEM.
    pub tokens: Option<(&'a str, &'a str)>,
    /// The URL of the registry that this one mirrors.
    pub mirrors: Option<&'a str>,
    /// Whether it listens at `[::1]` instead of `127.0.0.1`.
    pub ipv6: bool,
    /// A path in front of everything, as in `/hub/`.
    pub prefix: Option<&'a str>,
}

/// A registry that ends when it is dropped.
pub struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
    /// Its files.
    pub directory: tempfile::TempDir,
}

impl Registry {
    /// Starts one that lets everybody in, without TLS.
    pub fn start() -> Self {
        Self::with(&Setup::default())
    }

    /// Starts one that asks for [`LOGIN`].
    pub fn with_login() -> Self {
        Self::with(&Setup { login: true, ..Setup::default() })
    }

    /// The manifest or index under a name.
    pub fn index(&self, repository: &str, reference: &str) -> serde_json::Value {
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.host);
        let output = Command::new("curl")
            .args(["--silent", "--fail", "--user", &format!("{}:{}", LOGIN.0, LOGIN.1)])
            .args(["--header", "Accept: application/vnd.oci.image.index.v1+json"])
            .args(["--header", "Accept: application/vnd.docker.distribution.manifest.list.v2+json"])
            .args(["--header", "Accept: application/vnd.oci.image.manifest.v1+json", &url])
            .output()
            .expect("curl is installed: integration/scripts/install-test-tools");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// The content of a config.json that logs in here.
    pub fn config_json(&self) -> String {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
        serde_json::json!({"auths": {&self.host: {"auth": auth}}}).to_string()
    }

    /// Starts one that is set up like this.
    pub fn with(setup: &Setup<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = if setup.ipv6 { "[::1]" } else { "127.0.0.1" };
        let host = format!("{name}:{}", free_port());
        let file = |name: &str, text: &str| -> PathBuf {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp:\n  addr: '{host}'\n",
            directory.path().join("data").display()
        );
        if let Some(prefix) = setup.prefix {
            config.push_str(&format!("  prefix: {prefix}\n"));
        }
        if let Some((certificate, key)) = setup.tls {
            let (certificate, key) = (file("server.pem", certificate), file("server.key", key));
            config.push_str(&format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.display(),
                key.display()
            ));
            if let Some(clients) = setup.clients {
                config.push_str(&format!("    clientcas: [{}]\n", file("clients.pem", clients).display()));
            }
        }
        if setup.login {
            let path = file("htpasswd", HTPASSWD);
            config.push_str(&format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", path.display()));
        }
        if let Some((realm, certificate)) = setup.tokens {
            use crate::token_server::{ISSUER, SERVICE};
            let path = file("tokens.pem", certificate);
            config.push_str(&format!(
                "auth:\n  token: {{realm: '{realm}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}\n",
                path.display()
            ));
        }
        if let Some(remote) = setup.mirrors {
            config.push_str(&format!("proxy:\n  remoteurl: {remote}\n"));
        }
        let path = file("config.yml", &config);
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(std::fs::File::create(directory.path().join("access")).unwrap())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .expect("docker-registry is installed: integration/scripts/install-test-tools");
        for _ in 0..200 {
            if std::net::TcpStream::connect(&host).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, host, directory }
    }

    /// What it said: a line for each request, too.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The requests as web servers log them, with the version of HTTP.
    pub fn access(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("access")).unwrap_or_default()
    }

    /// Ends it.
    pub fn stop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that is free at present.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
