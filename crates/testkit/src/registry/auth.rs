//! Logins of the test registry: basic, or a token server of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// Who gets in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Everybody.
    #[default]
    Anyone,
    /// Those with this name and password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// Those with a token from the token server, which is the registry itself at `/token`.
    Token {
        /// The name that the token server takes.
        user: String,
        /// The password that goes with it; as a refresh token it is taken too.
        password: String,
        /// Whether a token for pulling is given to anybody.
        anonymous_pull: bool,
        /// How long a token is good for.
        lifetime: Duration,
        /// Whether a refresh token is good once, and its answer brings the next one.
        rotate: bool,
    },
}

impl Auth {
    /// Basic authentication.
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    /// A token server with tokens of a minute.
    pub fn token(user: &str, password: &str) -> Self {
        Self::Token {
            user: user.to_owned(),
            password: password.to_owned(),
            anonymous_pull: true,
            lifetime: Duration::from_secs(60),
            rotate: false,
        }
    }
}

/// The tokens that were given out.
#[derive(Default)]
pub(super) struct Tokens {
    given: HashMap<String, (Vec<String>, Instant)>,
    refresh: Option<String>,
    serial: u64,
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.given.clear();
    }
}

/// What a request may do, or the challenge that it gets.
pub(super) fn check(
    auth: &Auth,
    tokens: &Tokens,
    header: &str,
    needed: Option<(&str, &str)>,
    url: &str,
) -> Result<(), String> {
    match auth {
        Auth::Anyone => Ok(()),
        Auth::Basic { user, password } => {
            if header == basic(user, password) {
                Ok(())
            } else {
                Err("Basic realm=\"test registry\"".to_owned())
            }
        }
        Auth::Token { .. } => {
            let mut challenge = format!("Bearer realm=\"{url}/token\",service=\"test registry\"");
            let scope = needed.map(|(repository, action)| {
                let actions = if action == "push" { "pull,push" } else { "pull" };
                format!("repository:{repository}:{actions}")
            });
            let granted = header
                .strip_prefix("Bearer ")
                .and_then(|token| tokens.given.get(token))
                .filter(|(_, until)| Instant::now() < *until);
            match (granted, &scope) {
                (Some((scopes, _)), Some(scope)) if scopes.iter().any(|have| covers(have, scope)) => Ok(()),
                (Some(_), None) => Ok(()),
                (granted, scope) => {
                    if let Some(scope) = scope {
                        challenge = format!("{challenge},scope=\"{scope}\"");
                    }
                    if granted.is_some() {
                        challenge.push_str(",error=\"insufficient_scope\"");
                    }
                    Err(challenge)
                }
            }
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn covers(have: &str, wanted: &str) -> bool {
    let (Some((name, actions)), Some((other, needed))) = (have.rsplit_once(':'), wanted.rsplit_once(':'))
    else {
        return false;
    };
    name == other && needed.split(',').all(|action| actions.split(',').any(|a| a == action))
}

/// The token server: status and body.
pub(super) fn token(
    auth: &Auth,
    tokens: &mut Tokens,
    header: &str,
    parameters: &[(String, String)],
) -> (u16, String) {
    let Auth::Token { user, password, anonymous_pull, lifetime, rotate } = auth else {
        return (404, String::new());
    };
    let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let refused =
        (401, json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "wrong login" }] }).to_string());
    let known = match get("grant_type") {
        Some("refresh_token") => {
            let current = tokens.refresh.clone().unwrap_or_else(|| password.clone());
            if get("refresh_token") != Some(current.as_str()) {
                return refused;
            }
            true
        }
        _ if header.is_empty() => false,
        _ if header == basic(user, password) => true,
        _ => return refused,
    };
    if !known && !anonymous_pull {
        return refused;
    }
    let scopes: Vec<String> = parameters
        .iter()
        .filter(|(key, _)| key == "scope")
        .flat_map(|(_, value)| value.split(' '))
        .map(|scope| if known { scope.to_owned() } else { scope.replace(",push", "") })
        .collect();
    tokens.serial += 1;
    let value = format!("token-{}", tokens.serial);
    tokens.given.insert(value.clone(), (scopes, Instant::now() + *lifetime));
    let mut answer = json!({ "token": value, "expires_in": lifetime.as_secs().max(1) });
    if get("grant_type").is_some() {
        answer = json!({ "access_token": value, "expires_in": lifetime.as_secs().max(1) });
        if *rotate {
            let next = format!("refresh-{}", tokens.serial);
            answer["refresh_token"] = json!(next);
            tokens.refresh = Some(next);
        }
    }
    (200, answer.to_string())
}
