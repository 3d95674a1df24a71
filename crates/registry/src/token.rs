//! Token servers: a login is exchanged for a token (distribution's "Token Authentication Specification" and "OAuth2 Token
//! Authentication").

use std::collections::BTreeSet;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use kiln_oci::Redacted;
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::RegistryToken;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::answer::classify;
use crate::bearer::{Bearer, Scope, Token, authority, lock, plain_header, registry_auth};
use crate::retry::{Again, Failure};
use crate::route::Place;
use crate::scheme::http_allowed;
use crate::transport::Transport;
use crate::{Attempt, LoginSecret, RegistryError};

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
    #[serde(default)]
    refresh_token: String,
}

impl Bearer {
    /// Asks the token server for a token.
    pub(crate) async fn fetch(
        &self,
        transport: &Transport,
        request: &TokenRequest<'_>,
        secret: Option<&LoginSecret>,
    ) -> Result<Token, Failure> {
        let protocol =
            |what: String| Failure::never(RegistryError::Protocol { at: Box::new(request.at.clone()), what });
        let realm = Url::parse(request.realm)
            .map_err(|_| protocol(format!("its token server {:?} is no URL", request.realm)))?;
        let server = authority(&realm);
        let plain = realm.scheme() != "https";
        let trusted = http_allowed(&transport.options, &server, request.place.direction);
        if !matches!(realm.scheme(), "http" | "https") || (plain && secret.is_some() && !trusted) {
            return Err(protocol(format!(
                "its token server {server} has no TLS, and a login must not be sent there (--insecure-registry {server} allows it)"
            )));
        }
        let identity = match secret {
            Some(LoginSecret::IdentityToken(token)) => {
                Some(lock(&self.renewed).get(&renewal_key(request)).unwrap_or(token).clone())
            }
            _ => None,
        };
        let client = transport.client(&server, request.place.direction)?;
        let ask = async |http: reqwest::RequestBuilder| {
            let answer = transport.exchange(http.header(ACCEPT, "application/json"), request.at).await;
            answer.map_err(|failure| named(failure, &server))
        };
        let get = |auth: &RegistryAuth| {
            let get = client.get(request.url(realm.clone(), secret));
            match plain_header(auth) {
                Some(header) => get.header(AUTHORIZATION, header),
                None => get,
            }
        };
        let (status, headers, body) = if let Some(token) = &identity {
            let form = "application/x-www-form-urlencoded";
            let post = client.post(realm.clone()).header(CONTENT_TYPE, form).body(request.form(token));
            let posted = ask(post).await?;
            // What a server that knows no POST says differs; all know GET.
            if matches!(posted.0.as_u16(), 400 | 401 | 404 | 405) {
                let got =
                    ask(get(&RegistryAuth::Basic("<token>".to_owned(), token.expose().clone()))).await?;
                let unknown = matches!(posted.0.as_u16(), 404 | 405);
                if got.0.is_success() || unknown { got } else { posted }
            } else {
                posted
            }
        } else {
            ask(get(&secret.map_or(RegistryAuth::Anonymous, registry_auth))).await?
        };
        if !status.is_success() {
            return Err(refusal(request.at, &server, status, &headers, &body));
        }
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| {
            let mut failure = protocol(format!("the token server {server} did not answer with a token"));
            // It may have been cut.
            failure.again = Again::Later(None);
            failure
        })?;
        if !answer.refresh_token.is_empty() && identity.is_some() {
            lock(&self.renewed).insert(renewal_key(request), Redacted::new(answer.refresh_token));
        }
        let value = match (answer.token, answer.access_token) {
            (token, access_token) if token.is_empty() && !access_token.is_empty() => {
                RegistryToken::AccessToken { access_token }
            }
            (token, _) if !token.is_empty() => RegistryToken::Token { token },
            _ => return Err(protocol(format!("the token server {server} gave an empty token"))),
        };
        // The specification's default is a minute. A token is renewed a little before it ends.
        let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(60).clamp(1, 24 * 3600));
        Ok(Token { value, until: Instant::now() + lifetime - (lifetime / 5).min(Duration::from_secs(10)) })
    }
}

/// What a token server's refusal means. 400, 401 and 403 are for a login that it doesn't take; the image itself is
/// neither missing nor denied, whatever the status.
fn refusal(at: &Attempt, server: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let mut failure = classify(at, status, headers, body);
    let said = match &failure.error {
        RegistryError::Unauthorized { detail, .. }
        | RegistryError::Denied { detail, .. }
        | RegistryError::NotFound { detail, .. }
        | RegistryError::RateLimited { detail, .. }
        | RegistryError::Refused { detail, .. } => detail.clone(),
        _ => String::new(),
    };
    let gap = if said.is_empty() { "" } else { ": " };
    let detail = format!("the token server {server} answers {}{gap}{said}", status.as_u16());
    let at = Box::new(at.clone());
    failure.error = match (&failure.error, status.as_u16()) {
        (RegistryError::RateLimited { .. }, _) => RegistryError::RateLimited { at, detail },
        (_, 400 | 401 | 403) => RegistryError::Unauthorized { at, detail },
        (_, status) => RegistryError::Refused { at, status, detail },
    };
    failure
}

/// Names the token server in a failure to reach it.
fn named(mut failure: Failure, server: &str) -> Failure {
    match &mut failure.error {
        RegistryError::Unreachable { why, .. } => *why = format!("the token server {server}: {why}"),
        // It is that server's authority that has to be given.
        RegistryError::Certificate { at, why } => {
            server.clone_into(&mut at.host);
            *why = format!("{why} (it is the registry's token server)");
        }
        RegistryError::Protocol { what, .. } => *what = format!("the token server {server}: {what}"),
        _ => {}
    }
    failure
}

/// What a token is asked for, and where.
pub(crate) struct TokenRequest<'a> {
    pub(crate) place: &'a Place,
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    pub(crate) scopes: &'a BTreeSet<Scope>,
    pub(crate) hint: Option<String>,
    pub(crate) at: &'a Attempt,
}

impl TokenRequest<'_> {
    fn all_scopes(&self) -> impl Iterator<Item = String> {
        self.scopes.iter().map(Scope::text).chain(self.hint.clone())
    }

    fn url(&self, mut realm: Url, secret: Option<&LoginSecret>) -> Url {
        {
            let mut query = realm.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in self.all_scopes() {
                query.append_pair("scope", &scope);
            }
            if let Some(LoginSecret::Basic { user, .. }) = secret {
                query.append_pair("account", user);
            }
        }
        realm
    }

    fn form(&self, token: &Redacted<String>) -> String {
        let scopes: Vec<String> = self.all_scopes().collect();
        url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", self.service.unwrap_or_default())
            .append_pair("scope", &scopes.join(" "))
            .append_pair("client_id", "kiln")
            .append_pair("refresh_token", token.expose())
            .finish()
    }
}

fn renewal_key(request: &TokenRequest<'_>) -> String {
    format!("{} {}", request.place.host, request.realm)
}
