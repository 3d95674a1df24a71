//! What a build would do: its plan, why steps are not in the cache, and what would be downloaded.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_cache::{BuildRecord, Difference, LayerSource, ResolvedImage};
use kiln_dockerfile::Dockerfile;
use kiln_plan::{Base, BuildPlan, ImageName, Stage, Step, TreeSource, Verdict};

use crate::planning::Found;
use crate::session::Session;

/// A build that was planned and not carried out.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The plan.
    pub plan: BuildPlan,
    /// Why steps run, by stage and step, as places in the plan.
    pub reasons: BTreeMap<(usize, usize), Reason>,
    /// What would be brought to this machine.
    pub downloads: Vec<Download>,
}

/// Why a step is not taken from a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No cache is asked (`--cache`).
    NoCache,
    /// Results of its kind are not cached (`--cache-run-layers`, `--cache-copy-layers`).
    KindNotCached,
    /// These inputs and files differ from the last build's; none of its own where only steps before it changed.
    Changed(Difference),
    /// The last build had the same step, but its result expired or was removed.
    Gone,
    /// The last build had no such step, or left no record.
    Unknown,
}

/// A blob that would be downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// The stage that needs it, as a place in the plan.
    pub stage: usize,
    /// What it is: a base image's name, or the instruction of a cached step.
    pub what: String,
    /// Its size.
    pub bytes: u64,
}

/// Looks ahead.
pub(crate) async fn forecast(
    session: &Arc<Session>,
    file: &Dockerfile,
    plan: BuildPlan,
    images: &Found,
    platform: &kiln_oci::Platform,
) -> Forecast {
    let cache = &session.request.cache;
    let runs = |step: &Step| matches!(step.verdict, Verdict::Run { .. });
    let any = plan.stages.iter().flat_map(|stage| &stage.steps).any(runs);
    let record = if cache.enabled && any {
        session.cache.last_build(crate::results::build_name(session, file, platform)).await
    } else {
        None
    };
    let mut reasons = BTreeMap::new();
    for (place, stage) in plan.stages.iter().enumerate() {
        for (number, _) in stage.steps.iter().enumerate().filter(|(_, step)| runs(step)) {
            reasons.insert((place, number), reason(session, record.as_ref(), stage, number));
        }
    }
    let downloads = downloads(session, &plan, images);
    Forecast { plan, reasons, downloads }
}

fn reason(session: &Session, record: Option<&BuildRecord>, stage: &Stage, number: usize) -> Reason {
    if !session.request.cache.enabled {
        return Reason::NoCache;
    }
    if !crate::results::is_cached_kind(session, &stage.steps[number]) {
        return Reason::KindNotCached;
    }
    let now = crate::results::explained(stage, number);
    match record.and_then(|record| record.why(&crate::results::stage_name(stage), &now)) {
        None => Reason::Unknown,
        Some(changed) if changed.inputs.is_empty() => Reason::Gone,
        Some(mut changed) => {
            changed.inputs.retain(|name| name != "parent");
            Reason::Changed(changed)
        }
    }
}

/// What the steps that run need to see: whole trees, or a look at what lies below a copy.
fn downloads(session: &Session, plan: &BuildPlan, images: &Found) -> Vec<Download> {
    let mut found: Vec<(kiln_oci::Digest, Download)> = Vec::new();
    let mut add = |stage: usize, what: &str, digest: &kiln_oci::Digest, bytes: u64| {
        if found.iter().all(|(known, _)| known != digest) {
            found.push((digest.clone(), Download { stage, what: what.to_owned(), bytes }));
        }
    };
    let image = |name: &ImageName, stage: &Stage| -> Option<Arc<ResolvedImage>> {
        images.get(&(name.clone(), stage.platform.to_string())).cloned()
    };
    let missing = |image: &ResolvedImage| -> Vec<LayerSource> {
        image.layers.iter().filter(|layer| !layer.is_here() && layer.unpacked().is_none()).cloned().collect()
    };
    for (place, stage) in plan.stages.iter().enumerate().filter(|(_, stage)| stage.needed) {
        let last_run = stage.steps.iter().rposition(|step| matches!(step.verdict, Verdict::Run { .. }));
        let looks = stage.needs_tree || last_run.is_some();
        if let (Base::Image(name), true) = (&stage.base, looks)
            && let Some(image) = image(name, stage)
        {
            for layer in missing(&image) {
                add(place, &name.to_string(), &layer.descriptor().digest, layer.descriptor().size);
            }
        }
        for (number, step) in stage.steps.iter().enumerate() {
            match &step.verdict {
                Verdict::Reuse(hit) => {
                    let seen = stage.needs_tree || last_run.is_some_and(|last| number < last);
                    if seen && !session.cache.is_here(hit) {
                        add(place, &step.text, &hit.digest, hit.size);
                    }
                }
                Verdict::Run { .. } => {
                    for source in step.op.trees_read() {
                        if let TreeSource::Image(name) = source
                            && let Some(image) = image(name, stage)
                        {
                            for layer in missing(&image) {
                                let blob = layer.descriptor();
                                add(place, &name.to_string(), &blob.digest, blob.size);
                            }
                        }
                    }
                }
                Verdict::Skip => {}
            }
        }
    }
    found.into_iter().map(|(_, download)| download).collect()
}
