//! nginx with TLS, serving a folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Running, free_port};

/// Serves a folder by HTTPS.
pub struct Nginx {
    _running: Running,
    /// Where it listens.
    pub port: u16,
    /// The certificate to trust.
    pub ca: PathBuf,
}

impl Nginx {
    /// Who may read what is private, and the password.
    pub const LOGIN: (&'static str, &'static str) = ("me", "hunter2");

    /// Starts one before the server `upstream` (a host and port) that takes no request with more than `most` bytes, and
    /// has no TLS; its own files go to `directory`.
    pub fn before(directory: &Path, upstream: &str, most: usize) -> Self {
        let server = format!(
            "client_max_body_size {most}; location / {{ proxy_pass http://{upstream}; proxy_set_header Host $http_host;\n\
               proxy_request_buffering off; proxy_http_version 1.1; }}"
        );
        let port = free_port();
        Self {
            _running: start(directory, port, &format!("listen 127.0.0.1:{port}; {server}")),
            port,
            ca: PathBuf::new(),
        }
    }

    /// Starts one that serves `root`; its own files go to `directory`. What is below `/private/` wants
    /// [`Nginx::LOGIN`].
    pub fn start(directory: &Path, root: &Path) -> Self {
        let authority = kiln_testkit::TestAuthority::new();
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = write("ca.pem", &authority.ca);
        let (certificate, key) = authority.server_pem();
        let (certificate, key) = (write("server.pem", certificate), write("key.pem", key));
        write("users", &format!("{}:{{PLAIN}}{}\n", Self::LOGIN.0, Self::LOGIN.1));
        let port = free_port();
        let place = directory.display();
        let server = format!(
            "listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; root {};\n\
             location /private/ {{ auth_basic x; auth_basic_user_file {place}/users; }}",
            certificate.display(),
            key.display(),
            root.display(),
        );
        Self { _running: start(directory, port, &server), port, ca }
    }
}

/// Starts nginx with one server.
fn start(directory: &Path, port: u16, server: &str) -> Running {
    let place = directory.display();
    let text = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log; user root;\n\
         events {{}}\n\
         http {{ access_log off; client_body_temp_path {place}; proxy_temp_path {place};\n\
           fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};\n\
           server {{ {server} }} }}\n"
    );
    let config = directory.join("nginx.conf");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(config).arg("-p").arg(directory).stderr(Stdio::null());
    Running::start(&mut command, port)
}
