//! What getting a context needs of the outside: HTTP clients, the environment's snapshot, a clock, somebody who listens.

use std::sync::Arc;

use kiln_cloud::{Clock, Environment, Exchange};

use crate::Event;

/// Hears what happens. It may be called from several threads.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// What fetching needs. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    /// Follows redirects, verifies certificates.
    pub client: reqwest::Client,
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
    /// Whether to stop.
    pub cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Access {
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
