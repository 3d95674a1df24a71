//! From logical lines to instructions. Every error of the file is found, in its order.

use crate::json_form::{self, Form};
use crate::logical::{self, Logical};
use crate::split::{Piece, flags, heredoc, plain_words, quoted_words};
use crate::{
    AddOptions, ArgDeclaration, Command, Copy, Diagnostic, Dockerfile, Flag, From, Healthcheck, Heredoc,
    Instruction, Kind, MountFlag, Network, Onbuild, Pair, Run, Scope, Security, Source, Span, Word,
};

const KEYWORDS: [&str; 18] = [
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

/// Parses a Dockerfile.
///
/// Fails with every error of the file, in its order.
pub fn parse(source: &Source) -> Result<Dockerfile, Vec<Diagnostic>> {
    let file = logical::split(source);
    let mut errors = file.errors;
    let mut instructions = Vec::new();
    let mut in_stage = false;
    for line in &file.lines {
        match instruction(line, file.escape) {
            Ok(instruction) => {
                let keyword = instruction.kind.keyword();
                in_stage |= keyword == "FROM";
                if !in_stage && keyword != "ARG" {
                    let message =
                        format!("no build stage in current context: {keyword} before the first FROM");
                    errors.push(
                        Diagnostic::error(instruction.span, message).with_hint("begin with FROM image"),
                    );
                }
                instructions.push(instruction);
            }
            Err(error) => {
                in_stage |= line.text.trim_start().to_ascii_uppercase().starts_with("FROM");
                errors.push(error);
            }
        }
    }
    if file.lines.is_empty() {
        errors.push(Diagnostic::error(Span::default(), "file with no instructions"));
    }
    if errors.is_empty() {
        let (escape, directives, warnings) = (file.escape, file.directives, file.warnings);
        return Ok(Dockerfile { escape, directives, instructions, warnings });
    }
    errors.sort_by_key(|error| error.span.start);
    Err(errors)
}

/// Parses an ONBUILD trigger as an image config holds it. Spans are of `text`.
pub fn parse_trigger(text: &str) -> Result<Instruction, Vec<Diagnostic>> {
    let source = Source::new("ONBUILD", text);
    let file = logical::split(&source);
    if !file.errors.is_empty() {
        return Err(file.errors);
    }
    match file.lines.as_slice() {
        [line] => instruction(line, file.escape).map_err(|error| vec![error]),
        _ => Err(vec![Diagnostic::error(Span::default(), "a trigger is exactly one instruction")]),
    }
}

/// One line in the making.
struct Line<'a> {
    logical: &'a Logical,
    keyword: &'static str,
    escape: char,
    flags: Vec<Flag>,
    /// Where the arguments begin in the text, after keyword and flags.
    at: usize,
}

fn instruction(logical: &Logical, escape: char) -> Result<Instruction, Diagnostic> {
    let text = logical.text.trim_end();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let keyword_span = logical.span_of(0, end);
    let upper = text[..end].to_ascii_uppercase();
    let Some(keyword) = KEYWORDS.iter().find(|keyword| **keyword == upper).copied() else {
        let error = Diagnostic::error(keyword_span, format!("unknown instruction: {}", &text[..end]));
        return Err(match nearest(&upper, KEYWORDS.iter().copied()) {
            Some(near) => error.with_hint(format!("did you mean {near}?")),
            None => error,
        });
    };
    let (pieces, at) = flags(text, end);
    let flags = pieces
        .into_iter()
        .map(|piece| {
            let (name, value) = match piece.text[2..].split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (piece.text[2..].to_owned(), None),
            };
            Flag { name, value, span: logical.span_of(piece.start, piece.end) }
        })
        .collect();
    let line = Line { logical, keyword, escape, flags, at };
    line.check_flags()?;
    let kind = line.kind()?;
    Ok(Instruction {
        keyword: text[..end].to_owned(),
        keyword_span,
        span: logical.span,
        lines: logical.lines,
        flags: line.flags,
        text: text.to_owned(),
        kind,
    })
}

/// What a flag takes.
#[derive(Clone, Copy, PartialEq)]
enum Takes {
    Text,
    Many,
    Boolean,
}

fn known_flags(keyword: &str) -> &'static [(&'static str, Takes)] {
    use Takes::{Boolean, Many, Text};
    match keyword {
        "FROM" => &[("platform", Text)],
        "COPY" => &[
            ("chown", Text),
            ("from", Text),
            ("chmod", Text),
            ("link", Boolean),
            ("parents", Boolean),
            ("exclude", Many),
        ],
        "ADD" => &[
            ("chown", Text),
            ("chmod", Text),
            ("link", Boolean),
            ("keep-git-dir", Boolean),
            ("checksum", Text),
            ("unpack", Boolean),
            ("exclude", Many),
        ],
        "RUN" => &[("mount", Many), ("network", Text), ("security", Text), ("device", Many)],
        "HEALTHCHECK" => &[
            ("interval", Text),
            ("timeout", Text),
            ("start-period", Text),
            ("start-interval", Text),
            ("retries", Text),
        ],
        _ => &[],
    }
}

impl Line<'_> {
    fn text(&self) -> &str {
        self.logical.text.trim_end()
    }

    fn rest(&self) -> &str {
        &self.text()[self.at.min(self.text().len())..]
    }

    fn span(&self, piece: &Piece) -> Span {
        self.logical.span_of(piece.start, piece.end)
    }

    fn word(&self, piece: &Piece) -> Word {
        Word::new(piece.text.clone(), self.span(piece), self.escape)
    }

    fn fail(&self, message: impl std::fmt::Display) -> Diagnostic {
        Diagnostic::error(self.logical.span, format!("{} {message}", self.keyword))
    }

    fn check_flags(&self) -> Result<(), Diagnostic> {
        let known = known_flags(self.keyword);
        for (place, flag) in self.flags.iter().enumerate() {
            let Some((_, takes)) = known.iter().find(|(name, _)| *name == flag.name) else {
                let error =
                    Diagnostic::error(flag.span, format!("{}: unknown flag: --{}", self.keyword, flag.name));
                return Err(match nearest(&flag.name, known.iter().map(|(name, _)| *name)) {
                    Some(near) => error.with_hint(format!("did you mean --{near}?")),
                    None => error,
                });
            };
            let repeated = self.flags[..place].iter().any(|other| other.name == flag.name);
            if repeated && *takes != Takes::Many {
                return Err(Diagnostic::error(
                    flag.span,
                    format!("duplicate flag specified: --{}", flag.name),
                ));
            }
            let message = match (takes, flag.value.as_deref()) {
                (Takes::Boolean, None | Some("true" | "false")) | (Takes::Text | Takes::Many, Some(_)) => {
                    continue;
                }
                (Takes::Boolean, Some(value)) => {
                    format!("expecting boolean value for flag --{}, not: {value}", flag.name)
                }
                (_, None) => format!("missing a value on flag: --{}", flag.name),
            };
            return Err(Diagnostic::error(flag.span, message));
        }
        Ok(())
    }

    fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().find(|flag| flag.name == name)
    }

    fn flag_word(&self, name: &str) -> Option<Word> {
        let flag = self.flag(name)?;
        Some(Word::new(flag.value.clone()?, flag.span, self.escape))
    }

    fn switch(&self, name: &str) -> Option<bool> {
        self.flag(name).map(|flag| flag.value.as_deref() != Some("false"))
    }

    fn flag_words(&self, name: &str) -> Vec<Word> {
        let values = self.flags.iter().filter(|flag| flag.name == name);
        values.filter_map(|flag| Some(Word::new(flag.value.clone()?, flag.span, self.escape))).collect()
    }

    fn kind(&self) -> Result<Kind, Diagnostic> {
        Ok(match self.keyword {
            "FROM" => Kind::From(self.from()?),
            "ARG" => Kind::Arg(self.args()?),
            "ENV" => Kind::Env(self.pairs()?),
            "LABEL" => Kind::Label(self.pairs()?),
            "RUN" => Kind::Run(self.run()?),
            "CMD" => Kind::Cmd(self.command(self.at)?),
            "ENTRYPOINT" => Kind::Entrypoint(self.command(self.at)?),
            "SHELL" => Kind::Shell(self.shell()?),
            "COPY" => Kind::Copy(self.copy()?),
            "ADD" => Kind::Add(self.copy()?, self.add_options()),
            "WORKDIR" => Kind::Workdir(self.one_word()?),
            "USER" => Kind::User(self.one_word()?),
            "STOPSIGNAL" => Kind::Stopsignal(self.one_word()?),
            "VOLUME" => Kind::Volume(self.volume()?),
            "EXPOSE" => {
                let words = plain_words(self.text(), self.at);
                if words.is_empty() {
                    return Err(self.fail("requires at least one argument"));
                }
                Kind::Expose(words.iter().map(|piece| self.word(piece)).collect())
            }
            "HEALTHCHECK" => Kind::Healthcheck(self.healthcheck()?),
            "ONBUILD" => Kind::Onbuild(self.onbuild()?),
            _ => {
                if self.rest().is_empty() {
                    return Err(self.fail("requires exactly one argument"));
                }
                Kind::Maintainer(self.rest().to_owned())
            }
        })
    }

    fn from(&self) -> Result<From, Diagnostic> {
        let words = plain_words(self.text(), self.at);
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, word, name] if word.text.eq_ignore_ascii_case("as") => (image, Some(name)),
            _ => {
                return Err(self
                    .fail("requires either one or three arguments")
                    .with_hint("write FROM image [AS name]"));
            }
        };
        if let Some(name) = name {
            let lower = name.text.to_ascii_lowercase();
            let good = lower.starts_with(|c: char| c.is_ascii_lowercase())
                && lower.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
            if !good {
                let message = format!("invalid name for build stage: {:?}", name.text);
                return Err(Diagnostic::error(self.span(name), message)
                    .with_hint("a name begins with a letter and holds letters, digits, -, _ and ."));
            }
        }
        Ok(From {
            platform: self.flag_word("platform"),
            image: self.word(image),
            name: name.map(|name| name.text.to_ascii_lowercase()),
            name_word: name.map(|name| self.word(name)),
        })
    }

    fn args(&self) -> Result<Vec<ArgDeclaration>, Diagnostic> {
        let words = quoted_words(self.text(), self.at, self.escape);
        if words.is_empty() {
            return Err(self.fail("requires at least one argument"));
        }
        words
            .iter()
            .map(|piece| match piece.text.split_once('=') {
                Some(("", _)) => Err(self.fail("names can not be blank")),
                Some((key, value)) => {
                    let (key, value) = self.halves(piece, key, value);
                    Ok(ArgDeclaration { key, value: Some(value) })
                }
                None => Ok(ArgDeclaration { key: self.word(piece), value: None }),
            })
            .collect()
    }

    fn halves(&self, piece: &Piece, key: &str, value: &str) -> (Word, Word) {
        let middle = (piece.start + key.len()).min(piece.end);
        (
            Word::new(key, self.logical.span_of(piece.start, middle), self.escape),
            Word::new(value, self.logical.span_of((middle + 1).min(piece.end), piece.end), self.escape),
        )
    }

    fn pairs(&self) -> Result<Vec<Pair>, Diagnostic> {
        let words = quoted_words(self.text(), self.at, self.escape);
        let Some(first) = words.first() else { return Err(self.fail("requires at least one argument")) };
        if !first.text.contains('=') {
            let key = plain_words(self.text(), self.at).swap_remove(0);
            let rest = &self.text()[key.end..];
            let start = key.end + rest.len() - rest.trim_start().len();
            if start >= self.text().len() {
                return Err(self.fail("must have two arguments").with_hint("write name=value"));
            }
            let value = Piece { text: self.text()[start..].to_owned(), start, end: self.text().len() };
            return Ok(vec![Pair { key: self.word(&key), value: self.word(&value), legacy: true }]);
        }
        words
            .iter()
            .map(|piece| match piece.text.split_once('=') {
                Some(("", _)) => Err(self.fail("names can not be blank")),
                Some((key, value)) => {
                    let (key, value) = self.halves(piece, key, value);
                    Ok(Pair { key, value, legacy: false })
                }
                None => {
                    let message =
                        format!("can't find = in {:?}: it must be of the form name=value", piece.text);
                    Err(Diagnostic::error(self.span(piece), format!("{}: {message}", self.keyword)))
                }
            })
            .collect()
    }

    fn command(&self, at: usize) -> Result<Command, Diagnostic> {
        let text = &self.text()[at.min(self.text().len())..];
        match json_form::read(text) {
            Ok(Form::Exec(words)) => Ok(Command::Exec(words)),
            Ok(Form::Shell) => Ok(Command::Shell(text.to_owned())),
            Err(why) => Err(self.fail(why)),
        }
    }

    fn shell(&self) -> Result<Vec<String>, Diagnostic> {
        match self.command(self.at)? {
            Command::Exec(words) if !words.is_empty() => Ok(words),
            Command::Shell(text) if !text.is_empty() => Err(self
                .fail("requires the arguments to be in JSON form")
                .with_hint("write SHELL [\"/bin/bash\", \"-c\"]")),
            _ => Err(self.fail("requires at least one argument")),
        }
    }

    fn run(&self) -> Result<Run, Diagnostic> {
        let command = self.command(self.at)?;
        let mounts: Vec<MountFlag> =
            self.flag_words("mount").into_iter().map(|value| MountFlag { value }).collect();
        for mount in &mounts {
            if !mount.value.raw.contains('$') {
                mount.resolve(&NoVariables)?;
            }
        }
        let mode = |name: &str, choices: &[&str]| -> Result<usize, Diagnostic> {
            let Some(flag) = self.flag(name) else { return Ok(0) };
            let value = flag.value.as_deref().unwrap_or_default().to_ascii_lowercase();
            choices.iter().position(|choice| *choice == value).ok_or_else(|| {
                let message = format!("{name} mode {value:?} is not supported");
                Diagnostic::error(flag.span, message)
                    .with_hint(format!("it is one of {}", choices.join(", ")))
            })
        };
        let network =
            [Network::Default, Network::None, Network::Host][mode("network", &["default", "none", "host"])?];
        let security = [Security::Sandbox, Security::Insecure][mode("security", &["sandbox", "insecure"])?];
        let heredocs =
            if matches!(command, Command::Shell(_)) { self.logical.heredocs.clone() } else { Vec::new() };
        Ok(Run { command, heredocs, mounts, network, security, devices: self.flag_words("device") })
    }

    fn copy(&self) -> Result<Copy, Diagnostic> {
        let mut words = match self.command(self.at)? {
            Command::Exec(list) => {
                let (start, end) = (self.at, self.text().len());
                list.into_iter().map(|text| Piece { text, start, end }).collect()
            }
            Command::Shell(_) => plain_words(self.text(), self.at),
        };
        let destination = words.pop().ok_or_else(|| self.fail("requires at least two arguments"))?;
        if words.is_empty() {
            let message = "requires at least two arguments, but only one was provided";
            return Err(self.fail(message).with_hint("write the sources first, then the destination"));
        }
        let is_heredoc = |piece: &Piece| heredoc(&piece.text).ok().flatten();
        if is_heredoc(&destination).is_some() {
            return Err(self.fail("cannot accept a heredoc as a destination"));
        }
        let mut sources = Vec::new();
        let mut heredocs: Vec<Heredoc> = Vec::new();
        for piece in &words {
            match is_heredoc(piece) {
                Some(found) => {
                    let body = self.logical.heredocs.iter().rev().find(|body| body.name == found.name);
                    heredocs.extend(body.cloned());
                }
                None => sources.push(self.word(piece)),
            }
        }
        Ok(Copy {
            from: self.flag_word("from"),
            chown: self.flag_word("chown"),
            chmod: self.flag_word("chmod"),
            link: self.switch("link").unwrap_or(false),
            parents: self.switch("parents").unwrap_or(false),
            excludes: self.flag_words("exclude"),
            sources,
            heredocs,
            destination: self.word(&destination),
        })
    }

    fn add_options(&self) -> AddOptions {
        AddOptions {
            checksum: self.flag_word("checksum"),
            keep_git_dir: self.switch("keep-git-dir").unwrap_or(false),
            unpack: self.switch("unpack"),
        }
    }

    fn one_word(&self) -> Result<Word, Diagnostic> {
        let rest = self.rest();
        if rest.is_empty() {
            return Err(self.fail("requires exactly one argument"));
        }
        let span = self.logical.span_of(self.at, self.at + rest.len());
        Ok(Word::new(rest, span, self.escape))
    }

    fn volume(&self) -> Result<Vec<Word>, Diagnostic> {
        let words: Vec<Word> = match self.command(self.at)? {
            Command::Exec(list) => {
                let span = self.logical.span_of(self.at, self.text().len());
                list.into_iter().map(|text| Word::new(text.trim(), span, self.escape)).collect()
            }
            Command::Shell(_) => {
                plain_words(self.text(), self.at).iter().map(|piece| self.word(piece)).collect()
            }
        };
        if words.is_empty() {
            return Err(self.fail("requires at least one argument"));
        }
        if words.iter().any(|word| word.raw.is_empty()) {
            return Err(self.fail("specified can not be an empty string"));
        }
        Ok(words)
    }

    fn healthcheck(&self) -> Result<Healthcheck, Diagnostic> {
        let words = plain_words(self.text(), self.at);
        let Some(first) = words.first() else { return Err(self.fail("requires at least one argument")) };
        let mut check = Healthcheck {
            command: None,
            interval: 0,
            timeout: 0,
            start_period: 0,
            start_interval: 0,
            retries: 0,
        };
        match first.text.to_ascii_uppercase().as_str() {
            "NONE" if words.len() > 1 => return Err(self.fail("NONE takes no arguments")),
            "NONE" => return Ok(check),
            "CMD" => {}
            other => {
                return Err(self.fail(format!("has no kind {other:?}")).with_hint("try HEALTHCHECK CMD"));
            }
        }
        let after = &self.text()[first.end..];
        match self.command(first.end + after.len() - after.trim_start().len())? {
            Command::Shell(text) if text.is_empty() => return Err(self.fail("CMD: the command is missing")),
            Command::Exec(words) if words.is_empty() => return Err(self.fail("CMD: the command is missing")),
            command => check.command = Some(command),
        }
        check.interval = self.duration("interval")?;
        check.timeout = self.duration("timeout")?;
        check.start_period = self.duration("start-period")?;
        check.start_interval = self.duration("start-interval")?;
        if let Some(flag) = self.flag("retries") {
            let value = flag.value.as_deref().unwrap_or_default();
            if !value.is_empty() {
                let number = value.parse::<i32>().ok().filter(|number| *number >= 0);
                check.retries = number
                    .ok_or_else(|| {
                        Diagnostic::error(flag.span, format!("--retries={value}: a number from 0"))
                    })?
                    .into();
            }
        }
        Ok(check)
    }

    fn duration(&self, name: &str) -> Result<i64, Diagnostic> {
        let Some(flag) = self.flag(name) else { return Ok(0) };
        let value = flag.value.as_deref().unwrap_or_default();
        if value.is_empty() {
            return Ok(0);
        }
        let nanos = nanoseconds(value).ok_or_else(|| {
            Diagnostic::error(flag.span, format!("--{name}={value}: not a duration"))
                .with_hint("write 30s, 1m30s or 500ms")
        })?;
        if nanos != 0 && nanos < 1_000_000 {
            return Err(Diagnostic::error(flag.span, format!("--{name} cannot be less than 1ms")));
        }
        Ok(nanos)
    }

    fn onbuild(&self) -> Result<Onbuild, Diagnostic> {
        let rest = self.rest();
        if rest.is_empty() {
            return Err(self.fail("requires at least one argument"));
        }
        let nested = self.logical.nested(self.at);
        let inner = instruction(&nested, self.escape)?;
        match inner.kind.keyword() {
            "ONBUILD" => return Err(self.fail("ONBUILD isn't allowed: triggers don't chain")),
            keyword @ ("FROM" | "MAINTAINER") => {
                return Err(self.fail(format!("{keyword} isn't allowed as an ONBUILD trigger")));
            }
            _ => {}
        }
        let mut trigger = rest.to_owned();
        for heredoc in &self.logical.heredocs {
            trigger.push('\n');
            trigger.push_str(&heredoc.content);
            trigger.push_str(&heredoc.name);
        }
        Ok(Onbuild { trigger, span: self.logical.span_of(self.at, self.at + rest.len()) })
    }
}

struct NoVariables;

impl Scope for NoVariables {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Go's durations: `1h2m3.5s`, an optional sign before them.
fn nanoseconds(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = &rest[..digits];
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |n| n + digits);
        let unit: i128 = match &rest[digits..unit_end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 18 {
            return None;
        }
        total += whole.parse::<i128>().unwrap_or(0) * unit;
        if !fraction.is_empty() {
            total += fraction.parse::<i128>().ok()? * unit / 10i128.pow(u32::try_from(fraction.len()).ok()?);
        }
        rest = &rest[unit_end..];
    }
    i64::try_from(total * sign).ok()
}

/// The nearest of `names`, if it is near enough to be a slip of the fingers.
pub fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|name| (distance(word, name), name))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, name)| name)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
