//! Authorisation: which header a request to a registry gets. Tokens are kept per registry and scope, renewed before
//! they end, and go to no other host. (Distribution's "Token Authentication Specification" and "OAuth2 Token
//! Authentication"; docker's own use of both.)

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use kiln_oci::Redacted;
use oci_client::RegistryOperation;
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::RegistryToken;
use tokio::time::Instant;
use url::Url;

use crate::challenge::Challenge;
use crate::credentials::Found;
use crate::retry::Failure;
use crate::route::Place;
use crate::token::TokenRequest;
use crate::transport::Transport;
use crate::{Attempt, Event, LoginSecret, RegistryError};

/// What a token is for: an operation on a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scope {
    pub(crate) repository: String,
    pub(crate) operation: RegistryOperation,
}

impl Scope {
    pub(crate) fn text(&self) -> String {
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
    pub(crate) renewed: Mutex<HashMap<String, Redacted<String>>>,
}

/// A token and its end.
pub(crate) struct Token {
    pub(crate) value: RegistryToken,
    pub(crate) until: Instant,
}

/// A header for a request, and whether it was made from a token that was fetched for it just now.
pub(crate) struct Authorization {
    pub(crate) header: Option<HeaderValue>,
    pub(crate) fresh: bool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
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

    /// Takes note that `place` refused a request with `authorization` by `challenge`: if the token for these scopes is still
    /// the same it is dropped, and a login that ends some day is asked for again if it was just used. Gives whether another
    /// login may be had.
    pub(crate) async fn refused(
        &self,
        transport: &Transport,
        place: &Place,
        scopes: &BTreeSet<Scope>,
        challenge: Challenge,
        authorization: &Authorization,
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
            // Of requests that are refused at the same time, the first has fetched another for all.
            let used = authorization.header.as_ref().map(HeaderValue::as_bytes);
            slot.lock().await.take_if(|token| used == Some(token.value.bearer_token().as_bytes()));
        }
        let slot = lock(&self.logins).get(&(place.host.clone(), place.path.clone())).cloned();
        let Some(slot) = slot.filter(|_| authorization.fresh) else { return false };
        let mut found = slot.lock().await;
        let ends = found.as_ref().and_then(|f| f.login.as_ref()).is_some_and(|login| login.expires.is_some());
        if ends {
            transport.options.credentials.forget(&place.host).await;
            *found = None;
        }
        ends
    }
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

pub(crate) fn registry_auth(secret: &LoginSecret) -> RegistryAuth {
    match secret {
        LoginSecret::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.expose().clone()),
        LoginSecret::IdentityToken(_) => RegistryAuth::Anonymous,
        LoginSecret::RegistryToken(token) => RegistryAuth::Bearer(token.expose().clone()),
    }
}

pub(crate) fn plain_header(auth: &RegistryAuth) -> Option<HeaderValue> {
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
