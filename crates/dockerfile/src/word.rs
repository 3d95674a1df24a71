//! Words: the pieces of an instruction that may hold quotes, escapes and variables.

use std::collections::{BTreeMap, BTreeSet};

use crate::shell::{self, Reading, Rules};
use crate::{Diagnostic, Span};

/// A piece of an instruction as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Quotes, escapes and variables are all still in it. The value of a flag has lost the flag's own quotes.
    pub raw: String,
    /// Its place.
    pub span: Span,
    /// The file's escape character.
    pub escape: char,
}

/// The variables that a word sees.
pub trait Scope {
    /// The value of a variable, or `None` if it is not set.
    fn get(&self, name: &str) -> Option<&str>;

    /// All names, for suggestions.
    fn names(&self) -> Vec<String>;
}

impl Scope for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        Self::get(self, name).map(String::as_str)
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// No variables at all.
impl Scope for () {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a word came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text.
    pub text: String,
    /// The variables that were not set and had no default, in the order met.
    pub undefined: Vec<String>,
    /// The variables that were asked for, set or not.
    pub used: BTreeSet<String>,
}

impl Word {
    /// The word with variables expanded, and then without quotes and escapes.
    ///
    /// Fails on an open quote or brace, on a substitution that BuildKit does not know, and where `${x:?message}` says so.
    pub fn expand(&self, scope: &dyn Scope) -> Result<Expansion, Diagnostic> {
        Ok(Expansion::from(self.read(scope)?))
    }

    /// The words that the word falls into once it is expanded: what EXPOSE does.
    pub fn expand_words(&self, scope: &dyn Scope) -> Result<Vec<String>, Diagnostic> {
        Ok(self.read(scope)?.words)
    }

    /// The word without quotes and escapes, its variables as they are written. An open quote stays.
    pub fn literal(&self) -> String {
        let rules = Rules { ignore_variables: true, ..Rules::new(self.escape) };
        shell::read(&self.raw, rules, &()).map_or_else(|_| self.raw.clone(), |reading| reading.text)
    }

    pub(crate) fn read(&self, scope: &dyn Scope) -> Result<Reading, Diagnostic> {
        shell::read(&self.raw, Rules::new(self.escape), scope)
            .map_err(|why| failure(&self.raw, &why, self.span))
    }
}

impl From<Reading> for Expansion {
    fn from(reading: Reading) -> Self {
        let mut used = reading.set;
        used.extend(reading.unset);
        Self { text: reading.text, undefined: reading.undefined, used }
    }
}

/// The error for a text that can't be expanded.
pub(crate) fn failure(raw: &str, why: &str, span: Span) -> Diagnostic {
    const LONGEST: usize = 60;
    let shown: String = raw.chars().take(LONGEST).collect();
    let cut = if raw.chars().count() > LONGEST { "…" } else { "" };
    Diagnostic::error(span, format!("can't expand {shown}{cut}: {why}"))
}
