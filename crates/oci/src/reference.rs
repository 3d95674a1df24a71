//! References: the names of images, by the grammar of distribution's `reference` package, with docker's short forms.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

/// A registry's host, and the path of a repository there: `docker.io/library/debian`, `localhost:5000/a/b`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    host: String,
    path: String,
}

/// A tag: at most 128 of letters, digits, `_`, `.` and `-`, the first of them no `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// The name of an image. With neither tag nor digest it means the tag `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Where it is.
    pub repository: Repository,
    /// Which one, by a name that may move.
    pub tag: Option<Tag>,
    /// Which one, exactly.
    pub digest: Option<Digest>,
}

/// A reference that can't move: nothing makes one from a tag alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinnedReference {
    repository: Repository,
    digest: Digest,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {why}")]
pub struct ReferenceError {
    /// The text that was given.
    pub text: String,
    /// What is wrong with it, and what to write instead.
    pub why: &'static str,
}

/// The host that docker's short names mean.
const DOCKER_HUB: &str = "docker.io";

impl Repository {
    /// A repository from its host (with port, if any) and its path.
    ///
    /// Fails if either breaks the grammar. `index.docker.io` becomes `docker.io`, whose one-part paths get `library/`.
    pub fn new(host: &str, path: &str) -> Result<Self, ReferenceError> {
        let fail = |why| ReferenceError { text: format!("{host}/{path}"), why };
        if !is_host(host) {
            return Err(fail("the registry's host name is not valid"));
        }
        let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { DOCKER_HUB } else { host };
        let path = if host == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fail("the repository has upper-case letters; registries take lower case only"));
        }
        if path.len() > 255 || !path.split('/').all(is_component) {
            return Err(fail("the repository may hold a-z, 0-9, single ., _, - between them, and /"));
        }
        Ok(Self { host: host.to_owned(), path })
    }

    /// The registry's host, with its port if there is one. Docker Hub is `docker.io`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path below the host, as it stands in URLs.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// This repository with `name` added to its path.
    pub fn join(&self, name: &str) -> Result<Self, ReferenceError> {
        Self::new(&self.host, &format!("{}/{name}", self.path))
    }

    /// The image `digest` in this repository.
    pub fn pin(&self, digest: Digest) -> PinnedReference {
        PinnedReference { repository: self.clone(), digest }
    }

    /// The image `tag` in this repository.
    pub fn tagged(&self, tag: Tag) -> Reference {
        Reference { repository: self.clone(), tag: Some(tag), digest: None }
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((name, port)) = rest.split_once(']') else { return false };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.') {
            return false;
        }
        return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    port.is_none_or(is_port)
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Letters and digits, with single `.`, one or two `_`, or any number of `-` between them.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !part.starts_with(alphanumeric) || !part.ends_with(alphanumeric) {
        return false;
    }
    part.split(alphanumeric)
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

impl Tag {
    /// The tag `latest`.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.len() <= 128
            && text.starts_with(word)
            && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError {
                text: text.to_owned(),
                why: "a tag is at most 128 letters, digits, _, . and -, and begins with none of the last two",
            })
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// The tag, or `latest` where there is neither tag nor digest.
    pub fn tag_or_latest(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(Tag::latest()),
        }
    }

    /// The reference by digest, if this one has a digest.
    pub fn pinned(&self) -> Option<PinnedReference> {
        self.digest.clone().map(|digest| self.repository.pin(digest))
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub fn identifier(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag_or_latest().unwrap_or_else(Tag::latest).to_string(),
        }
    }

    /// The reference as docker would show it: Docker Hub's host and `library/` left out, where the rest still means the same.
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        let short = text.strip_prefix("docker.io/").unwrap_or(&text);
        let shortest = short.strip_prefix("library/").unwrap_or(short);
        // A first part with a dot would be read as a host, and two parts get no `library/`.
        let means_this = |name: &&str| name.parse().is_ok_and(|other: Self| other == *self);
        [shortest, short].into_iter().find(means_this).unwrap_or(&text).to_owned()
    }
}

impl PinnedReference {
    /// Where it is.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Which one.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The same as a [`Reference`].
    pub fn reference(&self) -> Reference {
        Reference { repository: self.repository.clone(), tag: None, digest: Some(self.digest.clone()) }
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    /// Reads a repository without tag or digest.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let reference: Reference = text.parse()?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(ReferenceError {
                text: text.to_owned(),
                why: "a repository has no tag and no digest",
            });
        }
        Ok(reference.repository)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |why| ReferenceError { text: text.to_owned(), why };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|_| fail("what follows @ is not a digest (sha256:…)"))?))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it a port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => {
                (name, Some(tag.parse().map_err(|_| fail("what follows the last : is not a tag"))?))
            }
            _ => (name, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.chars().any(|c| c.is_ascii_uppercase()) =>
            {
                (first, rest)
            }
            _ => (DOCKER_HUB, name),
        };
        if digest.is_none()
            && tag.is_none()
            && host == DOCKER_HUB
            && name.len() == 64
            && crate::digest::unhex(name).is_some()
        {
            return Err(fail("64 hexadecimal digits are an image's id; write repository@sha256:…"));
        }
        let repository = Repository::new(host, path).map_err(|error| fail(error.why))?;
        Ok(Self { repository, tag, digest })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

impl fmt::Display for Reference {
    /// The full form. A reference with neither tag nor digest is written without one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl fmt::Display for PinnedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

macro_rules! serde_as_text {
    ($($type:ident),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(Repository, Reference, Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_docker_hub() {
        for (text, full) in [
            ("debian", "docker.io/library/debian"),
            ("debian:12", "docker.io/library/debian:12"),
            ("me/app", "docker.io/me/app"),
            ("index.docker.io/debian", "docker.io/library/debian"),
            ("localhost/a", "localhost/a"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("reg.example.com/a/b/c:1", "reg.example.com/a/b/c:1"),
            ("[::1]:5000/a", "[::1]:5000/a"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn a_familiar_name_means_the_same() {
        for (text, familiar) in [
            ("docker.io/library/debian:12", "debian:12"),
            ("docker.io/me/app", "me/app"),
            ("docker.io/library/a/b", "library/a/b"),
            ("docker.io/a.b/c", "docker.io/a.b/c"),
            ("docker.io/localhost/c", "docker.io/localhost/c"),
            ("reg.io/library/a", "reg.io/library/a"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(familiar.parse(), Ok(reference));
        }
    }

    #[test]
    fn tag_and_digest_together_are_kept() {
        let digest = Digest::of(b"x");
        let reference: Reference = format!("debian:12@{digest}").parse().unwrap();
        assert_eq!(reference.identifier(), digest.to_string());
        assert_eq!(reference.tag_or_latest().unwrap().as_str(), "12");
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        for text in [
            "",
            "a//b",
            "a:",
            "a@sha256:1",
            "reg.io/Up",
            "a..b/c/d:x",
            "-a",
            "a/../b",
            "host:99999/a",
            "a:b c",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_upper_case_host_is_a_host() {
        assert_eq!("REG/a".parse::<Reference>().unwrap().repository.host(), "REG");
    }
}
