//! One stage: its steps in order, each reused or done, each a layer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kiln_oci::Descriptor;
use kiln_plan::{
    Base, BuildPlan, ContentQuestion, CopySource, CopyStep, Hit, Op, RunStep, Stage, Step, TreeSource,
    Verdict,
};
use kiln_rootfs::{
    BaseLayer, ChangeSource, Delta, EmptyView, IgnorePaths, Interest, TreePath, Unignored, View,
};

use crate::bare::{Bare, cached_layer};
use crate::copy::{self, Sources};
use crate::error::BuildError;
use crate::event::{Event, StepNews};
use crate::image::Layer;
use crate::layers::{self, StageLayers};
use crate::planning::Found;
use crate::session::{ContextTree, LayerOrigin, Session, check_user};
use crate::trees::Trees;

/// What a step made.
struct Made {
    changes: Box<dyn ChangeSource>,
    rest: Rest,
}

/// What is left to do for the tree of the stage.
enum Rest {
    /// The open step is closed.
    Commit,
    /// The delta becomes part of the tree.
    Apply(Delta),
    Nothing,
}

/// What finished stages leave: their layers, base first, by place in the plan.
pub(crate) type Finished = HashMap<usize, Vec<Layer>>;

/// What one stage came to.
pub(crate) struct Done {
    /// Base first.
    pub(crate) layers: Vec<Layer>,
    /// What later steps read of it holds this.
    pub(crate) answers: Vec<(ContentQuestion, [u8; 32])>,
}

/// All that a stage needs.
pub(crate) struct StageWork {
    pub(crate) session: Arc<Session>,
    pub(crate) plan: Arc<BuildPlan>,
    pub(crate) place: usize,
    pub(crate) images: Arc<Found>,
    /// `None` where no stage needs a tree.
    pub(crate) trees: Option<Arc<Trees>>,
    pub(crate) finished: Finished,
}

impl StageWork {
    pub(crate) fn stage(&self) -> &Stage {
        &self.plan.stages[self.place]
    }

    /// The platform that the stage is for.
    pub(crate) fn platform(&self) -> &kiln_oci::Platform {
        &self.stage().platform
    }

    fn name(&self) -> String {
        let stage = self.stage();
        stage.name.clone().unwrap_or_else(|| stage.number.to_string())
    }

    pub(crate) fn trees_in_use(&self) -> Result<&Trees, BuildError> {
        self.trees.as_deref().ok_or_else(|| {
            BuildError::other("a tree is needed where none was planned: this is a mistake in Kiln")
        })
    }

    /// Builds the stage and gives its layers, base first.
    pub(crate) fn build(self: &Arc<Self>) -> Result<Done, BuildError> {
        let (session, stage) = (&self.session, self.stage());
        session.tell(Event::Stage { name: self.name() });
        let base = self.base_layers();
        // Where nothing runs, the destination may well have the image: that is asked first, and is one request.
        let runs = stage.steps.iter().any(|step| matches!(step.verdict, Verdict::Run { .. }));
        if self.is_shipped() && runs {
            for layer in &base {
                layers::send(session, layer);
            }
        }
        let mut layers = StageLayers::new(base);
        if stage.needs_tree {
            crate::retry::retried(session, "unpacking the base image", || self.plant())
                .map_err(|error| self.blame(stage.span, error))?;
        }
        let single = session.request.layers.single && self.plan.targets.contains(&self.place);
        if single && stage.needs_tree && !stage.steps.is_empty() {
            self.trees_in_use()?.snapshotter().begin(self.place).map_err(BuildError::other)?;
        }
        let mut deltas = Bare::default();
        for (number, step) in stage.steps.iter().enumerate() {
            session.check_cancelled()?;
            layers.check()?;
            match &step.verdict {
                Verdict::Skip => {}
                Verdict::Reuse(hit) => {
                    // What lies below the next copy are layers from now on.
                    deltas = Bare::default();
                    if let Some(layer) = self.reuse(step, hit, number, single)? {
                        layers.push(layer);
                    }
                }
                Verdict::Run { .. } => {
                    self.news(step, number, StepNews::Runs);
                    self.warn_of_the_pods(step);
                    let began = Instant::now();
                    if let Some(made) = self.run(step, number, &mut layers, &mut deltas, single)? {
                        self.add(step, number, began, made, &mut layers)?;
                    } else {
                        self.news(step, number, StepNews::Done { took: began.elapsed(), size: 0 });
                    }
                }
            }
        }
        if single && stage.needs_tree && !stage.steps.is_empty() {
            let trees = self.trees_in_use()?.snapshotter();
            let mut changes = trees.changes(self.place).map_err(BuildError::other)?;
            layers.push(layers::write(session, changes.as_mut(), None)?);
            drop(changes);
            trees.commit(self.place).map_err(BuildError::other)?;
        }
        let mut answers = Vec::new();
        if stage.needs_tree {
            answers = self.answers()?;
            let keep = self.wanted_later();
            self.trees_in_use()?.snapshotter().leave(self.place, &keep).map_err(BuildError::other)?;
            crate::house::between(self)?;
        }
        Ok(Done { layers: layers.finish()?, answers })
    }

    /// What the planner wants to know of this stage's files. What can't be found is no answer: the step that wants it
    /// says so.
    fn answers(&self) -> Result<Vec<(ContentQuestion, [u8; 32])>, BuildError> {
        let questions = self.plan.content_questions(self.place);
        if questions.is_empty() || !self.session.request.cache.enabled {
            return Ok(Vec::new());
        }
        let tree = self.tree(&TreeSource::Stage(self.place))?;
        let mut answers: Vec<(ContentQuestion, [u8; 32])> = Vec::new();
        for question in questions {
            if answers.iter().all(|(other, _)| *other != question)
                && let Ok(digest) = tree.digest(&question)
            {
                answers.push((question, digest));
            }
        }
        Ok(answers)
    }

    /// Whether the stage's layers are in the image: it is a target, or one is based on it.
    fn is_shipped(&self) -> bool {
        self.plan.targets.iter().any(|target| {
            let mut place = *target;
            loop {
                match self.plan.stages[place].base {
                    _ if place == self.place => return true,
                    Base::Stage(base) => place = base,
                    Base::Image(_) | Base::Scratch => return false,
                }
            }
        })
    }

    /// Writes what a step changed as a layer on top of `layers`: while later steps run, where that is left as it is.
    fn add(
        self: &Arc<Self>,
        step: &Step,
        number: usize,
        began: Instant,
        made: Made,
        layers: &mut StageLayers,
    ) -> Result<(), BuildError> {
        let Made { mut changes, rest } = made;
        let span = step.span;
        let (work, step) = (Arc::clone(self), step.clone());
        let mut write = move || {
            let ahead = work.is_shipped().then(|| layers::ahead(&work.session, &step)).flatten();
            let written = layers::write(&work.session, changes.as_mut(), ahead);
            let layer = written.map_err(|error| work.blame(step.span, error))?;
            work.news(&step, number, StepNews::Done { took: began.elapsed(), size: layer.descriptor.size });
            work.session.note_made(&step.keys, &layer);
            // First to the destination: the cache can mount it from there.
            if work.is_shipped() {
                layers::send(&work.session, &layer);
            }
            crate::results::store(&work.session, &step, &layer);
            Ok(layer)
        };
        if self.changes_stay() {
            self.finish(rest).map_err(|error| self.blame(span, error))?;
            return layers.begin(write);
        }
        layers.push(write()?);
        self.finish(rest).map_err(|error| self.blame(span, error))
    }

    /// Does what is left to do of a step once its changes may be disturbed.
    fn finish(&self, rest: Rest) -> Result<(), BuildError> {
        match rest {
            Rest::Commit => self.trees_in_use()?.snapshotter().commit(self.place),
            Rest::Apply(delta) => self.trees_in_use()?.snapshotter().apply(self.place, delta),
            Rest::Nothing => Ok(()),
        }
        .map_err(BuildError::other)
    }

    /// Whether what a step changed stays as it is while later steps run.
    fn changes_stay(&self) -> bool {
        !self.stage().needs_tree || self.trees.as_ref().is_some_and(|trees| trees.changes_stay())
    }

    fn news(&self, step: &Step, number: usize, what: StepNews) {
        let of = self.stage().steps.len();
        let (stage, text) = (self.name(), step.text.clone());
        self.session.tell(Event::Step { stage, number: number + 1, of, text, what });
    }

    /// Says so where a step works in a place that belongs to the pod on rung root.
    fn warn_of_the_pods(&self, step: &Step) {
        let Some(trees) = self.trees.as_deref().filter(|_| self.stage().needs_tree) else { return };
        let (path, what) = match &step.op {
            Op::Run(run) => (run.workdir.as_str(), "what the step changes there is not in the image"),
            Op::Copy(copy) => {
                (copy.destination.as_str(), "later steps don't see what is copied, though it is in the image")
            }
            Op::MakeDirectory(_) => return,
        };
        let place = TreePath::new(path);
        // What is copied into Kiln's own directory is left out, which is said when it is done.
        let left_out = matches!(step.op, Op::Copy(_)) && crate::house::is_own(&self.session, &place);
        if trees.is_pods(&place) && !left_out {
            let line = step.lines.0;
            self.session.tell(Event::Warning(format!(
                "line {line}: {path} belongs to the pod on rung root: {what}; use another directory, or another rung"
            )));
        }
    }

    fn blame(&self, span: kiln_dockerfile::Span, error: BuildError) -> BuildError {
        match error {
            BuildError::Other(cause) => self.session.at(span, cause, None),
            other => other,
        }
    }

    fn base_image(&self) -> Option<&Arc<kiln_cache::ResolvedImage>> {
        let stage = self.stage();
        match &stage.base {
            Base::Image(image) => self.images.get(&(image.clone(), stage.platform.to_string())),
            _ => None,
        }
    }

    fn base_layers(&self) -> Vec<Layer> {
        if let Base::Stage(base) = self.stage().base {
            return self.finished.get(&base).cloned().unwrap_or_default();
        }
        let image = self.base_image();
        image.map_or_else(Vec::new, |image| {
            let layers = image.layers.iter();
            layers
                .map(|layer| Layer { descriptor: layer.descriptor().clone(), diff_id: *layer.diff_id() })
                .collect()
        })
    }

    /// Makes the stage's tree as its base leaves it.
    fn plant(&self) -> Result<(), BuildError> {
        let trees = self.trees_in_use()?;
        let snapshotter = trees.snapshotter();
        match self.stage().base {
            Base::Stage(base) => snapshotter.fork(self.place, base),
            Base::Scratch => snapshotter.base(self.place, &[]),
            Base::Image(_) => {
                let layers: Vec<BaseLayer> = self.base_image().map_or_else(Vec::new, |image| {
                    // All at once: each is wanted, and the first bytes of the next are there when one is done.
                    image.layers.iter().for_each(kiln_cache::LayerSource::begin);
                    image.layers.iter().map(|layer| trees.base_layer(layer)).collect()
                });
                snapshotter.base(self.place, &layers)
            }
        }
        .map_err(BuildError::other)
    }

    /// Takes a step's layer from a cache. Gives none where all steps share one.
    fn reuse(
        &self,
        step: &Step,
        hit: &Hit,
        number: usize,
        single: bool,
    ) -> Result<Option<Layer>, BuildError> {
        let session = &self.session;
        self.news(step, number, StepNews::Cached { origin: hit.origin.clone() });
        session.remember(&hit.digest, LayerOrigin::Cached(hit.clone()));
        if self.stage().needs_tree {
            let layer = cached_layer(session, hit)?;
            self.trees_in_use()?.snapshotter().apply_layer(self.place, layer).map_err(BuildError::other)?;
        }
        let descriptor = Descriptor::new(hit.media_type.clone(), hit.digest.clone(), hit.size);
        crate::results::alias(session, step, hit);
        Ok((!single).then_some(Layer { descriptor, diff_id: hit.diff_id }))
    }

    /// Does a step. Gives what it made; nothing where all steps share one layer.
    fn run(
        &self,
        step: &Step,
        number: usize,
        layers: &mut StageLayers,
        bare: &mut Bare,
        single: bool,
    ) -> Result<Option<Made>, BuildError> {
        let run = |run: &RunStep| {
            crate::run_step::run(self, step, run)?;
            if single {
                return Ok(None);
            }
            let changes = self.trees_in_use()?.snapshotter().changes(self.place);
            Ok(Some(Made { changes: changes.map_err(BuildError::other)?, rest: Rest::Commit }))
        };
        let result = match &step.op {
            Op::Run(step) => run(step),
            Op::Copy(_) | Op::MakeDirectory(_) => self.place_files(step, number, layers, bare, single),
        };
        result.map_err(|error| match error {
            BuildError::Other(cause) => self.session.at(step.span, cause, self.hint_of_the_pods(step)),
            other => other,
        })
    }

    /// What to do where a step can't copy what an earlier stage wrote in a place that belongs to the pod.
    fn hint_of_the_pods(&self, step: &Step) -> Option<String> {
        let Op::Copy(copy) = &step.op else { return None };
        let trees = self.trees.as_deref().filter(|_| matches!(copy.from, TreeSource::Stage(_)))?;
        let path = copy.sources.iter().find_map(|source| match source {
            CopySource::Path(word) if trees.is_pods(&TreePath::new(word)) => Some(word),
            _ => None,
        })?;
        Some(format!(
            "{path} belongs to the pod on rung root: what a stage writes there is no part of it; write it to another \
             directory, mount the pod's volume elsewhere, or use another rung"
        ))
    }

    /// COPY, ADD and WORKDIR.
    fn place_files(
        &self,
        step: &Step,
        number: usize,
        layers: &mut StageLayers,
        bare: &mut Bare,
        single: bool,
    ) -> Result<Option<Made>, BuildError> {
        let session = &self.session;
        check_user()?;
        let sources = match &step.op {
            Op::Copy(copy) => Some(self.sources(copy)?),
            _ => None,
        };
        let below: Arc<dyn View> = if self.stage().needs_tree {
            self.trees_in_use()?.snapshotter().view(self.place).map_err(BuildError::other)?
        } else {
            bare.view(self, step, number, layers)?
        };
        let room = session.directory("deltas")?;
        let into = tempfile::tempdir_in(&room).map_err(BuildError::other)?.keep();
        let (delta, linked) = match (&step.op, &sources) {
            (Op::Copy(step), Some(sources)) => {
                let copied = copy::copy(step, sources, below.as_ref(), &into).map_err(BuildError::other)?;
                copied.warnings.into_iter().for_each(|warning| session.tell(Event::Warning(warning)));
                (copied.delta, copied.linked)
            }
            (Op::MakeDirectory(step), _) => {
                let delta = copy::make_directory(step, below.as_ref(), &into).map_err(BuildError::other)?;
                (delta, false)
            }
            _ => {
                return Err(BuildError::other(
                    "a step without files was to place some: this is a mistake in Kiln",
                ));
            }
        };
        let mut ignore = IgnorePaths::new(&session.request.layers.ignored);
        crate::house::leave_out(self, step, &delta, &mut ignore);
        if single && self.stage().needs_tree {
            self.finish(Rest::Apply(delta))?;
            return Ok(None);
        }
        let below: Arc<dyn View> = if linked { Arc::new(EmptyView) } else { below };
        let changes = delta.changes(below).map_err(BuildError::other)?;
        let changes = Box::new(Unignored::new(changes, ignore));
        let rest = if self.stage().needs_tree {
            Rest::Apply(delta)
        } else {
            bare.deltas.insert(0, delta);
            Rest::Nothing
        };
        Ok(Some(Made { changes, rest }))
    }

    /// What a step that only places files may look at in the tree below.
    pub(crate) fn interest(&self, step: &Step, interest: &mut Interest) -> Result<(), BuildError> {
        match &step.op {
            Op::Copy(copy) => {
                let ContextTree { view, place } = self.tree(&copy.from)?;
                copy::interest(copy, &view, &place, interest).map_err(BuildError::other)?;
            }
            Op::MakeDirectory(directory) => {
                for path in [directory.path.as_str(), "etc/passwd", "etc/group"] {
                    interest.path(&TreePath::new(path));
                }
            }
            Op::Run(_) => {}
        }
        Ok(())
    }

    /// What a copy reads.
    fn sources(&self, step: &CopyStep) -> Result<Sources, BuildError> {
        let session = &self.session;
        let ContextTree { view, place } = self.tree(&step.from)?;
        let mut downloaded = HashMap::new();
        for source in &step.sources {
            if let CopySource::Http(url) = source {
                let checksum = step.add.as_ref().and_then(|add| add.checksum.as_deref());
                let work = crate::remote::download(session, url, checksum);
                downloaded.insert(url.clone(), session.runtime.block_on(work)?.0);
            }
        }
        let mut repositories = HashMap::new();
        for source in &step.sources {
            if let CopySource::Git(address) = source {
                repositories.insert(address.clone(), crate::repository::files(session, address, step)?);
            }
        }
        let now = session.request.layers.mtime_limit.unwrap_or(session.request.now);
        let scratch = tempfile::tempdir_in(session.directory("sources")?).map_err(BuildError::other)?.keep();
        let read = (step.from == TreeSource::Context).then(|| copy::words_of_context(&self.plan));
        let stays = matches!(step.from, TreeSource::Context | TreeSource::Named(_));
        let lends = stays && !self.stage().needs_tree;
        Ok(Sources { tree: view, place, downloaded, repositories, scratch, now, read, lends })
    }

    /// A tree that a copy or a mount reads.
    pub(crate) fn tree(&self, source: &TreeSource) -> Result<ContextTree, BuildError> {
        match source {
            TreeSource::Context => self.session.context_tree(&kiln_plan::ContentOf::Context),
            TreeSource::Named(name) => self.session.named_tree(name),
            TreeSource::Empty => {
                Ok(ContextTree { view: Arc::new(EmptyView), place: "an empty tree".to_owned() })
            }
            TreeSource::Stage(place) => {
                let view = self.trees_in_use()?.view_of_stage(*place)?;
                let stage = &self.plan.stages[*place];
                let name = stage.name.clone().unwrap_or_else(|| stage.number.to_string());
                Ok(ContextTree { view, place: format!("the stage {name}") })
            }
            TreeSource::Image(image) => {
                let key = (image.clone(), self.stage().platform.to_string());
                let found = self.images.get(&key).ok_or_else(|| {
                    BuildError::other(format!("{image} was not looked up: this is a mistake in Kiln"))
                })?;
                let view = self.trees_in_use()?.image(&found.manifest.digest().to_string(), &found.layers)?;
                Ok(ContextTree { view, place: format!("the image {image}") })
            }
        }
    }

    /// The paths of this stage that later steps read.
    fn wanted_later(&self) -> Vec<TreePath> {
        let mut keep = Vec::new();
        for stage in self.plan.stages.iter().filter(|stage| stage.needed) {
            if stage.needs_tree && stage.base == Base::Stage(self.place) {
                return vec![TreePath::root()];
            }
            for step in stage.steps.iter().filter(|step| matches!(step.verdict, Verdict::Run { .. })) {
                if !step.op.stages_read().contains(&self.place) {
                    continue;
                }
                match &step.op {
                    Op::Copy(copy) if !copy.parents => {
                        keep.extend(copy.sources.iter().map(|source| match source {
                            CopySource::Path(word) => before_wildcard(word),
                            CopySource::Http(_) | CopySource::Git(_) => TreePath::root(),
                        }));
                    }
                    _ => return vec![TreePath::root()],
                }
            }
        }
        keep
    }
}

/// The directory above the first wildcard of a source word.
fn before_wildcard(word: &str) -> TreePath {
    let fixed: Vec<&str> = word.split('/').take_while(|part| !part.contains(['*', '?', '[', '\\'])).collect();
    TreePath::new(fixed.join("/"))
}
