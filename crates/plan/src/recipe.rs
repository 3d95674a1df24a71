//! Recipes: what a key is made of, as plain data. The encoding is versioned and framed, so that no two recipes share
//! bytes: a tag and a length go before every field.

use std::fmt;

use kiln_oci::Digest;

/// The version of the encoding. Any change to the bytes of [`Recipe::encode`] or to what goes into a recipe is a new one.
const VERSION: &[u8] = b"kiln-recipe-2";

/// The field that holds the key of the step before.
pub(crate) const PARENT: &str = "parent";

/// What stands there where a step is the same whatever is below it.
pub(crate) const LINKED: &str = "linked";

/// The key of a step: SHA-256 of its encoded recipe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepKey(pub [u8; 32]);

impl StepKey {
    /// As hexadecimal digits: a file name, and a tag in a cache repository.
    pub fn hex(&self) -> String {
        Digest::sha256(self.0).hex()
    }

    /// Reads what [`StepKey::hex`] gives.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digest: Digest = format!("sha256:{text}").parse().ok()?;
        Some(Self(digest.as_bytes().try_into().ok()?))
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> String {
        Digest::sha256(self.0).short()
    }
}

impl fmt::Debug for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// One input of a step.
#[derive(Clone, PartialEq, Eq)]
pub struct Field {
    /// What it is. Never a value: names are shown and stored.
    pub name: String,
    /// The value's bytes. They go into the key and nowhere else.
    value: Vec<u8>,
}

impl Field {
    /// The SHA-256 of the value: what a record keeps to explain a later miss.
    pub fn hash(&self) -> Digest {
        Digest::of(&self.value)
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

/// All inputs of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    fields: Vec<Field>,
}

impl Recipe {
    /// A recipe for an operation of this kind.
    pub fn new(kind: &str) -> Self {
        let mut recipe = Self::default();
        recipe.add("kind", kind);
        recipe
    }

    /// Adds an input.
    pub fn add(&mut self, name: impl Into<String>, value: impl AsRef<[u8]>) {
        self.fields.push(Field { name: name.into(), value: value.as_ref().to_vec() });
    }

    /// Adds a list of inputs as one field, each framed.
    pub fn add_list<T: AsRef<[u8]>>(&mut self, name: impl Into<String>, values: impl IntoIterator<Item = T>) {
        let mut value = Vec::new();
        for item in values {
            frame(&mut value, item.as_ref());
        }
        self.fields.push(Field { name: name.into(), value });
    }

    /// The inputs, in order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The same recipe with the input `name` given another value.
    #[must_use]
    pub fn with(&self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let mut other = self.clone();
        for field in &mut other.fields {
            if field.name == name {
                field.value = value.as_ref().to_vec();
            }
        }
        other
    }

    /// The same recipe on top of the step `parent`; one that depends on nothing below stays as it is.
    #[must_use]
    pub(crate) fn onto(&self, parent: StepKey) -> Self {
        let free = self.fields.iter().any(|field| field.name == PARENT && field.value == LINKED.as_bytes());
        if free { self.clone() } else { self.with(PARENT, parent.hex()) }
    }

    /// The bytes that are hashed: the version, then each field's name and value, every one after its length (8 bytes,
    /// big-endian).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame(&mut bytes, VERSION);
        for field in &self.fields {
            frame(&mut bytes, field.name.as_bytes());
            frame(&mut bytes, &field.value);
        }
        bytes
    }

    /// The key.
    pub fn key(&self) -> StepKey {
        let mut key = [0; 32];
        key.copy_from_slice(Digest::of(&self.encode()).as_bytes());
        StepKey(key)
    }
}

fn frame(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    into.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_pinned() {
        let mut recipe = Recipe::new("run");
        recipe.add_list("argv", ["a", "bc"]);
        let expected = [
            b"\0\0\0\0\0\0\0\x0dkiln-recipe-2".as_slice(),
            b"\0\0\0\0\0\0\0\x04kind\0\0\0\0\0\0\0\x03run",
            b"\0\0\0\0\0\0\0\x04argv\0\0\0\0\0\0\0\x13",
            b"\0\0\0\0\0\0\0\x01a\0\0\0\0\0\0\0\x02bc",
        ]
        .concat();
        assert_eq!(recipe.encode(), expected);
        assert_eq!(recipe.key().hex(), Digest::of(&expected).hex());
        assert_eq!(StepKey::from_hex(&recipe.key().hex()), Some(recipe.key()));
    }

    #[test]
    fn inputs_whose_concatenation_is_equal_have_different_keys() {
        let key = |values: &[&str]| {
            let mut recipe = Recipe::new("run");
            recipe.add_list("argv", values);
            recipe.key()
        };
        assert_ne!(key(&["a-b", "c"]), key(&["a", "b-c"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
    }

    #[test]
    fn printing_a_recipe_shows_no_value() {
        let mut recipe = Recipe::new("run");
        recipe.add("env TOKEN", "hunter2");
        assert!(!format!("{recipe:?}").contains("hunter2"));
    }
}
