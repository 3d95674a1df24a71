//! The clouds' hosts under their own names: nginx with TLS at a loopback address of its own, which pods find in their `/etc/hosts`.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::Running;

/// Serves some hosts by HTTPS.
pub struct Front {
    _running: Running,
    /// Where it listens, at port 443.
    pub address: Ipv4Addr,
    /// The hosts.
    pub hosts: Vec<String>,
    /// The authority to trust, PEM.
    pub ca: String,
}

impl Front {
    /// Starts one that answers for each host as nginx does with these directives; its own files go to `directory`.
    pub fn start(directory: &Path, sites: &[(&str, String)]) -> Self {
        let hosts: Vec<String> = sites.iter().map(|(host, _)| (*host).to_owned()).collect();
        let (ca, certificate, key) = certificates(&hosts);
        let place = directory.display();
        let address = free_address();
        let mut config = format!(
            "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log; user root;\n\
             events {{}}\n\
             http {{ access_log {place}/access.log; client_body_temp_path {place}; proxy_temp_path {place};\n\
               fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};\n\
               server_names_hash_bucket_size 128; client_max_body_size 0; default_type application/json;\n\
               ssl_certificate {place}/server.pem; ssl_certificate_key {place}/key.pem;\n\
               proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto https;\n"
        );
        for (host, site) in sites {
            writeln!(config, "server {{ listen {address}:443 ssl; server_name {host};\n{site}\n}}").unwrap();
        }
        config.push_str("}\n");
        for (name, text) in [("nginx.conf", &config), ("server.pem", &certificate), ("key.pem", &key)] {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let mut command = Command::new("nginx");
        command.arg("-c").arg(directory.join("nginx.conf")).arg("-p").arg(directory).stderr(Stdio::null());
        Self { _running: Running::start_at(&mut command, (address, 443).into()), address, hosts, ca }
    }
}

/// Directives for a registry at `upstream` that wants this `Authorization`, and asks for it by this challenge.
pub fn registry_site(upstream: &str, authorization: &str, challenge: &str) -> String {
    format!(
        "location /v2/ {{\n\
           if ($http_authorization != \"{authorization}\") {{ return 401 '{{}}'; }}\n\
           proxy_pass http://{upstream}; proxy_set_header Authorization \"\"; proxy_set_header Host $http_host;\n\
           proxy_set_header X-Forwarded-Proto https;\n\
         }}\n\
         add_header WWW-Authenticate '{challenge}' always;"
    )
}

/// Directives for one answer to whatever is asked at `path`.
pub fn answer_site(path: &str, text: &str) -> String {
    format!("location {path} {{ return 200 '{text}'; }}")
}

/// An authority, and the certificate and key of a server with these names.
fn certificates(hosts: &[String]) -> (String, String, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(hosts.to_vec()).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    (ca, certificate, key.serialize_pem())
}

/// A loopback address at whose port 443 nobody listens: by the process, since tests are processes of their own.
fn free_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high & 63, middle, low | 1)
}
