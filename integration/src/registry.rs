//! Debian's docker-registry, started for real on a free port.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Who may use a registry that asks: user and password.
pub const LOGIN: (&str, &str) = ("kiln", "a secret word");

/// The line of htpasswd for [`LOGIN`]: the registry takes bcrypt and nothing else.
const HTPASSWD: &str = "kiln:$2b$04$zMqnDy/ipsoQMrQQ62dHNeSDG3.GH9YwZCzk5ZLHi/XAGf/BZSl82\n";

/// A running registry; dropped, it ends.
pub struct Registry {
    child: Child,
    /// Host and port.
    pub host: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// One that anybody may use.
    pub fn start() -> Self {
        Self::with("")
    }

    /// One that asks for [`LOGIN`], by basic authentication.
    pub fn with_login() -> Self {
        Self::with("auth: {htpasswd: {realm: kiln, path: HTPASSWD}}\n")
    }

    fn with(auth: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let users = directory.path().join("htpasswd");
        std::fs::write(&users, HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: 127.0.0.1:{port}}}\n{}",
            directory.path().join("data").display(),
            auth.replace("HTPASSWD", &users.display().to_string()),
        );
        let file = directory.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed: integration/scripts/install-test-tools");
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, host: format!("127.0.0.1:{port}"), _directory: directory }
    }

    /// Ends it early.
    pub fn stop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// The content of a config.json that logs in here.
    pub fn config_json(&self) -> String {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
        serde_json::json!({"auths": {&self.host: {"auth": auth}}}).to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
