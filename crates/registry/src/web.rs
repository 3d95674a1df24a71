//! A client for the rest of the web: contexts' servers get the trust and the proxies of registries.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;

use crate::{Registry, RegistryError};

/// A connection without a byte for this long counts as broken.
const STALL: Duration = Duration::from_secs(60);
/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;

impl Registry {
    /// A client that follows redirects, but none from HTTPS to HTTP, and gives bodies as they are. Without `verify`, it
    /// doesn't look at certificates.
    pub fn web_client(&self, verify: bool) -> Result<Client, RegistryError> {
        self.client_of(None, verify)
    }

    /// The same for each host that has certificates of its own, by its name in the flags.
    pub fn special_web_clients(&self) -> Result<BTreeMap<String, Client>, RegistryError> {
        let hosts = self.transport().special_hosts();
        hosts.into_iter().map(|host| Ok((host.clone(), self.client_of(Some(&host), true)?))).collect()
    }

    fn client_of(&self, host: Option<&str>, verify: bool) -> Result<Client, RegistryError> {
        let policy = Policy::custom(|attempt| {
            let before = attempt.previous();
            if before.len() > MOST_REDIRECTS {
                return attempt.error("it redirects too often");
            }
            let was_secure = before.last().is_some_and(|url| url.scheme() == "https");
            if was_secure && attempt.url().scheme() != "https" {
                return attempt.error("it redirects from HTTPS to a place without TLS");
            }
            attempt.follow()
        });
        self.transport().other_client(host, verify, |builder| builder.redirect(policy).read_timeout(STALL))
    }
}
