//! Results of steps on their way to the layer cache, while later steps run.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kiln_cache::{BuildRecord, Inputs, RecordedStep, StepRecord, StepResult};
use kiln_dockerfile::Dockerfile;
use kiln_oci::{Descriptor, Platform};
use kiln_plan::{Base, BuildPlan, Hit, Op, Stage, Step, StepKey, Verdict};
use tokio::sync::watch;

use crate::event::Event;
use crate::image::Layer;
use crate::request::DockerfileAt;
use crate::session::Session;
use crate::stage::Finished;

/// After a build that took less, results have so long to get to the cache.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long results of a failed build have: they spare the next one, but the failure is news.
const PATIENCE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// A stage as records and people name it.
pub(crate) fn stage_name(stage: &Stage) -> String {
    stage.name.clone().unwrap_or_else(|| stage.number.to_string())
}

/// The name under which the cache keeps the record of this build.
pub(crate) fn build_name(session: &Session, file: &Dockerfile, platform: &Platform) -> StepKey {
    let path = match &session.request.dockerfile {
        DockerfileAt::Path { given, .. } => given,
        DockerfileAt::Text { name, .. } => name,
    };
    kiln_cache::build_name(file, path, platform)
}

/// What the cache has of a finished build, for its record. `None` where nothing ran: the last record says it already.
pub(crate) fn record(session: &Session, plan: &BuildPlan, finished: &Finished) -> Option<BuildRecord> {
    let cache = &session.request.cache;
    let mut steps = Vec::new();
    let mut ran = false;
    let mut finished: Vec<_> = finished.iter().collect();
    finished.sort_by_key(|(place, _)| **place);
    for (place, layers) in finished {
        let stage = &plan.stages[*place];
        let below = layers.len().checked_sub(stage.steps.len())?;
        for (number, (step, layer)) in stage.steps.iter().zip(&layers[below..]).enumerate() {
            let created = match &step.verdict {
                // What only the volume is known to have may not be in the repository.
                Verdict::Reuse(hit) if hit.origin.starts_with("volume ") => continue,
                Verdict::Reuse(hit) => hit.created,
                _ => session.request.now,
            };
            ran |= matches!(step.verdict, Verdict::Run { .. });
            if is_wanted(session, step) {
                let (keys, inputs) = (step.keys.all().collect(), explained(stage, number));
                let (stage, layer, diff_id) = (stage_name(stage), layer.descriptor.clone(), layer.diff_id);
                steps.push(RecordedStep { stage, keys, layer, diff_id, created, inputs });
            }
        }
    }
    (ran && cache.enabled && cache.push && !steps.is_empty()).then_some(BuildRecord { steps })
}

/// What the key of a step was made of, with what explains it.
pub(crate) fn explained(stage: &Stage, number: usize) -> Inputs {
    let base = stage.base_manifest.as_ref().filter(|_| number == 0);
    Inputs::explained(&stage.steps[number], base)
}

/// When an image was made, seconds since 1970: now, or where all its steps were found, when the last of them was. The same
/// build gives the same image then.
pub(crate) fn made_at(session: &Session, plan: &BuildPlan, target: usize) -> i64 {
    let mut latest = None;
    let mut place = Some(target);
    while let Some(at) = place {
        let stage = &plan.stages[at];
        for step in &stage.steps {
            match &step.verdict {
                Verdict::Reuse(hit) => latest = latest.max(Some(hit.created)),
                _ => return session.request.now,
            }
        }
        place = match stage.base {
            Base::Stage(base) => Some(base),
            _ => None,
        };
    }
    latest.unwrap_or(session.request.now)
}

/// Whether results of this step's kind are cached.
pub(crate) fn is_cached_kind(session: &Session, step: &Step) -> bool {
    let cache = &session.request.cache;
    match step.op {
        Op::Run(_) => cache.run_layers,
        Op::Copy(_) | Op::MakeDirectory(_) => cache.copy_layers,
    }
}

/// Whether the result of this step goes into the layer cache.
fn is_wanted(session: &Session, step: &Step) -> bool {
    let cache = &session.request.cache;
    let kind = is_cached_kind(session, step);
    let unshared = session.unshared.lock().unwrap_or_else(PoisonError::into_inner);
    cache.enabled && cache.push && kind && step.keys.all().all(|key| !unshared.contains(&key))
}

/// Begins to put the result of a step into the layer cache, if results of this kind go there.
pub(crate) fn store(session: &Arc<Session>, step: &Step, layer: &Layer) {
    if !is_wanted(session, step) {
        return;
    }
    let Ok(Some(blob)) = session.blobs.blob_of(&layer.descriptor) else { return };
    let records = step.keys.all().map(|key| StepRecord {
        key,
        layer: layer.descriptor.clone(),
        diff_id: layer.diff_id,
        created: session.request.now,
    });
    let (records, inputs) = (records.collect(), Inputs::of(&step.recipe));
    let mut result = StepResult { records, inputs, layer: Some(blob), elsewhere: None };
    let shared = Arc::clone(session);
    session.cache_uploads.spawn(async move {
        if let Some(repository) = shared.cache.repository() {
            let digest = &result.records[0].layer.digest;
            result.elsewhere = shared.uploads.elsewhere(repository, digest).await;
        }
        shared.cache.put(&result).await;
        Ok(())
    });
}

/// A step that was found by what it reads, not by its recipe, is put under its recipe's key too: the next build then
/// needs nothing of the stage that was read to find it.
pub(crate) fn alias(session: &Arc<Session>, step: &Step, hit: &Hit) {
    if hit.key == step.keys.recipe || !is_wanted(session, step) {
        return;
    }
    let record = StepRecord {
        key: step.keys.recipe,
        layer: Descriptor::new(hit.media_type.clone(), hit.digest.clone(), hit.size),
        diff_id: hit.diff_id,
        created: hit.created,
    };
    let inputs = Inputs::of(&step.recipe);
    let result = StepResult { records: vec![record], inputs, layer: None, elsewhere: None };
    let shared = Arc::clone(session);
    session.cache_uploads.spawn(async move {
        shared.cache.put(&result).await;
        Ok(())
    });
}

/// Waits until the results are in the cache, and the records of the build after them; not for ever, because a cache is only
/// there to save time.
pub(crate) async fn settle(session: &Session, took: Duration, failed: bool) {
    let mut records = std::mem::take(&mut *session.records.lock().unwrap_or_else(PoisonError::into_inner));
    if failed {
        records.clear();
    }
    let (told, settled) = watch::channel(false);
    let wait = || {
        let mut settled = settled.clone();
        async move { drop(settled.wait_for(|is_settled| *is_settled).await) }
    };
    let puts = records.iter().map(|(name, record)| session.cache.put_build(*name, record, wait()));
    let puts = async {
        futures::future::join_all(puts).await;
        wait().await;
    };
    let limit = async {
        settle_results(session, took, failed).await;
        told.send_replace(true);
        tokio::time::sleep(PATIENCE_AFTER_FAILURE).await;
    };
    tokio::select! {
        () = puts => {}
        () = limit => {}
    }
}

async fn settle_results(session: &Session, took: Duration, failed: bool) {
    let limit = if failed { PATIENCE_AFTER_FAILURE } else { took.max(PATIENCE) };
    let stopped = async {
        // A failed build is cancelled already.
        while failed || !session.cancel.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        done = session.cache_uploads.finish_within(limit) => {
            if matches!(done, Ok(false)) {
                session.tell(Event::Warning(format!(
                    "results were still on their way to the layer cache after {} s, and are left out",
                    limit.as_secs()
                )));
            }
        }
        () = stopped => {}
    }
    session.cache_uploads.stop();
}
