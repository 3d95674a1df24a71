//! The course of a build: a plan, and what is learnt while it is carried out. What a finished stage holds gives keys by
//! content, which may turn steps to come into hits; a hit that can't be had after all is a miss, and the build is planned
//! again with all that was made so far.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kiln_dockerfile::Dockerfile;
use kiln_oci::{Digest, Platform};
use kiln_plan::{Base, BuildPlan, Facts, Hits, Request, StepKey, TreeSource, Verdict};
use tokio::task::JoinSet;

use crate::error::BuildError;
use crate::event::{Event, StepNews};
use crate::house;
use crate::planning::{self, Found, blocking};
use crate::results;
use crate::session::Session;
use crate::stage::{Done, Finished, StageWork};
use crate::trees::Trees;

/// What is known of a build, whatever plan it follows.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) facts: Facts,
    pub(crate) images: Found,
    hits: Hits,
    /// The keys that the caches were asked for.
    asked: BTreeSet<StepKey>,
    /// The platforms that there was a plan for.
    planned: BTreeSet<String>,
    /// The platforms for which the record of the last build was read.
    named: BTreeSet<String>,
    /// Something that runs has a network.
    pub(crate) networked: bool,
    /// Whether a step reads a context: files without a digest of their own.
    pub(crate) open: bool,
    /// The named contexts that steps read.
    pub(crate) contexts: BTreeSet<String>,
    /// What is found out while the plan is made: whether the image may be pushed.
    rights: JoinSet<Result<(), BuildError>>,
    /// The record of the last build on its way, for the plan.
    ahead: JoinSet<()>,
}

impl Known {
    /// Begins to ask what needs no plan: registries are far away, and each question takes its time.
    pub(crate) fn begin(&mut self, session: &Arc<Session>, file: &Dockerfile) {
        let output = &session.request.output;
        if output.push && output.check_push {
            let shared = Arc::clone(session);
            self.rights.spawn(async move {
                for destination in &shared.request.output.destinations {
                    shared.registry.check_push(&destination.repository).await.map_err(BuildError::other)?;
                }
                Ok(())
            });
        }
        if let Some(platform) = session.request.platforms.first().filter(|_| session.request.cache.enabled) {
            let name = results::build_name(session, file, platform);
            if let Some(work) = session.cache.fetch_ahead(name) {
                self.ahead.spawn(work);
            }
        }
    }

    /// Fails if the image may not be pushed, before anything is built for it.
    pub(crate) async fn may_push(&mut self) -> Result<(), BuildError> {
        while let Some(ended) = self.rights.join_next().await {
            ended.map_err(BuildError::other)??;
        }
        Ok(())
    }

    /// The plan for what is known, hits included.
    pub(crate) async fn plan(
        &mut self,
        session: &Arc<Session>,
        file: &Dockerfile,
        request: &Request,
    ) -> Result<BuildPlan, BuildError> {
        let plan = planning::make(session, file, request, &mut self.facts, &mut self.images).await?;
        if session.request.cache.enabled {
            let [new, in_passing] = self.new_keys(session, &plan);
            if !new.is_empty() || !in_passing.is_empty() {
                // Keys by content come later, and are found by themselves.
                let first = self.named.insert(request.platform.to_string());
                let name = first.then(|| results::build_name(session, file, &request.platform));
                self.hits.extend(session.cache.probe(&new, &in_passing, name).await);
            }
        }
        let mut plan = plan.decide(&self.hits);
        if session.request.layers.single || session.request.isolation.house.materialize {
            need_trees(&mut plan);
        }
        Ok(plan)
    }

    /// The keys that the caches were not asked for: of results that are cached, and of others.
    fn new_keys(&mut self, session: &Session, plan: &BuildPlan) -> [Vec<StepKey>; 2] {
        let mut new = [Vec::new(), Vec::new()];
        for step in plan.stages.iter().flat_map(|stage| &stage.steps) {
            let keys = step.keys.all().filter(|key| self.asked.insert(*key));
            new[usize::from(!results::is_cached_kind(session, step))].extend(keys);
        }
        new
    }

    /// The cached layer `digest` can't be had: what led to it is missing. What this build made by now is a hit.
    pub(crate) fn lose(&mut self, session: &Session, digest: &Digest) {
        self.hits.retain(|_, hit| hit.digest != *digest);
        self.take_made(session);
    }

    /// What this build made by now are hits for what is planned next.
    pub(crate) fn take_made(&mut self, session: &Session) {
        self.hits.extend(session.made());
    }

    /// Whether the plan for `platform` is the first.
    pub(crate) fn is_first(&mut self, platform: &Platform) -> bool {
        self.planned.insert(platform.to_string())
    }
}

/// One way through a plan.
pub(crate) struct Course<'a> {
    pub(crate) session: &'a Arc<Session>,
    pub(crate) file: &'a Dockerfile,
    pub(crate) request: &'a Request,
    /// Counts the platforms.
    pub(crate) number: usize,
    pub(crate) known: &'a mut Known,
    pub(crate) plan: Arc<BuildPlan>,
    pub(crate) trees: Option<Arc<Trees>>,
}

impl Course<'_> {
    /// Builds the needed stages, each as soon as those that it needs are finished; side by side where the rung allows.
    pub(crate) async fn run(&mut self) -> Result<Finished, BuildError> {
        let mut finished: Finished = HashMap::new();
        let mut begun: BTreeSet<usize> = BTreeSet::new();
        let mut running: JoinSet<Result<(usize, Done), BuildError>> = JoinSet::new();
        loop {
            let result = match self.begin_ready(&finished, &mut begun, &mut running).await {
                Err(error) => Err(error),
                Ok(()) => match running.join_next().await {
                    None => return Ok(finished),
                    Some(Ok(Ok((place, done)))) => {
                        finished.insert(place, done.layers);
                        self.learn(done.answers).await
                    }
                    Some(Ok(Err(error))) => Err(error),
                    Some(Err(error)) => Err(BuildError::other(error)),
                },
            };
            if let Err(error) = result {
                if !matches!(error, BuildError::Lost { .. }) {
                    self.session.cancel_rest();
                }
                while running.join_next().await.is_some() {}
                return Err(error);
            }
        }
    }

    async fn begin_ready(
        &mut self,
        finished: &Finished,
        begun: &mut BTreeSet<usize>,
        running: &mut JoinSet<Result<(usize, Done), BuildError>>,
    ) -> Result<(), BuildError> {
        let ready: Vec<usize> = (0..self.plan.stages.len())
            .filter(|place| self.plan.stages[*place].needed && !begun.contains(place))
            .filter(|place| self.plan.dependencies(*place).iter().all(|needed| finished.contains_key(needed)))
            .collect();
        let wanted = needs_trees(&self.plan) || self.session.request.isolation.house.wants_rung();
        if !ready.is_empty() && self.trees.is_none() && wanted {
            let (session, number) = (Arc::clone(self.session), self.number);
            let trees = Arc::new(blocking(move || Trees::new(&session, number)).await?);
            house::open(self.session, &trees).await?;
            self.trees = Some(trees);
        }
        let parallel = self.trees.as_ref().is_none_or(|trees| trees.parallel());
        for place in ready {
            if !parallel && !running.is_empty() {
                break;
            }
            begun.insert(place);
            let work = StageWork {
                session: Arc::clone(self.session),
                plan: Arc::clone(&self.plan),
                place,
                images: Arc::new(self.known.images.clone()),
                trees: self.trees.clone(),
                finished: finished.clone(),
            };
            running.spawn(blocking(move || Ok((place, Arc::new(work).build()?))));
        }
        Ok(())
    }

    /// Plans again with what a finished stage is known to hold.
    async fn learn(
        &mut self,
        answers: Vec<(kiln_plan::ContentQuestion, [u8; 32])>,
    ) -> Result<(), BuildError> {
        if answers.is_empty() {
            return Ok(());
        }
        for (question, digest) in answers {
            self.known.facts.content(question, digest);
        }
        self.plan = Arc::new(self.known.plan(self.session, self.file, self.request).await?);
        Ok(())
    }
}

/// With one layer for all, changes are found in a tree; with `--materialize`, a tree is what is asked for.
fn need_trees(plan: &mut BuildPlan) {
    for target in plan.targets.clone() {
        let mut place = Some(target);
        while let Some(at) = place {
            plan.stages[at].needs_tree = true;
            place = match plan.stages[at].base {
                Base::Stage(base) => Some(base),
                _ => None,
            };
        }
    }
}

fn needs_trees(plan: &BuildPlan) -> bool {
    plan.stages.iter().any(|stage| {
        stage.needs_tree
            || stage.steps.iter().any(|step| {
                let reads_image =
                    step.op.trees_read().iter().any(|source| matches!(source, TreeSource::Image(_)));
                matches!(step.verdict, Verdict::Run { .. }) && reads_image
            })
    })
}

/// Says which steps the cache does not have.
pub(crate) fn announce(session: &Session, plan: &BuildPlan) {
    for stage in plan.stages.iter().filter(|stage| stage.needed) {
        for (number, step) in stage.steps.iter().enumerate() {
            if matches!(step.verdict, Verdict::Run { .. }) {
                session.tell(Event::Step {
                    stage: stage.name.clone().unwrap_or_else(|| stage.number.to_string()),
                    number: number + 1,
                    of: stage.steps.len(),
                    text: step.text.clone(),
                    what: StepNews::Missed,
                });
            }
        }
    }
}
