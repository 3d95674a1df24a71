//! The plan as a value, and the decisions in it. News (a hit, a content key learnt when a stage has run) goes through
//! [`BuildPlan::decide`] and makes the next plan.

use std::collections::BTreeMap;

use kiln_oci::{DiffId, Digest, ImageConfig, Platform};

use crate::{Base, ContentQuestion, CopySource, Op, Step, StepKey, TreeSource};

/// What is to be built, stage by stage, in the order of the file; stages that nothing needs are not in it.
#[derive(Clone, Debug)]
pub struct BuildPlan {
    /// The stages.
    pub stages: Vec<Stage>,
    /// The stages asked for, as places in `stages`; the first is pushed.
    pub targets: Vec<usize>,
    /// What is odd but no error, as sentences.
    pub warnings: Vec<String>,
}

/// One stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its place in the Dockerfile, counted from 0.
    pub number: usize,
    /// Its name, lower case.
    pub name: Option<String>,
    /// FROM's place.
    pub span: kiln_dockerfile::Span,
    /// FROM's lines.
    pub lines: (u32, u32),
    /// What it begins with.
    pub base: Base,
    /// The digest of the base image's manifest, where the base is an image.
    pub base_manifest: Option<Digest>,
    /// The platform it is for.
    pub platform: Platform,
    /// The platform of its files: where its base says another one than was asked for, that.
    pub files: Platform,
    /// The config of the image that it makes: history complete but for times, `rootfs` as in the base image.
    pub config: ImageConfig,
    /// Where its own entries begin in the history.
    pub own_history: usize,
    /// Its steps. Each makes one layer, in history order.
    pub steps: Vec<Step>,
    /// Whether anything has to be done for it at all: set by [`BuildPlan::decide`].
    pub needed: bool,
    /// Whether its files are needed: by a step that runs in them, or by another stage that reads them.
    pub needs_tree: bool,
}

/// What is to happen with a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its layer is taken from a cache.
    Reuse(Hit),
    /// It runs.
    Run {
        /// Whether it needs a real file tree, not only a look at one.
        needs_tree: bool,
    },
    /// Nothing needs it.
    Skip,
}

/// A layer found in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The key that it was found under.
    pub key: StepKey,
    /// The blob's digest.
    pub digest: Digest,
    /// The layer's diff ID.
    pub diff_id: DiffId,
    /// The blob's size in bytes.
    pub size: u64,
    /// The blob's media type.
    pub media_type: String,
    /// Where it was found, for people.
    pub origin: String,
    /// When it was made, seconds since 1970.
    pub created: i64,
}

/// What the caches have.
pub type Hits = BTreeMap<StepKey, Hit>;

impl BuildPlan {
    /// The same plan with every verdict set by what the caches have.
    ///
    /// From the last stage to the first: a stage is needed if it is a target, the base of a needed stage, or read by a
    /// step that runs; a needed stage's steps are reused where there is a hit and run where not. A stage is always
    /// listed before those that need it, so one pass is enough.
    #[must_use]
    pub fn decide(mut self, hits: &Hits) -> Self {
        let count = self.stages.len();
        let mut needed = vec![false; count];
        let mut read = vec![false; count];
        let mut extended = vec![false; count];
        for &target in &self.targets {
            needed[target] = true;
        }
        for place in (0..count).rev() {
            let stage = &mut self.stages[place];
            stage.needed = needed[place];
            let mut runs = false;
            for step in &mut stage.steps {
                step.verdict = if !needed[place] {
                    Verdict::Skip
                } else if let Some(hit) = step.keys.all().find_map(|key| hits.get(&key)) {
                    Verdict::Reuse(hit.clone())
                } else {
                    for source in step.op.stages_read() {
                        needed[source] = true;
                        read[source] = true;
                    }
                    runs |= matches!(step.op, Op::Run(_));
                    Verdict::Run { needs_tree: false }
                };
            }
            stage.needs_tree = needed[place] && (runs || read[place] || extended[place]);
            for step in &mut stage.steps {
                if let Verdict::Run { needs_tree } = &mut step.verdict {
                    *needs_tree = stage.needs_tree;
                }
            }
            if let Base::Stage(base) = stage.base {
                needed[base] |= needed[place];
                extended[base] |= stage.needs_tree;
            }
        }
        self
    }

    /// All keys of all steps, for looking them up at once.
    pub fn keys(&self) -> Vec<StepKey> {
        self.stages.iter().flat_map(|stage| &stage.steps).flat_map(|step| step.keys.all()).collect()
    }

    /// The questions that can be answered now that the stage at `place` has run: what steps that are to run read of it.
    pub fn content_questions(&self, place: usize) -> Vec<ContentQuestion> {
        self.stages
            .iter()
            .flat_map(|stage| &stage.steps)
            .filter(|step| matches!(step.verdict, Verdict::Run { .. }))
            .flat_map(|step| &step.late)
            .map(|late| late.question.clone())
            .filter(|question| question.of == crate::ContentOf::Stage(place))
            .collect()
    }

    /// The stages that must be finished before the stage at `place` can be.
    pub fn dependencies(&self, place: usize) -> Vec<usize> {
        let stage = &self.stages[place];
        let mut found: Vec<usize> = match stage.base {
            Base::Stage(base) => vec![base],
            _ => Vec::new(),
        };
        for step in &stage.steps {
            if matches!(step.verdict, Verdict::Run { .. }) {
                found.extend(step.op.stages_read());
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Op {
    /// The stages whose files this reads, as places in the plan.
    pub fn stages_read(&self) -> Vec<usize> {
        self.trees_read()
            .into_iter()
            .filter_map(|source| match source {
                TreeSource::Stage(place) => Some(*place),
                _ => None,
            })
            .collect()
    }

    /// The file trees that this reads.
    pub fn trees_read(&self) -> Vec<&TreeSource> {
        match self {
            Self::Run(run) => run.mounts.iter().map(|mount| &mount.source).collect(),
            Self::Copy(copy) => {
                let reads = copy.sources.iter().any(|source| matches!(source, CopySource::Path(_)));
                if reads { vec![&copy.from] } else { Vec::new() }
            }
            Self::MakeDirectory(_) => Vec::new(),
        }
    }
}
