//! A stage without a tree: COPY looks at a skeleton of its base, and each step is a delta on top.

use std::sync::Arc;

use kiln_oci::media_type::Compression;
use kiln_oci::{Digest, Platform, Repository};
use kiln_plan::{Base, BuildPlan, Hit, ImageName, Stage, Step, Verdict};
use kiln_rootfs::{BaseLayer, Delta, Interest, View, skeleton};

use crate::error::BuildError;
use crate::image::Layer;
use crate::layers::StageLayers;
use crate::session::{LayerOrigin, Session};
use crate::stage::StageWork;
use crate::trees::{base_layer, passing_layer};

/// A cached layer for a snapshotter; its bytes are brought here first.
pub(crate) fn cached_layer(session: &Session, hit: &Hit) -> Result<BaseLayer, BuildError> {
    if let Some(path) = session.cache.unpacked(hit) {
        return Ok(BaseLayer::Unpacked { diff_id: hit.diff_id, path });
    }
    let blob = session.runtime.block_on(session.bring(hit))?;
    Ok(BaseLayer::Blob {
        diff_id: hit.diff_id,
        open: Arc::new(move || Ok(Box::new(blob.reader()))),
        compression: Compression::of_layer(&hit.media_type).unwrap_or(Compression::Gzip),
    })
}

/// What COPY looks at: a skeleton of the base, with the deltas of the steps so far on top.
#[derive(Default)]
pub(crate) struct Bare {
    /// Topmost first.
    pub(crate) deltas: Vec<Delta>,
    /// The base, as far as steps from that place on may look at it.
    base: Option<(Vec<usize>, Arc<dyn View>)>,
}

impl Bare {
    pub(crate) fn view(
        &mut self,
        work: &StageWork,
        step: &Step,
        number: usize,
        layers: &mut StageLayers,
    ) -> Result<Arc<dyn View>, BuildError> {
        let base = match &self.base {
            Some((steps, base)) if steps.contains(&number) => Arc::clone(base),
            _ => {
                let below = layers.lowest(layers.len() - self.deltas.len())?;
                self.skeleton(work, step, number, &below)?
            }
        };
        if self.deltas.is_empty() {
            return Ok(base);
        }
        Delta::stacked(&self.deltas, base).map_err(BuildError::other)
    }

    /// Reads the layers once, for this step and those after it.
    fn skeleton(
        &mut self,
        work: &StageWork,
        step: &Step,
        number: usize,
        below: &[Layer],
    ) -> Result<Arc<dyn View>, BuildError> {
        let session = &work.session;
        let mut interest = Interest::default();
        work.interest(step, &mut interest)?;
        let mut steps = vec![number];
        for (later, step) in work.stage().steps.iter().enumerate().skip(number + 1) {
            match step.verdict {
                Verdict::Reuse(_) => break,
                // What fails here fails again, with its line, when it is its turn.
                Verdict::Run { .. } if work.interest(step, &mut interest).is_ok() => steps.push(later),
                Verdict::Skip | Verdict::Run { .. } => {}
            }
        }
        let once = looks_once(work);
        let layers = below.iter().map(|layer| base_layer_of(session, layer, once));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let into = tempfile::tempdir_in(session.directory("skeletons")?).map_err(BuildError::other)?.keep();
        let again = into.join("again");
        // Once more if what was downloaded first turned out wrong.
        let made = skeleton(&layers, &interest, &into).or_else(|_| skeleton(&layers, &interest, &again));
        let base: Arc<dyn View> = Arc::new(made.map_err(BuildError::other)?);
        self.base = Some((steps, Arc::clone(&base)));
        Ok(base)
    }
}

/// A layer of the stage as a snapshotter takes it, from wherever its bytes are. If the build looks at it `once`, it is not
/// kept unless an upload wants it too.
fn base_layer_of(session: &Arc<Session>, layer: &Layer, once: bool) -> Result<BaseLayer, BuildError> {
    match session.origin(&layer.descriptor.digest) {
        LayerOrigin::Image(source) if once => {
            // Asked when the layer is read: the first needn't wait for what is said of the last.
            let (session, digest) = (Arc::clone(session), layer.descriptor.digest.clone());
            let unlikely = source.repository().is_some_and(|from| goes_within(&session, from));
            Ok(passing_layer(&source, unlikely, move || is_sent(&session, &digest)))
        }
        LayerOrigin::Image(source) => {
            source.begin();
            Ok(base_layer(&source, true))
        }
        LayerOrigin::Cached(hit) => cached_layer(session, &hit),
        LayerOrigin::Made => {
            let blob = session.blobs.blob_of(&layer.descriptor).map_err(BuildError::other)?;
            let blob = blob.ok_or_else(|| BuildError::other("a layer that was just made is gone"))?;
            Ok(BaseLayer::Blob {
                diff_id: layer.diff_id,
                open: Arc::new(move || Ok(Box::new(blob.reader()))),
                compression: Compression::of_layer(&layer.descriptor.media_type).unwrap_or(Compression::Gzip),
            })
        }
    }
}

/// Whether a destination wants the layer's bytes.
fn is_sent(session: &Session, layer: &Digest) -> bool {
    let mut destinations = session.request.output.destinations.iter();
    destinations.any(|name| session.runtime.block_on(session.uploads.wants_bytes(&name.repository, layer)))
}

/// Whether all destinations are at the registry of `from`: it has its blobs, and mostly mounts them.
fn goes_within(session: &Session, from: &Repository) -> bool {
    session.request.output.destinations.iter().all(|to| to.repository.host() == from.host())
}

/// Whether nothing else in the build wants to read what this stage is based on: no tree is unpacked, no file holds it in
/// the end, and no further skeleton is made of it.
fn looks_once(work: &StageWork) -> bool {
    let (plan, output) = (&work.plan, &work.session.request.output);
    if work.trees.is_some() || output.archive.is_some() || output.layout.is_some() || output.attest.sbom {
        return false;
    }
    let image = image_below(plan, work.place);
    let places = (0..plan.stages.len()).filter(|place| image_below(plan, *place) == image);
    places.map(|place| skeletons(&plan.stages[place])).sum::<usize>() == 1
}

/// The image that a stage begins with, by way of other stages perhaps.
fn image_below(plan: &BuildPlan, mut place: usize) -> Option<(&ImageName, &Platform)> {
    loop {
        let stage = &plan.stages[place];
        match &stage.base {
            Base::Scratch => return None,
            Base::Image(image) => return Some((image, &stage.platform)),
            Base::Stage(below) => place = *below,
        }
    }
}

/// How many skeletons a stage makes: one for all its steps that have no cached one between them.
fn skeletons(stage: &Stage) -> usize {
    let (mut count, mut goes_on) = (0, false);
    for step in &stage.steps {
        match step.verdict {
            Verdict::Skip => {}
            Verdict::Reuse(_) => goes_on = false,
            Verdict::Run { .. } => {
                count += usize::from(!goes_on);
                goes_on = true;
            }
        }
    }
    count
}
