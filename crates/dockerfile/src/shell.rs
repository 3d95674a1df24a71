//! What quotes, escapes and variables in a word mean: the lexer below [`crate::Word`] and the heredoc markers.
//!
//! It goes through the text once and gives both the whole result and the words that the result falls into. The rules are
//! those of BuildKit's lexer, which is near to a POSIX shell and differs in places; where it differs, BuildKit's way is kept.

use std::collections::BTreeSet;

use crate::Scope;
use crate::glob::{self, Greed};

/// Beyond this many `${a:-${b:-…` inside each other a word is refused.
const DEEPEST: usize = 128;

/// How a text is read.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// The escape character.
    pub(crate) escape: char,
    /// Quotes stay in the result.
    pub(crate) keep_quotes: bool,
    /// Escape characters stay in the result.
    pub(crate) keep_escapes: bool,
    /// Quotes are ordinary characters.
    pub(crate) ignore_quotes: bool,
    /// Variables that are not set stay as they are written.
    pub(crate) keep_unset: bool,
    /// Variables are ordinary text.
    pub(crate) ignore_variables: bool,
}

impl Rules {
    /// Quotes and escapes go, variables are expanded.
    pub(crate) fn new(escape: char) -> Self {
        Self {
            escape,
            keep_quotes: false,
            keep_escapes: false,
            ignore_quotes: false,
            keep_unset: false,
            ignore_variables: false,
        }
    }
}

/// What a text came to.
pub(crate) struct Reading {
    /// The result.
    pub(crate) text: String,
    /// The result split at blanks that are neither quoted nor escaped.
    pub(crate) words: Vec<String>,
    /// The variables that were set.
    pub(crate) set: BTreeSet<String>,
    /// The variables that were not, in the order met, each once.
    pub(crate) unset: Vec<String>,
    /// Those of them that had no default.
    pub(crate) undefined: Vec<String>,
}

/// Reads `text`, or says what is wrong with it.
pub(crate) fn read(text: &str, rules: Rules, scope: &dyn Scope) -> Result<Reading, String> {
    let mut lexer = Lexer {
        // A byte order mark counts for nothing, wherever a word begins.
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        rules,
        scope,
        word: String::new(),
        depth: 0,
        reading: Reading {
            text: String::new(),
            words: Vec::new(),
            set: BTreeSet::new(),
            unset: Vec::new(),
            undefined: Vec::new(),
        },
    };
    let (text, words) = lexer.run(None, rules.keep_escapes)?;
    Ok(Reading { text, words, ..lexer.reading })
}

struct Lexer<'a> {
    rest: &'a str,
    rules: Rules,
    scope: &'a dyn Scope,
    /// The word being gathered. All levels share it, and each empties it when it starts: what stands before
    /// `${x:-…}` in a word is lost to the word list. So does BuildKit, and EXPOSE shows it.
    word: String,
    depth: usize,
    reading: Reading,
}

/// The word list that one level gathers.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    inside: bool,
}

impl Words {
    fn add(&mut self, word: &mut String, c: char) {
        if !c.is_whitespace() {
            self.add_raw(word, c);
        } else if self.inside && !word.is_empty() {
            self.done.push(std::mem::take(word));
            self.inside = false;
        }
    }

    fn add_raw(&mut self, word: &mut String, c: char) {
        word.push(c);
        self.inside = true;
    }

    fn finish(mut self, word: &mut String) -> Vec<String> {
        if !word.is_empty() {
            self.done.push(std::mem::take(word));
        }
        self.done
    }
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next();
        self.rest = chars.as_str();
        c
    }

    /// Reads up to `stop`, which is taken too, or to the end.
    fn run(&mut self, stop: Option<char>, keep_escapes: bool) -> Result<(String, Vec<String>), String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("more than {DEEPEST} substitutions inside each other"));
        }
        let outer = std::mem::replace(&mut self.rules.keep_escapes, keep_escapes);
        let result = self.run_inside(stop);
        self.rules.keep_escapes = outer;
        self.depth -= 1;
        result
    }

    fn run_inside(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), String> {
        self.word.clear();
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.next();
                return Ok((text, words.finish(&mut self.word)));
            }
            match c {
                '$' if !self.rules.ignore_variables => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.add(&mut self.word, c));
                    text.push_str(&value);
                }
                '\'' | '"' if !self.rules.ignore_quotes => {
                    let quoted = if c == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    self.word.push_str(&quoted);
                    words.inside = true;
                    text.push_str(&quoted);
                }
                '<' => {
                    let marker = self.heredoc_marker();
                    self.word.push_str(&marker);
                    words.inside = true;
                    text.push_str(&marker);
                }
                _ if c == self.rules.escape => {
                    self.next();
                    if self.rules.keep_escapes {
                        words.add_raw(&mut self.word, c);
                        text.push(c);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.add_raw(&mut self.word, escaped);
                    text.push(escaped);
                }
                _ => {
                    self.next();
                    words.add(&mut self.word, c);
                    text.push(c);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("{stop} is missing")),
            None => Ok((text, words.finish(&mut self.word))),
        }
    }

    /// Nothing can be escaped in single quotes.
    fn single_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let open = self.next();
        text.extend(open.filter(|_| self.rules.keep_quotes));
        loop {
            match self.next() {
                None => return Err("a single quote is not closed".to_owned()),
                Some('\'') => {
                    text.extend(Some('\'').filter(|_| self.rules.keep_quotes));
                    return Ok(text);
                }
                Some(c) => text.push(c),
            }
        }
    }

    /// Only `"`, `$` and the escape character can be escaped in double quotes; before anything else an escape stays.
    fn double_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let open = self.next();
        text.extend(open.filter(|_| self.rules.keep_quotes));
        loop {
            match self.peek() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => {
                    self.next();
                    text.extend(Some('"').filter(|_| self.rules.keep_quotes));
                    return Ok(text);
                }
                Some('$') if !self.rules.ignore_variables => text.push_str(&self.dollar()?),
                Some(mut c) => {
                    self.next();
                    if c == self.rules.escape {
                        if self.rules.keep_escapes {
                            text.push(c);
                        }
                        match self.peek() {
                            None => continue,
                            Some(escaped) if escaped == '"' || escaped == '$' || escaped == c => {
                                self.next();
                                c = escaped;
                            }
                            Some(_) => {}
                        }
                    }
                    text.push(c);
                }
            }
        }
    }

    /// `<` or `<<` with the blanks behind it, which belong to a heredoc's word.
    fn heredoc_marker(&mut self) -> String {
        let mut marker = String::from("<");
        self.next();
        if self.peek() == Some('<') {
            self.next();
            marker.push('<');
            while let Some(c @ ('\t' | '\r' | ' ')) = self.peek() {
                self.next();
                marker.push(c);
            }
        }
        marker
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.plain(&name, |name| format!("${name}")));
        }
        self.next();
        match self.peek() {
            None => return Err("} is missing".to_owned()),
            Some('{' | '}' | ':') => return Err("${ needs a name behind it".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            None => Err("} is missing".to_owned()),
            Some('}') => Ok(self.plain(&name, |name| format!("${{{name}}}"))),
            Some('/') => self.replacement(&name),
            Some(':') => match self.next() {
                None => Err("} is missing".to_owned()),
                Some(operator) => self.operation(&name, operator, true),
            },
            Some(operator) => self.operation(&name, operator, false),
        }
    }

    fn plain(&mut self, name: &str, as_written: impl Fn(&str) -> String) -> String {
        match self.look_up(name, false) {
            Some(value) => value,
            None if self.rules.keep_unset => as_written(name),
            None => String::new(),
        }
    }

    /// `${name-word}` and its kin, from behind the operator. With a colon an empty value counts as none.
    fn operation(&mut self, name: &str, operator: char, colon: bool) -> Result<String, String> {
        let sign = if colon { format!(":{operator}") } else { operator.to_string() };
        let trims = matches!(operator, '#' | '%');
        if !matches!(operator, '+' | '-' | '?' | '#' | '%') || (colon && trims) {
            return Err(format!("${{{name}{sign}…}} is no substitution that a Dockerfile knows"));
        }
        let word = self.operand('}', trims)?;
        let value = self.look_up(name, !trims);
        let Some(value) = value else {
            if self.rules.keep_unset {
                return Ok(format!("${{{name}{sign}{word}}}"));
            }
            return match operator {
                '-' => Ok(word),
                '?' if word.is_empty() => Err(format!("{name}: has to be set")),
                '?' => Err(format!("{name}: {word}")),
                '+' => Ok(String::new()),
                _ => trim(operator, &word, ""),
            };
        };
        let counts = !(colon && value.is_empty());
        match operator {
            '-' => Ok(if counts { value } else { word }),
            '+' => Ok(if counts { word } else { String::new() }),
            '?' if counts => Ok(value),
            '?' if word.is_empty() => Err(format!("{name}: must not be empty")),
            '?' => Err(format!("{name}: {word}")),
            _ => trim(operator, &word, &value),
        }
    }

    /// `${name/pattern/replacement}`, from behind the first slash.
    fn replacement(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.operand('/', true)?;
        let by = self.operand('}', true)?;
        match self.look_up(name, false) {
            None if self.rules.keep_unset => Ok(format!("${{{name}/{pattern}/{by}}}")),
            value => glob::replace(&pattern, &value.unwrap_or_default(), &by, all)
                .map_err(|escape| bad_escape(&escape)),
        }
    }

    fn operand(&mut self, stop: char, keep_escapes: bool) -> Result<String, String> {
        Ok(self.run(Some(stop), keep_escapes)?.0)
    }

    /// Letters, digits and `_`; or only digits; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let Some(first) = self.peek() else { return name };
        if is_digit(first) {
            while let Some(c) = self.peek().filter(|c| is_digit(*c)) {
                self.next();
                name.push(c);
            }
        } else if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            self.next();
            name.push(first);
        } else {
            while let Some(c) = self.peek().filter(|c| c.is_alphabetic() || is_digit(*c) || *c == '_') {
                self.next();
                name.push(c);
            }
        }
        name
    }

    fn look_up(&mut self, name: &str, has_default: bool) -> Option<String> {
        if let Some(value) = self.scope.get(name) {
            self.reading.set.insert(name.to_owned());
            return Some(value.to_owned());
        }
        let note = |list: &mut Vec<String>| {
            if !list.iter().any(|known| known == name) {
                list.push(name.to_owned());
            }
        };
        note(&mut self.reading.unset);
        if !has_default {
            note(&mut self.reading.undefined);
        }
        None
    }
}

fn is_digit(c: char) -> bool {
    c.is_numeric() && !c.is_alphabetic()
}

fn trim(operator: char, word: &str, value: &str) -> Result<String, String> {
    let (word, greed) = match word.strip_prefix(operator) {
        Some(word) => (word, Greed::Longest),
        None => (word, Greed::Shortest),
    };
    let result = if operator == '%' {
        glob::trim_end(word, value, greed)
    } else {
        glob::trim_start(word, value, greed)
    };
    result.map_err(|escape| bad_escape(&escape))
}

fn bad_escape(escape: &str) -> String {
    format!("{escape} means nothing in a pattern; only *, ? and \\ can be escaped there")
}
