//! The two ids of layers that are not digests of stored bytes. They are types of their own, so that neither can be
//! taken for a blob's [`Digest`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Algorithm, Digest, DigestError, Hasher, hex};

/// The SHA-256 of a layer's tar archive before compression (OCI image-spec 1.1, config.md, "Layer DiffID").
///
/// ```compile_fail
/// let digest = kiln_oci::Digest::of(b"");
/// let id: kiln_oci::DiffId = digest; // a blob's digest is no diff ID
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiffId(pub [u8; 32]);

/// The id of a stack of layers, base first (OCI image-spec 1.1, config.md, "Layer ChainID").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub [u8; 32]);

impl DiffId {
    /// The value as lower-case hexadecimal digits: a safe file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// A diff ID from the SHA-256 digest of an uncompressed layer; `None` for any other algorithm.
    pub fn from_digest(digest: &Digest) -> Option<Self> {
        (digest.algorithm() == Algorithm::Sha256).then(|| digest.as_bytes().try_into().map(Self).ok())?
    }
}

impl ChainId {
    /// The chain ID of no layers at all, which stands for the empty tree.
    pub const EMPTY: Self = Self([0; 32]);

    /// The chain ID of `layers`, base first.
    pub fn of(layers: &[DiffId]) -> Self {
        layers.iter().fold(Self::EMPTY, |chain, layer| chain.then(*layer))
    }

    /// The chain ID of this stack with `layer` put on top.
    #[must_use]
    pub fn then(self, layer: DiffId) -> Self {
        if self == Self::EMPTY {
            return Self(layer.0);
        }
        let mut hasher = Hasher::sha256();
        hasher.update(format!("{self} {layer}").as_bytes());
        let digest = hasher.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_bytes());
        Self(bytes)
    }

    /// The value as lower-case hexadecimal digits: a safe file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl FromStr for DiffId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digest: Digest = text.parse()?;
        Self::from_digest(&digest)
            .ok_or_else(|| DigestError { text: text.to_owned(), why: "a diff ID is always SHA-256" })
    }
}

macro_rules! as_text {
    ($($id:ident),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", hex(&self.0))
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

as_text!(DiffId, ChainId);

impl Serialize for DiffId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DiffId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_of_one_layer_is_its_diff_id() {
        let layer = DiffId([7; 32]);
        assert_eq!(ChainId::of(&[layer]).0, layer.0);
    }

    #[test]
    fn order_matters() {
        let (a, b) = (DiffId([1; 32]), DiffId([2; 32]));
        assert_ne!(ChainId::of(&[a, b]), ChainId::of(&[b, a]));
    }
}
