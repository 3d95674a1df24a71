//! Folding one stage: metadata goes into the image config, in the order of the instructions; RUN, COPY, ADD and
//! WORKDIR become steps. One instruction sees the environment from before it.

use kiln_dockerfile::{Command, Diagnostic, Instruction, Kind, Pair, Scope, Word};
use kiln_oci::{Healthcheck, ImageConfig};

use crate::scope::Environment;
use crate::stages::{DraftBase, Numbers, Stages, error, place};
use crate::{
    Base, ContentOf, ContentQuestion, CopySource, CopyStep, DirectoryStep, Late, Op, Parts, Recipe, Stage,
    Step, StepKeys, TreeSource, Verdict, history,
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a stage leaves to those that begin with it or read from it.
#[derive(Clone)]
pub(crate) struct StageScope {
    pub(crate) env: Environment,
    pub(crate) build_args: Vec<(String, Option<String>)>,
    pub(crate) keys: StepKeys,
    /// Nothing is below its first step, and it has none.
    bare: bool,
}

/// One stage in the making.
pub(crate) struct Fold<'a, 's> {
    pub(crate) stages: &'a mut Stages<'s>,
    pub(crate) index: usize,
    pub(crate) places: &'a [usize],
    pub(crate) global: &'a Environment,
    pub(crate) earlier: &'a [Stage],
    pub(crate) scopes: &'a [StageScope],
    pub(crate) config: ImageConfig,
    pub(crate) env: Environment,
    pub(crate) build_args: Vec<(String, Option<String>)>,
    pub(crate) keys: StepKeys,
    pub(crate) steps: Vec<Step>,
    /// What the step in the making reads.
    parts: Parts,
    cmd_set: bool,
}

impl<'a, 's> Fold<'a, 's> {
    pub(crate) fn new(
        stages: &'a mut Stages<'s>,
        index: usize,
        places: &'a [usize],
        global: &'a Environment,
        earlier: &'a [Stage],
        scopes: &'a [StageScope],
    ) -> Self {
        let mut root = Recipe::new("base");
        root.add("image", "scratch");
        Self {
            stages,
            index,
            places,
            global,
            earlier,
            scopes,
            config: ImageConfig::default(),
            env: Environment::default(),
            build_args: Vec::new(),
            keys: StepKeys::of(&root),
            steps: Vec::new(),
            parts: Vec::new(),
            cmd_set: false,
        }
    }

    /// Folds the whole stage. Errors and questions are left in `stages`.
    pub(crate) fn stage(mut self) -> (Stage, StageScope) {
        let base_manifest = self.begin();
        let own_history = self.config.history.len();
        if let DraftBase::Files(name) = self.stages.drafts[self.index].base.clone() {
            self.files_as_base(&name);
        }
        // Taken out while it is read: folding never looks at another stage's instructions.
        let instructions = std::mem::take(&mut self.stages.drafts[self.index].instructions);
        if !self.stages.drafts[self.index].replaced {
            for instruction in &instructions {
                if let Err(diagnostic) = self.instruction(instruction) {
                    self.stages.errors.push(diagnostic);
                }
            }
        }
        self.stages.drafts[self.index].instructions = instructions;
        let bare = self.is_bare();
        let draft = &self.stages.drafts[self.index];
        let stage = Stage {
            number: self.index,
            name: draft.from.name.clone(),
            span: draft.span,
            lines: draft.lines,
            base: Base::of(&draft.base, self.places),
            base_manifest,
            platform: draft.platform.clone(),
            files: self.config.platform().unwrap_or_else(|| draft.platform.clone()),
            config: self.config,
            own_history,
            steps: self.steps,
            needed: true,
            needs_tree: true,
        };
        (stage, StageScope { env: self.env, build_args: self.build_args, keys: self.keys, bare })
    }

    /// Whether there are no files here: nothing below, and no step so far.
    pub(crate) fn is_bare(&self) -> bool {
        let draft = &self.stages.drafts[self.index];
        self.steps.is_empty()
            && match &draft.base {
                DraftBase::Scratch => true,
                DraftBase::Files(_) => false,
                DraftBase::Stage(number) => self.scopes[place(*number, self.places)].bare,
                DraftBase::Image(_) => {
                    self.config.rootfs.diff_ids.is_empty()
                        && self.config.history.iter().all(|entry| entry.empty_layer)
                }
            }
    }

    /// Takes over what the base leaves, and gives the base image's digest.
    fn begin(&mut self) -> Option<kiln_oci::Digest> {
        let draft = &self.stages.drafts[self.index];
        let mut manifest = None;
        match &draft.base {
            DraftBase::Scratch | DraftBase::Files(_) => {
                self.config = ImageConfig::scratch(&draft.platform);
                if !draft.replaced {
                    "/".clone_into(&mut self.config.config.working_dir);
                }
            }
            DraftBase::Stage(number) => {
                let place = place(*number, self.places);
                self.config = self.earlier[place].config.clone();
                self.env = self.scopes[place].env.clone();
                self.build_args.clone_from(&self.scopes[place].build_args);
                self.keys = self.scopes[place].keys.clone();
            }
            DraftBase::Image(image) => {
                if let Some(fact) = self.stages.facts.find_base(image, &draft.platform) {
                    self.config = fact.config.clone();
                    manifest = Some(fact.manifest.clone());
                    let mut recipe = Recipe::new("base");
                    recipe.add("image", fact.manifest.to_string());
                    self.keys = StepKeys::of(&recipe);
                    tidy(&mut self.config, &draft.platform);
                }
            }
        }
        self.config.config.on_build = None;
        self.config.created = None;
        if draft.replaced {
            return manifest;
        }
        if self.config.config.env("PATH").is_none() {
            self.config.config.set_env("PATH", DEFAULT_PATH);
        }
        for (name, value) in Environment::from_entries(&self.config.config.env).0 {
            self.env.set(&name, &value);
        }
        if !self.config.config.working_dir.is_empty() {
            self.config.config.working_dir = working_dir("/", &self.config.config.working_dir);
        }
        manifest
    }

    /// A named context of files in a base's place: the empty image with one layer that holds them.
    fn files_as_base(&mut self, name: &str) {
        let draft = &self.stages.drafts[self.index];
        let (span, lines) = (draft.span, draft.lines);
        let copy = CopyStep {
            from: TreeSource::Named(name.to_owned()),
            sources: vec![CopySource::Path("/".to_owned())],
            inline: Vec::new(),
            destination: "/".to_owned(),
            chown: None,
            chmod: None,
            link: true,
            parents: false,
            excludes: Vec::new(),
            add: None,
        };
        let text = format!("local source for {name}");
        let (recipe, late) = self.copy_recipe(&copy);
        self.push(Shown { span, lines, text }, Op::Copy(Box::new(copy)), recipe, late);
    }

    /// The text of `word` with its variables put in.
    pub(crate) fn expand(&self, word: &Word) -> Result<String, Diagnostic> {
        word.expand(&self.env).map(|expansion| expansion.text)
    }

    pub(crate) fn note(&mut self, created_by: String, has_layer: bool) {
        self.config.history.push(history::entry(created_by, has_layer));
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Diagnostic> {
        match &instruction.kind {
            Kind::From(_) => Ok(()),
            Kind::Arg(args) => self.arg(args),
            Kind::Env(pairs) => self.env_pairs(pairs),
            Kind::Label(pairs) => self.labels(pairs),
            Kind::Run(run) => self.run(instruction, run),
            Kind::Cmd(command) => {
                let argv = self.argv(command);
                self.note(format!("CMD {}", history::quoted(&argv)), false);
                self.config.config.cmd = Some(argv);
                self.config.config.args_escaped = Some(true);
                self.cmd_set = true;
                Ok(())
            }
            Kind::Entrypoint(command) => {
                let argv = self.argv(command);
                self.note(format!("ENTRYPOINT {}", history::quoted(&argv)), false);
                self.config.config.entrypoint = Some(argv);
                if !self.cmd_set {
                    self.config.config.cmd = None;
                }
                Ok(())
            }
            Kind::Shell(words) => {
                self.config.config.shell = Some(words.clone());
                self.note(format!("SHELL {}", history::plain(words)), false);
                Ok(())
            }
            Kind::Copy(copy) => self.copy(instruction, copy, None),
            Kind::Add(copy, options) => self.copy(instruction, copy, Some(options)),
            Kind::Workdir(word) => self.workdir(instruction, word),
            Kind::User(word) => {
                let user = self.expand(word)?;
                self.note(format!("USER {user}"), false);
                self.config.config.user = user;
                Ok(())
            }
            Kind::Volume(words) => self.volumes(words),
            Kind::Expose(words) => self.expose(words),
            Kind::Stopsignal(word) => self.stop_signal(word),
            Kind::Healthcheck(check) => {
                self.healthcheck(check);
                Ok(())
            }
            Kind::Onbuild(onbuild) => {
                self.config.config.on_build.get_or_insert_default().push(onbuild.trigger.clone());
                Ok(())
            }
            Kind::Maintainer(name) => {
                self.config.author.clone_from(name);
                self.note(format!("MAINTAINER {name}"), false);
                Ok(())
            }
        }
    }

    fn arg(&mut self, args: &[kiln_dockerfile::ArgDeclaration]) -> Result<(), Diagnostic> {
        let mut shown = Vec::new();
        for arg in args {
            // A name is taken as it is written.
            let name = arg.key.raw.clone();
            let given = self.stages.request.build_args.get(&name).cloned();
            let value = match (given, &arg.value) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(default)?),
                (None, None) => self.global.value(&name),
            };
            if let Some(value) = value.as_ref().filter(|_| !is_for_scanners(&name)) {
                self.env.set(&name, value);
            }
            shown.push(value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")));
            self.build_args.push((name, value));
        }
        self.note(format!("ARG {}", shown.join(" ")), false);
        Ok(())
    }

    fn pairs(&self, pairs: &[Pair]) -> Result<Vec<(String, String)>, Diagnostic> {
        pairs.iter().map(|pair| Ok((self.expand(&pair.key)?, self.expand(&pair.value)?))).collect()
    }

    fn env_pairs(&mut self, pairs: &[Pair]) -> Result<(), Diagnostic> {
        let pairs = self.pairs(pairs)?;
        self.note(format!("ENV {}", joined(&pairs)), false);
        for (name, value) in pairs {
            self.env.set(&name, &value);
            self.config.config.set_env(&name, &value);
        }
        Ok(())
    }

    fn labels(&mut self, pairs: &[Pair]) -> Result<(), Diagnostic> {
        let pairs = self.pairs(pairs)?;
        self.note(format!("LABEL {}", joined(&pairs)), false);
        self.config.config.labels.extend(pairs);
        Ok(())
    }

    /// The command line, with the shell in front of the shell form.
    pub(crate) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => self.with_shell(line.clone()),
        }
    }

    pub(crate) fn with_shell(&self, line: String) -> Vec<String> {
        let mut argv = match &self.config.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        };
        argv.push(line);
        argv
    }

    fn workdir(&mut self, instruction: &Instruction, word: &Word) -> Result<(), Diagnostic> {
        let shown = working_dir(&self.config.config.working_dir, &self.expand(word)?);
        self.note(format!("WORKDIR {shown}"), shown != "/");
        let path = absolute("/", &shown);
        self.config.config.working_dir = shown;
        if path != "/" {
            let owner = self.config.config.user.clone();
            if crate::fold_copy::is_named(&owner) {
                self.need_names(word.span, &format!("WORKDIR as USER {owner}"))?;
            }
            let mut recipe = self.recipe("directory");
            recipe.add("path", &path);
            recipe.add("owner", &owner);
            let op = Op::MakeDirectory(DirectoryStep { path, owner });
            self.push(Shown::of(instruction), op, recipe, Vec::new());
        }
        Ok(())
    }

    fn volumes(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut paths = Vec::new();
        for word in words {
            let path = self.expand(word)?;
            if path.is_empty() {
                return Err(error(word.span, "VOLUME: a path is empty", None));
            }
            self.config.config.volumes.insert(path.clone(), serde_json::json!({}));
            paths.push(path);
        }
        self.note(format!("VOLUME {}", history::plain(&paths)), false);
        Ok(())
    }

    fn expose(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut ports = Vec::new();
        let mut words: Vec<&Word> = words.iter().collect();
        words.sort_by(|one, other| one.raw.cmp(&other.raw));
        for word in words {
            for text in word.expand_words(&self.env)? {
                let found = crate::expose::ports(&text);
                ports.extend(found.map_err(|why| error(word.span, format!("EXPOSE {why}"), None))?);
            }
        }
        for port in &ports {
            self.config.config.exposed_ports.insert(port.clone(), serde_json::json!({}));
        }
        self.note(format!("EXPOSE {}", history::plain(&ports)), false);
        Ok(())
    }

    fn stop_signal(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let signal = self.expand(word)?;
        if !is_signal(&signal) {
            let hint = Some("write a name (SIGTERM) or a number (15)".to_owned());
            return Err(error(word.span, format!("STOPSIGNAL {signal}: there is no such signal"), hint));
        }
        self.note(format!("STOPSIGNAL {signal}"), false);
        self.config.config.stop_signal = signal;
        Ok(())
    }

    fn healthcheck(&mut self, check: &kiln_dockerfile::Healthcheck) {
        let test = match &check.command {
            None => vec!["NONE".to_owned()],
            Some(Command::Shell(line)) => vec!["CMD-SHELL".to_owned(), line.clone()],
            Some(Command::Exec(words)) => {
                std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect()
            }
        };
        let check = Healthcheck {
            test,
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        };
        self.note(history::healthcheck(&check), false);
        self.config.config.healthcheck = Some(check);
    }

    /// A recipe with what all have: the step before, the platform, and what shapes the layer's bytes.
    pub(crate) fn recipe(&self, kind: &str) -> Recipe {
        let mut recipe = Recipe::new(kind);
        recipe.add("parent", self.keys.recipe.hex());
        recipe.add("platform", self.stages.drafts[self.index].platform.to_string());
        let shape = &self.stages.request.shape;
        recipe.add("mtime limit", shape.mtime_limit.map_or_else(String::new, |limit| limit.to_string()));
        recipe.add("compression", &shape.compression);
        recipe.add_list("ignored paths", &shape.ignored);
        recipe.add("snapshot mode", &shape.snapshot_mode);
        recipe
    }

    /// Adds a step and moves the keys on.
    pub(crate) fn push(&mut self, shown: Shown, op: Op, recipe: Recipe, late: Vec<Late>) {
        self.keys = self.keys_of(&recipe, &late);
        self.steps.push(Step {
            span: shown.span,
            lines: shown.lines,
            text: shown.text,
            op,
            recipe,
            parts: std::mem::take(&mut self.parts),
            keys: self.keys.clone(),
            late,
            verdict: Verdict::Run { needs_tree: false },
        });
    }

    /// What stands in a key for a tree that is read: a stage's last key, an image's digest, or the files' content.
    pub(crate) fn source_key(
        &mut self,
        source: &TreeSource,
        words: &[String],
        excludes: &[String],
        parents: bool,
    ) -> Vec<u8> {
        let of = match source {
            TreeSource::Empty => return Vec::new(),
            TreeSource::Stage(place) => return self.scopes[*place].keys.recipe.hex().into_bytes(),
            TreeSource::Image(image) => {
                let platform = &self.stages.drafts[self.index].platform;
                let fact = self.stages.facts.find_base(image, platform);
                return fact.map_or_else(Vec::new, |fact| fact.manifest.to_string().into_bytes());
            }
            TreeSource::Context => ContentOf::Context,
            TreeSource::Named(name) => ContentOf::Named(name.clone()),
        };
        let question = ContentQuestion { of, words: words.to_vec(), excludes: excludes.to_vec(), parents };
        self.content(question)
    }

    /// The content's digest, or nothing while it is asked for (or where nobody wants keys).
    pub(crate) fn content(&mut self, question: ContentQuestion) -> Vec<u8> {
        if !self.stages.request.content_keys {
            return Vec::new();
        }
        if let Some(digest) = self.stages.facts.find_content(&question) {
            self.parts.extend_from_slice(self.stages.facts.find_parts(&question));
            return digest.to_vec();
        }
        let question = crate::Question::Content(question);
        if !self.stages.asks.contains(&question) {
            self.stages.asks.push(question);
        }
        Vec::new()
    }

    /// What `--from=WORD` means here; stages by their place in the plan.
    pub(crate) fn tree_source(
        &self,
        word: &str,
        span: kiln_dockerfile::Span,
        numbers: Numbers,
    ) -> Result<TreeSource, Diagnostic> {
        Ok(match self.stages.tree_source(self.index, word, span, numbers)? {
            TreeSource::Stage(number) => TreeSource::Stage(place(number, self.places)),
            other => other,
        })
    }
}

/// How a step is shown.
pub(crate) struct Shown {
    pub(crate) span: kiln_dockerfile::Span,
    pub(crate) lines: (u32, u32),
    pub(crate) text: String,
}

impl Shown {
    pub(crate) fn of(instruction: &Instruction) -> Self {
        Self { span: instruction.span, lines: instruction.lines, text: instruction.text.clone() }
    }
}

fn joined(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// Leaves out what docker once kept of the container that an image was committed from: no builder carries it over.
fn tidy(config: &mut ImageConfig, platform: &kiln_oci::Platform) {
    for name in
        ["container", "container_config", "docker_version", "id", "parent", "parent_id", "Size", "throwaway"]
    {
        config.other.remove(name);
    }
    let started =
        ["Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin"];
    for name in
        started.into_iter().chain(["StdinOnce", "Image", "NetworkDisabled", "MacAddress", "PublishService"])
    {
        config.config.other.remove(name);
    }
    if config.os.is_empty() {
        config.os.clone_from(&platform.os);
    }
    if config.architecture.is_empty() {
        config.architecture.clone_from(&platform.architecture);
        config.variant.clone_from(&platform.variant);
    }
}

/// The working directory as the config keeps it: an absolute one as it was written, others clean below the last one.
fn working_dir(last: &str, path: &str) -> String {
    match path {
        "" if last.is_empty() => "/".to_owned(),
        "" => last.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => absolute(last, path),
    }
}

/// `path` seen from `base`, absolute and clean.
pub(crate) fn absolute(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("/{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn is_signal(text: &str) -> bool {
    const NAMES: &str = " ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT \
                         STOP SYS TERM TRAP TSTP TTIN TTOU UNUSED URG USR1 USR2 VTALRM WINCH XCPU XFSZ ";
    // Whether the system that runs the image has it is not asked.
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |prefix: &str, sign: char, most: u32| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || (1..=most).any(|number| rest == format!("{sign}{number}")))
    };
    NAMES.contains(&format!(" {name} ")) || real_time("RTMIN", '+', 15) || real_time("RTMAX", '-', 14)
}

/// ARGs that tell a scanner what to look at: nothing of the stage sees them.
fn is_for_scanners(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

impl Scope for Fold<'_, '_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.env.get(name)
    }

    fn names(&self) -> Vec<String> {
        self.env.names()
    }
}
