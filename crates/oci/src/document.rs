//! A manifest, index or config together with the bytes it came in. A digest is over bytes, so the bytes are kept: what
//! was read is passed on unchanged, whatever members this crate doesn't know.

use crate::digest::{Digest, Hasher};

/// A JSON document: `value` is read, `raw` is stored and sent.
#[derive(Clone, Debug)]
pub struct Document<T> {
    raw: Box<[u8]>,
    digest: Digest,
    value: T,
}

/// Why bytes are not the document that was expected.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The bytes have another digest than they should.
    #[error(
        "the document's digest is {found}, but {expected} was asked for: it was changed or cut on its way"
    )]
    Digest {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// The bytes are no JSON of the expected form.
    #[error("the document {digest} is not valid: {source}")]
    Json {
        /// The digest of the bytes.
        digest: Digest,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
}

impl<T: serde::de::DeserializeOwned> Document<T> {
    /// Reads a document and checks it against `expected`, if that is given.
    ///
    /// Fails with [`DocumentError::Digest`] or [`DocumentError::Json`].
    pub fn read(raw: Box<[u8]>, expected: Option<&Digest>) -> Result<Self, DocumentError> {
        let mut hasher = Hasher::new(expected.map_or(crate::Algorithm::Sha256, Digest::algorithm));
        hasher.update(&raw);
        let digest = hasher.finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(DocumentError::Digest { expected: expected.clone(), found: digest });
        }
        match serde_json::from_slice(&raw) {
            Ok(value) => Ok(Self { raw, digest, value }),
            Err(source) => Err(DocumentError::Json { digest, source }),
        }
    }
}

impl<T: serde::Serialize> Document<T> {
    /// Makes a document of a value that Kiln authored: it is serialised here, once.
    ///
    /// # Panics
    /// If `T` can't be written as JSON (a map whose keys are no strings): a mistake in the program.
    pub fn author(value: T) -> Self {
        #[expect(clippy::expect_used, reason = "the types of this crate always serialise")]
        let raw = serde_json::to_vec(&value).expect("image documents serialise");
        Self { digest: Digest::of(&raw), raw: raw.into(), value }
    }
}

impl<T> Document<T> {
    /// The bytes, as they came or as they were written once.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What the bytes mean.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The length of the bytes.
    pub fn size(&self) -> u64 {
        self.raw.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manifest;

    #[test]
    fn unknown_members_stay_in_the_raw_bytes() {
        let raw = br#"{"schemaVersion":2, "config":{"mediaType":"a","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[],"x-ours":1}"#;
        let document = Document::<Manifest>::read(raw.as_slice().into(), None).unwrap();
        assert_eq!(document.raw(), raw);
        assert_eq!(document.digest(), &Digest::of(raw));
    }

    #[test]
    fn a_changed_document_is_refused() {
        let wanted = Digest::of(b"{}");
        let error = Document::<Manifest>::read(b"{ }".as_slice().into(), Some(&wanted)).unwrap_err();
        assert!(error.to_string().contains(&wanted.to_string()));
    }
}
