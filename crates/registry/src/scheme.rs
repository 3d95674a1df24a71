//! HTTP or HTTPS: HTTPS always comes first; HTTP follows only where it may.

use std::net::IpAddr;

use crate::options::RegistryOptions;
use crate::route::{Direction, wire_host};

/// Takes `host:port`, `host`, `[::1]:port` apart; the host without brackets.
pub(crate) fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// Whether `host` is this machine or in a private IPv4 network: HTTP needs no flag there, as with docker and kaniko.
pub(crate) fn is_near(host: &str) -> bool {
    let name = host_name(host).to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return true;
    }
    match name.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
        Ok(IpAddr::V6(address)) => address.is_loopback(),
        Err(_) => false,
    }
}

/// Whether a flag that names `named` means the host that is spoken to as `host`: docker.io has an address of its own, and
/// the port of HTTPS goes without saying.
pub(crate) fn same_host(named: &str, host: &str) -> bool {
    let plain = |host: &str| {
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix(":443").unwrap_or(&host);
        wire_host(if host == "index.docker.io" { "docker.io" } else { host }).to_owned()
    };
    plain(named) == plain(host)
}

/// Whether HTTP may be spoken to `host`.
pub(crate) fn http_allowed(options: &RegistryOptions, host: &str, direction: Direction) -> bool {
    let insecure = &options.insecure;
    is_near(host)
        || insecure.registries.iter().any(|name| same_host(name, host))
        || match direction {
            Direction::Pull => insecure.pull,
            Direction::Push => insecure.push,
        }
}

/// Whether `host`'s certificate is checked.
pub(crate) fn verifies(options: &RegistryOptions, host: &str, direction: Direction) -> bool {
    let tls = &options.tls;
    !(tls.skip_verify
        || (tls.skip_verify_pull && direction == Direction::Pull)
        || tls.skip_verify_registries.iter().any(|name| same_host(name, host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_means_the_host_that_is_spoken_to_and_no_other() {
        assert!(same_host("docker.io", "registry-1.docker.io") && same_host("index.docker.io", "docker.io"));
        assert!(same_host("Reg.io:443", "reg.io") && same_host("[::1]:5000", "[::1]:5000"));
        for (named, host) in
            [("reg.io", "reg.io:5000"), ("reg.io", "sub.reg.io"), ("docker.io", "docker.io.evil.org")]
        {
            assert!(!same_host(named, host), "{named} {host}");
        }
    }

    #[test]
    fn near_hosts_are_this_machine_and_private_networks() {
        for host in [
            "localhost",
            "localhost:5000",
            "reg.localhost:80",
            "127.0.0.1:5000",
            "10.1.2.3",
            "172.31.0.1:5000",
            "192.168.1.1",
            "[::1]:5000",
        ] {
            assert!(is_near(host), "{host}");
        }
        for host in [
            "reg.io",
            "localhost.evil.org",
            "172.32.0.1",
            "8.8.8.8:5000",
            "10.0.0.1.evil.org",
            "[2001:db8::1]:5000",
        ] {
            assert!(!is_near(host), "{host}");
        }
    }
}
