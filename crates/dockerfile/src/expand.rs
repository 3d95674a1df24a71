//! Word expansion: quotes, escapes, and variables with all their operators, as BuildKit's shell lexer has them.

use std::collections::BTreeSet;

use crate::glob::ShellPattern;
use crate::{Diagnostic, Span, Word};

/// Where variables are looked up.
pub trait Scope {
    /// The value of a variable, if it is set.
    fn get(&self, name: &str) -> Option<&str>;

    /// The names of all variables, for suggestions.
    fn names(&self) -> Vec<String>;
}

/// What a word became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text.
    pub text: String,
    /// The variables that were not set.
    pub undefined: Vec<String>,
    /// The variables that were set.
    pub used: BTreeSet<String>,
}

impl Word {
    /// The text with quotes and escapes removed and variables put in.
    ///
    /// Fails on an open quote or brace, an unknown operator, and `${x:?message}` where x has no value.
    pub fn expand(&self, scope: &dyn Scope) -> Result<Expansion, Diagnostic> {
        let mut lexer = Lexer::new(&self.raw, scope, self.escape, true);
        let (text, _) = lexer.until(None, false).map_err(|why| self.fault(&why))?;
        Ok(Expansion { text, undefined: lexer.undefined, used: lexer.used })
    }

    /// The same, split into words at blanks that are not quoted: also at those that a variable's value brings.
    pub fn expand_words(&self, scope: &dyn Scope) -> Result<Vec<String>, Diagnostic> {
        let mut lexer = Lexer::new(&self.raw, scope, self.escape, true);
        lexer.until(None, false).map(|(_, words)| words).map_err(|why| self.fault(&why))
    }

    fn fault(&self, why: &str) -> Diagnostic {
        Diagnostic::error(self.span, format!("{:?}: {why}", self.raw))
    }
}

/// The text of a heredoc whose delimiter was not quoted: variables are put in, quotes stay, and an escape character
/// keeps the next character from meaning anything.
pub fn expand_heredoc(content: &str, escape: char, scope: &dyn Scope) -> Result<String, Diagnostic> {
    let mut lexer = Lexer::new(content, scope, escape, false);
    let expanded = lexer.until(None, false);
    expanded
        .map(|(text, _)| text)
        .map_err(|why| Diagnostic::error(Span::default(), format!("heredoc: {why}")))
}

/// Names deeper than this are no use to anybody: a limit keeps hostile input from exhausting the stack.
const MAX_DEPTH: usize = 64;

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    scope: &'a dyn Scope,
    escape: char,
    quotes: bool,
    depth: usize,
    undefined: Vec<String>,
    used: BTreeSet<String>,
}

#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
    in_word: bool,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.raw(c);
        } else if self.in_word && !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
            self.in_word = false;
        }
    }

    fn raw(&mut self, c: char) {
        self.current.push(c);
        self.in_word = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, scope: &'a dyn Scope, escape: char, quotes: bool) -> Self {
        Self {
            rest: text.chars().peekable(),
            scope,
            escape,
            quotes,
            depth: 0,
            undefined: Vec::new(),
            used: BTreeSet::new(),
        }
    }

    /// Reads up to `stop` (taken, not given) or to the end. `raw_escapes` keeps escape characters, for patterns.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("the variables are nested too deeply".to_owned());
        }
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(&c) = self.rest.peek() {
            if Some(c) == stop {
                self.rest.next();
                self.depth -= 1;
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                }
                '\'' if self.quotes => self.quoted(&mut text, &mut words, Self::single)?,
                '"' if self.quotes => {
                    self.quoted(&mut text, &mut words, |lexer| lexer.double(raw_escapes))?;
                }
                _ => {
                    self.rest.next();
                    if c != self.escape {
                        words.push(c);
                        text.push(c);
                        continue;
                    }
                    if raw_escapes {
                        words.raw(c);
                        text.push(c);
                    }
                    if let Some(next) = self.rest.next() {
                        words.raw(next);
                        text.push(next);
                    }
                }
            }
        }
        self.depth -= 1;
        match stop {
            None => Ok((text, words.finish())),
            Some('}') => Err("syntax error: missing '}'".to_owned()),
            Some(stop) => Err(format!("syntax error: missing '{stop}' in ${{}}")),
        }
    }

    fn quoted(
        &mut self,
        text: &mut String,
        words: &mut Words,
        read: impl Fn(&mut Self) -> Result<String, String>,
    ) -> Result<(), String> {
        let inner = read(self)?;
        words.in_word = true;
        words.current.push_str(&inner);
        text.push_str(&inner);
        Ok(())
    }

    fn single(&mut self) -> Result<String, String> {
        self.rest.next();
        let mut text = String::new();
        for c in self.rest.by_ref() {
            if c == '\'' {
                return Ok(text);
            }
            text.push(c);
        }
        Err("a single quote is not closed".to_owned())
    }

    fn double(&mut self, raw_escapes: bool) -> Result<String, String> {
        self.rest.next();
        let mut text = String::new();
        loop {
            match self.rest.peek().copied() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => {
                    self.rest.next();
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) => {
                    self.rest.next();
                    if c != self.escape {
                        text.push(c);
                        continue;
                    }
                    if raw_escapes {
                        text.push(c);
                    }
                    match self.rest.peek().copied() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == self.escape => {
                            self.rest.next();
                            text.push(next);
                        }
                        Some(_) => text.push(c),
                    }
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.rest.next();
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { self.value(&name).unwrap_or_default() });
        }
        self.rest.next();
        match self.rest.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            _ => {}
        }
        let name = self.name();
        match self.rest.next() {
            Some('}') => Ok(self.value(&name).unwrap_or_default()),
            Some(':') => {
                let operator = self.rest.next();
                match operator {
                    Some(operator @ ('+' | '-' | '?')) => self.default_or_error(&name, operator, true),
                    other => Err(unsupported(&format!(":{}", other.map_or(String::new(), String::from)))),
                }
            }
            Some(operator @ ('+' | '-' | '?')) => self.default_or_error(&name, operator, false),
            Some(operator @ ('#' | '%')) => self.trim(&name, operator),
            Some('/') => self.replace(&name),
            Some(other) => Err(unsupported(&other.to_string())),
            None => Err("syntax error: missing '}'".to_owned()),
        }
    }

    fn default_or_error(
        &mut self,
        name: &str,
        operator: char,
        empty_is_unset: bool,
    ) -> Result<String, String> {
        let (word, _) = self.until(Some('}'), false)?;
        let asked = operator == '-' || operator == '+' || operator == '?';
        let before = self.undefined.len();
        let value = self.value(name);
        if asked {
            // Whoever gives a default knows that it may be unset.
            self.undefined.truncate(before);
        }
        let present = value.as_deref().is_some_and(|value| !(empty_is_unset && value.is_empty()));
        match operator {
            '-' => Ok(if present { value.unwrap_or_default() } else { word }),
            '+' => Ok(if present { word } else { String::new() }),
            _ if present => Ok(value.unwrap_or_default()),
            _ if !word.is_empty() => Err(format!("{name}: {word}")),
            _ if value.is_none() => Err(format!("{name}: is not allowed to be unset")),
            _ => Err(format!("{name}: is not allowed to be empty")),
        }
    }

    fn trim(&mut self, name: &str, operator: char) -> Result<String, String> {
        let (word, _) = self.until(Some('}'), true)?;
        let value = self.value(name).unwrap_or_default();
        let (pattern, longest) = match word.strip_prefix(operator) {
            Some(rest) => (rest, true),
            None => (word.as_str(), false),
        };
        let pattern = ShellPattern::new(pattern);
        Ok(if operator == '#' {
            pattern.trim_start(&value, longest)
        } else {
            pattern.trim_end(&value, longest)
        })
    }

    fn replace(&mut self, name: &str) -> Result<String, String> {
        let all = self.rest.next_if_eq(&'/').is_some();
        let (pattern, _) = self.until(Some('/'), true)?;
        let (with, _) = self.until(Some('}'), true)?;
        let value = self.value(name).unwrap_or_default();
        Ok(ShellPattern::new(&pattern).replace(&value, &with, all))
    }

    /// A name, a number, or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(&c) = self.rest.peek() {
            if name.is_empty() {
                if c.is_ascii_digit() {
                    while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
                        name.push(digit);
                    }
                    return name;
                }
                if "@*#?-$!".contains(c) {
                    self.rest.next();
                    return c.to_string();
                }
            }
            if !c.is_alphanumeric() && c != '_' {
                break;
            }
            name.push(c);
            self.rest.next();
        }
        name
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = self.scope.get(name);
        if value.is_some() {
            self.used.insert(name.to_owned());
        } else if !self.undefined.iter().any(|other| other == name) {
            self.undefined.push(name.to_owned());
        }
        value.map(str::to_owned)
    }
}

fn unsupported(operator: &str) -> String {
    format!("unsupported modifier ({operator}) in substitution")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vars;

    impl Scope for Vars {
        fn get(&self, name: &str) -> Option<&str> {
            match name {
                "A" => Some("a"),
                "EMPTY" => Some(""),
                "PATHS" => Some("/usr/local/lib/x.tar.gz"),
                "WORDS" => Some("one  two"),
                _ => None,
            }
        }

        fn names(&self) -> Vec<String> {
            vec!["A".to_owned()]
        }
    }

    fn expand(raw: &str) -> Result<String, String> {
        let word = Word::new(raw, Span::default(), '\\');
        word.expand(&Vars).map(|expansion| expansion.text).map_err(|error| error.message)
    }

    #[test]
    fn every_operator_does_what_the_reference_says() {
        for (raw, text) in [
            ("$A", "a"),
            ("${A}b", "ab"),
            ("x$NOPE.", "x."),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A 'b'\"", "a 'b'"),
            ("\"\\$A \\\" \\n\"", "$A \" \\n"),
            ("${NOPE:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${A:+s}", "s"),
            ("${EMPTY:+s}", ""),
            ("${EMPTY+s}", "s"),
            ("${NOPE+s}", ""),
            ("${A:?no}", "a"),
            ("${NOPE:-${A}}", "a"),
            ("${PATHS#*/}", "usr/local/lib/x.tar.gz"),
            ("${PATHS##*/}", "x.tar.gz"),
            ("${PATHS%.*}", "/usr/local/lib/x.tar"),
            ("${PATHS%%.*}", "/usr/local/lib/x"),
            ("${PATHS/l/L}", "/usr/Local/lib/x.tar.gz"),
            ("${PATHS//l/L}", "/usr/LocaL/Lib/x.tar.gz"),
            ("a<<b", "a<<b"),
            ("$", "$"),
            ("a\\", "a"),
        ] {
            assert_eq!(expand(raw).as_deref(), Ok(text), "{raw}");
        }
    }

    #[test]
    fn what_is_open_or_unknown_is_an_error() {
        for raw in
            ["'a", "\"a", "${A", "${}", "${A:x}", "${A^}", "${NOPE:?}", "${EMPTY:?gone}", "${A/x", "${A:#x}"]
        {
            assert!(expand(raw).is_err(), "{raw}");
        }
        assert!(expand("${EMPTY:?gone}").unwrap_err().contains("EMPTY: gone"));
    }

    #[test]
    fn a_value_with_blanks_is_several_words_unless_quoted() {
        let words = |raw: &str| Word::new(raw, Span::default(), '\\').expand_words(&Vars).unwrap();
        assert_eq!(words("$WORDS"), ["one", "two"]);
        assert_eq!(words("\"$WORDS\""), ["one  two"]);
    }

    #[test]
    fn quotes_stay_in_a_heredoc() {
        assert_eq!(expand_heredoc("'$A' \"\\${A}\"\n", '\\', &Vars).unwrap(), "'a' \"${A}\"\n");
    }
}
