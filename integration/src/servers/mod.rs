//! Real servers on free ports of this machine, for the time of a test: git, nginx, sshd, and the clouds' stand-ins. What
//! they need is installed by `integration/scripts/install-test-tools`.

mod clouds;
mod cut;
mod faulty;
mod files;
mod forward;
mod front;
mod git;
mod nginx;
mod sshd;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

pub use clouds::{Azurite, FakeGcs, Moto, S3rver};
pub use cut::Cut;
pub use faulty::{Faulty, Wrong};
pub use files::FileServer;
pub use forward::Forward;
pub use front::{Front, answer_site, registry_site};
pub use git::{GitServer, Repo};
pub use nginx::Nginx;
pub use sshd::Sshd;

/// A port that nobody has.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts `command` and waits until somebody listens at `port`.
    pub(crate) fn start(command: &mut Command, port: u16) -> Self {
        Self::start_at(command, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The same for another address.
    pub(crate) fn start_at(command: &mut Command, address: SocketAddr) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut running = Self(child);
        let began = Instant::now();
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            if let Some(status) = running.0.try_wait().unwrap() {
                panic!("{command:?} ended with {status} before it listened");
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }
}

/// A tool that the project's own script installs into the target folder.
pub(crate) fn tool(name: &str) -> PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let path = target.join("test-tools").join(name);
    assert!(path.exists(), "{} is missing: run integration/scripts/install-test-tools", path.display());
    path
}
