//! Manifests: what a tag means, and the bytes of a manifest or index.

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use kiln_oci::{Descriptor, Digest, Hasher, Reference, media_type};
use oci_client::RegistryOperation;
use oci_client::manifest::OciManifest;

use crate::RegistryError;
use crate::answer::Answer;
use crate::registry::{Registry, scope};
use crate::retry::Failure;
use crate::route::Place;
use crate::transport::{Ask, To};

/// What a reference means at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// The host that said so: the registry's, or a mirror's.
    pub source: String,
}

/// A manifest or index as the registry serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawManifest {
    /// Its bytes.
    pub raw: Box<[u8]>,
    /// Its media type.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// The host that it came from: the registry's, or a mirror's.
    pub source: String,
}

impl RawManifest {
    /// The manifest's descriptor.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type.clone(), self.digest.clone(), self.raw.len() as u64)
    }
}

/// Registries take manifests of up to 4 MiB; some a little more.
const MOST: usize = 16 << 20;

const KNOWN: [&str; 4] =
    [media_type::OCI_INDEX, media_type::OCI_MANIFEST, media_type::DOCKER_INDEX, media_type::DOCKER_MANIFEST];

impl Registry {
    /// What `reference` means at present: one HEAD at the mirrors or the registry, by digest if it has one.
    ///
    /// Fails with [`RegistryError`]; [`RegistryError::is_not_found`] and [`RegistryError::is_unreachable`] tell the
    /// common cases apart.
    pub async fn head(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let mut walk = self.walk(&reference.repository);
        while let Some((place, allowed)) = walk.next() {
            let mut tries = self.tries(allowed);
            let error = loop {
                match self.head_once(&place, reference).await {
                    Ok(Some(resolved)) => return Ok(resolved),
                    Ok(None) => match self.manifest_at(&place, reference, allowed).await {
                        Ok(manifest) => {
                            let source = manifest.source.clone();
                            return Ok(Resolved { descriptor: manifest.descriptor(), source });
                        }
                        Err(error) => break error,
                    },
                    Err(failure) => {
                        if let Err(error) = tries.after(failure).await {
                            break error;
                        }
                    }
                }
            };
            walk.failed(&place, error);
        }
        Err(walk.finish())
    }

    /// The manifest or index that `reference` means, checked against its digest.
    ///
    /// Fails with [`RegistryError`]; with [`RegistryError::Schema1`] for docker's old form.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        let mut walk = self.walk(&reference.repository);
        while let Some((place, allowed)) = walk.next() {
            match self.manifest_at(&place, reference, allowed).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => walk.failed(&place, error),
            }
        }
        Err(walk.finish())
    }

    async fn manifest_at(
        &self,
        place: &Place,
        reference: &Reference,
        allowed: u32,
    ) -> Result<RawManifest, RegistryError> {
        let mut tries = self.tries(allowed);
        loop {
            match self.manifest_once(place, reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    async fn ask_manifest(
        &self,
        method: Method,
        place: &Place,
        reference: &Reference,
    ) -> Result<Answer, Failure> {
        let at = place.attempt("fetch the manifest of", reference.to_string());
        let scopes = scope(&place.path, RegistryOperation::Pull);
        let ask = Ask::new(method, To::Path(manifest_path(place, &reference.identifier())), &scopes, &at)
            .header(ACCEPT, &KNOWN.join(", "));
        self.transport().send(place, ask).await
    }

    /// `None` if the answer doesn't say enough.
    async fn head_once(&self, place: &Place, reference: &Reference) -> Result<Option<Resolved>, Failure> {
        let answer = self.ask_manifest(Method::HEAD, place, reference).await?;
        if matches!(answer.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST) {
            return Ok(None);
        }
        let answer = answer.success().await?;
        let said = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let digest = match (&reference.digest, said) {
            (Some(wanted), Some(found)) if *wanted != found && wanted.algorithm() == found.algorithm() => {
                let at = Box::new(answer.at.clone());
                return Err(Failure::never(RegistryError::Corrupt { at, expected: wanted.clone(), found }));
            }
            (Some(wanted), _) => wanted.clone(),
            (None, Some(found)) => found,
            (None, None) => return Ok(None),
        };
        let kind = content_type(&answer);
        if media_type::is_schema1(&kind) {
            return Err(Failure::never(RegistryError::Schema1 { at: Box::new(answer.at.clone()) }));
        }
        let size = answer.header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        Ok(match size {
            Some(size) if KNOWN.contains(&kind.as_str()) => {
                Some(Resolved { descriptor: Descriptor::new(kind, digest, size), source: place.host.clone() })
            }
            _ => None,
        })
    }

    async fn manifest_once(&self, place: &Place, reference: &Reference) -> Result<RawManifest, Failure> {
        let mut answer = self.ask_manifest(Method::GET, place, reference).await?.success().await?;
        let raw = answer.body(MOST).await?;
        let said = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let expected = reference.digest.clone().or(said);
        let mut hasher = expected.as_ref().map_or_else(Hasher::sha256, |d| Hasher::new(d.algorithm()));
        hasher.update(&raw);
        let digest = hasher.finish();
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            let at = Box::new(answer.at.clone());
            return Err(Failure::later(RegistryError::Corrupt { at, expected, found: digest }));
        }
        let media_type = kind(&answer, &raw)?;
        Ok(RawManifest { raw: raw.into(), media_type, digest, source: place.host.clone() })
    }
}

/// The media type: what the answer says, or what the manifest says, or what it looks like.
fn kind(answer: &Answer, raw: &[u8]) -> Result<String, Failure> {
    let value: serde_json::Value = serde_json::from_slice(raw).map_err(|error| {
        Failure::later(answer.protocol(format!("the manifest is cut or is no JSON: {error}")))
    })?;
    let said = content_type(answer);
    if media_type::is_schema1(&said) || value["schemaVersion"] == 1 {
        return Err(Failure::never(RegistryError::Schema1 { at: Box::new(answer.at.clone()) }));
    }
    if KNOWN.contains(&said.as_str()) {
        return Ok(said);
    }
    if let Some(own) = value["mediaType"].as_str().filter(|own| KNOWN.contains(own)) {
        return Ok(own.to_owned());
    }
    // A registry that serves manifests as plain text or octets: oci-client's model tells the two forms apart.
    match serde_json::from_value::<OciManifest>(value) {
        Ok(OciManifest::ImageIndex(_)) => Ok(media_type::OCI_INDEX.to_owned()),
        Ok(OciManifest::Image(image)) if image.config.media_type == media_type::DOCKER_CONFIG => {
            Ok(media_type::DOCKER_MANIFEST.to_owned())
        }
        Ok(OciManifest::Image(_)) => Ok(media_type::OCI_MANIFEST.to_owned()),
        Err(_) => Err(Failure::never(answer.protocol(format!("{said:?} is no manifest that is known here")))),
    }
}

fn content_type(answer: &Answer) -> String {
    let text = answer.header(CONTENT_TYPE.as_str()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The path of a manifest, spelt by oci-client's reference.
pub(crate) fn manifest_path(place: &Place, identifier: &str) -> String {
    let reference = place.reference(identifier);
    let identifier = reference.digest().or(reference.tag()).unwrap_or(identifier);
    format!("/v2/{}/manifests/{identifier}", reference.repository())
}
