//! Stages: global ARGs and FROM lines are resolved here, ONBUILD triggers pulled in, and what nothing needs left out.

use std::collections::BTreeSet;

use kiln_dockerfile::{
    Diagnostic, Dockerfile, From, Instruction, Kind, Rule, Scope, Severity, Span, Word, parse_trigger,
};
use kiln_oci::{Platform, Reference};

use crate::fold::Fold;
use crate::scope::Environment;
use crate::{Base, BaseQuestion, BuildPlan, Facts, ImageName, NamedContext, Question, Request, TreeSource};

/// What planning gives.
#[derive(Clone, Debug)]
pub enum Planning {
    /// More has to be known. Answer into [`Facts`] and plan again.
    Asks(Vec<Question>),
    /// Everything is known. The verdicts are still those of an empty cache.
    Ready(BuildPlan),
}

/// Plans a build.
///
/// Fails with every error found, each with its place in the Dockerfile.
pub fn plan(file: &Dockerfile, request: &Request, facts: &Facts) -> Result<Planning, Vec<Diagnostic>> {
    let (global, drafts) = drafts(file, request)?;
    let targets = targets(&drafts, request)?;
    let mut stages = Stages { drafts, request, facts, asks: Vec::new(), errors: Vec::new() };
    let needed = stages.needed(&targets);
    if !stages.errors.is_empty() {
        return Err(stages.errors);
    }
    if !stages.asks.is_empty() {
        return Ok(Planning::Asks(stages.asks));
    }
    let places: Vec<usize> = needed.into_iter().collect();
    let mut plan = BuildPlan { stages: Vec::new(), targets: Vec::new(), warnings: undeclared(file, request) };
    let mut scopes = Vec::new();
    for &index in &places {
        let (stage, scope) = Fold::new(&mut stages, index, &places, &global, &plan.stages, &scopes).stage();
        plan.stages.push(stage);
        scopes.push(scope);
    }
    let Stages { asks, errors, .. } = stages;
    if !errors.is_empty() {
        return Err(errors);
    }
    if !asks.is_empty() {
        return Ok(Planning::Asks(asks));
    }
    plan.targets =
        targets.iter().filter_map(|target| places.iter().position(|index| index == target)).collect();
    for &target in &plan.targets {
        finish(&mut plan.stages[target].config, request);
    }
    Ok(Planning::Ready(plan.decide(&crate::Hits::new())))
}

/// Labels and platform that the command line gives to the images that come out.
fn finish(config: &mut kiln_oci::ImageConfig, request: &Request) {
    for (key, value) in &request.labels {
        config.config.labels.insert(key.clone(), value.clone());
    }
    if request.platform_given {
        let same = config.os == request.platform.os && config.architecture == request.platform.architecture;
        config.os.clone_from(&request.platform.os);
        config.architecture.clone_from(&request.platform.architecture);
        if request.platform.variant.is_some() || !same {
            config.variant.clone_from(&request.platform.variant);
        }
    }
    let Platform { os, architecture, variant } =
        Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    (config.os, config.architecture, config.variant) = (os, architecture, variant);
}

/// Build args that no ARG declares, as sentences.
fn undeclared(file: &Dockerfile, request: &Request) -> Vec<String> {
    let declared: BTreeSet<String> = file
        .instructions
        .iter()
        .filter_map(|instruction| match &instruction.kind {
            Kind::Arg(args) => Some(args.iter().map(|arg| arg.key.literal())),
            _ => None,
        })
        .flatten()
        .collect();
    let unknown: Vec<&str> = request
        .build_args
        .keys()
        .filter(|name| !declared.contains(*name) && !is_predefined(name))
        .map(String::as_str)
        .collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    vec![format!("build args {} are not used: no ARG declares them", unknown.join(", "))]
}

/// Names that need no ARG: proxies, and what Kiln and BuildKit read themselves.
fn is_predefined(name: &str) -> bool {
    crate::fold_run::is_proxy(name)
        || name == "SOURCE_DATE_EPOCH"
        || name.starts_with("BUILDKIT_")
        || name.starts_with("TARGET")
        || name.starts_with("BUILD")
}

pub(crate) fn error(span: Span, message: impl Into<String>, hint: Option<String>) -> Diagnostic {
    Diagnostic { severity: Severity::Error, rule: Rule::Syntax, span, message: message.into(), hint }
}

/// A stage before it is folded.
pub(crate) struct Draft {
    pub(crate) from: From,
    pub(crate) span: Span,
    pub(crate) lines: (u32, u32),
    pub(crate) base: DraftBase,
    /// `--platform`, or else the request's.
    pub(crate) platform: Platform,
    /// Triggers first, once they are known.
    pub(crate) instructions: Vec<Instruction>,
    triggers_in: bool,
    /// A named context has the stage's own name: it is the stage, whatever the instructions say.
    pub(crate) replaced: bool,
}

/// What a stage begins with; stages by their number in the file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum DraftBase {
    Scratch,
    Stage(usize),
    Image(ImageName),
    /// A named context of files: they are the stage.
    Files(String),
}

/// What a number after `from=` is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// A stage, as COPY has it.
    Stages,
    /// A name like any other, as mounts have it.
    Names,
}

/// All stages, and what is asked and wrong so far.
pub(crate) struct Stages<'a> {
    pub(crate) drafts: Vec<Draft>,
    pub(crate) request: &'a Request,
    pub(crate) facts: &'a Facts,
    pub(crate) asks: Vec<Question>,
    pub(crate) errors: Vec<Diagnostic>,
}

/// The variables of FROM lines, and the stages.
fn drafts(file: &Dockerfile, request: &Request) -> Result<(Environment, Vec<Draft>), Vec<Diagnostic>> {
    let mut global = platform_args(file, request);
    let mut drafts: Vec<Draft> = Vec::new();
    let mut errors = Vec::new();
    for instruction in &file.instructions {
        match (&instruction.kind, drafts.last_mut()) {
            (Kind::Arg(args), None) => {
                for arg in args {
                    global_arg(arg, request, &mut global, &mut errors);
                }
            }
            (Kind::From(from), _) => match draft(instruction, from, &drafts, request, &global) {
                Ok(draft) => drafts.push(draft),
                Err(diagnostic) => {
                    errors.push(diagnostic);
                    drafts.push(Draft::broken(instruction, from, request));
                }
            },
            (_, Some(stage)) => stage.instructions.push(instruction.clone()),
            (_, None) => errors.push(error(instruction.span, "no FROM before this instruction", None)),
        }
    }
    if drafts.is_empty() && errors.is_empty() {
        let span = file.instructions.last().map_or(Span { start: 0, end: 0 }, |last| last.span);
        errors.push(error(span, "the Dockerfile has no FROM: there is nothing to build", None));
    }
    if errors.is_empty() { Ok((global, drafts)) } else { Err(errors) }
}

fn global_arg(
    arg: &kiln_dockerfile::ArgDeclaration,
    request: &Request,
    global: &mut Environment,
    errors: &mut Vec<Diagnostic>,
) {
    let name = arg.key.raw.clone();
    if let Some(value) = request.build_args.get(&name) {
        return global.set(&name, value);
    }
    match arg.value.as_ref().map(|value| value.expand(global)) {
        Some(Ok(value)) => global.set(&name, &value.text),
        Some(Err(diagnostic)) => errors.push(diagnostic),
        None => {}
    }
}

/// TARGET* and BUILD*, which FROM lines may use without declaring them.
fn platform_args(file: &Dockerfile, request: &Request) -> Environment {
    let last = file.instructions.iter().rev().find_map(|instruction| match &instruction.kind {
        Kind::From(from) => Some(from.name.clone()),
        _ => None,
    });
    let stage = request.targets.first().cloned().or(last.flatten()).unwrap_or_else(|| "default".to_owned());
    let mut scope = Environment::default();
    let text = |platform: &Platform| platform.to_string();
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let (build, target) = (&request.build_platform, &request.platform);
    for (name, value) in [
        ("BUILDPLATFORM", text(build)),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", variant(build)),
        ("TARGETPLATFORM", text(target)),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", variant(target)),
        ("TARGETSTAGE", stage),
    ] {
        scope.set(name, request.build_args.get(name).unwrap_or(&value));
    }
    scope
}

impl Draft {
    fn broken(instruction: &Instruction, from: &From, request: &Request) -> Self {
        Self {
            from: from.clone(),
            span: instruction.span,
            lines: instruction.lines,
            base: DraftBase::Scratch,
            platform: request.platform.clone(),
            instructions: Vec::new(),
            triggers_in: true,
            replaced: false,
        }
    }
}

fn draft(
    instruction: &Instruction,
    from: &From,
    earlier: &[Draft],
    request: &Request,
    global: &Environment,
) -> Result<Draft, Diagnostic> {
    let mut draft = Draft::broken(instruction, from, request);
    draft.triggers_in = false;
    if let Some(word) = &from.platform {
        let text = expand_from(word, global, "--platform")?;
        draft.platform =
            text.parse().map_err(|e: kiln_oci::PlatformError| error(word.span, e.to_string(), None))?;
    }
    let own = from.name.as_deref().and_then(|name| request.named_context(name));
    if let Some((name, context)) = own {
        draft.base = context_base(name, context);
        draft.triggers_in = true;
        draft.replaced = true;
        return Ok(draft);
    }
    let text = expand_from(&from.image, global, "FROM")?;
    // Names of stages are kept in small letters, and FROM asks for one as it is written: a stage Foo is `FROM foo`.
    draft.base = match earlier.iter().rposition(|stage| stage.from.name.as_deref() == Some(&*text)) {
        Some(index) => {
            if from.platform.is_none() {
                draft.platform = earlier[index].platform.clone();
            }
            DraftBase::Stage(index)
        }
        None => match request.named_context(&text) {
            Some((name, context)) => context_base(name, context),
            None if text == "scratch" => {
                // Nothing is the same on every platform: what is built is for the one that was asked for.
                draft.platform = request.platform.clone();
                DraftBase::Scratch
            }
            None => DraftBase::Image(image_name(&text, from.image.span).map_err(|error| {
                let stage = earlier.iter().rev().find(|stage| has_name(stage, &text));
                let name = stage.and_then(|stage| stage.from.name.clone());
                Diagnostic {
                    hint: name.map(|name| format!("write FROM {name} for the stage")).or(error.hint),
                    ..error
                }
            })?),
        },
    };
    Ok(draft)
}

fn context_base(name: &str, context: &NamedContext) -> DraftBase {
    match context {
        NamedContext::Image(image) => DraftBase::Image(image.clone()),
        NamedContext::Files => DraftBase::Files(name.to_owned()),
    }
}

fn has_name(stage: &Draft, name: &str) -> bool {
    stage.from.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name))
}

fn expand_from(word: &Word, global: &Environment, what: &str) -> Result<String, Diagnostic> {
    let expansion = word.expand(global)?;
    if !expansion.text.is_empty() {
        return Ok(expansion.text);
    }
    let hint = expansion.undefined.first().map(|name| {
        format!("{name} has no value here: declare it before the first FROM (ARG {name}=…) or give --build-arg {name}=…")
    });
    Err(error(word.span, format!("{what}: {:?} is empty once its variables are put in", word.raw), hint))
}

/// An image's name in full form.
pub(crate) fn image_name(text: &str, span: Span) -> Result<ImageName, Diagnostic> {
    if let Some(path) = text.strip_prefix("oci-layout://") {
        return Ok(ImageName::Layout(path.to_owned()));
    }
    match text.parse::<Reference>() {
        Ok(mut reference) => {
            reference.tag = reference.tag_or_latest();
            Ok(ImageName::Reference(reference.to_string()))
        }
        Err(why) => Err(error(span, why.to_string(), None)),
    }
}

fn targets(drafts: &[Draft], request: &Request) -> Result<Vec<usize>, Vec<Diagnostic>> {
    if request.targets.is_empty() {
        return Ok(vec![drafts.len() - 1]);
    }
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for target in &request.targets {
        // BuildKit knows no numbers here; kaniko's users write them, and the warmer names every stage so.
        let by_number = || target.parse().ok().filter(|number| *number < drafts.len());
        match drafts.iter().rposition(|stage| has_name(stage, target)).or_else(by_number) {
            Some(index) if found.contains(&index) => {}
            Some(index) => found.push(index),
            None => {
                let near = nearest(target, drafts.iter().filter_map(|stage| stage.from.name.as_deref()));
                let hint = near.map(|name| format!("did you mean {name:?}?"));
                let span = drafts.last().map_or(Span { start: 0, end: 0 }, |stage| stage.span);
                errors.push(error(
                    span,
                    format!("--target {target}: the Dockerfile has no such stage"),
                    hint,
                ));
            }
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

impl Stages<'_> {
    /// The numbers of the stages that `targets` need, triggers of known base images included. Base images that are
    /// needed and not known are asked for.
    fn needed(&mut self, targets: &[usize]) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut todo = targets.to_vec();
        while let Some(index) = todo.pop() {
            if !needed.insert(index) {
                continue;
            }
            self.pull_in_triggers(index);
            if let DraftBase::Stage(base) = self.drafts[index].base {
                todo.push(base);
            }
            for source in self.sources_of(index) {
                match source {
                    (TreeSource::Stage(other), _) => todo.push(other),
                    (TreeSource::Image(image), span) => {
                        let near = self.near_stage(&image);
                        self.ask_base(&image, index, span, near);
                    }
                    _ => {}
                }
            }
        }
        needed
    }

    /// A stage's name that `image` may have been meant to be.
    fn near_stage(&self, image: &ImageName) -> Option<String> {
        let ImageName::Reference(text) = image else { return None };
        let short = text.parse::<Reference>().ok()?.familiar();
        let short = short.strip_suffix(":latest").unwrap_or(&short);
        nearest(short, self.drafts.iter().filter_map(|stage| stage.from.name.as_deref()))
    }

    fn ask_base(&mut self, image: &ImageName, index: usize, span: Span, near: Option<String>) {
        let platform = self.drafts[index].platform.clone();
        if self.facts.find_base(image, &platform).is_some() {
            return;
        }
        let question = Question::Base(BaseQuestion { image: image.clone(), platform, span, near });
        let same = |other: &Question| match (other, &question) {
            (Question::Base(a), Question::Base(b)) => a.image == b.image && a.platform == b.platform,
            _ => false,
        };
        if !self.asks.iter().any(same) {
            self.asks.push(question);
        }
    }

    fn pull_in_triggers(&mut self, index: usize) {
        if self.drafts[index].triggers_in {
            if let DraftBase::Image(image) = self.drafts[index].base.clone() {
                self.ask_base(&image, index, self.drafts[index].span, None);
            }
            return;
        }
        let texts: Vec<String> = match self.drafts[index].base.clone() {
            DraftBase::Scratch | DraftBase::Files(_) => Vec::new(),
            DraftBase::Stage(base) => self.drafts[base]
                .instructions
                .iter()
                .filter_map(|instruction| match &instruction.kind {
                    Kind::Onbuild(onbuild) => Some(onbuild.trigger.clone()),
                    _ => None,
                })
                .collect(),
            DraftBase::Image(image) => {
                if let Some(fact) = self.facts.find_base(&image, &self.drafts[index].platform) {
                    fact.config.config.on_build.clone().unwrap_or_default()
                } else {
                    let near = self.near_stage(&image);
                    return self.ask_base(&image, index, self.drafts[index].from.image.span, near);
                }
            }
        };
        let draft = &mut self.drafts[index];
        draft.triggers_in = true;
        let mut triggers = Vec::new();
        for text in texts {
            match parse_trigger(&text) {
                Ok(mut instruction) => {
                    instruction.span = draft.span;
                    instruction.lines = draft.lines;
                    triggers.push(instruction);
                }
                Err(found) => self.errors.extend(found.into_iter().map(|inner| {
                    let message = format!("the base image's trigger ONBUILD {text}: {}", inner.message);
                    error(draft.span, message, inner.hint)
                })),
            }
        }
        draft.instructions.splice(0..0, triggers);
    }

    /// The trees that a stage's instructions read; stages by number.
    fn sources_of(&mut self, index: usize) -> Vec<(TreeSource, Span)> {
        let mut words: Vec<(String, Span, Numbers)> = Vec::new();
        if self.drafts[index].replaced {
            return Vec::new();
        }
        for instruction in &self.drafts[index].instructions {
            match &instruction.kind {
                Kind::Copy(copy) | Kind::Add(copy, _) => {
                    words.extend(copy.from.as_ref().map(|word| (word.literal(), word.span, Numbers::Stages)));
                }
                Kind::Run(run) => {
                    let mounts = run.mounts.iter().filter_map(|flag| {
                        let mount = flag.resolve(&Environment::default()).ok()?;
                        (!mount.from.is_empty()).then_some((mount.from, flag.value.span, Numbers::Names))
                    });
                    words.extend(mounts);
                }
                _ => {}
            }
        }
        let mut sources = Vec::new();
        for (word, span, numbers) in words {
            match self.tree_source(index, &word, span, numbers) {
                Ok(source) => sources.push((source, span)),
                Err(diagnostic) => self.errors.push(diagnostic),
            }
        }
        sources
    }

    /// What `from=WORD` means in the stage `index`; stages by number.
    pub(crate) fn tree_source(
        &self,
        index: usize,
        word: &str,
        span: Span,
        numbers: Numbers,
    ) -> Result<TreeSource, Diagnostic> {
        let by_name = self.drafts.iter().rposition(|stage| has_name(stage, word));
        let number = word.parse::<usize>().ok().filter(|_| numbers == Numbers::Stages);
        if let Some(number) = number.filter(|number| by_name.is_none() && *number >= self.drafts.len()) {
            let message = format!("--from={number}: there is no such stage; they are numbered from 0");
            return Err(error(span, message, None));
        }
        if let Some(found) = by_name.or(number) {
            return match found.cmp(&index) {
                std::cmp::Ordering::Less => Ok(TreeSource::Stage(found)),
                std::cmp::Ordering::Equal => {
                    Err(error(span, format!("--from={word}: a stage can't copy from itself"), None))
                }
                std::cmp::Ordering::Greater => Err(error(
                    span,
                    format!("--from={word}: that stage comes later in the file"),
                    Some("move it up: a stage can read only stages above it".to_owned()),
                )),
            };
        }
        if let Some((name, context)) = self.request.named_context(word) {
            return Ok(match context {
                NamedContext::Image(image) => TreeSource::Image(image.clone()),
                NamedContext::Files => TreeSource::Named(name.to_owned()),
            });
        }
        if word == "scratch" {
            return Ok(TreeSource::Empty);
        }
        image_name(word, span).map(TreeSource::Image)
    }
}

impl Base {
    pub(crate) fn of(draft: &DraftBase, places: &[usize]) -> Self {
        match draft {
            DraftBase::Scratch | DraftBase::Files(_) => Self::Scratch,
            DraftBase::Image(image) => Self::Image(image.clone()),
            DraftBase::Stage(number) => Self::Stage(place(*number, places)),
        }
    }
}

/// A stage's place among the needed ones.
pub(crate) fn place(number: usize, places: &[usize]) -> usize {
    places.iter().position(|other| *other == number).unwrap_or(usize::MAX)
}

/// The nearest of `names` to `word`, whatever the case of their letters.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let names: Vec<String> = names.map(str::to_ascii_lowercase).collect();
    kiln_dockerfile::nearest(&word.to_ascii_lowercase(), names.iter().map(String::as_str))
}

impl Environment {
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }
}
