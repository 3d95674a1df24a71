//! What getting a context needs of the outside: HTTP clients, the environment's snapshot, a clock, somebody who listens.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_cloud::{Clock, Environment, Exchange};
use url::Url;

use crate::Event;

/// Hears what happens. It may be called from several threads.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// What fetching needs. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    /// Follows redirects, verifies certificates.
    pub client: reqwest::Client,
    /// The same for hosts with certificates of their own (`--registry-certificate`, `--registry-client-cert`): by host and
    /// port, as they stand in a URL.
    pub special: Arc<BTreeMap<String, reqwest::Client>>,
    /// The same without looking at certificates, for `--git insecure-skip-tls=true`.
    pub unverified: reqwest::Client,
    /// Transfers run on it. Fetching itself blocks, outside of it.
    pub runtime: tokio::runtime::Handle,
    /// Where credentials are looked up.
    pub environment: Environment,
    /// Tells the time that is signed.
    pub clock: Clock,
    /// Hears of progress, retries and what is odd.
    pub on: Observer,
    /// Whether archives are hashed while they come, so that provenance can name them.
    pub digests: bool,
    /// Whether to stop.
    pub cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Access {
    /// The client for the server of `url`.
    pub(crate) fn client_for(&self, url: &Url) -> &reqwest::Client {
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        self.special.get(&host).unwrap_or(&self.client)
    }

    /// How clouds are asked for tokens.
    pub(crate) fn exchange(&self) -> Exchange {
        Exchange { client: self.client.clone(), clock: Arc::clone(&self.clock) }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("environment", &self.environment).finish_non_exhaustive()
    }
}
