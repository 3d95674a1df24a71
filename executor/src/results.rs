//! Results of steps on their way to the layer cache, while later steps run.

use std::sync::Arc;
use std::time::Duration;

use kiln_cache::{Inputs, StepRecord, StepResult};
use kiln_oci::Descriptor;
use kiln_plan::{Hit, Op, Step};

use crate::event::Event;
use crate::image::Layer;
use crate::session::Session;

/// After a build that took less, results have so long to get to the cache.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long results of a failed build have: they spare the next one, but the failure is news.
const PATIENCE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Whether results of this step's kind go into the layer cache.
fn is_wanted(session: &Session, step: &Step) -> bool {
    let cache = &session.request.cache;
    let kind = match step.op {
        Op::Run(_) => cache.run_layers,
        Op::Copy(_) | Op::MakeDirectory(_) => cache.copy_layers,
    };
    cache.enabled && cache.push && kind
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

/// Waits until the results are in the cache; not for ever, because a cache is only there to save time.
pub(crate) async fn settle(session: &Session, took: Duration, failed: bool) {
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
