//! Google's Container Registry and Artifact Registry: an OAuth2 access token as the password of `oauth2accesstoken`.

use std::time::Duration;

use kiln_cloud::{Environment, Exchange, google};

use super::Login;

/// Whether Google runs the registry `host`.
pub(super) fn serves(host: &str) -> bool {
    host == "gcr.io" || host.ends_with(".gcr.io") || host.ends_with(".pkg.dev")
}

/// A login from the first source that is there.
pub(super) async fn login(environment: &Environment, exchange: &Exchange) -> Result<Option<Login>, String> {
    let (token, lifetime, source) = google::token(environment, exchange).await?;
    let login = Login::basic("oauth2accesstoken", token, source);
    Ok(Some(login.valid_for(lifetime.saturating_sub(Duration::from_secs(60)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_google_s_hosts_get_google_s_token() {
        for host in ["gcr.io", "eu.gcr.io", "europe-west1-docker.pkg.dev"] {
            assert!(serves(host), "{host}");
        }
        for host in ["evilgcr.io", "gcr.io.evil.org", "pkg.dev.evil.org", "xpkg.dev", "gcr.io:5000"] {
            assert!(!serves(host), "{host}");
        }
    }
}
