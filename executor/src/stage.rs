//! One stage: its steps in order, each reused or done, each a layer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use kiln_oci::Descriptor;
use kiln_oci::media_type::Compression;
use kiln_plan::{
    Base, BuildPlan, ContentQuestion, CopySource, CopyStep, Hit, Op, Stage, Step, TreeSource, Verdict,
};
use kiln_rootfs::{
    BaseLayer, Change, ChangeSource, EmptyView, IgnorePaths, LayerOptions, OverlayView, RootfsError,
    TreePath, Unignored, View, Xattrs, skeleton, write_layer,
};

use crate::copy::{self, Sources};
use crate::error::BuildError;
use crate::event::{Event, StepNews};
use crate::image::{ImageFormat, Layer};
use crate::planning::Found;
use crate::session::{ContextTree, LayerOrigin, Session, check_user};
use crate::trees::{Trees, base_layer};

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
    fn stage(&self) -> &Stage {
        &self.plan.stages[self.place]
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
    pub(crate) fn build(&self) -> Result<Done, BuildError> {
        let (session, stage) = (&self.session, self.stage());
        session.tell(Event::Stage { name: self.name() });
        let mut layers = self.base_layers();
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
            let made = match &step.verdict {
                Verdict::Skip => continue,
                Verdict::Reuse(hit) => {
                    // What lies below the next copy are layers from now on.
                    deltas = Bare::default();
                    self.reuse(step, hit, number, single)?
                }
                Verdict::Run { .. } => {
                    self.news(step, number, StepNews::Runs);
                    self.warn_of_the_pods(step);
                    let began = Instant::now();
                    let made = self.run(step, &layers, &mut deltas, single)?;
                    let size = made.as_ref().map_or(0, |layer| layer.descriptor.size);
                    self.news(step, number, StepNews::Done { took: began.elapsed(), size });
                    made
                }
            };
            layers.extend(made);
        }
        if single && stage.needs_tree && !stage.steps.is_empty() {
            layers.push(self.commit_open_step()?);
        }
        let mut answers = Vec::new();
        if stage.needs_tree {
            answers = self.answers()?;
            let keep = self.wanted_later();
            self.trees_in_use()?.snapshotter().leave(self.place, &keep).map_err(BuildError::other)?;
        }
        Ok(Done { layers, answers })
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
        if trees.is_pods(&TreePath::new(path)) {
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
        let snapshotter = self.trees_in_use()?.snapshotter();
        match self.stage().base {
            Base::Stage(base) => snapshotter.fork(self.place, base),
            Base::Scratch => snapshotter.base(self.place, &[]),
            Base::Image(_) => {
                let layers: Vec<BaseLayer> = self
                    .base_image()
                    .map_or_else(Vec::new, |image| image.layers.iter().map(base_layer).collect());
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

    /// Does a step. Gives its layer; none where all steps share one.
    fn run(
        &self,
        step: &Step,
        layers: &[Layer],
        bare: &mut Bare,
        single: bool,
    ) -> Result<Option<Layer>, BuildError> {
        let result = match &step.op {
            Op::Run(run) => crate::run_step::run(self, step, run)
                .and_then(|()| if single { Ok(None) } else { self.commit_open_step().map(Some) }),
            Op::Copy(_) | Op::MakeDirectory(_) => self.place_files(step, layers, bare, single),
        };
        let made = result.map_err(|error| self.blame(step.span, error))?;
        if let Some(layer) = &made {
            self.session.note_made(&step.keys, layer);
            crate::results::store(&self.session, step, layer);
        }
        Ok(made)
    }

    /// Writes what the open step changed as a layer, and closes the step.
    fn commit_open_step(&self) -> Result<Layer, BuildError> {
        let trees = self.trees_in_use()?;
        let mut changes = trees.snapshotter().changes(self.place).map_err(BuildError::other)?;
        let layer = self.write(changes.as_mut())?;
        drop(changes);
        trees.snapshotter().commit(self.place).map_err(BuildError::other)?;
        Ok(layer)
    }

    fn write(&self, changes: &mut dyn ChangeSource) -> Result<Layer, BuildError> {
        let (session, request) = (&self.session, &self.session.request.layers);
        let options = LayerOptions {
            compression: request.compression,
            level: request.level,
            mtime_limit: request.mtime_limit,
            ..LayerOptions::default()
        };
        let mut writer = session.blobs.writer(None).map_err(BuildError::other)?;
        let blob =
            write_layer(&mut WithoutRoot(changes), &options, &mut writer).map_err(BuildError::other)?;
        writer.commit().map_err(BuildError::other)?;
        session.remember(&blob.digest, LayerOrigin::Made);
        let media_type = ImageFormat::Oci.layer(blob.compression);
        Ok(Layer { descriptor: Descriptor::new(media_type, blob.digest, blob.size), diff_id: blob.diff_id })
    }

    /// COPY, ADD and WORKDIR.
    fn place_files(
        &self,
        step: &Step,
        layers: &[Layer],
        bare: &mut Bare,
        single: bool,
    ) -> Result<Option<Layer>, BuildError> {
        let session = &self.session;
        check_user()?;
        let sources = match &step.op {
            Op::Copy(copy) => Some(self.sources(copy)?),
            _ => None,
        };
        let below: Arc<dyn View> = if self.stage().needs_tree {
            self.trees_in_use()?.snapshotter().view(self.place).map_err(BuildError::other)?
        } else {
            bare.view(self, step, sources.as_ref(), layers)?
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
        let made = if single && self.stage().needs_tree {
            None
        } else {
            let below: Arc<dyn View> = if linked { Arc::new(EmptyView) } else { below };
            let changes = delta.changes(below).map_err(BuildError::other)?;
            let ignore = IgnorePaths::new(&session.request.layers.ignored);
            Some(self.write(&mut Unignored::new(changes, ignore))?)
        };
        if self.stage().needs_tree {
            self.trees_in_use()?.snapshotter().apply(self.place, delta).map_err(BuildError::other)?;
        } else {
            bare.deltas.insert(0, into);
        }
        Ok(made)
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
        let now = session.request.layers.mtime_limit.unwrap_or(session.request.now);
        let scratch = tempfile::tempdir_in(session.directory("sources")?).map_err(BuildError::other)?.keep();
        Ok(Sources { tree: view, place, downloaded, repositories: HashMap::new(), scratch, now })
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
                let view = self.trees_in_use()?.snapshotter().view(*place).map_err(BuildError::other)?;
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

/// Changes without the tree's own root: an image says nothing of it, whatever a step does to its mode.
struct WithoutRoot<'a>(&'a mut dyn ChangeSource);

impl ChangeSource for WithoutRoot<'_> {
    fn next(&mut self) -> Result<Option<Change>, RootfsError> {
        loop {
            match self.0.next()? {
                Some(change) if change.path.is_root() => {}
                change => return Ok(change),
            }
        }
    }

    fn open(&mut self, path: &TreePath) -> Result<std::fs::File, RootfsError> {
        self.0.open(path)
    }

    fn xattrs(&mut self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.0.xattrs(path)
    }
}

/// The directory above the first wildcard of a source word.
fn before_wildcard(word: &str) -> TreePath {
    let fixed: Vec<&str> = word.split('/').take_while(|part| !part.contains(['*', '?', '[', '\\'])).collect();
    TreePath::new(fixed.join("/"))
}

/// A cached layer for a snapshotter; its bytes are brought here first.
fn cached_layer(session: &Session, hit: &Hit) -> Result<BaseLayer, BuildError> {
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

/// A stage without a tree: what COPY looks at is a skeleton of the base, with the deltas of the steps so far on top.
#[derive(Default)]
struct Bare {
    /// Topmost first.
    deltas: Vec<std::path::PathBuf>,
}

impl Bare {
    fn view(
        &self,
        work: &StageWork,
        step: &Step,
        sources: Option<&Sources>,
        layers: &[Layer],
    ) -> Result<Arc<dyn View>, BuildError> {
        let session = &work.session;
        let interest = match (&step.op, sources) {
            (Op::Copy(copy), Some(sources)) => copy::interest(copy, sources).map_err(BuildError::other)?,
            (Op::MakeDirectory(directory), _) => {
                vec![TreePath::new(&directory.path), TreePath::new("etc/passwd"), TreePath::new("etc/group")]
            }
            _ => Vec::new(),
        };
        let below =
            layers[..layers.len() - self.deltas.len()].iter().map(|layer| base_layer_of(session, layer));
        let below = below.collect::<Result<Vec<_>, _>>()?;
        let into = tempfile::tempdir_in(session.directory("skeletons")?).map_err(BuildError::other)?.keep();
        let base: Arc<dyn View> = Arc::new(skeleton(&below, &interest, &into).map_err(BuildError::other)?);
        if self.deltas.is_empty() {
            return Ok(base);
        }
        Ok(Arc::new(OverlayView::on(&self.deltas, Some(base)).map_err(BuildError::other)?))
    }
}

/// A layer of the stage as a snapshotter takes it, from wherever its bytes are.
fn base_layer_of(session: &Session, layer: &Layer) -> Result<BaseLayer, BuildError> {
    match session.origin(&layer.descriptor.digest) {
        LayerOrigin::Image(source) => Ok(base_layer(&source)),
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
