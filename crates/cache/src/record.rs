//! The record of a cached step: a small OCI manifest, tagged by the step's key, whose one layer is the step's result.
//! What is needed to use it stands in annotations, so one request is enough; the config blob holds the names and hashes
//! of the key's inputs, which explain a later miss. No value of any input is kept.

use std::collections::{BTreeMap, BTreeSet};

use kiln_oci::media_type::{self, Compression};
use kiln_oci::{Descriptor, DiffId, Digest, Document, Manifest};
use kiln_plan::{Hit, Recipe, Step, StepKey};
use serde::{Deserialize, Serialize};

/// The media type of the config blob.
pub const STEP_CONFIG: &str = "application/vnd.kiln.step.v1+json";

const KEY: &str = "dev.kiln.step.key";
const DIFF_ID: &str = "dev.kiln.step.diff-id";
const CREATED: &str = "dev.kiln.step.created";

/// What is known of a cached step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// The key it is stored under.
    pub key: StepKey,
    /// The layer's blob.
    pub layer: Descriptor,
    /// The layer before compression.
    pub diff_id: DiffId,
    /// When it was made, seconds since 1970.
    pub created: i64,
}

/// The names and hashes of a key's inputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// In the recipe's order.
    pub inputs: Vec<Input>,
    /// The parts of the files that are copied, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Input>,
}

/// The input that stands for what a stage begins with: only the first step of a stage has it.
const BASE: &str = "base image";

/// One input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// The digest of its value.
    pub hash: Digest,
}

impl Inputs {
    /// The inputs of `recipe`, values left out.
    pub fn of(recipe: &Recipe) -> Self {
        let inputs = recipe.fields().iter();
        let inputs = inputs.map(|field| Input { name: field.name.clone(), hash: field.hash() }).collect();
        Self { inputs, parts: Vec::new() }
    }

    /// The inputs of a step, and what explains them: the parts of what it copies, and, for the first step of a stage, the
    /// image `base`.
    pub fn explained(step: &Step, base: Option<&Digest>) -> Self {
        let mut inputs = Self::of(&step.recipe);
        let base =
            base.map(|base| Input { name: BASE.to_owned(), hash: Digest::of(base.to_string().as_bytes()) });
        inputs.inputs.extend(base);
        let part =
            |(name, digest): &(String, [u8; 32])| Input { name: name.clone(), hash: Digest::of(digest) };
        inputs.parts = step.parts.iter().map(part).collect();
        inputs
    }

    /// The names of the inputs in which `now` differs from this record.
    pub fn changed(&self, now: &Self) -> Vec<String> {
        differences(&self.inputs, &now.inputs)
    }

    /// The names of the parts in which `now` differs from this record.
    pub fn changed_parts(&self, now: &Self) -> Vec<String> {
        differences(&self.parts, &now.parts)
    }
}

fn differences(before: &[Input], after: &[Input]) -> Vec<String> {
    let by_name = |inputs: &[Input]| -> BTreeMap<String, Digest> {
        inputs.iter().map(|input| (input.name.clone(), input.hash.clone())).collect()
    };
    let (before, after) = (by_name(before), by_name(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

/// Why a record can't be used. It is a miss, and worth one warning.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadRecord(pub String);

impl StepRecord {
    /// The manifest to store, and its config blob.
    pub fn write(&self, inputs: &Inputs) -> (Document<Manifest>, Document<Inputs>) {
        let config = Document::author(inputs.clone());
        let descriptor = Descriptor::new(STEP_CONFIG, config.digest().clone(), config.size());
        let mut manifest = Manifest::new(media_type::OCI_MANIFEST, descriptor, vec![self.layer.clone()]);
        manifest.annotations = Some(BTreeMap::from([
            (KEY.to_owned(), self.key.hex()),
            (DIFF_ID.to_owned(), self.diff_id.to_string()),
            (CREATED.to_owned(), self.created.to_string()),
        ]));
        (Document::author(manifest), config)
    }

    /// Reads a stored manifest.
    ///
    /// Fails if it is no record, is of another key, or describes no layer that an image can hold.
    pub fn read(manifest: &Manifest, key: StepKey) -> Result<Self, BadRecord> {
        let fail = |why: &str| BadRecord(format!("the record of {} {why}", key.short()));
        let notes = manifest.annotations.as_ref().ok_or_else(|| fail("has no annotations"))?;
        let note = |name: &str| notes.get(name).ok_or_else(|| fail(&format!("has no annotation {name}")));
        if *note(KEY)? != key.hex() {
            return Err(fail("is of another key"));
        }
        let [layer] = manifest.layers.as_slice() else { return Err(fail("has not exactly one layer")) };
        if Compression::of_layer(&layer.media_type).is_none() {
            return Err(fail(&format!(
                "has a layer of type {:?}, which no image can hold",
                layer.media_type
            )));
        }
        Ok(Self {
            key,
            layer: layer.clone(),
            diff_id: note(DIFF_ID)?.parse().map_err(|_| fail("has a diff ID that is none"))?,
            created: note(CREATED)?.parse().map_err(|_| fail("has a time that is none"))?,
        })
    }

    /// The record as a hit.
    pub fn hit(&self, origin: &str) -> Hit {
        Hit {
            key: self.key,
            digest: self.layer.digest.clone(),
            diff_id: self.diff_id,
            size: self.layer.size,
            media_type: self.layer.media_type.clone(),
            origin: origin.to_owned(),
            created: self.created,
        }
    }

    /// Whether the record is older than `ttl_seconds` at the time `now` (seconds since 1970).
    pub fn expired(&self, now: i64, ttl_seconds: u64) -> bool {
        now.saturating_sub(self.created) > i64::try_from(ttl_seconds).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> StepRecord {
        StepRecord {
            key: StepKey([7; 32]),
            layer: Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"layer"), 5),
            diff_id: DiffId([9; 32]),
            created: 1000,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (manifest, _) = record().write(&Inputs::default());
        assert_eq!(StepRecord::read(manifest.value(), record().key).unwrap(), record());
    }

    #[test]
    fn a_record_of_another_key_is_refused() {
        let (manifest, _) = record().write(&Inputs::default());
        assert!(StepRecord::read(manifest.value(), StepKey([8; 32])).is_err());
    }

    #[test]
    fn a_record_without_a_usable_layer_is_refused() {
        let (manifest, _) = record().write(&Inputs::default());
        let mut wrong = manifest.value().clone();
        wrong.layers[0].media_type = "text/plain".to_owned();
        assert!(StepRecord::read(&wrong, record().key).is_err());
        wrong.layers.clear();
        assert!(StepRecord::read(&wrong, record().key).is_err());
    }

    #[test]
    fn the_inputs_that_changed_are_named() {
        let inputs = |value: &str| {
            let mut recipe = Recipe::new("run");
            recipe.add("env A", value);
            recipe.add("user", "root");
            Inputs::of(&recipe)
        };
        assert_eq!(inputs("1").changed(&inputs("2")), ["env A"]);
        assert!(inputs("1").changed(&inputs("1")).is_empty());
    }

    #[test]
    fn age_is_measured_from_when_it_was_made() {
        assert!(!record().expired(1500, 600));
        assert!(record().expired(1601, 600));
        assert!(!record().expired(0, 600));
    }
}
