//! HTTP or HTTPS: HTTPS always comes first; HTTP follows only where it may.

use std::net::IpAddr;

use crate::options::RegistryOptions;
use crate::route::Direction;

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

/// Whether HTTP may be spoken to `host`.
pub(crate) fn http_allowed(options: &RegistryOptions, host: &str, direction: Direction) -> bool {
    let insecure = &options.insecure;
    is_near(host)
        || insecure.registries.iter().any(|name| name.eq_ignore_ascii_case(host))
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
        || tls.skip_verify_registries.iter().any(|name| name.eq_ignore_ascii_case(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
