//! HTTP clients: TLS, time-outs and proxies as the options say. Redirects are left to who asks.

use std::time::Duration;

use reqwest::Client;

use crate::RegistryError;
use crate::options::{Proxies, RegistryOptions};
use crate::tls::Trust;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(30);
/// How much of one answer may be on its way over HTTP/2, and of all answers that share a connection, in bytes: what is longer
/// comes over a connection of its own.
pub(crate) const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// What is spoken to directly: this machine, and clouds' metadata servers.
const DIRECT: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,metadata.google.internal";

/// A client for `host`, or for any host without certificates of its own.
pub(crate) fn build_client(
    options: &RegistryOptions,
    trust: &Trust,
    host: Option<&str>,
    verify: bool,
    http2: bool,
) -> Result<Client, RegistryError> {
    finish(client_builder(options, trust, host, verify, http2)?)
}

/// The client that `builder` makes.
pub(crate) fn finish(builder: reqwest::ClientBuilder) -> Result<Client, RegistryError> {
    builder.build().map_err(|error| RegistryError::Options {
        what: "the HTTP client's",
        path: "settings".into(),
        why: error.to_string(),
    })
}

/// A client to be changed before it is made.
pub(crate) fn client_builder(
    options: &RegistryOptions,
    trust: &Trust,
    host: Option<&str>,
    verify: bool,
    http2: bool,
) -> Result<reqwest::ClientBuilder, RegistryError> {
    let tls = trust.config(host, verify, http2)?;
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(&options.user_agent)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .no_proxy();
    if !http2 {
        builder = builder.http1_only();
    }
    for proxy in proxies(&options.proxies)? {
        builder = builder.proxy(proxy);
    }
    Ok(builder)
}

fn proxies(options: &Proxies) -> Result<Vec<reqwest::Proxy>, RegistryError> {
    let no_proxy = options.no_proxy.as_deref().unwrap_or_default();
    // It excepts everything, addresses too.
    if no_proxy.split(',').any(|entry| entry.trim() == "*") {
        return Ok(Vec::new());
    }
    let direct = reqwest::NoProxy::from_string(&format!("{DIRECT},{no_proxy}"));
    // The address may hold a password: it is not shown.
    let unusable = |what| {
        move |_| RegistryError::Options { what, path: "[not shown]".into(), why: "it is no URL".into() }
    };
    let mut all = Vec::new();
    if let Some(url) = options.http.as_deref().filter(|url| !url.is_empty()) {
        all.push(reqwest::Proxy::http(url).map_err(unusable("the proxy HTTP_PROXY"))?);
    }
    if let Some(url) = options.https.as_deref().filter(|url| !url.is_empty()) {
        all.push(reqwest::Proxy::https(url).map_err(unusable("the proxy HTTPS_PROXY"))?);
    }
    Ok(all.into_iter().map(|proxy| proxy.no_proxy(direct.clone())).collect())
}
