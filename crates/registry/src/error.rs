//! What can go wrong with a registry. Each message says what was tried, on what, where (which mirror), with whose login
//! (never the secret), and what to do next.

use std::fmt;
use std::path::PathBuf;

use kiln_oci::Digest;

/// What was tried, on what, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What was tried: `fetch the manifest`.
    pub action: &'static str,
    /// On what: an image, or a repository and a blob's digest.
    pub subject: String,
    /// The host that was spoken to.
    pub host: String,
    /// The registry that this host stands in for, if it is a mirror.
    pub mirror_of: Option<String>,
    /// Which source the login came from.
    pub login: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {} {} at {}", self.action, self.subject, self.host)?;
        match &self.mirror_of {
            Some(registry) => write!(f, " (a mirror of {registry})"),
            None => Ok(()),
        }
    }
}

/// Why a registry could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The options can't be used: a certificate file that is missing or is no certificate, a proxy that is no URL.
    #[error("{what} {path:?} can't be used: {why}")]
    Options {
        /// What the option is.
        what: &'static str,
        /// The file or text that was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The registry wants a login, or another one than we have.
    #[error(
        "{at}: not authorised (login: {}){}. Log in with `executor login {}`, or give config.json an entry for that host", at.login, clause(detail), at.host
    )]
    Unauthorized {
        /// What was tried.
        at: Box<Attempt>,
        /// What the registry said, and which credential sources failed.
        detail: String,
    },
    /// The login is good, but not for this.
    #[error("{at}: denied (login: {}){}. The login needs the right to do this in that repository", at.login, clause(detail))]
    Denied {
        /// What was tried.
        at: Box<Attempt>,
        /// What the registry said.
        detail: String,
    },
    /// The registry has no such image, blob or repository.
    #[error("{at}: not found (login: {}){}. Check the name and the tag; some registries say this of repositories that the login may not see", at.login, clause(detail))]
    NotFound {
        /// What was tried.
        at: Box<Attempt>,
        /// What the registry said.
        detail: String,
    },
    /// Too many requests, and the pauses that were asked for did not help.
    #[error("{at}: the registry limits requests (login: {}){}. Wait, log in, or use a mirror (--registry-mirror)", at.login, clause(detail))]
    RateLimited {
        /// What was tried.
        at: Box<Attempt>,
        /// What the registry said.
        detail: String,
    },
    /// The tag is there and the registry doesn't let it change.
    #[error(
        "{at}: the tag exists and is immutable{}. Push another tag, or allow this with --push-ignore-immutable-tag-errors",
        clause(detail)
    )]
    ImmutableTag {
        /// What was tried.
        at: Box<Attempt>,
        /// What the registry said.
        detail: String,
    },
    /// The registry answered with another error.
    #[error("{at}: HTTP status {status}{}", clause(detail))]
    Refused {
        /// What was tried.
        at: Box<Attempt>,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        detail: String,
    },
    /// No answer: no such host, connection refused, broken, or timed out.
    #[error("{at}: no answer: {why}. Check the host's name, the network and the proxy settings")]
    Unreachable {
        /// What was tried.
        at: Box<Attempt>,
        /// What the network said.
        why: String,
    },
    /// The registry's certificate can't be trusted.
    #[error("{at}: its TLS certificate is not trusted: {why}. Give its authority with --registry-certificate {}=FILE", at.host)]
    Certificate {
        /// What was tried.
        at: Box<Attempt>,
        /// What is wrong with the certificate.
        why: String,
    },
    /// What came is not what the digest names.
    #[error(
        "{at}: the bytes that came have the digest {found}, not {expected}: they were changed on the way, or the registry's copy is damaged"
    )]
    Corrupt {
        /// What was tried.
        at: Box<Attempt>,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// More or fewer bytes came than the manifest says.
    #[error("{at}: {found} bytes came, but the manifest says {expected}: the registry's copy is damaged")]
    Length {
        /// What was tried.
        at: Box<Attempt>,
        /// The size in the descriptor.
        expected: u64,
        /// How many bytes came.
        found: u64,
    },
    /// The registry broke the protocol.
    #[error("{at}: the answer makes no sense: {what}. Is this the address of a registry?")]
    Protocol {
        /// What was tried.
        at: Box<Attempt>,
        /// What was wrong with the answer.
        what: String,
    },
    /// The image has docker's old manifest.
    #[error(
        "{at}: the image has docker's schema 1 manifest, which can't be built from. Pull and push it with a current docker or skopeo, then use that copy"
    )]
    Schema1 {
        /// What was tried.
        at: Box<Attempt>,
    },
    /// What should be sent can't be read.
    #[error("{at}: reading what should be sent failed: {source}")]
    Read {
        /// What was tried.
        at: Box<Attempt>,
        /// What the system said.
        source: std::io::Error,
    },
    /// What came can't be written.
    #[error("{at}: writing what came failed: {source}")]
    Write {
        /// What was tried.
        at: Box<Attempt>,
        /// What the system said.
        source: std::io::Error,
    },
    /// No place that was asked could do it.
    #[error("{}", everywhere(tried, *no_fallback))]
    Everywhere {
        /// The error of each place, in the order in which they were asked.
        tried: Vec<RegistryError>,
        /// Whether the registry itself was left out (--skip-default-registry-fallback).
        no_fallback: bool,
    },
}

fn clause(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {}", detail.trim_end_matches(['.', ' '])) }
}

fn everywhere(tried: &[RegistryError], no_fallback: bool) -> String {
    let mut text = String::from("no place has it:");
    for error in tried {
        text.push_str("\n  ");
        text.push_str(&error.to_string());
    }
    if no_fallback {
        text.push_str("\n  the registry itself was not asked (--skip-default-registry-fallback)");
    }
    text
}

impl RegistryError {
    fn every(&self, test: fn(&RegistryError) -> bool) -> bool {
        match self {
            Self::Everywhere { tried, .. } => {
                !tried.is_empty() && tried.iter().all(|error| error.every(test))
            }
            other => test(other),
        }
    }

    /// Whether the registry answered that it doesn't have this; where only mirrors may be asked, whether all of them did.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Everywhere { tried, no_fallback: false } => tried.last().is_some_and(Self::is_not_found),
            other => other.every(|error| matches!(error, Self::NotFound { .. })),
        }
    }

    /// Whether the registry wanted a login, another login, or more rights.
    pub fn is_unauthorized(&self) -> bool {
        self.every(|error| matches!(error, Self::Unauthorized { .. } | Self::Denied { .. }))
    }

    /// Whether a tag is there already and may not change (`--push-ignore-immutable-tag-errors`).
    pub fn is_immutable_tag(&self) -> bool {
        matches!(self, Self::ImmutableTag { .. })
    }

    /// Whether nobody answered, or only with "later": what the volume knows may be used instead.
    pub fn is_unreachable(&self) -> bool {
        self.every(|error| match error {
            Self::Unreachable { .. } | Self::RateLimited { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        })
    }

    /// Names the login in an error that was made before it was known.
    pub(crate) fn set_login(&mut self, login: String) {
        match self {
            Self::Unauthorized { at, .. }
            | Self::Denied { at, .. }
            | Self::NotFound { at, .. }
            | Self::RateLimited { at, .. } => at.login = login,
            _ => {}
        }
    }

    /// What was tried, for errors of one place.
    pub fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Unauthorized { at, .. }
            | Self::Denied { at, .. }
            | Self::NotFound { at, .. }
            | Self::RateLimited { at, .. }
            | Self::ImmutableTag { at, .. }
            | Self::Refused { at, .. }
            | Self::Unreachable { at, .. }
            | Self::Certificate { at, .. }
            | Self::Corrupt { at, .. }
            | Self::Length { at, .. }
            | Self::Protocol { at, .. }
            | Self::Schema1 { at }
            | Self::Read { at, .. }
            | Self::Write { at, .. } => Some(at),
            Self::Options { .. } | Self::Everywhere { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        Attempt {
            action: "fetch the manifest",
            subject: "docker.io/library/debian:12".into(),
            host: "mirror.example".into(),
            mirror_of: Some("docker.io".into()),
            login: "none found".into(),
        }
    }

    #[test]
    fn a_message_names_the_mirror_the_login_and_what_to_do() {
        let error = RegistryError::Unauthorized { at: Box::new(attempt()), detail: "UNAUTHORIZED".into() };
        assert_eq!(
            error.to_string(),
            "could not fetch the manifest docker.io/library/debian:12 at mirror.example (a mirror of docker.io): not \
             authorised (login: none found): UNAUTHORIZED. Log in with `executor login mirror.example`, or give \
             config.json an entry for that host"
        );
    }

    #[test]
    fn the_registry_itself_has_the_last_word_on_what_is_there() {
        let missing = || RegistryError::NotFound { at: Box::new(attempt()), detail: String::new() };
        let broken = || RegistryError::Unreachable { at: Box::new(attempt()), why: "refused".into() };
        let of = |tried, no_fallback| RegistryError::Everywhere { tried, no_fallback };
        assert!(of(vec![missing(), missing()], true).is_not_found());
        assert!(of(vec![broken(), missing()], false).is_not_found());
        assert!(!of(vec![broken(), missing()], true).is_not_found());
        assert!(!of(vec![missing(), broken()], false).is_not_found());
    }
}
