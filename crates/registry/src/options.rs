//! What a [`crate::Registry`] is made from: plain values. Nothing here is read from the environment; `src/` takes one
//! snapshot of it and passes values down.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::{Credentials, Event};

/// Receives every [`Event`]. It is called from the transfers' tasks and must not block for long.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// Everything a [`crate::Registry`] needs to know.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Where plain HTTP may be spoken.
    pub insecure: Insecure,
    /// Who is trusted, and who we are, in TLS.
    pub tls: TlsOptions,
    /// Where else images of a registry can be had.
    pub mirrors: Mirrors,
    /// How often and how patiently a failed request is repeated.
    pub retries: RetryPolicy,
    /// Where logins come from.
    pub credentials: Credentials,
    /// The `User-Agent` header, complete (`kiln/1.2.3`, with `UPSTREAM_CLIENT_TYPE` appended by the caller).
    pub user_agent: String,
    /// The proxies to go through.
    pub proxies: Proxies,
    /// How many requests one registry sees from us at a time.
    pub max_concurrency: usize,
    /// When a blob is fetched in pieces.
    pub ranges: Ranges,
    /// Whether HTTP/2 may be spoken (`FF_KANIKO_DISABLE_HTTP2` turns it off).
    pub http2: bool,
    /// Uploads go in pieces of this many bytes. `None` sends a blob in one request until the registry says that it is
    /// too large.
    pub chunk_size: Option<u64>,
    /// Who hears of progress, retries and fallbacks.
    pub observer: Option<Observer>,
}

/// Where plain HTTP may be spoken. HTTPS is always tried first. Loopback addresses, `localhost`, `*.localhost` and the
/// private IPv4 networks of RFC 1918 need no entry here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insecure {
    /// `--insecure`: to any registry that is pushed to.
    pub push: bool,
    /// `--insecure-pull`: to any registry that is pulled from.
    pub pull: bool,
    /// `--insecure-registry`: to these hosts (with port), in both directions.
    pub registries: Vec<String>,
}

/// TLS: extra trust, client certificates, and where verification is off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM files with certificates that are trusted beside Mozilla's list, which is built in. One that isn't there is
    /// no error (`SSL_CERT_FILE`).
    pub ca_files: Vec<PathBuf>,
    /// Folders of such files (`SSL_CERT_DIR`, `/kaniko/ssl/certs`). One that isn't there is no error.
    pub ca_dirs: Vec<PathBuf>,
    /// `--registry-certificate HOST=FILE`: a PEM file trusted for that host. One that isn't there is an error.
    pub registry_certificates: Vec<(String, PathBuf)>,
    /// `--registry-client-cert HOST=CRT,KEY`: the certificate that we show to that host, and its key.
    pub client_certificates: Vec<(String, PathBuf, PathBuf)>,
    /// `--skip-tls-verify`: certificates are not checked, in any direction.
    pub skip_verify: bool,
    /// `--skip-tls-verify-pull`: nor are they where we pull.
    pub skip_verify_pull: bool,
    /// `--skip-tls-verify-registry`: nor at these hosts.
    pub skip_verify_registries: Vec<String>,
}

/// Where else images can be had, and whether the registry itself is asked in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// `--registry-mirror HOST[/path]`: for docker.io, in order.
    pub docker_hub: Vec<String>,
    /// `--registry-map ORIG=NEW[/path]`: for any registry, in order; these come before `docker_hub`.
    pub maps: Vec<(String, String)>,
    /// `--skip-default-registry-fallback`: an image that no mirror has is an error.
    pub no_fallback: bool,
}

impl Mirrors {
    /// Reads the value of `--registry-map` or `KANIKO_REGISTRY_MAP`: `ORIG=NEW[/path][;ORIG=NEW…]`.
    ///
    /// Fails with the part that has no `=` in it.
    pub fn parse_maps(text: &str) -> Result<Vec<(String, String)>, String> {
        text.split([';', ','])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match part.split_once('=') {
                Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                    Ok((from.trim().to_owned(), to.trim().to_owned()))
                }
                _ => Err(part.to_owned()),
            })
            .collect()
    }
}

/// How often and how patiently a failed request is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries beyond the first, for pulls (`--image-download-retry`).
    pub pull: u32,
    /// Tries beyond the first, for pushes (`--push-retry`).
    pub push: u32,
    /// The pause before the first repetition; it doubles from there, with jitter. Tests set it to a millisecond.
    pub base: Duration,
    /// The longest pause, `Retry-After` included.
    pub longest: Duration,
    /// A connection without a byte for this long counts as broken.
    pub stall: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            pull: 3,
            push: 3,
            base: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            stall: Duration::from_secs(60),
        }
    }
}

/// When a blob is fetched in pieces, over several connections: where it is large, and one stream comes slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// So many bytes must be left of it.
    pub least: u64,
    /// The size of a piece, in bytes.
    pub piece: u64,
    /// How long one stream is watched before it is called slow.
    pub patience: Duration,
    /// It is slow below so many bytes a second.
    pub fast: u64,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { least: 32 << 20, piece: 8 << 20, patience: Duration::from_millis(500), fast: 100_000_000 }
    }
}

/// The proxies to go through. Loopback addresses are always spoken to directly.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `HTTP_PROXY`.
    pub http: Option<String>,
    /// `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `NO_PROXY`: hosts, domains and networks, with commas between.
    pub no_proxy: Option<String>,
}

impl fmt::Debug for Proxies {
    /// Addresses of proxies may hold a password: only which are set is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            insecure: Insecure::default(),
            tls: TlsOptions::default(),
            mirrors: Mirrors::default(),
            retries: RetryPolicy::default(),
            credentials: Credentials::anonymous(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            proxies: Proxies::default(),
            max_concurrency: 6,
            ranges: Ranges::default(),
            http2: true,
            chunk_size: None,
            observer: None,
        }
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryOptions")
            .field("insecure", &self.insecure)
            .field("tls", &self.tls)
            .field("mirrors", &self.mirrors)
            .field("retries", &self.retries)
            .field("credentials", &self.credentials)
            .field("user_agent", &self.user_agent)
            .field("proxies", &self.proxies)
            .field("max_concurrency", &self.max_concurrency)
            .field("ranges", &self.ranges)
            .field("http2", &self.http2)
            .field("chunk_size", &self.chunk_size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_takes_several_pairs() {
        let maps = Mirrors::parse_maps("docker.io=a.example/hub;gcr.io=b.example").unwrap();
        assert_eq!(
            maps,
            [("docker.io".into(), "a.example/hub".into()), ("gcr.io".into(), "b.example".into())]
        );
        assert_eq!(Mirrors::parse_maps("docker.io"), Err("docker.io".to_owned()));
    }

    #[test]
    fn a_proxy_s_password_is_not_shown() {
        let proxies = Proxies { https: Some("http://me:hunter2@proxy:3128".into()), ..Proxies::default() };
        assert!(!format!("{proxies:?}").contains("hunter2"));
    }
}
