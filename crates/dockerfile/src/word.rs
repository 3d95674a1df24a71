//! Words: pieces of an instruction as they are written, quotes, escapes and variables kept.

use crate::Span;

/// A word as written. [`Word::expand`] gives its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// As written.
    pub raw: String,
    /// Where.
    pub span: Span,
    /// The file's escape character.
    pub escape: char,
}

impl Word {
    /// A word.
    pub fn new(raw: impl Into<String>, span: Span, escape: char) -> Self {
        Self { raw: raw.into(), span, escape }
    }

    /// The text with quotes and escapes removed and nothing expanded.
    pub fn literal(&self) -> String {
        let mut text = String::new();
        let mut chars = self.raw.chars().peekable();
        let mut quote = None;
        while let Some(c) = chars.next() {
            match quote {
                None if c == '"' || c == '\'' => quote = Some(c),
                Some(open) if c == open => quote = None,
                Some('\'') => text.push(c),
                Some(_) if c == self.escape => match chars.peek() {
                    Some(&next) if next == '"' || next == '$' || next == self.escape => {
                        text.push(next);
                        chars.next();
                    }
                    _ => text.push(c),
                },
                None if c == self.escape => text.extend(chars.next()),
                _ => text.push(c),
            }
        }
        text
    }
}
