//! The record of the last build of a Dockerfile: one small manifest, tagged by the build's name, that lists what all its
//! steps led to. One request finds every step that did not change, and the hashes of the keys' inputs (in the config
//! blob, which only explanations read) say why others are missing. No value of any input is kept.

use std::collections::{BTreeMap, BTreeSet};

use kiln_dockerfile::{Dockerfile, Kind};
use kiln_oci::{Descriptor, DiffId, Digest, Document, Manifest, Platform, Reference, media_type};
use kiln_plan::{Recipe, StepKey};
use serde::{Deserialize, Serialize};

use crate::record::{BadRecord, Inputs, StepRecord};

/// The media type of the config blob.
const BUILD_CONFIG: &str = "application/vnd.kiln.build.v1+json";
/// The annotation that holds the steps.
const STEPS: &str = "dev.kiln.build.steps";
/// Longer annotations are left out: registries limit manifests to 4 MiB.
const LONGEST: usize = 3 << 20;

/// The name of a build: the same for all builds of one Dockerfile for one platform, as far as that can be told without
/// knowing where it comes from.
///
/// It is made of the file's name, the platform, and the stages with their bases, without tags and digests.
pub fn build_name(file: &Dockerfile, path: &str, platform: &Platform) -> StepKey {
    let mut recipe = Recipe::new("build");
    recipe.add("file", path.rsplit('/').next().unwrap_or(path));
    recipe.add("platform", platform.to_string());
    let stages = file.instructions.iter().filter_map(|line| match &line.kind {
        Kind::From(from) => {
            let image = from.image.literal();
            let base = image.parse::<Reference>().map_or(image, |image| image.repository.to_string());
            Some([from.name.clone().unwrap_or_default(), base])
        }
        _ => None,
    });
    recipe.add_list("stages", stages.flatten());
    recipe.key()
}

/// What a step of the last build led to.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedStep {
    /// Its stage's name or number.
    pub stage: String,
    /// Its keys.
    pub keys: Vec<StepKey>,
    /// Its layer.
    pub layer: Descriptor,
    /// The layer before compression.
    pub diff_id: DiffId,
    /// When the layer was made, seconds since 1970.
    pub created: i64,
    /// What its key was made of; empty unless asked for.
    pub inputs: Inputs,
}

/// The record of a build.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BuildRecord {
    /// The steps that the cache has, in the order of the plan.
    pub steps: Vec<RecordedStep>,
}

/// In what a step differs from one of the last build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The inputs of its key, by name.
    pub inputs: Vec<String>,
    /// The files or directories that it copies, where they lie in their context.
    pub parts: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    stage: String,
    keys: Vec<String>,
    layer: Digest,
    diff_id: DiffId,
    created: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Explanations {
    steps: Vec<Inputs>,
}

impl BuildRecord {
    /// The record of one step by one of its keys.
    pub fn find(&self, key: StepKey) -> Option<StepRecord> {
        let step = self.steps.iter().find(|step| step.keys.contains(&key))?;
        Some(StepRecord { key, layer: step.layer.clone(), diff_id: step.diff_id, created: step.created })
    }

    /// Why a step of `stage` whose key is made of `now` was not found: in what it differs from the step of the last build
    /// that it is most like. `None` if that build had no step like it.
    pub fn why(&self, stage: &str, now: &Inputs) -> Option<Difference> {
        let candidates =
            self.steps.iter().filter(|step| step.stage == stage && !step.inputs.inputs.is_empty());
        let like = candidates.map(|step| (step.inputs.changed(now), &step.inputs));
        let (inputs, like) = like.min_by_key(|(changed, _)| changed.len())?;
        let alike = inputs.len() * 2 <= now.inputs.len();
        alike.then(|| Difference { inputs, parts: like.changed_parts(now) })
    }

    pub(crate) fn write(&self) -> Option<(Document<Manifest>, Document<Explanations>)> {
        let entries: Vec<Entry> = self
            .steps
            .iter()
            .map(|step| Entry {
                stage: step.stage.clone(),
                keys: step.keys.iter().map(StepKey::hex).collect(),
                layer: step.layer.digest.clone(),
                diff_id: step.diff_id,
                created: step.created,
            })
            .collect();
        let text = serde_json::to_string(&entries).ok().filter(|text| text.len() <= LONGEST)?;
        let steps = self.steps.iter().map(|step| step.inputs.clone()).collect();
        let config = Document::author(Explanations { steps });
        let descriptor = Descriptor::new(BUILD_CONFIG, config.digest().clone(), config.size());
        let mut seen = BTreeSet::new();
        let layers = self.steps.iter().filter(|step| seen.insert(step.layer.digest.clone()));
        let layers = layers.map(|step| step.layer.clone()).collect();
        let mut manifest = Manifest::new(media_type::OCI_MANIFEST, descriptor, layers);
        manifest.annotations = Some(BTreeMap::from([(STEPS.to_owned(), text)]));
        Some((Document::author(manifest), config))
    }

    pub(crate) fn read(manifest: &Manifest) -> Result<Self, BadRecord> {
        let fail = |why: String| BadRecord(format!("the record of the last build {why}"));
        let text = manifest.annotations.as_ref().and_then(|notes| notes.get(STEPS));
        let text = text.ok_or_else(|| fail(format!("has no annotation {STEPS}")))?;
        let entries: Vec<Entry> =
            serde_json::from_str(text).map_err(|error| fail(format!("can't be read: {error}")))?;
        let layers: BTreeMap<&Digest, &Descriptor> =
            manifest.layers.iter().map(|layer| (&layer.digest, layer)).collect();
        let mut steps = Vec::new();
        for entry in entries {
            let layer = layers
                .get(&entry.layer)
                .filter(|layer| media_type::Compression::of_layer(&layer.media_type).is_some());
            let layer = layer.ok_or_else(|| fail(format!("lists no usable layer {}", entry.layer)))?;
            let keys = entry.keys.iter().filter_map(|key| StepKey::from_hex(key)).collect();
            let (stage, diff_id, created) = (entry.stage, entry.diff_id, entry.created);
            let inputs = Inputs::default();
            steps.push(RecordedStep { stage, keys, layer: (*layer).clone(), diff_id, created, inputs });
        }
        Ok(Self { steps })
    }

    /// The same record with what its keys were made of.
    pub(crate) fn explained(mut self, by: Explanations) -> Self {
        for (step, inputs) in self.steps.iter_mut().zip(by.steps) {
            step.inputs = inputs;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Input;

    fn inputs(values: &[(&str, &str)]) -> Inputs {
        let input = |(name, value): &(&str, &str)| Input {
            name: (*name).to_owned(),
            hash: Digest::of(value.as_bytes()),
        };
        Inputs { inputs: values.iter().map(input).collect(), parts: Vec::new() }
    }

    fn step(stage: &str, key: u8, values: &[(&str, &str)]) -> RecordedStep {
        RecordedStep {
            stage: stage.to_owned(),
            keys: vec![StepKey([key; 32]), StepKey([key + 100; 32])],
            layer: Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&[key]), 5),
            diff_id: DiffId([key; 32]),
            created: 7,
            inputs: inputs(values),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = BuildRecord { steps: vec![step("a", 1, &[("x", "1")]), step("b", 2, &[("x", "2")])] };
        let (manifest, config) = record.write().unwrap();
        let read = BuildRecord::read(manifest.value()).unwrap();
        assert_eq!(read.find(StepKey([101; 32])).unwrap().diff_id, DiffId([1; 32]));
        assert_eq!(read.find(StepKey([3; 32])), None);
        assert_eq!(read.explained(config.value().clone()), record);
    }

    #[test]
    fn a_miss_is_explained_by_the_step_that_is_most_like_it() {
        let steps = vec![
            step("a", 1, &[("command", "x"), ("parent", "p"), ("env A", "1"), ("user", "u")]),
            step("a", 2, &[("command", "y"), ("parent", "q"), ("env A", "1"), ("user", "u")]),
        ];
        let record = BuildRecord { steps };
        let why = |values| record.why("a", &inputs(values)).map(|difference| difference.inputs);
        let now = [("command", "x"), ("parent", "p"), ("env A", "2"), ("user", "u")];
        assert_eq!(why(&now), Some(vec!["env A".to_owned()]));
        assert_eq!(why(&[("command", "z"), ("parent", "z"), ("env A", "z"), ("user", "u")]), None);
        assert_eq!(record.why("other", &inputs(&now)), None);
    }

    #[test]
    fn a_build_is_named_by_its_stages_and_not_by_tags() {
        let name = |text: &str| {
            let file = kiln_dockerfile::parse(&kiln_dockerfile::Source::new("Dockerfile", text)).unwrap();
            build_name(&file, "/work/Dockerfile", &Platform::host())
        };
        assert_eq!(name("FROM a:1\nRUN x\n"), name("FROM a:2\nRUN y\n"));
        assert_ne!(name("FROM a:1\n"), name("FROM b:1\n"));
        assert_ne!(name("FROM a AS x\n"), name("FROM a AS y\n"));
    }
}
