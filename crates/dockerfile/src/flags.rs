//! The `--name=value` words between a keyword and its arguments.

use crate::logical::Fragment;
use crate::source::number;
use crate::suggest::nearest;
use crate::{Diagnostic, Flag, Span, Word};

/// What a flag takes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Takes {
    /// Nothing, `true` or `false`; once.
    Switch,
    /// A value; once.
    Value,
    /// A value; as often as you like.
    Values,
}

/// The flags that an instruction knows.
pub(crate) type Known = &'static [(&'static str, Takes)];

pub(crate) const FROM: Known = &[("platform", Takes::Value)];
pub(crate) const RUN: Known = &[
    ("mount", Takes::Values),
    ("network", Takes::Value),
    ("security", Takes::Value),
    ("device", Takes::Values),
];
pub(crate) const COPY: Known = &[
    ("from", Takes::Value),
    ("chown", Takes::Value),
    ("chmod", Takes::Value),
    ("link", Takes::Switch),
    ("parents", Takes::Switch),
    ("exclude", Takes::Values),
];
pub(crate) const ADD: Known = &[
    ("chown", Takes::Value),
    ("chmod", Takes::Value),
    ("link", Takes::Switch),
    ("exclude", Takes::Values),
    ("keep-git-dir", Takes::Switch),
    ("checksum", Takes::Value),
    ("unpack", Takes::Switch),
];
pub(crate) const HEALTHCHECK: Known = &[
    ("interval", Takes::Value),
    ("timeout", Takes::Value),
    ("start-period", Takes::Value),
    ("start-interval", Takes::Value),
    ("retries", Takes::Value),
];
pub(crate) const NONE: Known = &[];

/// Takes the flags off the start of `rest`. A lone `--` ends them.
///
/// Quotes and escapes are removed; blanks inside quotes or behind an escape don't end a flag.
pub(crate) fn extract(rest: Fragment<'_>, escape: char) -> (Vec<Flag>, Fragment<'_>) {
    let mut flags = Vec::new();
    let mut rest = rest.trim_start();
    while rest.text().starts_with("--") {
        let (word, length) = one(rest.text(), escape);
        let span = rest.sub(0..length).span();
        rest = rest.from(length).trim_start();
        let Some(word) = word.strip_prefix("--").filter(|word| !word.is_empty()) else { break };
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        flags.push(Flag { name: name.to_owned(), value, span });
    }
    (flags, rest)
}

/// The first word of `text` without quotes and escapes, and how many bytes it took.
fn one(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            return (word, at);
        }
        if c == escape {
            word.extend(chars.next().map(|(_, escaped)| escaped));
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        } else {
            word.push(c);
        }
    }
    (word, text.len())
}

/// Everything that is wrong with `flags`.
pub(crate) fn check(keyword: &str, flags: &[Flag], known: Known) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    for (at, flag) in flags.iter().enumerate() {
        let name = &flag.name;
        let fail = |message: String| Diagnostic::error(flag.span, message);
        let Some((_, takes)) = known.iter().find(|(known, _)| known == name) else {
            let near = nearest(name, known.iter().map(|(name, _)| *name)).map(|near| format!("--{near}"));
            let error = fail(format!("{keyword} has no flag --{name}"));
            errors.push(match near {
                None if known.is_empty() => error.with_hint(format!("{keyword} takes no flags")),
                None => {
                    let names: Vec<String> = known.iter().map(|(name, _)| format!("--{name}")).collect();
                    error.with_hint(format!("it has {}", names.join(", ")))
                }
                near => error.with_suggestion(near),
            });
            continue;
        };
        if *takes != Takes::Values && flags[..at].iter().any(|earlier| earlier.name == *name) {
            errors.push(fail(format!("--{name} is given twice")).with_hint("keep one of them"));
        }
        match (takes, flag.value.as_deref()) {
            (Takes::Switch, Some("")) => {
                errors.push(
                    fail(format!("--{name}= has no value"))
                        .with_hint(format!("write --{name} or --{name}=false")),
                );
            }
            (Takes::Switch, Some(value)) if truth(value).is_none() => {
                errors.push(fail(format!("--{name}={value}: neither true nor false")));
            }
            (Takes::Value | Takes::Values, None) => {
                errors
                    .push(fail(format!("--{name} has no value")).with_hint(format!("write --{name}=VALUE")));
            }
            _ => {}
        }
    }
    errors
}

fn truth(value: &str) -> Option<bool> {
    match value.to_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// A switch's state, `None` where it is not given.
pub(crate) fn switch(flags: &[Flag], name: &str) -> Option<bool> {
    let flag = flags.iter().find(|flag| flag.name == name)?;
    Some(flag.value.as_deref().is_none_or(|value| truth(value) == Some(true)))
}

/// A flag's value as a word. An empty one is as good as no flag.
pub(crate) fn value(flags: &[Flag], name: &str, escape: char) -> Option<Word> {
    written(flags, name, escape).filter(|word| !word.raw.is_empty())
}

/// A flag's value as a word, an empty one too: that of a flag that has no empty value.
pub(crate) fn written(flags: &[Flag], name: &str, escape: char) -> Option<Word> {
    values(flags, name, escape).into_iter().next()
}

/// The values of a flag that may come more than once.
pub(crate) fn values(flags: &[Flag], name: &str, escape: char) -> Vec<Word> {
    let named = flags.iter().filter(|flag| flag.name == name);
    named.filter_map(|flag| Some(word(flag, flag.value.as_deref()?, escape))).collect()
}

/// A flag's value with its place: behind the `=` if the flag has neither quotes nor escapes.
fn word(flag: &Flag, value: &str, escape: char) -> Word {
    let head = number("--=".len() + flag.name.len());
    let plain = flag.span.end - flag.span.start == head + number(value.len());
    let span = if plain { Span { start: flag.span.start + head, ..flag.span } } else { flag.span };
    Word { raw: value.to_owned(), span, escape }
}
