//! An SSH server of OpenSSH's, with a key that is let in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Running, free_port};

/// Runs for the user who runs the tests.
pub struct Sshd {
    _running: Running,
    directory: PathBuf,
    /// Where it listens.
    pub port: u16,
}

impl Sshd {
    /// Starts one; its files go to `directory`.
    pub fn start(directory: &Path) -> Self {
        let key = |name: &str, kind: &str| {
            let path = directory.join(name);
            let mut command = Command::new("ssh-keygen");
            let status = command.args(["-q", "-N", "", "-t", kind, "-f"]).arg(&path).status().unwrap();
            assert!(status.success(), "ssh-keygen is installed: integration/scripts/install-test-tools");
            path
        };
        let (host, other) = (key("host", "ed25519"), key("host-rsa", "rsa"));
        let user = key("user", "ed25519");
        key("stranger", "ed25519");
        let port = free_port();
        let show = |path: &Path| path.display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nHostKey {}\nAuthorizedKeysFile {}.pub\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin yes\nAcceptEnv GIT_PROTOCOL\nPidFile {}/pid\n",
            show(&host),
            show(&other),
            show(&user),
            show(directory),
        );
        std::fs::write(directory.join("config"), config).unwrap();
        let _ = std::fs::create_dir_all("/run/sshd");
        let program = ["/usr/sbin/sshd", "/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("sshd is installed: integration/scripts/install-test-tools");
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f"]).arg(directory.join("config")).stderr(Stdio::null());
        let running = Running::start(&mut command, port);
        let public = std::fs::read_to_string(directory.join("host.pub")).unwrap();
        let public: Vec<&str> = public.split_whitespace().take(2).collect();
        let line = format!("[127.0.0.1]:{port} {}\n", public.join(" "));
        std::fs::write(directory.join("known_hosts"), line).unwrap();
        Self { _running: running, directory: directory.to_owned(), port }
    }

    /// A home folder whose `.ssh` holds the key `name` and knows the server as one at `port`, where a relay listens.
    pub fn home_for(&self, name: &str, port: u16) -> PathBuf {
        let home = self.home(name, true);
        let hosts = home.join(".ssh/known_hosts");
        let text = std::fs::read_to_string(&hosts).unwrap();
        std::fs::write(hosts, text.replace(&format!(":{}", self.port), &format!(":{port}"))).unwrap();
        home
    }

    /// A home folder whose `.ssh` holds the key `name` and knows the server, or another one in its place.
    pub fn home(&self, name: &str, known: bool) -> PathBuf {
        let home = self.directory.join(format!("home-{name}-{known}"));
        std::fs::create_dir_all(home.join(".ssh")).unwrap();
        std::fs::copy(self.directory.join(name), home.join(".ssh/id_ed25519")).unwrap();
        let mut hosts = std::fs::read_to_string(self.directory.join("known_hosts")).unwrap();
        if !known {
            let other = std::fs::read_to_string(self.directory.join("stranger.pub")).unwrap();
            let other: Vec<&str> = other.split_whitespace().take(2).collect();
            hosts = format!("[127.0.0.1]:{} {}\n", self.port, other.join(" "));
        }
        std::fs::write(home.join(".ssh/known_hosts"), hosts).unwrap();
        home
    }
}
