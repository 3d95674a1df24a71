//! The checks that follow a build: which variables are set where, and what each stage has said before.

use std::collections::{BTreeMap, BTreeSet};

use super::{LintFacts, Report, names, secrets, warning};
use crate::ast::{ArgDeclaration, Command, Copy, Dockerfile, From, Instruction, Kind, Pair};
use crate::suggest::nearest;
use crate::{Ignore, Rule, Span, Word, heredoc};

type Environment = BTreeMap<String, String>;

/// What a FROM without PATH in its base starts with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments that steer the builder and never become variables.
const BUILDER_ARGUMENTS: &[&str] = &["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// A stage as far as it has been walked.
#[derive(Clone, Default)]
struct Stage {
    environment: Environment,
    /// Declared with ARG, set or not.
    declared: BTreeSet<String>,
    has_workdir: bool,
    has_shell: bool,
    command: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
}

struct Walk<'a> {
    facts: &'a LintFacts<'a>,
    report: &'a mut Report,
    /// What FROM sees.
    globals: Environment,
    /// What may stand in FROM: set or only declared.
    global_names: BTreeSet<String>,
    named: BTreeMap<String, Stage>,
    stage: Stage,
}

pub(super) fn check(file: &Dockerfile, facts: &LintFacts<'_>, report: &mut Report) {
    let is_from = |instruction: &&Instruction| matches!(instruction.kind, Kind::From(_));
    let first = file
        .instructions
        .iter()
        .position(|instruction| is_from(&instruction))
        .unwrap_or(file.instructions.len());
    let (head, body) = file.instructions.split_at(first);
    let last_name = body.iter().rev().find(is_from).and_then(|instruction| match &instruction.kind {
        Kind::From(from) => from.name.clone(),
        _ => None,
    });
    let predefined = predefined(facts, last_name.as_deref());
    check_defaults(head, body, &predefined, report);
    let (globals, declared) = global_scope(head, predefined, &facts.build_args).unwrap_or_default();
    let global_names = globals.keys().cloned().chain(declared).collect();
    let stage = Stage::default();
    let mut walk = Walk { facts, report, globals, global_names, named: BTreeMap::new(), stage };
    let mut name = None;
    for instruction in body {
        if let Kind::From(from) = &instruction.kind {
            walk.leave(name.take());
            walk.from(instruction, from);
            name.clone_from(&from.name);
        } else {
            walk.instruction(instruction);
        }
    }
    walk.leave(name);
}

/// The arguments that every build has.
fn predefined(facts: &LintFacts<'_>, target: Option<&str>) -> Environment {
    let mut parts = facts.platform.split('/');
    let (system, architecture) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let variant = parts.next().unwrap_or("");
    let mut values = Environment::new();
    for side in ["BUILD", "TARGET"] {
        for (name, value) in [
            ("PLATFORM", facts.platform.as_str()),
            ("OS", system),
            ("OSVERSION", ""),
            ("ARCH", architecture),
            ("VARIANT", variant),
        ] {
            values.insert(format!("{side}{name}"), value.to_owned());
        }
    }
    values.insert("TARGETSTAGE".to_owned(), target.unwrap_or("default").to_owned());
    for (name, value) in &mut values {
        if let Some(given) = facts.build_args.get(name) {
            value.clone_from(given);
        }
    }
    values
}

/// The variables after the ARGs before FROM, and the names of all of those. `None` if one can't be expanded.
fn global_scope(
    head: &[Instruction],
    mut scope: Environment,
    build_args: &Environment,
) -> Option<(Environment, Vec<String>)> {
    let mut names = Vec::new();
    for declaration in head.iter().flat_map(declarations) {
        let name = &declaration.key.raw;
        let value = match (build_args.get(name), &declaration.value) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => Some(default.read(&scope).ok()?.text),
            (None, None) => None,
        };
        if let Some(value) = value {
            scope.insert(name.clone(), value);
        }
        names.push(name.clone());
    }
    Some((scope, names))
}

fn declarations(instruction: &Instruction) -> &[ArgDeclaration] {
    match &instruction.kind {
        Kind::Arg(declarations) => declarations,
        _ => &[],
    }
}

/// FROM has to name an image also where no build argument is given.
fn check_defaults(head: &[Instruction], body: &[Instruction], predefined: &Environment, report: &mut Report) {
    let Some((scope, _)) = global_scope(head, predefined.clone(), &Environment::new()) else { return };
    for instruction in body {
        let Kind::From(from) = &instruction.kind else { continue };
        let Ok(reading) = from.image.read(&scope) else { return };
        if !names::is_image(&reading.text) {
            let message = format!("without build arguments, {} is no name of an image", from.image.raw);
            let found = warning(Rule::InvalidDefaultArgInFrom, from.image.span, message);
            report.add_to_file(found.with_hint("give the ARG a default"));
        }
    }
}

impl Walk<'_> {
    /// The stage is done; later ones can build on it.
    fn leave(&mut self, name: Option<String>) {
        let stage = std::mem::take(&mut self.stage);
        if let Some(name) = name {
            self.named.insert(name, stage);
        }
    }

    fn from(&mut self, at: &Instruction, from: &From) {
        let image = self.global(at, &from.image);
        if let Some(platform) = &from.platform {
            self.platform(at, from, platform);
        }
        let image = image.unwrap_or_default();
        self.stage = if let Some(base) = self.named.get(&image) {
            Stage { command: None, entrypoint: None, healthcheck: None, ..base.clone() }
        } else {
            let mut environment = self.facts.environments.get(&at.span.start).cloned().unwrap_or_default();
            environment.entry("PATH".to_owned()).or_insert_with(|| PATH.to_owned());
            Stage { environment, ..Stage::default() }
        };
    }

    /// Expands a word of FROM.
    fn global(&mut self, at: &Instruction, word: &Word) -> Option<String> {
        let reading = word.read(&self.globals).ok()?;
        for name in &reading.unset {
            if self.global_names.contains(name) {
                continue;
            }
            let near = nearest(name, self.global_names.iter().map(String::as_str));
            let message = format!("FROM uses {name}, which no ARG before it declares");
            self.report.add(at, warning(Rule::UndefinedArgInFrom, word.span, message).with_suggestion(near));
        }
        Some(reading.text)
    }

    fn platform(&mut self, at: &Instruction, from: &From, platform: &Word) {
        self.global(at, platform);
        let Ok(reading) = platform.read(&self.globals) else { return };
        let target = self.globals.get("TARGETPLATFORM");
        if reading.unset.is_empty()
            && reading.set.iter().eq(["TARGETPLATFORM"])
            && target == Some(&reading.text)
        {
            let message = format!("--platform={} is what FROM does without it", platform.raw);
            self.report.add(at, warning(Rule::RedundantTargetPlatform, platform.span, message));
        }
        if !reading.unset.is_empty() || !reading.set.is_empty() {
            return;
        }
        let Some((system, architecture)) = names::platform(&reading.text) else { return };
        let name = from.name.as_deref().unwrap_or("");
        if !name.contains(&system) && !name.contains(&architecture) {
            let message = format!("--platform={} is always the same", platform.raw);
            let found = warning(Rule::FromPlatformFlagConstDisallowed, platform.span, message);
            self.report.add(at, found.with_hint("use $BUILDPLATFORM, or name the stage after the platform"));
        }
    }

    /// Expands a word of a stage, and reports each variable in it that is not there.
    fn expand(&mut self, at: &Instruction, word: &Word) -> Option<String> {
        let reading = word.read(&self.stage.environment).ok()?;
        self.undefined(at, word.span, &reading.unset);
        Some(reading.text)
    }

    fn undefined(&mut self, at: &Instruction, span: Span, unset: &[String]) {
        for name in unset {
            if self.stage.declared.contains(name) || BUILDER_ARGUMENTS.contains(&name.as_str()) {
                continue;
            }
            let near = nearest(name, self.stage.environment.keys().map(String::as_str));
            let found = warning(Rule::UndefinedVar, span, format!("nothing before this sets ${name}"));
            self.report.add(at, found.with_suggestion(near.map(|near| format!("${near}"))));
        }
    }

    fn expand_all<'w>(&mut self, at: &Instruction, words: impl IntoIterator<Item = &'w Word>) {
        for word in words {
            self.expand(at, word);
        }
    }

    fn instruction(&mut self, at: &Instruction) {
        match &at.kind {
            Kind::Env(pairs) => self.env(at, pairs),
            Kind::Label(pairs) => {
                for pair in pairs {
                    self.expand_all(at, [&pair.key, &pair.value]);
                    self.legacy(at, pair);
                }
            }
            Kind::Arg(declarations) => declarations.iter().for_each(|declaration| self.arg(at, declaration)),
            Kind::Run(run) => {
                let values: Vec<Word> = run.mounts.iter().flat_map(crate::MountFlag::values).collect();
                self.expand_all(at, &values);
            }
            Kind::Copy(copy) => self.copy(at, copy, "COPY", None),
            Kind::Add(copy, options) => self.copy(at, copy, "ADD", options.checksum.as_ref()),
            Kind::Workdir(word) => self.workdir(at, word),
            Kind::User(word) | Kind::Stopsignal(word) => self.expand_all(at, [word]),
            Kind::Volume(words) => self.expand_all(at, words),
            Kind::Expose(words) => self.expose(at, words),
            Kind::Cmd(command) => {
                let earlier = self.stage.command.replace(at.keyword_span);
                self.once(at, earlier);
                self.command_form(at, command);
            }
            Kind::Entrypoint(command) => {
                let earlier = self.stage.entrypoint.replace(at.keyword_span);
                self.once(at, earlier);
                self.command_form(at, command);
            }
            Kind::Healthcheck(_) => {
                let earlier = self.stage.healthcheck.replace(at.keyword_span);
                self.once(at, earlier);
            }
            Kind::Shell(_) => self.stage.has_shell = true,
            Kind::From(_) | Kind::Onbuild(_) | Kind::Maintainer(_) => {}
        }
    }

    fn env(&mut self, at: &Instruction, pairs: &[Pair]) {
        // One instruction sees the environment from before it.
        let mut values = Vec::new();
        for pair in pairs {
            let key = self.expand(at, &pair.key);
            let value = self.expand(at, &pair.value);
            if let Some(key) = key {
                values.push((key, value.unwrap_or_default(), pair.key.span));
            }
            self.legacy(at, pair);
        }
        for (key, value, span) in values {
            self.secret(at, "ENV", &key, span);
            self.stage.environment.insert(key, value);
        }
    }

    fn arg(&mut self, at: &Instruction, declaration: &ArgDeclaration) {
        let name = &declaration.key.raw;
        self.secret(at, "ARG", name, declaration.key.span);
        let value = match (self.facts.build_args.get(name), &declaration.value) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => self.expand(at, default),
            (None, None) => self.globals.get(name).cloned(),
        };
        if let Some(value) = value.filter(|_| !BUILDER_ARGUMENTS.contains(&name.as_str())) {
            self.stage.environment.insert(name.clone(), value);
        }
        self.stage.declared.insert(name.clone());
    }

    fn secret(&mut self, at: &Instruction, keyword: &str, name: &str, span: Span) {
        if secrets::looks_secret(name) {
            let message = format!("{keyword} {name}: everybody who has the image can read it");
            let found = warning(Rule::SecretsUsedInArgOrEnv, span, message);
            self.report.add(at, found.with_hint("use RUN --mount=type=secret"));
        }
    }

    fn legacy(&mut self, at: &Instruction, pair: &Pair) {
        if pair.legacy {
            let keyword = at.kind.keyword();
            let found = warning(Rule::LegacyKeyValueFormat, pair.key.span, format!("{keyword} without ="));
            self.report.add(at, found.with_hint(format!("write {keyword} {}=value", pair.key.raw)));
        }
    }

    fn copy(&mut self, at: &Instruction, copy: &Copy, keyword: &str, checksum: Option<&Word>) {
        self.expand_all(at, [&copy.chown, &copy.chmod].into_iter().flatten().chain(checksum));
        for source in &copy.sources {
            let Some(path) = self.expand(at, source) else { continue };
            let is_remote = keyword == "ADD" && is_remote(&path);
            if let (Some(ignore), None, false) = (self.facts.ignore, &copy.from, is_remote)
                && let Some(path) = ignored_source(ignore, &path)
            {
                let message = format!("{keyword} of {path}, which .dockerignore excludes");
                self.report.add(at, warning(Rule::CopyIgnoredFile, source.span, message));
            }
        }
        self.expand(at, &copy.destination);
        for body in copy.heredocs.iter().filter(|heredoc| heredoc.expand) {
            if let Ok(reading) = heredoc::read_body(&body.content, &self.stage.environment) {
                self.undefined(at, body.span, &reading.unset);
            }
        }
    }

    fn workdir(&mut self, at: &Instruction, word: &Word) {
        let path = self.expand(at, word);
        let is_relative = path.is_some_and(|path| !path.starts_with('/'));
        if is_relative && !self.stage.has_workdir {
            let message = format!("WORKDIR {} is relative to the base image's", word.raw);
            self.report.add(
                at,
                warning(Rule::WorkdirRelativePath, word.span, message).with_hint("write the whole path"),
            );
        }
        self.stage.has_workdir = true;
    }

    /// Of several CMDs and the like in a stage only the last one counts; the one before it is reported.
    fn once(&mut self, at: &Instruction, earlier: Option<Span>) {
        if let Some(span) = earlier {
            let message = format!("a later {} makes this one useless", at.kind.keyword());
            self.report.add(at, warning(Rule::MultipleInstructionsDisallowed, span, message));
        }
    }

    fn command_form(&mut self, at: &Instruction, command: &Command) {
        if let (Command::Shell(_), false) = (command, self.stage.has_shell) {
            let keyword = at.kind.keyword();
            let message = format!("{keyword} in shell form: signals reach the shell, not the program");
            let found = warning(Rule::JSONArgsRecommended, at.keyword_span, message);
            self.report.add(at, found.with_hint(format!(r#"write {keyword} ["program", "argument"]"#)));
        }
    }

    fn expose(&mut self, at: &Instruction, words: &[Word]) {
        for word in words {
            for port in word.expand_words(&self.stage.environment).unwrap_or_default() {
                let mut parts = port.rsplitn(3, ':');
                let container = parts.next().unwrap_or("");
                let has_host = parts.any(|part| !part.is_empty());
                let (number, protocol) = container.split_once('/').unwrap_or((container, ""));
                if number.is_empty()
                    || !matches!(protocol.to_lowercase().as_str(), "" | "tcp" | "udp" | "sctp")
                {
                    return;
                }
                if protocol != protocol.to_lowercase() {
                    let found = warning(
                        Rule::ExposeProtoCasing,
                        word.span,
                        format!("EXPOSE {port} is not in lower case"),
                    );
                    self.report.add(at, found.with_hint(format!("write {}", port.to_lowercase())));
                }
                if has_host {
                    let message = format!("EXPOSE {port} has an address or a port of the host");
                    let found = warning(Rule::ExposeInvalidFormat, word.span, message);
                    self.report.add(at, found.with_hint(format!("write {container}")));
                }
            }
        }
    }
}

/// Whether ADD fetches it.
fn is_remote(source: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@"].iter().any(|scheme| source.starts_with(scheme))
}

/// The source as the message shows it, if the ignore file excludes it. With exceptions nothing can be said for sure.
fn ignored_source(ignore: &Ignore, source: &str) -> Option<String> {
    if ignore.has_exceptions() {
        return None;
    }
    let path = crate::ignore::clean(source);
    if path == "." || path == "/" {
        let all = ignore.patterns().iter().any(|pattern| matches!(pattern.text(), "*" | "**" | "**/*"));
        return all.then_some(path);
    }
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let parents: Vec<&str> = ends.map(|end| &path[..end]).collect();
    let is_ignored =
        ignore.patterns().iter().any(|pattern| parents.iter().any(|parent| pattern.matches(parent)));
    is_ignored.then_some(path)
}
