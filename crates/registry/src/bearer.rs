//! Authorisation: which header a request to a registry gets. Tokens are kept per registry and scope, renewed before
//! they end, and go to no other host. (Distribution's "Token Authentication Specification" and "OAuth2 Token
//! Authentication"; docker's own use of both.)

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use kiln_oci::Redacted;
use oci_client::RegistryOperation;
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::RegistryToken;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::answer::classify;
use crate::challenge::Challenge;
use crate::credentials::Found;
use crate::retry::{Again, Failure};
use crate::route::Place;
use crate::scheme::http_allowed;
use crate::transport::Transport;
use crate::{Attempt, Event, LoginSecret, RegistryError};

/// What a token is for: an operation on a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scope {
    pub(crate) repository: String,
    pub(crate) operation: RegistryOperation,
}

impl Scope {
    fn text(&self) -> String {
        match self.operation {
            RegistryOperation::Pull => format!("repository:{}:pull", self.repository),
            RegistryOperation::Push => format!("repository:{}:pull,push", self.repository),
        }
    }
}

type Slot<T> = Arc<tokio::sync::Mutex<Option<T>>>;

/// What is known of registries' wishes and of our rights.
#[derive(Default)]
pub(crate) struct Bearer {
    challenges: Mutex<HashMap<String, Challenge>>,
    /// The hosts that were asked what they want to see of those who have a login.
    asked: Mutex<HashSet<String>>,
    /// Scopes that a registry named itself, by host and path: a proxy may know a repository by another name.
    hints: Mutex<HashMap<(String, String), String>>,
    tokens: Mutex<HashMap<String, Slot<Token>>>,
    logins: Mutex<HashMap<(String, String), Slot<Found>>>,
    /// Refresh tokens that a token server gave in exchange for older ones.
    renewed: Mutex<HashMap<String, Redacted<String>>>,
}

struct Token {
    value: RegistryToken,
    until: Instant,
}

/// A header for a request, and whether it was made from a token that was fetched for it just now.
pub(crate) struct Authorization {
    pub(crate) header: Option<HeaderValue>,
    pub(crate) fresh: bool,
}

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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bearer {
    /// The login for `place`, asked of the sources once and again when it ends.
    pub(crate) async fn login(&self, transport: &Transport, place: &Place) -> Found {
        let slot = {
            let key = (place.host.clone(), place.path.clone());
            Arc::clone(lock(&self.logins).entry(key).or_default())
        };
        let mut slot = slot.lock().await;
        let ended = |found: &Found| {
            found.login.as_ref().and_then(|login| login.expires).is_some_and(|end| Instant::now() >= end)
        };
        match &*slot {
            Some(found) if !ended(found) => found.clone(),
            _ => {
                let found = transport.find_login(&place.host, &place.path).await;
                for (source, why) in &found.failures {
                    transport.observe(Event::CredentialsFailed { source: source.clone(), why: why.clone() });
                }
                slot.insert(found).clone()
            }
        }
    }

    /// Where the login for `place` came from, in words. Asks nobody.
    pub(crate) async fn describe(&self, place: &Place) -> String {
        let slot = lock(&self.logins).get(&(place.host.clone(), place.path.clone())).cloned();
        let Some(slot) = slot else { return "none was needed so far".to_owned() };
        let found = slot.lock().await;
        let Some(found) = &*found else { return "none found".to_owned() };
        let mut text =
            found.login.as_ref().map_or_else(|| "none found".to_owned(), |login| login.source.clone());
        for (source, why) in &found.failures {
            let _ = write!(text, "; {source} failed: {why}");
        }
        text
    }

    /// The header for a request to `place`.
    pub(crate) async fn authorize(
        &self,
        transport: &Transport,
        place: &Place,
        scopes: &BTreeSet<Scope>,
        at: &Attempt,
    ) -> Result<Authorization, Failure> {
        let host = place.wire_host();
        let nothing = Authorization { header: None, fresh: false };
        let found = self.login(transport, place).await;
        let secret = found.login.as_ref().map(|login| &login.secret);
        if let Some(LoginSecret::RegistryToken(token)) = secret {
            let value = RegistryToken::Token { token: token.expose().clone() };
            return Ok(Authorization { header: Some(bearer_header(&value, at)?), fresh: true });
        }
        let challenge = lock(&self.challenges).get(host).cloned();
        let (realm, service) = match challenge {
            None => return Ok(nothing),
            Some(Challenge::Basic) => {
                return Ok(match secret {
                    Some(secret @ LoginSecret::Basic { .. }) => {
                        Authorization { header: plain_header(&registry_auth(secret)), fresh: true }
                    }
                    // There is nothing better to try.
                    _ => Authorization { header: None, fresh: true },
                });
            }
            Some(Challenge::Bearer { realm, service, .. }) => (realm, service),
        };
        let key = token_key(host, scopes);
        let slot = Arc::clone(lock(&self.tokens).entry(key).or_default());
        let mut slot = slot.lock().await;
        if let Some(token) = slot.as_ref().filter(|token| Instant::now() < token.until) {
            return Ok(Authorization { header: Some(bearer_header(&token.value, at)?), fresh: false });
        }
        let hint = lock(&self.hints).get(&(host.to_owned(), place.path.clone())).cloned();
        let request = TokenRequest { place, realm: &realm, service: service.as_deref(), scopes, hint, at };
        let token = self.fetch(transport, &request, secret).await?;
        let header = bearer_header(&token.value, at)?;
        *slot = Some(token);
        Ok(Authorization { header: Some(header), fresh: true })
    }

    /// Whether there is a login for `place` that was not asked for yet, and this is the first time that somebody wonders.
    pub(crate) async fn holds_back(&self, transport: &Transport, place: &Place) -> bool {
        let host = place.wire_host();
        if lock(&self.challenges).contains_key(host) {
            return false;
        }
        let found = self.login(transport, place).await;
        let unused = matches!(
            found.login.map(|login| login.secret),
            Some(LoginSecret::Basic { .. } | LoginSecret::IdentityToken(_))
        );
        unused && lock(&self.asked).insert(host.to_owned())
    }

    /// Takes note that `place` refused a request with `challenge`: the token for these scopes is dropped, and a login
    /// that ends some day is asked for again if it
    /// was just `used`. Gives whether another login may be had.
    pub(crate) async fn refused(
        &self,
        transport: &Transport,
        place: &Place,
        scopes: &BTreeSet<Scope>,
        challenge: Challenge,
        used: bool,
    ) -> bool {
        let host = place.wire_host().to_owned();
        if let Challenge::Bearer { scope: Some(scope), .. } = &challenge
            && !scopes.iter().any(|known| same_repository(scope, &known.repository))
        {
            lock(&self.hints).insert((host.clone(), place.path.clone()), scope.clone());
        }
        let slot = lock(&self.tokens).get(&token_key(&host, scopes)).cloned();
        lock(&self.challenges).insert(host, challenge);
        if let Some(slot) = slot {
            *slot.lock().await = None;
        }
        let slot = lock(&self.logins).get(&(place.host.clone(), place.path.clone())).cloned();
        let Some(slot) = slot.filter(|_| used) else { return false };
        let mut found = slot.lock().await;
        let ends = found.as_ref().and_then(|f| f.login.as_ref()).is_some_and(|login| login.expires.is_some());
        if ends {
            transport.options.credentials.forget(&place.host).await;
            *found = None;
        }
        ends
    }

    async fn fetch(
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
        RegistryError::Unreachable { why, .. } | RegistryError::Certificate { why, .. } => {
            *why = format!("the token server {server}: {why}");
        }
        RegistryError::Protocol { what, .. } => *what = format!("the token server {server}: {what}"),
        _ => {}
    }
    failure
}

struct TokenRequest<'a> {
    place: &'a Place,
    realm: &'a str,
    service: Option<&'a str>,
    scopes: &'a BTreeSet<Scope>,
    hint: Option<String>,
    at: &'a Attempt,
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

fn token_key(host: &str, scopes: &BTreeSet<Scope>) -> String {
    let scopes: Vec<String> = scopes.iter().map(Scope::text).collect();
    format!("{host} {}", scopes.join(" "))
}

fn same_repository(scope: &str, repository: &str) -> bool {
    scope
        .strip_prefix("repository:")
        .and_then(|rest| rest.rsplit_once(':'))
        .is_some_and(|(name, _)| name == repository)
}

/// Host and port of `url`, as they stand in it.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn registry_auth(secret: &LoginSecret) -> RegistryAuth {
    match secret {
        LoginSecret::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.expose().clone()),
        LoginSecret::IdentityToken(_) => RegistryAuth::Anonymous,
        LoginSecret::RegistryToken(token) => RegistryAuth::Bearer(token.expose().clone()),
    }
}

fn plain_header(auth: &RegistryAuth) -> Option<HeaderValue> {
    let text = match auth {
        RegistryAuth::Anonymous => return None,
        RegistryAuth::Basic(user, password) => {
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        }
        RegistryAuth::Bearer(token) => format!("Bearer {token}"),
    };
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bearer_header(token: &RegistryToken, at: &Attempt) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(&token.bearer_token()).map_err(|_| {
        let what = "the token holds characters that no header may hold".to_owned();
        Failure::never(RegistryError::Protocol { at: Box::new(at.clone()), what })
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_scope_may_pull_too() {
        let scope = Scope { repository: "a/b".into(), operation: RegistryOperation::Push };
        assert_eq!(scope.text(), "repository:a/b:pull,push");
        assert!(same_repository("repository:a/b:pull", "a/b"));
        assert!(!same_repository("repository:a/bc:pull", "a/b"));
    }

    #[test]
    fn a_header_doesn_t_show_its_token() {
        let header = plain_header(&RegistryAuth::Basic("me".into(), "hunter2".into())).unwrap();
        assert!(!format!("{header:?}").contains("bWU6"), "{header:?}");
    }
}
