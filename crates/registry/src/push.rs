//! Upwards: blobs that the repository lacks, then the manifest. Pushes go to the registry itself, never to a mirror.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{Method, StatusCode};
use kiln_oci::{Descriptor, Digest, Hasher, Reference, Repository};
use oci_client::RegistryOperation;
use url::Url;

use crate::answer::Answer;
use crate::bearer::Scope;
use crate::blob::BlobSource;
use crate::manifest::manifest_path;
use crate::referrers::Referrer;
use crate::registry::{Registry, scope};
use crate::retry::{Again, Failure};
use crate::route::{Direction, Place};
use crate::transport::{Ask, Payload, To};
use crate::upload::Upload;
use crate::{Event, RegistryError};

/// How a blob got into a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Present,
    /// It was sent.
    Sent,
}

impl Registry {
    /// Whether `repository` has the blob `digest`.
    pub async fn blob_exists(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let place = Place::origin(repository, Direction::Push);
        let mut tries = self.tries(self.transport().options.retries.push);
        loop {
            match self.blob_exists_once(&place, digest, RegistryOperation::Pull).await {
                Ok(exists) => return Ok(exists),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    pub(crate) async fn blob_exists_once(
        &self,
        place: &Place,
        digest: &Digest,
        operation: RegistryOperation,
    ) -> Result<bool, Failure> {
        let at = place.attempt("look for", format!("{}/{}@{digest}", place.host, place.path));
        let scopes = scope(&place.path, operation);
        let path = format!("/v2/{}/blobs/{digest}", place.path);
        let answer =
            self.transport().send(place, Ask::new(Method::HEAD, To::Path(path), &scopes, &at)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(answer.failure().await),
        }
    }

    /// Asks the registry to take the blob `digest` from its repository `from` into `to`.
    ///
    /// Gives `false` if it doesn't: it lacks the blob, we may not read `from`, or it knows no mounting. Both
    /// repositories must be of one registry; of two, the answer is `false`.
    pub async fn mount_blob(
        &self,
        to: &Repository,
        digest: &Digest,
        from: &Repository,
    ) -> Result<bool, RegistryError> {
        if to.host() != from.host() {
            return Ok(false);
        }
        let place = Place::origin(to, Direction::Push);
        let mut tries = self.tries(self.transport().options.retries.push);
        loop {
            match self.mount_once(&place, digest, from).await {
                Ok(mounted) => {
                    if mounted {
                        self.transport()
                            .observe(Event::Mounted { digest: digest.clone(), from: from.clone() });
                    }
                    return Ok(mounted);
                }
                // There may be a login for one of the two only, and then no token for both.
                Err(Failure {
                    error: RegistryError::Unauthorized { .. } | RegistryError::Denied { .. },
                    ..
                }) => return Ok(false),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    async fn mount_once(&self, place: &Place, digest: &Digest, from: &Repository) -> Result<bool, Failure> {
        let at = place.attempt("mount", format!("{}/{}@{digest}", place.host, place.path));
        let scopes = BTreeSet::from([
            Scope { repository: place.path.clone(), operation: RegistryOperation::Push },
            Scope { repository: from.path().to_owned(), operation: RegistryOperation::Pull },
        ]);
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from.path())
            .finish();
        let path = format!("/v2/{}/blobs/uploads/?{query}", place.path);
        let answer =
            self.transport().send(place, Ask::new(Method::POST, To::Path(path), &scopes, &at)).await?;
        match answer.status().as_u16() {
            201 => Ok(true),
            // The registry began an upload instead.
            200..=299 => {
                self.cancel_upload(place, answer).await;
                Ok(false)
            }
            429 | 500..=599 => Err(answer.failure().await),
            _ => Ok(false),
        }
    }

    /// Makes sure that `repository` has a blob: asks for it first, and sends it if it isn't there. A broken upload goes
    /// on where it stopped.
    ///
    /// Fails with [`RegistryError::Read`] if `source` fails or is shorter than `descriptor` says.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
    ) -> Result<Pushed, RegistryError> {
        if self.is_pushed(repository, &descriptor.digest).await? {
            return Ok(Pushed::Present);
        }
        self.send_blob(repository, descriptor, source).await?;
        Ok(Pushed::Sent)
    }

    /// Whether `repository` is known to have the blob `digest`, so that it needn't be sent. Some registries deny this
    /// question to those who may only push: that is `false`.
    pub async fn is_pushed(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let place = Place::origin(repository, Direction::Push);
        let mut tries = self.tries(self.transport().options.retries.push);
        loop {
            match self.blob_exists_once(&place, digest, RegistryOperation::Push).await {
                Ok(true) => {
                    let repository = repository.clone();
                    self.transport().observe(Event::Present { digest: digest.clone(), repository });
                    return Ok(true);
                }
                Ok(false) | Err(Failure { error: RegistryError::Denied { .. }, .. }) => return Ok(false),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    /// As [`Registry::push_blob`], for a blob that was just made and so is hardly there: the upload begins while the registry
    /// is asked for it, which spares the time of one answer.
    pub async fn push_new_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
    ) -> Result<Pushed, RegistryError> {
        let place = Place::origin(repository, Direction::Push);
        let mut upload = Upload::new(self, &place, descriptor, source);
        let asked = Box::pin(self.is_pushed(repository, &descriptor.digest));
        let (there, ()) = futures::future::join(asked, Box::pin(upload.begin_early())).await;
        if let Ok(false) = there {
            return upload.run().await.map(|()| Pushed::Sent);
        }
        if let Some(url) = upload.abandon() {
            let (registry, place) = (self.clone(), place.clone());
            // Nobody need wait for that.
            tokio::spawn(async move { registry.cancel_at(&place, url).await });
        }
        there.map(|_| Pushed::Present)
    }

    /// Sends a blob without asking whether it is there. Otherwise as [`Registry::push_blob`].
    pub async fn send_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
    ) -> Result<(), RegistryError> {
        let place = Place::origin(repository, Direction::Push);
        Upload::new(self, &place, descriptor, source).run().await
    }

    /// Puts a manifest or index under `reference`: its tag, or its digest. Everything that the manifest names must be
    /// in the repository before.
    ///
    /// A manifest that is about another one is listed among what is said about that, where the registry doesn't do so.
    ///
    /// Gives the digest of `raw`. Fails with [`RegistryError::ImmutableTag`] if the tag is there and may not change.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        raw: &[u8],
    ) -> Result<Digest, RegistryError> {
        let (digest, listed) = self.put_manifest(reference, media_type, raw).await?;
        if !listed && let Some(referrer) = Referrer::of(media_type, raw, &digest) {
            self.list_referrer(&reference.repository, referrer).await;
        }
        Ok(digest)
    }

    /// Also gives whether the registry lists what is said about a manifest by itself.
    pub(crate) async fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        raw: &[u8],
    ) -> Result<(Digest, bool), RegistryError> {
        let place = Place::origin(&reference.repository, Direction::Push);
        let mut hasher =
            reference.digest.as_ref().map_or_else(Hasher::sha256, |d| Hasher::new(d.algorithm()));
        hasher.update(raw);
        let digest = hasher.finish();
        if let Some(expected) = reference.digest.as_ref().filter(|expected| **expected != digest) {
            let at = Box::new(place.attempt("push the manifest", reference.to_string()));
            return Err(RegistryError::Corrupt { at, expected: expected.clone(), found: digest });
        }
        // With both, the tag is what the reader asks for, and the digest was checked just now.
        let name = reference.tag_or_latest().map_or_else(|| digest.to_string(), |tag| tag.to_string());
        let bytes = Bytes::copy_from_slice(raw);
        let mut tries = self.tries(self.transport().options.retries.push);
        loop {
            match self.push_manifest_once(&place, reference, &name, media_type, bytes.clone(), &digest).await
            {
                Ok(listed) => return Ok((digest, listed)),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    async fn push_manifest_once(
        &self,
        place: &Place,
        reference: &Reference,
        name: &str,
        media_type: &str,
        raw: Bytes,
        digest: &Digest,
    ) -> Result<bool, Failure> {
        let at = place.attempt("push the manifest", reference.to_string());
        let scopes = scope(&place.path, RegistryOperation::Push);
        let ask = Ask::new(Method::PUT, To::Path(manifest_path(place, name)), &scopes, &at)
            .header(CONTENT_TYPE, media_type)
            .payload(Payload::Bytes(raw));
        let answer = self.transport().send(place, ask).await?;
        if !answer.status().is_success() {
            return Err(manifest_refusal(answer.failure().await));
        }
        match answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
            Some(found) if found != *digest && found.algorithm() == digest.algorithm() => {
                let at = Box::new(answer.at.clone());
                Err(Failure::never(RegistryError::Corrupt { at, expected: digest.clone(), found }))
            }
            _ => Ok(answer.header("oci-subject").is_some()),
        }
    }

    /// Whether we may push to `repository`, found out by beginning an upload and cancelling it.
    ///
    /// Fails with [`RegistryError::Unauthorized`] or [`RegistryError::Denied`] if not.
    pub async fn check_push(&self, repository: &Repository) -> Result<(), RegistryError> {
        let place = Place::origin(repository, Direction::Push);
        let mut tries = self.tries(self.transport().options.retries.push);
        loop {
            match self.check_push_once(&place).await {
                Ok(()) => return Ok(()),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    async fn check_push_once(&self, place: &Place) -> Result<(), Failure> {
        let at = place.attempt("check the right to push to", format!("{}/{}", place.host, place.path));
        let scopes = scope(&place.path, RegistryOperation::Push);
        let path = format!("/v2/{}/blobs/uploads/", place.path);
        let ask = Ask::new(Method::POST, To::Path(path), &scopes, &at);
        let answer = self.transport().send(place, ask).await?.success().await?;
        self.cancel_upload(place, answer).await;
        Ok(())
    }

    /// Tells the registry that nothing more will come for the upload that `answer` begins.
    async fn cancel_upload(&self, place: &Place, answer: Answer) {
        let url = answer.header(LOCATION.as_str()).and_then(|to| answer.response.url().join(to).ok());
        // Its slot is given back first: those who wait for a second one while they hold one would wait for ever.
        drop(answer);
        if let Some(url) = url {
            self.cancel_at(place, url).await;
        }
    }

    /// Tells the registry that nothing more will come for the upload at `url`. It forgets uploads by itself, so a failure means
    /// nothing.
    async fn cancel_at(&self, place: &Place, url: Url) {
        let at = place.attempt("cancel an upload to", format!("{}/{}", place.host, place.path));
        let scopes = scope(&place.path, RegistryOperation::Push);
        let _ = self.transport().send(place, Ask::new(Method::DELETE, To::Url(url), &scopes, &at)).await;
    }
}

/// Reads a refusal of a manifest: an immutable tag, or a blob that the registry hasn't noticed yet.
fn manifest_refusal(failure: Failure) -> Failure {
    let (at, detail, status) = match failure.error {
        RegistryError::Refused { at, status, detail } => (at, detail, status),
        RegistryError::Denied { at, detail } => (at, detail, 403),
        RegistryError::NotFound { at, detail } => (at, detail, 404),
        _ => return failure,
    };
    if is_immutable(&detail) {
        return Failure::never(RegistryError::ImmutableTag { at, detail });
    }
    let late = status != 403 && detail.contains("BLOB_UNKNOWN");
    let again = if late { Again::Later(None) } else { failure.again };
    let error = match status {
        403 => RegistryError::Denied { at, detail },
        404 => RegistryError::NotFound { at, detail },
        status => RegistryError::Refused { at, status, detail },
    };
    Failure { error, again }
}

/// Whether a registry says that a tag exists and may not change. Amazon's: "The image tag '1' already exists in the 'a'
/// repository and cannot be overwritten because the repository is immutable"; Harbor's: "configured as immutable";
/// Google's: "has enabled tag immutability"; Artifactory's: "not enough permissions to delete/overwrite artifact".
fn is_immutable(detail: &str) -> bool {
    let text = detail.to_ascii_lowercase();
    text.contains("immutable")
        || text.contains("immutability")
        || (text.contains("already exists") && text.contains("overwrit"))
        || text.contains("delete/overwrite")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_words_for_an_immutable_tag_are_known() {
        for text in [
            "TAG_INVALID: The image tag '1.0' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.",
            "PRECONDITION: Failed to process request due to 'app:1.0' configured as immutable.",
            "Cannot update tag 1.0. The repository has enabled tag immutability",
            "DENIED: Not enough permissions to delete/overwrite artifact 'app/1.0' (user 'ci' needs DELETE permission).",
        ] {
            assert!(is_immutable(text), "{text}");
        }
        assert!(!is_immutable("DENIED: requested access to the resource is denied"));
    }
}
