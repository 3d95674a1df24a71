//! A logical line to an instruction: what each keyword makes of its flags and arguments.

use crate::ast::{
    AddOptions, ArgDeclaration, Command, Copy, From, Healthcheck, Heredoc, Kind, MountFlag, Network, Onbuild,
    Pair, Run, Security,
};
use crate::flags::{self, Known};
use crate::heredoc::{self, Body};
use crate::json::{self, JsonForm};
use crate::logical::Fragment;
use crate::suggest::nearest;
use crate::{Diagnostic, Flag, Word, duration, words};

/// Every keyword.
pub(crate) const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A logical line taken apart.
pub(crate) struct Line<'a> {
    /// The whole of it.
    pub(crate) whole: Fragment<'a>,
    /// As written.
    pub(crate) keyword: Fragment<'a>,
    /// In upper case.
    pub(crate) name: String,
    pub(crate) flags: Vec<Flag>,
    /// What follows the flags, without blanks at its ends.
    pub(crate) rest: Fragment<'a>,
    pub(crate) escape: char,
}

/// What became of a line.
type Outcome = Result<Kind, Vec<Diagnostic>>;

impl<'a> Line<'a> {
    pub(crate) fn new(whole: Fragment<'a>, escape: char) -> Self {
        let trimmed = whole.trim();
        let (keyword, behind) = trimmed.split_blank();
        let end = trimmed.from(trimmed.text().len());
        let (flags, rest) = behind.map_or((Vec::new(), end), |behind| flags::extract(behind, escape));
        Self { whole, keyword, name: keyword.text().to_uppercase(), flags, rest: rest.trim(), escape }
    }

    /// The line that ONBUILD holds.
    pub(crate) fn trigger(&self) -> Option<Self> {
        (self.name == "ONBUILD" && !self.rest.is_empty()).then(|| Self::new(self.rest, self.escape))
    }

    /// Whether heredocs can follow it.
    pub(crate) fn takes_heredocs(&self) -> bool {
        if let Some(trigger) = self.trigger() {
            return trigger.name != "ONBUILD" && trigger.takes_heredocs();
        }
        matches!(self.name.as_str(), "ADD" | "COPY" | "RUN")
            && matches!(json::read(self.rest.text()), JsonForm::No)
    }

    /// The keyword that an unknown one is near to.
    pub(crate) fn near_keyword(&self) -> Option<String> {
        nearest(&self.name, KEYWORDS.iter().copied())
    }

    /// Reads the line with the heredocs that followed it.
    pub(crate) fn read(&self, heredocs: Vec<Body>) -> Outcome {
        match self.name.as_str() {
            "FROM" => self.from(),
            "ARG" => self.arg(),
            "ENV" => self.pairs(&[]).map(Kind::Env),
            "LABEL" => self.pairs(&[]).map(Kind::Label),
            "RUN" => self.run(heredocs),
            "CMD" => self.command().map(Kind::Cmd),
            "ENTRYPOINT" => self.command().map(Kind::Entrypoint),
            "SHELL" => self.shell(),
            "COPY" | "ADD" => self.copy(&heredocs),
            "WORKDIR" => self.single("/path", flags::NONE).map(Kind::Workdir),
            "USER" => self.single("name", flags::NONE).map(Kind::User),
            // BuildKit drops what flags STOPSIGNAL and ARG are given.
            "STOPSIGNAL" => self.one_argument("SIGTERM", Vec::new()).map(Kind::Stopsignal),
            "MAINTAINER" => self.single("name", flags::NONE).map(|word| Kind::Maintainer(word.raw)),
            "VOLUME" => self.volume(),
            "EXPOSE" => self.expose(),
            "HEALTHCHECK" => self.healthcheck(),
            "ONBUILD" => self.onbuild(&heredocs),
            "" => Err(vec![Diagnostic::error(self.whole.span(), "an instruction is missing here")]),
            _ => {
                let written = self.keyword.text();
                let near = self.near_keyword().map(|near| {
                    if written.chars().any(char::is_lowercase) && !written.chars().any(char::is_uppercase) {
                        near.to_lowercase()
                    } else {
                        near
                    }
                });
                let error = Diagnostic::error(self.keyword.span(), format!("unknown instruction {written}"));
                Err(vec![error.with_suggestion(near)])
            }
        }
    }

    fn word(&self, piece: Fragment<'_>) -> Word {
        Word { raw: piece.text().to_owned(), span: piece.span(), escape: self.escape }
    }

    fn json_word(&self, raw: String) -> Word {
        Word { raw, span: self.rest.span(), escape: self.escape }
    }

    /// An error about the arguments as a whole.
    fn error(&self, message: impl Into<String>) -> Diagnostic {
        let place = if self.rest.is_empty() { self.keyword } else { self.rest };
        Diagnostic::error(place.span(), message)
    }

    fn flag_errors(&self, known: Known) -> Vec<Diagnostic> {
        flags::check(&self.name, &self.flags, known)
    }

    fn no_argument(&self) -> Diagnostic {
        self.error(format!("{} needs at least one argument", self.name))
    }

    fn mixed(&self) -> Diagnostic {
        self.error("a JSON array here may hold strings only").with_hint("put each element into double quotes")
    }

    fn from(&self) -> Outcome {
        let mut errors = self.flag_errors(flags::FROM);
        let args = self.rest.split_blanks();
        let (image, name) = match args.as_slice() {
            [image] => (image, None),
            [image, as_, name] if as_.text().eq_ignore_ascii_case("as") => (image, Some(name)),
            _ => {
                let error = self.error(format!("FROM needs one or three arguments, and has {}", args.len()));
                errors.push(error.with_hint("write FROM image, or FROM image AS name"));
                return Err(sorted(errors));
            }
        };
        let lower = name.map(|name| name.text().to_lowercase());
        if let (Some(name), Some(lower)) = (name, &lower)
            && !is_stage_name(lower)
        {
            let error =
                Diagnostic::error(name.span(), format!("{} can't be the name of a stage", name.text()));
            errors.push(error.with_hint("begin with a letter, and use letters, digits, -, _ and . only"));
        }
        done(errors, || {
            Kind::From(From {
                platform: flags::value(&self.flags, "platform", self.escape),
                image: self.word(*image),
                name: lower,
                name_word: name.map(|name| self.word(*name)),
            })
        })
    }

    fn arg(&self) -> Outcome {
        let words = words::split(self.rest, self.escape);
        if words.is_empty() {
            return Err(vec![self.no_argument().with_hint("write ARG NAME or ARG NAME=default")]);
        }
        let mut errors = Vec::new();
        let mut declarations = Vec::new();
        for word in words {
            let (key, value) =
                words::cut(&word).map_or_else(|| (word.clone(), None), |(key, value)| (key, Some(value)));
            if key.raw.is_empty() {
                errors.push(Diagnostic::error(word.span, format!("{} has no name before its =", word.raw)));
            }
            declarations.push(ArgDeclaration { key, value });
        }
        done(errors, || Kind::Arg(declarations))
    }

    /// `key=value …`, or the old `key value`.
    fn pairs(&self, known: Known) -> Result<Vec<Pair>, Vec<Diagnostic>> {
        let mut errors = self.flag_errors(known);
        let words = words::split(self.rest, self.escape);
        let Some(first) = words.first() else {
            errors.push(self.no_argument().with_hint(format!("write {} name=value", self.name)));
            return Err(sorted(errors));
        };
        if !first.raw.contains('=') {
            let (key, value) = self.rest.split_blank();
            let Some(value) = value else {
                let error = self.error(format!("{} {} has no value", self.name, key.text()));
                errors.push(error.with_hint(format!("write {} {}=value", self.name, key.text())));
                return Err(sorted(errors));
            };
            let pair = Pair { key: self.word(key), value: self.word(value), legacy: true };
            return done(errors, || vec![pair]);
        }
        let mut pairs = Vec::new();
        for word in words {
            let Some((key, value)) = words::cut(&word) else {
                let error = Diagnostic::error(word.span, format!("{} is no name=value", word.raw));
                errors.push(error.with_hint("put values with blanks into double quotes"));
                continue;
            };
            if key.raw.is_empty() {
                errors.push(Diagnostic::error(word.span, format!("{} has no name before its =", word.raw)));
            }
            pairs.push(Pair { key, value, legacy: false });
        }
        done(errors, || pairs)
    }

    /// The shell or the JSON form.
    fn command_form(&self) -> Result<Command, Diagnostic> {
        match json::read(self.rest.text()) {
            JsonForm::Strings(list) => Ok(Command::Exec(list)),
            JsonForm::Mixed => Err(self.mixed()),
            JsonForm::No => Ok(Command::Shell(self.rest.text().to_owned())),
        }
    }

    fn command(&self) -> Result<Command, Vec<Diagnostic>> {
        let mut errors = self.flag_errors(flags::NONE);
        match self.command_form() {
            Ok(command) => done(errors, || command),
            Err(error) => {
                errors.push(error);
                Err(sorted(errors))
            }
        }
    }

    fn run(&self, heredocs: Vec<Body>) -> Outcome {
        let mut errors = self.flag_errors(flags::RUN);
        let command = self.command_form().unwrap_or_else(|error| {
            errors.push(error);
            Command::Exec(Vec::new())
        });
        let mounts: Vec<MountFlag> = flags::values(&self.flags, "mount", self.escape)
            .into_iter()
            .map(|value| MountFlag { value })
            .collect();
        errors.extend(mounts.iter().filter_map(|mount| mount.outline().err()));
        let network = self.choice(
            "network",
            &[("default", Network::Default), ("none", Network::None), ("host", Network::Host)],
            &mut errors,
        );
        let security = self.choice(
            "security",
            &[("sandbox", Security::Sandbox), ("insecure", Security::Insecure)],
            &mut errors,
        );
        done(errors, || {
            Kind::Run(Run {
                command,
                heredocs: heredocs.into_iter().map(heredoc_of).collect(),
                mounts,
                network,
                security,
                devices: flags::values(&self.flags, "device", self.escape),
            })
        })
    }

    /// A flag that takes one of a few words.
    fn choice<T: std::marker::Copy + Default>(
        &self,
        flag: &str,
        of: &[(&str, T)],
        errors: &mut Vec<Diagnostic>,
    ) -> T {
        let Some(value) = flags::written(&self.flags, flag, self.escape) else { return T::default() };
        if let Some((_, choice)) = of.iter().find(|(name, _)| *name == value.raw) {
            return *choice;
        }
        let names: Vec<&str> = of.iter().map(|(name, _)| *name).collect();
        let error = Diagnostic::error(value.span, format!("--{flag}={}: no such mode", value.raw));
        errors.push(error.with_hint(format!("write one of {}", names.join(", "))));
        T::default()
    }

    fn shell(&self) -> Outcome {
        let mut errors = self.flag_errors(flags::NONE);
        let list = match json::read(self.rest.text()) {
            JsonForm::Strings(list) if !list.is_empty() => list,
            JsonForm::Mixed => {
                errors.push(self.mixed());
                return Err(sorted(errors));
            }
            form => {
                let error = if self.rest.is_empty() || form != JsonForm::No {
                    self.no_argument()
                } else {
                    self.error("SHELL takes a JSON array")
                };
                errors.push(error.with_hint(r#"write SHELL ["/bin/sh", "-c"]"#));
                return Err(sorted(errors));
            }
        };
        done(errors, || Kind::Shell(list))
    }

    /// The words of an instruction that takes a list or a JSON array.
    fn list(&self) -> Result<Vec<Word>, Diagnostic> {
        match json::read(self.rest.text()) {
            JsonForm::Strings(list) => Ok(list.into_iter().map(|raw| self.json_word(raw)).collect()),
            JsonForm::Mixed => Err(self.mixed()),
            JsonForm::No => Ok(self.rest.split_blanks().into_iter().map(|piece| self.word(piece)).collect()),
        }
    }

    fn copy(&self, bodies: &[Body]) -> Outcome {
        let is_add = self.name == "ADD";
        let mut errors = self.flag_errors(if is_add { flags::ADD } else { flags::COPY });
        let mut words = self.list().unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        });
        let destination = words.pop();
        let Some(destination) = destination.filter(|_| !words.is_empty()) else {
            if errors.is_empty() || self.rest.split_blanks().len() < 2 {
                let error = self.error(format!("{} needs a source and a destination", self.name));
                errors.push(error.with_hint(format!("write {} source destination", self.name)));
            }
            return Err(sorted(errors));
        };
        if heredoc::marker(&destination.raw).is_ok_and(|marker| marker.is_some()) {
            let message = format!("{}: the heredoc {} can't be the destination", self.name, destination.raw);
            errors.push(
                Diagnostic::error(destination.span, message).with_hint("write the destination behind it"),
            );
        }
        let mut copy = Copy {
            from: flags::value(&self.flags, "from", self.escape),
            chown: flags::value(&self.flags, "chown", self.escape),
            chmod: flags::value(&self.flags, "chmod", self.escape),
            link: flags::switch(&self.flags, "link") == Some(true),
            parents: flags::switch(&self.flags, "parents") == Some(true),
            excludes: flags::values(&self.flags, "exclude", self.escape),
            sources: Vec::new(),
            heredocs: Vec::new(),
            destination,
        };
        for word in words {
            let Ok(Some(marker)) = heredoc::marker(&word.raw) else {
                copy.sources.push(word);
                continue;
            };
            // Of two bodies with one name the last one counts, for both.
            let body = bodies.iter().rev().find(|body| body.marker.name == marker.name);
            let (content, span) = body.map_or(("", word.span), |body| (body.content.as_str(), body.span));
            copy.heredocs.push(heredoc_of(Body { marker, content: content.to_owned(), span }));
        }
        done(errors, || {
            if is_add {
                let options = AddOptions {
                    checksum: flags::value(&self.flags, "checksum", self.escape),
                    keep_git_dir: flags::switch(&self.flags, "keep-git-dir"),
                    unpack: flags::switch(&self.flags, "unpack"),
                };
                Kind::Add(copy, options)
            } else {
                Kind::Copy(copy)
            }
        })
    }

    fn single(&self, example: &str, known: Known) -> Result<Word, Vec<Diagnostic>> {
        self.one_argument(example, self.flag_errors(known))
    }

    /// The rest of the line, which must not be empty.
    fn one_argument(&self, example: &str, mut errors: Vec<Diagnostic>) -> Result<Word, Vec<Diagnostic>> {
        if self.rest.is_empty() {
            let error = self.error(format!("{} needs exactly one argument", self.name));
            errors.push(error.with_hint(format!("write {} {example}", self.name)));
        }
        done(errors, || self.word(self.rest))
    }

    fn volume(&self) -> Outcome {
        let mut errors = self.flag_errors(flags::NONE);
        let mut paths = self.list().map_err(|error| vec![error])?;
        if paths.is_empty() {
            errors.push(self.no_argument().with_hint("write VOLUME /path"));
        }
        for path in &mut paths {
            path.raw = path.raw.trim().to_owned();
            if path.raw.is_empty() {
                errors.push(Diagnostic::error(path.span, "a path of VOLUME is empty"));
            }
        }
        done(errors, || Kind::Volume(paths))
    }

    fn expose(&self) -> Outcome {
        let mut errors = self.flag_errors(flags::NONE);
        let ports: Vec<Word> = self.rest.split_blanks().into_iter().map(|piece| self.word(piece)).collect();
        if ports.is_empty() {
            errors.push(self.no_argument().with_hint("write EXPOSE 8080, or EXPOSE 53/udp"));
        }
        done(errors, || Kind::Expose(ports))
    }

    fn healthcheck(&self) -> Outcome {
        let text = self.rest.text();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let kind = self.rest.sub(0..end);
        let arguments =
            Line { rest: self.rest.from(end).trim(), flags: Vec::new(), name: self.name.clone(), ..*self };
        let command = arguments.command_form();
        let empty = match &command {
            Ok(Command::Shell(text)) => text.is_empty(),
            Ok(Command::Exec(list)) => list.is_empty(),
            Err(_) => false,
        };
        let kind_name = kind.text().to_uppercase();
        if kind_name == "NONE" {
            // Its flags are never looked at.
            return match command {
                Err(error) => Err(vec![error]),
                Ok(_) if !empty => {
                    Err(vec![Diagnostic::error(arguments.rest.span(), "HEALTHCHECK NONE takes no arguments")])
                }
                Ok(_) => Ok(Kind::Healthcheck(Healthcheck::none())),
            };
        }
        let mut errors = self.flag_errors(flags::HEALTHCHECK);
        if text.is_empty() {
            errors.push(self.no_argument().with_hint("write HEALTHCHECK CMD command, or HEALTHCHECK NONE"));
        } else if kind_name != "CMD" {
            let error = Diagnostic::error(kind.span(), format!("HEALTHCHECK {} means nothing", kind.text()));
            errors.push(error.with_hint("write HEALTHCHECK CMD command, or HEALTHCHECK NONE"));
        } else if empty {
            errors.push(Diagnostic::error(kind.span(), "HEALTHCHECK CMD has no command"));
        }
        let command = command.map_err(|error| errors.push(error)).ok();
        let health = Healthcheck {
            command,
            interval: self.interval("interval", &mut errors),
            timeout: self.interval("timeout", &mut errors),
            start_period: self.interval("start-period", &mut errors),
            start_interval: self.interval("start-interval", &mut errors),
            retries: self.retries(&mut errors),
        };
        done(errors, || Kind::Healthcheck(health))
    }

    /// Nanoseconds of a flag; 0 where it is absent or empty.
    fn interval(&self, flag: &str, errors: &mut Vec<Diagnostic>) -> i64 {
        const LEAST: i64 = 1_000_000;
        let Some(value) = flags::value(&self.flags, flag, self.escape).filter(|value| !value.raw.is_empty())
        else {
            return 0;
        };
        match duration::parse_nanoseconds(&value.raw) {
            None => {
                let error = Diagnostic::error(value.span, format!("--{flag}={}: no duration", value.raw));
                errors.push(error.with_hint("write 30s, 1m30s, 500ms or the like"));
                0
            }
            Some(nanoseconds) if nanoseconds != 0 && nanoseconds < LEAST => {
                errors.push(Diagnostic::error(value.span, format!("--{flag}={}: less than 1ms", value.raw)));
                0
            }
            Some(nanoseconds) => nanoseconds,
        }
    }

    fn retries(&self, errors: &mut Vec<Diagnostic>) -> i64 {
        let Some(value) =
            flags::value(&self.flags, "retries", self.escape).filter(|value| !value.raw.is_empty())
        else {
            return 0;
        };
        match value.raw.parse::<i32>() {
            Ok(count) if count >= 0 => i64::from(count),
            Ok(_) => {
                errors.push(Diagnostic::error(value.span, format!("--retries={}: less than 0", value.raw)));
                0
            }
            Err(_) => {
                errors.push(Diagnostic::error(value.span, format!("--retries={}: no number", value.raw)));
                0
            }
        }
    }

    fn onbuild(&self, bodies: &[Body]) -> Outcome {
        let mut errors = self.flag_errors(flags::NONE);
        let Some(trigger) = self.trigger() else {
            errors.push(self.no_argument().with_hint("write ONBUILD and an instruction"));
            return Err(sorted(errors));
        };
        if matches!(trigger.name.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            let message = format!("{} can't be a trigger of ONBUILD", trigger.name);
            errors.push(Diagnostic::error(trigger.keyword.span(), message));
            return Err(sorted(errors));
        }
        errors.extend(trigger.form_errors());
        let behind = self.whole.from(self.whole.text().len() - self.whole.text().trim_start().len());
        let text = behind.from(self.keyword.text().len()).trim_start();
        let mut content = text.text().to_owned();
        for body in bodies {
            content.push('\n');
            content.push_str(&body.content);
            content.push_str(&body.marker.name);
        }
        done(errors, || Kind::Onbuild(Onbuild { trigger: content, span: text.span() }))
    }

    /// What is wrong with the form of a trigger's arguments. The rest shows when the trigger is used.
    fn form_errors(&self) -> Vec<Diagnostic> {
        match self.name.as_str() {
            "ENV" | "LABEL" if !self.rest.is_empty() => {
                let stripped = Line { flags: Vec::new(), name: self.name.clone(), ..*self };
                let blank = |error: &Diagnostic| error.message.ends_with("before its =");
                stripped
                    .pairs(flags::NONE)
                    .err()
                    .unwrap_or_default()
                    .into_iter()
                    .filter(|e| !blank(e))
                    .collect()
            }
            "ADD" | "CMD" | "COPY" | "ENTRYPOINT" | "RUN" | "SHELL" | "VOLUME" => {
                if json::read(self.rest.text()) == JsonForm::Mixed { vec![self.mixed()] } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }
}

impl Healthcheck {
    /// `HEALTHCHECK NONE`.
    fn none() -> Self {
        Self { command: None, interval: 0, timeout: 0, start_period: 0, start_interval: 0, retries: 0 }
    }
}

fn heredoc_of(body: Body) -> Heredoc {
    let Body { marker, content, span } = body;
    let written = content;
    let content = if marker.strip_tabs { heredoc::strip_tabs(&written) } else { written.clone() };
    Heredoc {
        name: marker.name,
        expand: marker.expand,
        strip_tabs: marker.strip_tabs,
        fd: marker.fd,
        content,
        written,
        span,
    }
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

fn done<T>(errors: Vec<Diagnostic>, value: impl FnOnce() -> T) -> Result<T, Vec<Diagnostic>> {
    if errors.is_empty() { Ok(value()) } else { Err(sorted(errors)) }
}

fn sorted(mut errors: Vec<Diagnostic>) -> Vec<Diagnostic> {
    errors.sort_by_key(|error| error.span.start);
    errors
}
