//! Statements about an image, and the manifest that attaches them to it: in-toto statements as layers of an OCI artefact
//! that stands beside the image in its index. Readers of BuildKit's attestations find them.

use std::collections::BTreeMap;

use kiln_oci::{Descriptor, Digest, Document, Manifest, Platform, Reference, media_type};
use serde_json::{Value, json};

use crate::package::encode;

/// What an SPDX document is called in a statement.
pub const PREDICATE_SPDX: &str = "https://spdx.dev/Document";
/// What SLSA provenance is called in a statement.
pub const PREDICATE_PROVENANCE: &str = "https://slsa.dev/provenance/v1";

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
const EMPTY: &[u8] = b"{}";

/// What a statement says.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// Which kind of thing it says.
    pub predicate_type: &'static str,
    /// What it says.
    pub predicate: Value,
}

/// The image that statements are about.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its platform.
    pub platform: Option<Platform>,
    /// Where it is pushed to.
    pub names: &'a [Reference],
}

/// A manifest with statements.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The manifest.
    pub manifest: Document<Manifest>,
    /// Its config.
    pub config: Vec<u8>,
    /// Its layers: the statements.
    pub statements: Vec<(Descriptor, Vec<u8>)>,
}

/// The package URL of an image: `pkg:docker/reg.example.com/team/app@1.0?platform=linux%2Famd64`.
pub fn image_purl(reference: &Reference, platform: Option<&Platform>) -> String {
    let repository = reference.repository.to_string();
    // Images of Docker Hub go without its name.
    let path = repository.strip_prefix("docker.io/").unwrap_or(&repository);
    let path = path.strip_prefix("library/").unwrap_or(path);
    let parts: Vec<String> = path.split('/').map(encode).collect();
    let mut url = format!("pkg:docker/{}", parts.join("/"));
    if let Some(tag) = reference.tag_or_latest() {
        url = format!("{url}@{}", encode(&tag.to_string()));
    }
    let digest = reference.digest.as_ref().map(|digest| format!("digest={}", encode(&digest.to_string())));
    let platform = platform.map(|platform| format!("platform={}", encode(&platform.to_string())));
    let qualifiers: Vec<String> = [digest, platform].into_iter().flatten().collect();
    if !qualifiers.is_empty() {
        url = format!("{url}?{}", qualifiers.join("&"));
    }
    url
}

/// Puts statements about `subject` into a manifest.
pub fn attach(subject: &Subject<'_>, statements: &[Statement]) -> Attached {
    let digest = &subject.manifest.digest;
    let of = json!({ digest.algorithm().name(): digest.hex() });
    let mut subjects: Vec<Value> = subject
        .names
        .iter()
        .map(|name| json!({"name": image_purl(name, subject.platform.as_ref()), "digest": of}))
        .collect();
    if subjects.is_empty() {
        subjects.push(json!({"name": "_", "digest": of}));
    }
    let layers: Vec<(Descriptor, Vec<u8>)> = statements
        .iter()
        .map(|statement| {
            let bytes = json!({
                "_type": STATEMENT,
                "subject": subjects,
                "predicateType": statement.predicate_type,
                "predicate": statement.predicate,
            })
            .to_string()
            .into_bytes();
            let mut descriptor = Descriptor::new(IN_TOTO, Digest::of(&bytes), bytes.len() as u64);
            let kind = ("in-toto.io/predicate-type".to_owned(), statement.predicate_type.to_owned());
            descriptor.annotations = Some(BTreeMap::from([kind]));
            (descriptor, bytes)
        })
        .collect();
    let mut config = Descriptor::new(media_type::OCI_EMPTY, Digest::of(EMPTY), EMPTY.len() as u64);
    // The two bytes of an empty config stand in its descriptor, too (OCI image-spec 1.1, manifest.md).
    config.other.insert("data".to_owned(), json!("e30="));
    let mut manifest = Manifest::new(
        media_type::OCI_MANIFEST,
        config,
        layers.iter().map(|(descriptor, _)| descriptor.clone()).collect(),
    );
    manifest.artifact_type = Some(ARTIFACT.to_owned());
    let about = &subject.manifest;
    manifest.subject = Some(Descriptor::new(about.media_type.clone(), about.digest.clone(), about.size));
    Attached { manifest: Document::author(manifest), config: EMPTY.to_vec(), statements: layers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_s_name_becomes_a_package_url() {
        let name = |text: &str| text.parse::<Reference>().unwrap();
        let platform: Platform = "linux/amd64".parse().unwrap();
        assert_eq!(
            image_purl(&name("alpine:3.17"), Some(&platform)),
            "pkg:docker/alpine@3.17?platform=linux%2Famd64"
        );
        assert_eq!(
            image_purl(&name("reg.example.com:5000/a/b"), None),
            "pkg:docker/reg.example.com:5000/a/b@latest"
        );
    }

    #[test]
    fn statements_are_layers_about_the_image() {
        let image = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"image"), 5);
        let subject = Subject { manifest: image.clone(), platform: None, names: &[] };
        let said =
            Statement { predicate_type: PREDICATE_SPDX, predicate: json!({"spdxVersion": "SPDX-2.3"}) };
        let attached = attach(&subject, &[said]);
        let manifest: Value = serde_json::from_slice(attached.manifest.raw()).unwrap();
        assert_eq!(manifest["artifactType"], ARTIFACT);
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.empty.v1+json");
        assert_eq!(
            manifest["config"]["digest"],
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
        assert_eq!(manifest["subject"]["digest"], image.digest.to_string());
        assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.in-toto+json");
        assert_eq!(manifest["layers"][0]["annotations"]["in-toto.io/predicate-type"], PREDICATE_SPDX);
        let statement: Value = serde_json::from_slice(&attached.statements[0].1).unwrap();
        assert_eq!(statement["subject"][0]["digest"]["sha256"], image.digest.hex());
        assert_eq!(statement["predicate"]["spdxVersion"], "SPDX-2.3");
    }
}
