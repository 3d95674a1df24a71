//! Manifests that are about another one, such as an SBOM (OCI distribution-spec 1.1, "Listing referrers"). A registry that
//! lists them by itself says so when it gets one. For any other, an index under a tag that the subject's digest makes
//! ("Referrers tag schema") tells readers what is said about it.

use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE};
use kiln_oci::{Descriptor, Digest, Document, Index, Repository, Tag, media_type};
use oci_client::RegistryOperation;
use serde::Deserialize;

use crate::registry::scope;
use crate::route::{Direction, Place};
use crate::transport::{Ask, To};
use crate::{Event, Registry, RegistryError};

/// What a manifest is, and about what.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remark {
    subject: Descriptor,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// A manifest that says something about another one.
pub(crate) struct Referrer {
    /// The manifest that it is about.
    subject: Digest,
    /// Itself, as indexes of referrers list it.
    listed: Descriptor,
}

impl Referrer {
    /// Reads a manifest; `None` for one that is about nothing but itself.
    pub(crate) fn of(media_type: &str, raw: &[u8], digest: &Digest) -> Option<Self> {
        let remark: Remark = serde_json::from_slice(raw).ok()?;
        let mut listed = Descriptor::new(media_type, digest.clone(), raw.len() as u64);
        let kind = remark.artifact_type.or_else(|| remark.config.map(|config| config.media_type))?;
        listed.other.insert("artifactType".to_owned(), kind.into());
        listed.annotations = remark.annotations;
        Some(Self { subject: remark.subject.digest, listed })
    }
}

/// The tag under which what is said about `subject` is listed.
fn tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm().name(), hex.get(..64).unwrap_or(&hex))
}

impl Registry {
    /// Lists a manifest that is in `repository` where readers of a registry without such lists look for it. That it can't
    /// be listed is told, and no failure: the manifest itself is there.
    pub(crate) async fn list_referrer(&self, repository: &Repository, referrer: Referrer) {
        let subject = referrer.subject.clone();
        if let Err(error) = self.try_list(repository, referrer).await {
            self.transport().observe(Event::NotListed { subject, why: error.to_string() });
        }
    }

    /// Whether the registry knows lists of referrers although it did not say so: some forget to.
    async fn lists_referrers(&self, place: &Place, subject: &Digest) -> bool {
        let at =
            place.attempt("ask for what is said about", format!("{}/{}@{subject}", place.host, place.path));
        let scopes = scope(&place.path, RegistryOperation::Push);
        let path = format!("/v2/{}/referrers/{subject}", place.path);
        let ask = Ask::new(Method::GET, To::Path(path), &scopes, &at).header(ACCEPT, media_type::OCI_INDEX);
        let answer = self.transport().send(place, ask).await;
        answer.is_ok_and(|answer| {
            let kind = answer.header(CONTENT_TYPE.as_str()).unwrap_or_default();
            answer.status().is_success() && kind.starts_with(media_type::OCI_INDEX)
        })
    }

    async fn try_list(&self, repository: &Repository, referrer: Referrer) -> Result<(), RegistryError> {
        let Referrer { subject, listed } = referrer;
        let place = Place::origin(repository, Direction::Push);
        if self.lists_referrers(&place, &subject).await {
            return Ok(());
        }
        let wrong = |what: String| {
            let at = Box::new(place.attempt("list what is said about", format!("{repository}@{subject}")));
            RegistryError::Protocol { at, what }
        };
        let tag: Tag = tag(&subject).parse().map_err(|error| wrong(format!("{error}")))?;
        let name = repository.tagged(tag);
        // Of the registry itself: a mirror knows what it was yesterday.
        let mut index = match self.for_cache().manifest(&name).await {
            Ok(found) if media_type::is_index(&found.media_type) => {
                let index = Document::<Index>::read(found.raw, None);
                index.map_err(|error| wrong(format!("{name} is no index: {error}")))?.value().clone()
            }
            Ok(found) => return Err(wrong(format!("{name} is no index but {}", found.media_type))),
            Err(error) if error.is_not_found() => Index::new(media_type::OCI_INDEX, Vec::new()),
            Err(error) => return Err(error),
        };
        if index.manifests.iter().any(|entry| entry.digest == listed.digest) {
            return Ok(());
        }
        index.manifests.push(listed);
        let index = Document::author(index);
        self.put_manifest(&name, media_type::OCI_INDEX, index.raw()).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_made_of_the_digest() {
        assert_eq!(tag(&Digest::of(b"")), format!("sha256-{}", Digest::of(b"").hex()));
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(tag(&long), format!("sha512-{}", "ab".repeat(32)));
    }

    #[test]
    fn a_manifest_without_a_subject_is_about_nothing() {
        assert!(Referrer::of("m", br#"{"schemaVersion":2,"config":{}}"#, &Digest::of(b"")).is_none());
        assert!(Referrer::of("m", b"no JSON", &Digest::of(b"")).is_none());
    }
}
