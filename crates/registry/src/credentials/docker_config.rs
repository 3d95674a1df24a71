//! docker's config.json and podman's auth.json: which entry is for which repository.
//!
//! Hosts are compared whole, so `registry.io.evil.org` never gets what is meant for `registry.io`. An entry may be for
//! a host or for a path there; the longest path wins.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use kiln_oci::Redacted;
use serde::Deserialize;

use super::{Login, LoginSecret};

/// Why a config file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It can't be read or written.
    #[error("{action} {origin} failed: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        origin: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no JSON of docker's form.
    #[error("{origin} is not a docker config file: {why}")]
    Form {
        /// The file or variable.
        origin: String,
        /// Where the JSON is wrong. Never holds a value.
        why: String,
    },
}

/// A docker config file (or podman's auth file, or the value of `DOCKER_AUTH_CONFIG`), read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    origin: String,
    content: Content,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Entry {
    #[serde(default, deserialize_with = "secret")]
    auth: Option<Redacted<String>>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<Redacted<String>>,
    #[serde(default, deserialize_with = "secret")]
    identitytoken: Option<Redacted<String>>,
    #[serde(default, deserialize_with = "secret")]
    registrytoken: Option<Redacted<String>>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Redacted<String>>, D::Error> {
    let value = Option::<String>::deserialize(deserializer)?;
    Ok(value.filter(|value| !value.is_empty()).map(Redacted::new))
}

impl ConfigFile {
    /// Reads `text`, which came from `origin` (a path or a variable's name, for messages).
    ///
    /// Fails with [`CredentialError::Form`]. An empty text is an empty file.
    pub fn parse(origin: impl Into<String>, text: &str) -> Result<Self, CredentialError> {
        let origin = origin.into();
        if text.trim().is_empty() {
            return Ok(Self { origin, content: Content::default() });
        }
        match serde_json::from_str(text) {
            Ok(content) => Ok(Self { origin, content }),
            // The JSON reader quotes values in its message ("invalid type: string …"): only the place is told.
            Err(error) => Err(CredentialError::Form {
                origin,
                why: format!("the JSON is wrong at line {}, column {}", error.line(), error.column()),
            }),
        }
    }

    /// Reads the file `path`; `None` if there is none.
    ///
    /// Fails with [`CredentialError::Io`] or [`CredentialError::Form`].
    pub fn read(path: &Path) -> Result<Option<Self>, CredentialError> {
        use std::io::ErrorKind;
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path.display().to_string(), &text).map(Some),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(source) => {
                Err(CredentialError::Io { action: "reading", origin: path.display().to_string(), source })
            }
        }
    }

    /// A file with one entry in it.
    pub(super) fn single(host: &str, user: &str, password: &str, origin: &str) -> Self {
        let entry = Entry {
            username: Some(user.to_owned()),
            password: Some(Redacted::new(password.to_owned())),
            ..Entry::default()
        };
        let content = Content { auths: [(host.to_owned(), entry)].into(), ..Content::default() };
        Self { origin: origin.to_owned(), content }
    }

    /// The same file without its helper programs.
    pub(super) fn without_helpers(mut self) -> Self {
        self.content.cred_helpers.clear();
        self.content.creds_store.clear();
        self
    }

    /// Where it came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The name of the helper program that this file wants asked for `host`.
    pub(super) fn helper_for(&self, host: &str) -> Option<&str> {
        let wanted = server_key(host).0;
        let own = self.content.cred_helpers.iter().find(|(key, _)| server_key(key).0 == wanted);
        let name = own.map_or(self.content.creds_store.as_str(), |(_, name)| name.as_str());
        // A helper is a program's name, never a path.
        (!name.is_empty() && !name.contains('/')).then_some(name)
    }

    /// What the helper program is asked for: docker's own spelling of its hub, or the host.
    pub(super) fn key_for_helper(&self, host: &str) -> String {
        let named = self.content.cred_helpers.keys().any(|key| key == host);
        if !named && server_key(host).0 == DOCKER_HUB { DOCKER_HUB_KEY.to_owned() } else { host.to_owned() }
    }

    /// The entry for `path` at `host`: the one with the longest matching path.
    pub(super) fn entry(&self, host: &str, path: &str) -> Option<Login> {
        let wanted = server_key(host).0;
        let mut best: Option<(usize, Login)> = None;
        for (key, entry) in &self.content.auths {
            let (server, scope) = server_key(key);
            let fits = scope.is_empty()
                || path == scope
                || path.strip_prefix(scope.as_str()).is_some_and(|rest| rest.starts_with('/'));
            if server != wanted || !fits || best.as_ref().is_some_and(|(length, _)| *length > scope.len()) {
                continue;
            }
            if let Some(login) = entry.login(&self.origin) {
                best = Some((scope.len() + 1, login));
            }
        }
        best.map(|(_, login)| login)
    }
}

impl Entry {
    fn login(&self, source: &str) -> Option<Login> {
        let make = |secret| Some(Login { secret, source: source.to_owned(), expires: None });
        if let Some(token) = &self.registrytoken {
            return make(LoginSecret::RegistryToken(token.clone()));
        }
        if let Some(token) = &self.identitytoken {
            return make(LoginSecret::IdentityToken(token.clone()));
        }
        if let Some(auth) = &self.auth {
            let text = auth.expose().trim();
            let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
            let decoded = String::from_utf8(bytes).ok()?;
            let (user, password) = decoded.trim_end_matches(['\0', '\n']).split_once(':')?;
            return Some(Login::basic(user, password, source));
        }
        match (&self.username, &self.password) {
            (Some(user), Some(password)) if !user.is_empty() => {
                Some(Login::basic(user, password.expose(), source))
            }
            _ => None,
        }
    }
}

const DOCKER_HUB: &str = "docker.io";
/// The key under which docker itself files its hub.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Takes a key of `auths` apart into host and path: scheme, `/v1/`, `/v2/` and the default port left out, docker.io's
/// many spellings made one.
pub(super) fn server_key(key: &str) -> (String, String) {
    let rest = key.trim();
    let rest = rest.strip_prefix("https://").or_else(|| rest.strip_prefix("http://")).unwrap_or(rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        other => other,
    };
    let path = path.trim_matches('/');
    let path = if matches!(path, "v1" | "v2" | "v1/users" | "v1/access-token" | "v1/refresh-token") {
        ""
    } else {
        path
    };
    (host.to_owned(), path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str, host: &str, path: &str) -> Option<String> {
        match ConfigFile::parse("config.json", text).unwrap().entry(host, path)?.secret {
            LoginSecret::Basic { user, .. } => Some(user),
            LoginSecret::IdentityToken(_) => Some("<identity>".into()),
            LoginSecret::RegistryToken(_) => Some("<registry>".into()),
        }
    }

    fn entry(key: &str, user: &str) -> String {
        format!("{key:?}:{{\"auth\":{:?}}}", STANDARD.encode(format!("{user}:pa:ss")))
    }

    #[test]
    fn docker_hub_is_found_under_all_its_names() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://docker.io",
            "registry-1.docker.io",
            "https://registry-1.docker.io/v2/",
        ] {
            let text = format!("{{\"auths\":{{{}}}}}", entry(key, "me"));
            assert_eq!(user(&text, "docker.io", "library/debian").as_deref(), Some("me"), "{key}");
        }
    }

    #[test]
    fn the_most_specific_path_wins() {
        let text = format!(
            "{{\"auths\":{{{},{},{}}}}}",
            entry("reg.io", "host"),
            entry("reg.io/team", "team"),
            entry("reg.io/team/app", "app")
        );
        assert_eq!(user(&text, "reg.io", "other").as_deref(), Some("host"));
        assert_eq!(user(&text, "reg.io", "team/x").as_deref(), Some("team"));
        assert_eq!(user(&text, "reg.io", "team/app").as_deref(), Some("app"));
        assert_eq!(user(&text, "reg.io", "team/apple").as_deref(), Some("team"));
        assert_eq!(user(&text, "reg.io", "teamwork").as_deref(), Some("host"));
    }

    #[test]
    fn a_lookalike_host_gets_nothing() {
        let text = format!("{{\"auths\":{{{}}}}}", entry("reg.io", "me"));
        for host in ["reg.io.evil.org", "evilreg.io", "reg.io:5000", "sub.reg.io"] {
            assert_eq!(user(&text, host, "a"), None, "{host}");
        }
        assert_eq!(user(&text, "REG.io:443", "a").as_deref(), Some("me"));
    }

    #[test]
    fn tokens_come_before_passwords() {
        let text = r#"{"auths":{"a.io":{"auth":"bWU6cA==","identitytoken":"x"},"b.io":{"registrytoken":"y"},"c.io":{}}}"#;
        assert_eq!(user(text, "a.io", "r").as_deref(), Some("<identity>"));
        assert_eq!(user(text, "b.io", "r").as_deref(), Some("<registry>"));
        assert_eq!(user(text, "c.io", "r"), None);
    }

    #[test]
    fn a_password_may_hold_colons_and_no_message_holds_it() {
        let text = format!("{{\"auths\":{{{}}}}}", entry("reg.io", "me"));
        let file = ConfigFile::parse("config.json", &text).unwrap();
        let Some(Login { secret: LoginSecret::Basic { password, .. }, .. }) = file.entry("reg.io", "a")
        else {
            panic!("no login")
        };
        assert_eq!(password.expose(), "pa:ss");
        assert!(!format!("{file:?}").contains("pa:ss"));
        let broken = ConfigFile::parse("config.json", r#"{"auths":{"a":{"auth":["hunter2"]}}}"#).unwrap_err();
        assert!(!broken.to_string().contains("hunter2"), "{broken}");
        let broken = ConfigFile::parse("config.json", r#"{"auths":"hunter2"}"#).unwrap_err();
        assert!(!broken.to_string().contains("hunter2"), "{broken}");
    }

    #[test]
    fn a_helper_of_the_host_comes_before_the_store() {
        let text = r#"{"credHelpers":{"gcr.io":"gcr"},"credsStore":"pass"}"#;
        let file = ConfigFile::parse("c", text).unwrap();
        assert_eq!(file.helper_for("gcr.io"), Some("gcr"));
        assert_eq!(file.helper_for("docker.io"), Some("pass"));
        assert_eq!(file.key_for_helper("docker.io"), DOCKER_HUB_KEY);
        let file = ConfigFile::parse("c", r#"{"credsStore":"../../evil"}"#).unwrap();
        assert_eq!(file.helper_for("gcr.io"), None);
    }
}
